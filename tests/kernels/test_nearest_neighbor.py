"""Nearest neighbours on the CPU against their definition in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels import Queue, nearest_neighbor
from fastssl_kernels.adapters import NNMemoryBankModule
from fastssl_kernels.nearest_neighbor import cpu, native, nearest_neighbor_reference
from fastssl_kernels.nearest_neighbor.op import lookup
from laws import assert_nearest
from torch.library import opcheck

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors are small here, and a second thread only waits for the first on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, params=["torch", "native"])
def passes(request, monkeypatch):
    """Every law holds with torch's products and with those of the C library, whichever this machine prefers."""
    if request.param == "native" and not native.versions():
        pytest.skip("the library in C is not built, or has no code for this processor")
    monkeypatch.setattr(native, "preferred", lambda: request.param == "native")
    if request.param == "torch":
        monkeypatch.setattr(native, "versions", lambda: ())  # the second pass asks only for these


def unit(*shape, dtype=F32):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=1).to(dtype)


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize(
    ("batch", "queue", "width"),
    [(1, 1, 1), (1, 7, 16), (2, 64, 3), (33, 65, 33), (5, 1000, 130), (70, 3001, 64), (3, 9000, 17), (700, 300, 8)],
)
def test_it_finds_the_nearest_row(batch, queue, width, dtype):
    assert_nearest(torch.randn(batch, width), unit(queue, width, dtype=dtype))


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("k", [2, 5, 63, 500])
@pytest.mark.parametrize("queue", [500, 777, 5000])
def test_it_finds_several(queue, k, dtype):
    assert_nearest(torch.randn(9, 24), unit(queue, 24, dtype=dtype), k)


@pytest.mark.parametrize("dtype", [F32, BF16, F16, torch.float64])
def test_rows_of_any_dtype(dtype):
    z = torch.randn(20, 48).to(dtype)
    for stored in (F32, BF16, F16):
        found = assert_nearest(z, unit(400, 48, dtype=stored), 3)
        assert found.rows.dtype == dtype


def test_the_reference_is_the_smallest_distance():
    z, queue = torch.randn(30, 5, dtype=torch.float64), unit(80, 5, dtype=torch.float64)
    index, similarity = nearest_neighbor_reference(z, queue, 4)
    distance = torch.cdist(F.normalize(z, dim=1), queue)
    assert torch.equal(index, distance.argsort(1)[:, :4])
    torch.testing.assert_close(similarity, 1 - distance.sort(1).values[:, :4].square() / 2)


@pytest.mark.parametrize("stored", [F32, BF16])
def test_a_16_bit_queue_is_nearly_always_answered_exactly(stored):
    """The best few groups are compared again in fp32: 16-bit scores alone name another row for every tenth."""
    z, queue = torch.randn(400, 64), unit(8192, 64, dtype=stored)
    expected, _ = nearest_neighbor_reference(z.double(), queue.double())
    found = nearest_neighbor(z, queue)
    assert (found.indices == expected[:, 0]).float().mean() >= (1 if stored == F32 else 0.99)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("k", [1, 3])
def test_equal_rows_tie_to_the_lowest_index(dtype, k):
    queue = unit(5, 16, dtype=dtype).repeat(900, 1)[:4321]
    index = nearest_neighbor(torch.randn(50, 16), queue, k).indices.view(50, k)
    assert (index[:, 0] < 5).all()
    assert torch.equal(index, index[:, :1] + 5 * torch.arange(k))
    same = unit(1, 16, dtype=dtype).expand(3000, 16)
    assert torch.equal(nearest_neighbor(torch.randn(4, 16), same, k).indices.view(4, k), torch.arange(k).expand(4, k))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_close_rows_in_other_tiles(dtype):
    """Neighbours that differ little (a collapsing network) and stand far apart in the queue."""
    centre = unit(1, 64)
    queue = F.normalize(centre + 0.02 * torch.randn(5000, 64), dim=1).to(dtype)
    assert_nearest(centre + 0.02 * torch.randn(40, 64), queue)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_opposite_and_zero_and_long_and_short_rows(dtype):
    queue = unit(300, 16, dtype=dtype)
    z = -queue[:6].float() * torch.tensor([1e-8, 1e-3, 1.0, 1e3, 1e10, 1e15]).unsqueeze(1)
    found = assert_nearest(z, queue)
    assert torch.equal(found.indices, nearest_neighbor(-queue[:6].float(), queue).indices)
    none = nearest_neighbor(torch.zeros(2, 16), queue, 2)
    assert torch.equal(none.indices, torch.tensor([[0, 1], [0, 1]]))
    assert not none.similarity.any()
    all_negative = nearest_neighbor(-torch.ones(1, 16), torch.ones(200, 16) / 4)
    assert all_negative.similarity.item() == pytest.approx(-1)
    assert all_negative.indices.item() == 0


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_harms_no_other(bad, k):
    z, queue = torch.randn(4, 16), unit(300, 16)
    expected = nearest_neighbor(z, queue, k)
    z[1, 3] = bad
    found = nearest_neighbor(z, queue, k)
    assert (found.indices >= 0).all()
    assert (found.indices < 300).all()
    assert torch.equal(found.indices[[0, 2, 3]], expected.indices[[0, 2, 3]])


def test_a_row_finds_itself_only_after_it_was_enqueued():
    """One public implementation enqueues first, and every row's neighbour is the row."""
    queue = Queue(512, 16, dtype=F32)
    z = torch.randn(64, 16)
    before = nearest_neighbor(z, queue)
    assert (before.similarity < 0.99).all()
    queue.enqueue(z)
    after = nearest_neighbor(z, queue)
    assert torch.equal(after.indices, torch.arange(64))
    torch.testing.assert_close(after.similarity, torch.ones(64))


def test_no_gradient_and_no_view_of_the_queue():
    queue = Queue(100, 8, dtype=F32)
    z = torch.randn(5, 8, requires_grad=True)
    found = nearest_neighbor(z, queue)
    assert not any(t.requires_grad for t in found)
    kept = found.rows.clone()
    queue.enqueue(torch.randn(100, 8))
    assert torch.equal(found.rows, kept)


def test_strides():
    z, queue = torch.randn(12, 8), unit(500, 8)
    expected = nearest_neighbor(z, queue)
    wide = torch.zeros(500, 19)
    wide[:, 3:11] = queue
    views = [wide[:, 3:11], queue.t().contiguous().t(), torch.cat([torch.zeros(1), queue.flatten()])[1:].view(500, 8)]
    for view in views:
        assert torch.equal(nearest_neighbor(z.t().contiguous().t(), view).indices, expected.indices)


def test_autocast_changes_nothing():
    z, queue = torch.randn(33, 65), unit(900, 65)
    expected = nearest_neighbor(z, queue, 2)
    for dtype in (BF16, F16):
        with torch.autocast("cpu", dtype=dtype):
            found = nearest_neighbor(z, queue, 2)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_blocks_of_rows_and_columns_change_nothing(dtype, monkeypatch):
    z, queue = torch.randn(50, 32), unit(3000, 32, dtype=dtype)
    expected = nearest_neighbor(z, queue, 3)
    monkeypatch.setattr(cpu, "ROWS", 7)
    monkeypatch.setattr(cpu, "COLUMNS", 4 * cpu.GROUP)
    assert torch.equal(nearest_neighbor(z, queue, 3).indices, expected.indices)


def test_torch_library_contract():
    opcheck(lookup, (torch.randn(5, 8), unit(40, 8), 1))
    opcheck(lookup, (torch.randn(5, 8).bfloat16(), unit(40, 8, dtype=BF16), 3))


def test_it_compiles_into_one_graph():
    z, queue = torch.randn(19, 24), unit(300, 24)

    def step(z, queue):
        found = nearest_neighbor(z * 1.5, queue, 2)
        return found.rows.sum(1) + z, found.indices

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for ours, plain in zip(compiled(z, queue), step(z, queue), strict=True):
        torch.testing.assert_close(ours, plain)


def test_wrong_input_is_named():
    z, queue = torch.randn(4, 8), unit(20, 8)
    with pytest.raises(ValueError, match="k must be an integer from 1 to the 20 rows of the queue, got 21"):
        nearest_neighbor(z, queue, 21)
    for k in (0, -1, 1.0, True):
        with pytest.raises(ValueError, match="k must be an integer from 1"):
            nearest_neighbor(z, queue, k)
    with pytest.raises(ValueError, match="queue must have the width of z, 8, got 7"):
        nearest_neighbor(z, queue[:, :7])
    with pytest.raises(ValueError, match=r"z must be \[rows, width\] .* got \(8,\)"):
        nearest_neighbor(z[0], queue)
    with pytest.raises(ValueError, match=r"z must be \[rows, width\] .* got \(0, 8\)"):
        nearest_neighbor(z[:0], queue)
    with pytest.raises(ValueError, match=r"queue must be \[rows, width\] .* got \(0, 8\)"):
        nearest_neighbor(z, queue[:0])
    with pytest.raises(ValueError, match="queue must be on the device of z, cpu, got meta"):
        nearest_neighbor(z, queue.to("meta"))
    with pytest.raises(TypeError, match=r"queue must be float32, bfloat16 or float16, got torch.float64"):
        nearest_neighbor(z, queue.double())
    with pytest.raises(TypeError, match=r"z must be a floating-point tensor, got torch.int64"):
        nearest_neighbor(z.long(), queue)
    with pytest.raises(TypeError, match="queue must be a floating-point tensor, got list"):
        nearest_neighbor(z, [1.0])


# ------------------------------------------------------------------------------------------------------- the adapter


def test_the_adapter_agrees_with_the_original():
    """As long as what comes in has length one; the original keeps other lengths and forgets rows where it wraps."""
    lightly = pytest.importorskip("lightly.models.modules")
    theirs, ours = lightly.NNMemoryBankModule(size=(96, 8)), NNMemoryBankModule(size=(96, 8))
    ours.queue.rows.copy_(theirs.bank)
    for step in range(6):
        z = unit(32, 8).requires_grad_()
        update = step != 2
        expected, found = theirs(z, update=update), ours(z, update=update)
        torch.testing.assert_close(found, expected)
        assert not found.requires_grad
    torch.testing.assert_close(ours.queue.rows, theirs.bank)


def test_the_adapter_keeps_its_bank_in_the_state_and_every_row_of_a_batch():
    ours = NNMemoryBankModule(size=[10, 4])
    z = unit(7, 4)
    for _ in range(2):
        ours(z, update=True)
    torch.testing.assert_close(ours.queue.newest(7), z.flip(0))
    assert {"queue.rows", "queue.pointer"} <= set(ours.state_dict())
    ours(z)
    torch.testing.assert_close(ours.queue.newest(7), z.flip(0))


@pytest.mark.parametrize("size", [0, 5, (0, 4), (4,), (1, 2, 3)])
def test_the_adapter_needs_rows_and_width(size):
    with pytest.raises(ValueError, match=r"size must be \(rows, width\)"):
        NNMemoryBankModule(size)
