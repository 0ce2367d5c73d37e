"""The kernels of the nearest-neighbour lookup, through the launcher a GPU uses, under the corrected interpreter."""

import math

import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels.nearest_neighbor import cost, launch, nearest_neighbor_reference
from fastssl_kernels.tile import Tile, padded_rows
from proof.interpreter import checked, same_in_any_order
from torch.utils._python_dispatch import TorchDispatchMode

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
# How far from the best a chosen row may be: rounding of fp32 sums, or of the row to the dtype of the queue. The bound
# is 2⁻⁷ (2⁻¹⁰), of one rounding for either of the two that are compared; no row here comes near its half.
SHORT = {F32: 1e-6, BF16: 2**-8, F16: 2**-11}
SMALL = Tile(64, 32, 32, 4, 2)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Small tiles, so that a small queue has many; widths above 32 go in pieces."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    monkeypatch.setattr(launch, "tile_for", lambda width, *_: SMALL._replace(piece=min(width, 32)))


def unit(*shape, dtype=F32):
    return F.normalize(torch.randn(*shape, dtype=F64), dim=1).to(dtype)


def assert_nearest(z, queue, k, orders=2):
    (rows, index, similarity), work = same_in_any_order(lambda: launch.nearest_neighbor(z, queue, k), orders)
    assert torch.equal(rows, queue[index].to(z.dtype))
    every = F.normalize(z.double(), dim=1) @ queue.double().T
    torch.testing.assert_close(similarity.double(), every.gather(1, index), rtol=0, atol=1e-6)
    assert all(len(set(row)) == k for row in index.tolist())
    best = every.topk(k).values
    assert (best - similarity).max() <= SHORT[queue.dtype] + 1e-6
    assert work.atomic == 0
    return index, work


# batch, queue, width, k, z, queue
CASES = [
    (1, 1, 1, 1, F32, F32),
    (2, 31, 16, 1, F32, F32),
    (66, 300, 32, 1, F32, F32),
    (33, 320, 20, 1, F32, F32),
    (10, 333, 100, 1, F32, F32),
    (9, 333, 64, 1, F64, F32),
    (3, 500, 33, 4, F32, F32),
    (66, 96, 16, 1, F32, BF16),
    (30, 400, 48, 1, BF16, BF16),
    (5, 400, 33, 3, BF16, BF16),
    (9, 290, 32, 2, F16, F16),
    (3, 40, 16, 40, F32, F32),
    (7, 290, 16, 11, BF16, F32),
]


@pytest.mark.parametrize(("batch", "queue", "width", "k", "dtype", "stored"), CASES)
def test_it_finds_the_nearest_rows(batch, queue, width, k, dtype, stored):
    z, rows = torch.randn(batch, width).to(dtype), unit(queue, width, dtype=stored)
    index, _ = assert_nearest(z, rows, k)
    if stored == F32 and dtype == F32:
        assert torch.equal(index, nearest_neighbor_reference(z.double(), rows, k)[0])


@pytest.mark.parametrize(("batch", "queue", "width", "k"), [(66, 320, 32, 1), (5, 256, 100, 3), (3, 64, 64, 5)])
@pytest.mark.parametrize("stored", [F32, BF16])
def test_the_work_is_what_the_formulas_say(batch, queue, width, k, stored):
    z, rows = torch.randn(batch, width), unit(queue, width, dtype=stored)
    _, work = assert_nearest(z, rows, k, orders=1)
    tile = SMALL._replace(piece=32)
    splits = launch.splits_for(padded_rows(batch) // tile.owner, queue // tile.streamed, 2 * 4)
    assert splits > 1 or queue == 64
    scan = cost.scan_cost(batch, queue, width, tile, splits=splits, every=k > 1, itemsize=stored.itemsize)
    slots = queue // tile.streamed if k > 1 else splits
    pick = cost.pick_bytes(batch, width, k, tile, slots=slots, z_itemsize=4, itemsize=stored.itemsize)
    unit_bytes = cost.unit_rows_bytes(batch, width, z_itemsize=4, itemsize=stored.itemsize)
    assert work.launches == 3
    assert work.dot_flops == scan.flops
    assert work.loaded + work.stored == scan.bytes + pick + unit_bytes
    assert work.exponentials == 0


@pytest.mark.parametrize("stored", [F32, BF16])
def test_similarities_are_never_written(stored):
    """What is written of 66 × 1,024 similarities: one key a row and split, unit rows, and the results."""
    batch, queue, width = 66, 1024, 32
    z, rows = torch.randn(batch, width), unit(queue, width, dtype=stored)
    _, work = assert_nearest(z, rows, 1, orders=1)
    results = batch * (width * 4 + 8 + 4)
    unit_rows = padded_rows(batch) * width * stored.itemsize + 4 * batch
    splits = launch.splits_for(padded_rows(batch) // SMALL.owner, queue // SMALL.streamed, 2 * 4)
    assert work.stored == results + unit_rows + 8 * splits * padded_rows(batch)
    assert work.stored < 0.2 * batch * queue * 4


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("stored", [F32, BF16])
def test_equal_rows_tie_to_the_lowest_index(k, stored):
    """Across tiles and splits too: the key orders equal scores by their place."""
    queue = unit(5, 16, dtype=stored).repeat(70, 1)[:333]
    z = torch.randn(6, 16)
    (_, index, _), _ = same_in_any_order(lambda: launch.nearest_neighbor(z, queue, k))
    assert (index[:, 0] < 5).all()
    assert torch.equal(index, index[:, :1] + 5 * torch.arange(k))


@pytest.mark.parametrize("k", [1, 2])
def test_opposite_zero_long_and_short_rows(k):
    queue = unit(200, 16)
    z = -queue[:6] * torch.tensor([1e-8, 1e-3, 1.0, 1e3, 1e10, 1e15]).unsqueeze(1)
    index, _ = assert_nearest(z, queue, k)
    assert torch.equal(index, assert_nearest(-queue[:6], queue, k)[0])
    (_, index, similarity), _ = same_in_any_order(lambda: launch.nearest_neighbor(torch.zeros(2, 16), queue, k))
    assert torch.equal(index, torch.arange(k).expand(2, k))
    assert not similarity.any()
    # Every score negative: nothing that was never computed may win.
    (_, index, similarity), _ = same_in_any_order(
        lambda: launch.nearest_neighbor(-torch.ones(1, 16), torch.ones(70, 16) / 4, k)
    )
    assert torch.equal(index[0], torch.arange(k))
    torch.testing.assert_close(similarity, -torch.ones(1, k))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN slice")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_harms_no_other(bad, k):
    z, queue = torch.randn(4, 16), unit(100, 16)
    with checked():
        _, expected, _ = launch.nearest_neighbor(z, queue, k)
    z[1, 3] = bad
    with checked():
        _, index, _ = launch.nearest_neighbor(z, queue, k)
    assert ((index >= 0) & (index < 100)).all()
    assert torch.equal(index[[0, 2, 3]], expected[[0, 2, 3]])


def test_strides():
    z, queue = torch.randn(16, 9).t(), unit(100, 32)[:, ::2]
    with checked():
        found = launch.nearest_neighbor(z, queue, 2)
    with checked():
        plain = launch.nearest_neighbor(z.contiguous(), queue.contiguous(), 2)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_the_launcher_waits_for_nothing():
    class NoReading(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert "_local_scalar_dense" not in str(func)
            assert "nonzero" not in str(func)
            return func(*args, **(kwargs or {}))

    with NoReading(), checked():
        launch.nearest_neighbor(torch.randn(3, 16), unit(50, 16), 2)
