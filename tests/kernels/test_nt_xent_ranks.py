"""One global batch gives one loss and one gradient, on one process or on several.

Every rank holds its images' rows, backpropagates into a shared linear layer, and gradients are averaged, as
data-parallel training does. Loss, metrics and every parameter's gradient must equal those of one process.
"""

import sys

import pytest
import torch
import torch.distributed as dist
from fastssl_kernels import info_nce, nt_xent
from fastssl_kernels.adapters import NTXentLoss
from ranks import on_ranks
from torch.distributed.distributed_c10d import _resolve_process_group  # noqa: F401  (what the operators rely on)

IMAGES, WIDTH, QUEUE = 12, 10, 30
# fp32 sums in another order.
TOLERANCE = 1e-6


def contrast(layers, views, queue, case, group):
    """Loss and metrics of one case; `views` [V, images, width] are this process's images."""
    online, key_layer = layers
    if case.startswith("nt_xent"):
        rows = online(views.flatten(0, 1))
        options = {"temperature": 0.01 if case.endswith("online") else 0.2, "views": len(views), "group": group}
        return nt_xent(rows, queue=queue if "memory" in case else None, return_metrics=True, **options)
    query, key = online(views[0]), key_layer(views[1])
    if case == "info_nce queue":
        return info_nce(query, key.detach(), queue=queue, temperature=0.2, group=group, return_metrics=True)
    if case == "info_nce predicted":
        query = query.detach()
    return info_nce(query, key, temperature=0.2, group=group, return_metrics=True)


CASES = [
    "nt_xent",
    "nt_xent three views",
    "nt_xent online",
    "nt_xent memory",
    "info_nce",
    "info_nce predicted",
    "info_nce queue",
]


def inputs():
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(3, IMAGES, WIDTH, generator=generator)
    views = views[:1] + 0.5 * views
    queue = torch.nn.functional.normalize(torch.randn(QUEUE, WIDTH, generator=generator), dim=1)
    torch.manual_seed(1)
    return (torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH)), views, queue


def sent_backward():
    """Collectives of the backward pass alone."""
    calls = []
    names = [name for name in dir(dist) if name.startswith(("all_", "reduce_", "broadcast", "gather"))]
    plain = {name: getattr(dist, name) for name in names if callable(getattr(dist, name))}
    rows = torch.randn(8, WIDTH, requires_grad=True)
    loss = nt_xent(rows, temperature=0.2) + info_nce(rows[:4], rows[4:], temperature=0.2)
    for name in plain:
        setattr(dist, name, lambda *_, name=name, **__: calls.append(name))
    loss.backward()
    for name, function in plain.items():
        setattr(dist, name, function)
    return calls


def gradients(case, images, group):
    layers, views, queue = inputs()
    views = views[: 3 if "three" in case else 2, images]
    loss, metrics = contrast(layers, views, queue, case, group)
    loss.backward()
    parameters = [p for layer in layers for p in layer.parameters()]
    return [loss.detach(), *metrics, *(p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters)]


def work(rank, world, folder):
    dist.init_process_group("gloo", rank=rank, world_size=world)
    share = IMAGES // world
    images = slice(rank * share, (rank + 1) * share)
    results = {}
    for case in CASES:
        # None must mean every rank: forgetting the group is the field's commonest mistake.
        loss, accuracy, entropy, *grads = gradients(case, images, None)
        for grad in grads:
            dist.all_reduce(grad)
            grad /= world
        results[case] = [loss, accuracy, entropy, *grads]
    results["sent backward"] = sent_backward()
    first, second = torch.randn(2, share, WIDTH, generator=torch.Generator().manual_seed(rank))
    local, gathered = (NTXentLoss(0.2, gather_distributed=gather)(first, second) for gather in (False, True))
    results["adapter"] = [local, gathered, nt_xent(torch.cat([first, second]), temperature=0.2, group="local")]
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[1, 2, 4])
def ranks(request, tmp_path_factory):
    """Every rank's results, from one set of processes for all cases."""
    folder = tmp_path_factory.mktemp(f"world{request.param}")
    on_ranks(work, request.param, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over processes")
@pytest.mark.parametrize("case", CASES)
def test_ranks_agree_with_one_process(case, ranks):
    expected = gradients(case, slice(None), "local")
    assert sum(g.norm() > 0 for g in expected[3:]) >= 2
    for results in ranks:
        for ours, theirs in zip(results[case], expected, strict=True):
            # τ = 0.01 leaves losses of 1e-6 and gradients of 1e-4: differences of numbers near 1, and near 1/τ.
            least = 1e-2 if case.endswith("online") else 1e-3
            assert (ours - theirs).norm() <= TOLERANCE * theirs.norm().clamp(min=least)


def test_the_adapter_gathers_only_if_told(ranks):
    local = torch.stack([results["adapter"][0] for results in ranks])
    gathered = torch.stack([results["adapter"][1] for results in ranks])
    assert local.unique().numel() == len(ranks)
    assert gathered.unique().numel() == 1
    assert gathered[0] > local.max() or len(ranks) == 1
    assert torch.equal(local, torch.stack([results["adapter"][2] for results in ranks]))


def test_the_backward_pass_sends_nothing(ranks):
    """Rows travel once, forward: each rank then has the whole gradient of its own."""
    assert [results["sent backward"] for results in ranks] == [[]] * len(ranks)
