"""One global batch gives one set of codes and one gradient of SwAV's loss, on one process or on several."""

import sys

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from fastssl_kernels import sinkhorn, sinkhorn_from_features, swapped_prediction
from fastssl_kernels.adapters import SwaVLoss
from ranks import on_ranks

IMAGES, QUEUE, WIDTH, PROTOTYPES, CROPS = 12, 20, 10, 30, 3
# fp32 sums in another order.
TOLERANCE = 1e-6


def inputs():
    """Images' crops [V, images, width], two queues of features [2, rows, width], and the layers of a small network."""
    torch.manual_seed(0)
    crops = torch.randn(1, IMAGES, WIDTH) + 0.3 * torch.randn(CROPS, IMAGES, WIDTH)
    queue = F.normalize(torch.randn(2, QUEUE, WIDTH), dim=-1)
    return crops, queue, torch.nn.Linear(WIDTH, WIDTH), F.normalize(torch.randn(PROTOTYPES, WIDTH), dim=1)


def results(case, images, queued, group):
    """Codes of this process's images, loss, and gradients of layer and prototypes."""
    crops, queue, layer, prototypes = inputs()
    crops, queue = crops[:, images], queue[:, queued]
    prototypes.requires_grad_()
    z = F.normalize(layer(crops), dim=-1)
    options = {"iterations": 10 if "ten" in case else 3, "group": group}
    size = 500.0 if "large" in case else 1.0
    more = queue if "queue" in case else None
    if "features" in case:
        codes = sinkhorn_from_features(z[:2] * size, prototypes, queue=more, **options)
    else:
        scores = (z @ prototypes.T) * size
        more = None if more is None else (more @ prototypes.T) * size
        # Only this process's scores may decide nothing: large ones are on the last rank.
        if "uneven" in case:
            scores = scores * (1 + 1e3 * (torch.arange(IMAGES)[images] == IMAGES - 1)[:, None])
        codes = sinkhorn(scores[:2], queue=more, **options)
    loss = swapped_prediction(z.flatten(0, 1), prototypes, codes, temperature=0.1)
    loss.backward()
    return codes, [loss.detach(), *(p.grad for p in (*layer.parameters(), prototypes))]


CASES = ["scores", "scores, queue", "ten iterations", "large scores, queue", "uneven scores", "features, queue"]


def unequal_rows(size):
    """Scores of 9, 14, 19 and 24 rows, for as many ranks as there are."""
    scores = size * torch.rand(66, PROTOTYPES, generator=torch.Generator().manual_seed(5))
    return scores.split([9, 14, 19, 24])


def work(rank, world, folder):
    dist.init_process_group("gloo", rank=rank, world_size=world)
    reduced = []
    plain = dist.all_reduce

    def counting(tensor, *args, **kwargs):
        reduced.append(tensor.numel())
        return plain(tensor, *args, **kwargs)

    shares = [slice(rank * n // world, (rank + 1) * n // world) for n in (IMAGES, QUEUE)]
    found = {}
    for case in CASES:
        # None must mean every rank: forgetting the group is the field's commonest mistake.
        dist.all_reduce, reduced[:] = counting, []
        codes, summaries = results(case, *shares, None)
        dist.all_reduce = plain
        found[case] = [codes, summaries, list(reduced)]
        for summary in summaries:
            dist.all_reduce(summary)
            summary /= world
    found["unequal"] = [sinkhorn(unequal_rows(size)[rank], group=None) for size in (1.0, 500.0)]
    scores = torch.randn(2, 8, PROTOTYPES, generator=torch.Generator().manual_seed(rank)) / 5
    found["adapter"] = [SwaVLoss(sinkhorn_gather_distributed=g)(list(scores), []) for g in (False, True)]
    found["local"] = [sinkhorn(scores[0], group="local"), sinkhorn(scores[0])]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[1, 2, 4])
def ranks(request, tmp_path_factory):
    """Every rank's results, from one set of processes for all cases."""
    folder = tmp_path_factory.mktemp(f"world{request.param}")
    on_ranks(work, request.param, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def test_ranks_may_hold_different_numbers_of_rows(ranks):
    for i, size in enumerate((1.0, 500.0)):
        together = torch.cat([found["unequal"][i] for found in ranks])
        expected = sinkhorn(torch.cat(unequal_rows(size)[: len(ranks)]), group="local")
        tolerance = TOLERANCE * (5e3 if size > 1 else 1)
        assert (together - expected).abs().max() <= tolerance


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over processes")
@pytest.mark.parametrize("case", CASES)
def test_ranks_agree_with_one_process(case, ranks):
    codes, summaries = results(case, slice(None), slice(None), "local")
    together = torch.cat([found[case][0] for found in ranks], 1)
    # Exponents of 1e4 and more are rounded before they are one.
    tolerance = TOLERANCE * (5e3 if "large" in case or "uneven" in case else 1)
    assert (together - codes).abs().max() <= tolerance
    for found in ranks:
        for ours, theirs in zip(found[case][1], summaries, strict=True):
            assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1)


@pytest.mark.parametrize("case", ["scores", "scores, queue", "features, queue"])
def test_an_iteration_sends_one_number_a_prototype(case, ranks):
    """And both crops together; what comes first is the number that decides how exponentials are taken."""
    for found in ranks:
        assert found[case][2] == ([1] + [2 * PROTOTYPES] * 3 if len(ranks) > 1 else []), "one rank has nobody to tell"


def test_all_ranks_send_the_same_whatever_their_scores(ranks):
    """A collective inside a branch that only one rank takes would hang: here one rank alone has large scores."""
    sent = [found["uneven scores"][2] for found in ranks]
    assert all(numbers == sent[0] for numbers in sent)
    assert len(sent[0]) == (1 + 1 + 3 if len(ranks) > 1 else 0)


def test_groups_are_taken_only_if_told(ranks):
    local, gathered = (torch.stack([found["adapter"][i] for found in ranks]) for i in (0, 1))
    alone = len(ranks) == 1
    assert (local == gathered if alone else local != gathered).all()
    for found in ranks:
        own, together = found["local"]
        assert torch.equal(own, together) if alone else (own - together).norm() > 1e-2 * own.norm()
