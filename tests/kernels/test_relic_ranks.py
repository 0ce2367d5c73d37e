"""One global batch gives RELIC one loss and one gradient, on one process or on several."""

import sys

import pytest
import torch
import torch.distributed as dist
from fastssl_kernels import relic, sample_negatives
from ranks import on_ranks

IMAGES, WIDTH = 12, 10
# fp32 sums in another order.
TOLERANCE = 1e-6
CASES = {
    "relic": {"views": (2, 0), "self_pairs": False, "alpha": 1.0},
    "relic v2": {"views": (2, 1), "alpha": 0.3, "drawn": 5},
    "relic v2 through both": {"views": (2, 1), "alpha": 0.3, "drawn": 5, "stop_gradient": "entropy"},
    "low temperature": {"views": (2, 1), "alpha": 0.3, "temperature": 0.02},
    "without invariance": {"views": (2, 1), "alpha": 0.0},
}


def gradients(case, images, group):
    """Loss, metrics and gradients of a linear layer that all online rows pass through."""
    options = {"temperature": 0.2, **CASES[case]}
    large, small = options["views"]
    generator = torch.Generator().manual_seed(0)
    crops = torch.randn(large + small + large, IMAGES, WIDTH, generator=generator)
    crops = crops[:1] + 0.5 * crops
    torch.manual_seed(1)
    layer = torch.nn.Linear(WIDTH, WIDTH)
    drawn = options.pop("drawn", None)
    if drawn:
        options["negatives"] = sample_negatives(IMAGES, drawn, seed=0, step=3)
    online = layer(crops[: large + small, images].flatten(0, 1))
    target = crops[large + small :, images].flatten(0, 1)
    loss, metrics = relic(online, target, group=group, return_metrics=True, **options)
    loss.backward()
    return [loss.detach(), *metrics, layer.weight.grad, layer.bias.grad]


def work(rank, world, folder):
    dist.init_process_group("gloo", rank=rank, world_size=world)
    share = IMAGES // world
    results = {}
    for case in CASES:
        # None must mean every rank.
        values = gradients(case, slice(rank * share, (rank + 1) * share), None)
        for grad in values[5:]:
            dist.all_reduce(grad)
            grad /= world
        results[case] = values
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
    assert all(grad.norm() > 0 for grad in expected[5:])
    for results in ranks:
        for ours, theirs in zip(results[case], expected, strict=True):
            assert (ours - theirs).norm() <= TOLERANCE * theirs.norm()
