"""RELIC's Triton kernels, through the launcher a GPU uses, under the corrected interpreter."""

import pytest
import torch
import torch.distributed as dist
from fastssl_kernels.relic import cost, launch, relic_reference
from fastssl_kernels.relic.pairs import Pairs, padded_columns
from fastssl_kernels.tile import Tile, padded_rows
from proof.interpreter import checked, same_in_any_order
from ranks import on_ranks
from torch.utils._python_dispatch import TorchDispatchMode

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
TOLERANCE = {F32: 1e-5, BF16: 5e-3, F16: 2e-3}
SMALL = {"sums": Tile(128, 32, 32, 4, 2), "gradient": Tile(64, 64, 32, 4, 2)}


def small_tile(kernel, width, products, target, columns):
    tile = SMALL[kernel]
    return tile._replace(piece=min(width, 32), streamed=min(tile.streamed, columns))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Small tiles, so that small batches have many; widths above 32 go in pieces."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    monkeypatch.setattr(launch, "tile_for", small_tile)


def crops(batch, width, views, noise=1.0):
    large, small = views
    images = torch.randn(batch, width)
    online, target = (images + noise * torch.randn(n, batch, width) for n in (large + small, large))
    return online.flatten(0, 1), target.flatten(0, 1)


def relative(ours, exact):
    assert ours.isfinite().all()
    return ((ours.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def on_kernels(online, target, negatives, pairs, metrics=False):
    """Loss, metrics and gradient as the registered operators compute them on a GPU."""
    loss, statistics, columns, table = launch.relic_forward(online, target, negatives, pairs, metrics, True, "")
    gradient = launch.relic_backward(torch.tensor(2.0), online, target, negatives, columns, table, pairs, "")
    return loss, statistics, gradient


# batch, width, views, self pairs, negatives, temperature, alpha, stop, dtype, products, metrics, noise
CASES = [
    (1, 16, (2, 0), False, None, 0.2, 1.0, "second", F32, F32, True, 1.0),
    (130, 20, (2, 0), False, None, 0.2, 1.0, "second", F32, F32, True, 1.0),
    (130, 20, (2, 0), False, None, 0.2, 1.0, "first", F32, F32, False, 1.0),
    (130, 20, (2, 0), False, None, 0.2, 1.0, "entropy", F32, F32, False, 1.0),
    (130, 16, (2, 0), False, None, 0.2, 0.0, "second", F32, F32, True, 1.0),
    (70, 16, (2, 0), True, None, 0.2, 0.5, "entropy", F32, F32, True, 1.0),
    (40, 16, (3, 1), False, None, 0.2, 0.5, "first", F32, F32, True, 1.0),
    (70, 50, (2, 2), True, 10, 0.2, 0.3, "entropy", F32, F32, True, 1.0),
    (33, 16, (4, 2), True, 10, 0.2, 0.3, "second", F32, F32, False, 1.0),
    (70, 16, (1, 2), True, 70, 0.2, 0.3, "first", F32, F32, False, 1.0),
    (20, 16, (2, 1), False, 0, 0.2, 0.3, "second", F32, F32, True, 1.0),
    (20, 16, (2, 1), False, 4, 0.2, 0.0, "second", F32, F32, True, 1.0),
    (70, 16, (2, 1), True, None, 0.005, 0.3, "second", F32, F32, True, 1.0),
    (70, 33, (2, 1), True, 40, 0.01, 0.3, "entropy", F32, F32, True, 1.0),
    (127, 32, (2, 0), False, None, 0.2, 1.0, "second", BF16, BF16, True, 0.3),
    (127, 32, (2, 1), True, 10, 0.2, 0.3, "entropy", BF16, BF16, True, 0.3),
    (70, 40, (2, 1), True, None, 0.2, 0.3, "first", F32, BF16, False, 1.0),
    (70, 32, (2, 1), True, 10, 0.2, 0.3, "second", F16, F16, True, 0.5),
    (127, 32, (2, 0), False, None, 0.1, 1.0, "entropy", F16, F16, False, 1.0),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_relic(case):
    batch, width, views, self_pairs, drawn, temperature, alpha, stop, dtype, products, metrics, noise = case
    online, target = (t.to(dtype) for t in crops(batch, width, views, noise))
    negatives = None if drawn is None else torch.randperm(batch)[:drawn]
    pairs = Pairs(*views, batch, temperature, alpha, self_pairs, stop, products)
    exact = online.double().requires_grad_()
    expected, counted = relic_reference(
        exact,
        target.double(),
        views=views,
        temperature=temperature,
        alpha=alpha,
        negatives=negatives,
        self_pairs=self_pairs,
        stop_gradient=stop,
        return_metrics=True,
    )
    (2 * expected).backward()
    (loss, statistics, gradient), work = same_in_any_order(
        lambda: on_kernels(online, target, negatives, pairs, metrics), 2
    )
    tolerance = TOLERANCE[products] * (1 if temperature > 0.05 else 4)
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)
    if metrics:
        for mine, theirs in zip(statistics[[0, 1, 3]], (*counted[:2], counted.entropy), strict=True):
            assert mine.item() == pytest.approx(theirs.item(), rel=10 * tolerance, abs=10 * tolerance)
        assert statistics[2].item() == pytest.approx(
            counted.accuracy.item(), abs=1e-6 if products == F32 else 2 / batch
        )
    assert gradient.dtype == dtype
    assert relative(gradient, exact.grad) <= tolerance if exact.grad.norm() > 1e-12 else gradient.abs().max() < 1e-6
    assert work.atomic == 0


@pytest.mark.parametrize("noise", [0.1, 0.01])
@pytest.mark.parametrize("products", [F32, BF16])
def test_aligned_views_keep_their_gradient(products, noise):
    online, target = (t.to(products) for t in crops(66, 32, (2, 1), noise))
    exact = online.double().requires_grad_()
    (2 * relic_reference(exact, target.double(), views=(2, 1), temperature=0.2, alpha=0.5)).backward()
    with checked():
        _, _, gradient = on_kernels(online, target, None, Pairs(2, 1, 66, 0.2, 0.5, True, "second", products))
    assert relative(gradient, exact.grad) <= 2 * TOLERANCE[products]


@pytest.mark.parametrize(
    ("large", "small", "self_pairs", "invariance", "sampled", "stop", "width"),
    [
        (2, 0, False, True, False, "second", 32),
        (2, 0, True, True, False, "entropy", 64),
        (2, 0, False, False, False, "second", 32),
        (3, 2, True, True, True, "second", 32),
        (2, 2, True, True, True, "entropy", 64),
        (2, 1, False, True, True, "entropy", 32),
        (2, 1, False, False, True, "second", 64),
    ],
)
def test_work_is_what_the_formulas_say(large, small, self_pairs, invariance, sampled, stop, width):
    batch, drawn = 128, 40
    online, target = (t.bfloat16() for t in crops(batch, width, (large, small)))
    negatives = torch.randperm(batch)[:drawn] if sampled else None
    pairs = Pairs(large, small, batch, 0.2, 0.3 if invariance else 0.0, self_pairs, stop, BF16)
    count = drawn if sampled else batch
    columns_padded = padded_columns(count)
    shapes = {"large": large, "small": small, "self_pairs": self_pairs, "invariance": invariance, "sampled": sampled}
    z, _ = launch._unit_rows(online, pairs.views, padded_rows(batch), BF16)
    columns = launch._columns(target, negatives, pairs, "")
    with checked() as work:
        partial = launch._sums(z, columns, negatives, pairs, False, "")
    tile = small_tile("sums", width, BF16, "", columns_padded)
    splits = len(partial)
    statistics = 1 + invariance + (invariance and stop == "entropy")
    expected = cost.sums_cost(
        batch, width, count, columns_padded, tile, splits=splits, statistics=statistics, itemsize=2, **shapes
    )
    assert (work.dot_flops, work.exponentials) == (expected.flops, expected.exponentials)
    assert work.loaded + work.stored == expected.bytes

    table = torch.zeros(3, pairs.views * large, batch)
    with checked() as work:
        partial = launch._weighted_sums(z, columns, table, negatives, pairs, 1.0, "")
    tile = small_tile("gradient", width, BF16, "", columns_padded)
    second = stop == "entropy"
    expected = cost.gradient_cost(
        batch, width, count, columns_padded, tile, splits=len(partial), second=second, itemsize=2, **shapes
    )
    assert (work.dot_flops, work.exponentials) == (expected.flops, expected.exponentials)
    assert work.loaded + work.stored == expected.bytes


def test_all_other_images_are_within_a_third_of_the_floor():
    """RELIC's two crops on whole tiles: one product a pair forward, like the floor; three backward for two."""
    batch, width = 128, 32
    online, target = (t.bfloat16() for t in crops(batch, width, (2, 0)))
    pairs = Pairs(2, 0, batch, 0.2, 1.0, False, "second", BF16)
    floors = cost.relic_floor(batch, width, batch, large=2, small=0, self_pairs=False)
    with checked() as forward:
        _, _, columns, table = launch.relic_forward(online, target, None, pairs, False, True, "")
    with checked() as backward:
        launch.relic_backward(torch.ones(()), online, target, None, columns, table, pairs, "")
    assert forward.dot_flops == floors[0].flops
    assert backward.dot_flops == 1.5 * floors[1].flops
    assert forward.launches == 5
    assert backward.launches == 3


class _NoSynchronisation(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func._schema.name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"), func
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_back():
    online, target = crops(20, 16, (2, 1))
    pairs = Pairs(2, 1, 20, 0.2, 0.5, True, "entropy", F32)
    with _NoSynchronisation():
        on_kernels(online, target, None, pairs, metrics=True)
        on_kernels(online, target, torch.tensor([3, 4]), pairs)


IMAGES, RANKS = 20, 2


def _inputs():
    torch.manual_seed(0)
    online, target = crops(RANKS * IMAGES, 16, (2, 1))
    return online.view(3, -1, 16), target.view(2, -1, 16), torch.randperm(RANKS * IMAGES)[:9]


def _rank(rank, world, folder):
    dist.init_process_group("gloo", rank=rank, world_size=world)
    launch.tile_for = small_tile
    online, target, negatives = _inputs()
    own = slice(rank * IMAGES, (rank + 1) * IMAGES)
    online, target = online[:, own].flatten(0, 1), target[:, own].flatten(0, 1)
    name, results = dist.group.WORLD.group_name, []
    for products, drawn in ((F32, None), (BF16, negatives)):
        pairs = Pairs(2, 1, IMAGES, 0.2, 0.5, True, "entropy", products)
        loss, _, columns, table = launch.relic_forward(online, target, drawn, pairs, True, True, name)
        gradient = launch.relic_backward(torch.ones(()), online, target, drawn, columns, table, pairs, name)
        results += [loss, gradient]
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_share_one_gradient(tmp_path):
    on_ranks(_rank, RANKS, str(tmp_path))
    online, target, negatives = _inputs()
    expected = []
    for drawn in (None, negatives):
        exact = online.flatten(0, 1).double().requires_grad_()
        options = {"views": (2, 1), "temperature": 0.2, "alpha": 0.5, "stop_gradient": "entropy"}
        loss = relic_reference(exact, target.flatten(0, 1).double(), negatives=drawn, **options)
        loss.backward()
        expected += [loss.detach(), exact.grad.view(3, -1, 16)]
    for rank in range(RANKS):
        own = slice(rank * IMAGES, (rank + 1) * IMAGES)
        for k, ours in enumerate(torch.load(tmp_path / f"{rank}.pt")):
            theirs = expected[k]
            theirs = theirs[:, own].flatten(0, 1) * RANKS if theirs.dim() else theirs
            assert relative(ours, theirs) <= TOLERANCE[F32 if k < 2 else BF16]
