"""The queue of embeddings: what goes in, in which order, and what survives."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels import Queue, info_nce, nearest_neighbor
from fastssl_kernels.nearest_neighbor.queue import enqueue
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def batches(count, rows, width=6):
    return list(torch.randn(count, rows, width).unbind())


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_begins_full_of_random_directions(dtype):
    queue = Queue(9000, 32, dtype=dtype)
    assert queue.rows.dtype == dtype
    # A rounded row is as long as its rounding allows: 2⁻⁸ for bfloat16.
    assert (queue.rows.double().norm(dim=1) - 1).abs().max() <= {torch.float32: 1e-6}.get(dtype, 4e-3)
    # Uniform on the sphere: mean 0 ± 1/√(9000·32), variance 1/32 of every coordinate; no row twice.
    assert queue.rows.double().mean().abs() <= 5 / (9000 * 32) ** 0.5 / 32**0.5
    assert queue.rows.double().var(0).mul(32).sub(1).abs().max() <= 0.08
    assert len(queue.rows.unique(dim=0)) == 9000
    assert (len(queue), queue.width, int(queue.pointer), int(queue.filled)) == (9000, 32, 0, 0)


def test_the_first_content_is_that_of_the_seed():
    assert torch.equal(Queue(50, 4).rows, Queue(50, 4).rows)
    assert not torch.equal(Queue(50, 4).rows, Queue(50, 4, seed=1).rows)
    one, other = (Queue(50, 4, seed=torch.Generator().manual_seed(7)).rows for _ in range(2))
    assert torch.equal(one, other)
    before = torch.random.get_rng_state()
    Queue(50, 4)
    assert torch.equal(torch.random.get_rng_state(), before), "drawn from the global generator"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "rows"), [(10, 4), (10, 5), (10, 10), (7, 3), (5, 1), (11, 7)])
def test_it_holds_the_last_rows_and_wrapping_drops_none(size, rows, dtype):
    """One public implementation drops the rows of a batch that do not fit before the end."""
    queue, history = Queue(size, 6, dtype=dtype), []
    for step, batch in enumerate(batches(9, rows)):
        queue.enqueue(batch)
        history.extend(F.normalize(batch.double(), dim=1).to(dtype).float().numpy())
        entered = (step + 1) * rows
        assert int(queue.pointer) == entered % size
        assert int(queue.filled) == min(entered, size)
        expected = np.stack(history[::-1][: min(entered, size)])
        newest = queue.newest(min(entered, size)).float().numpy()
        # Division by the length in float32 against float64: one unit of the stored dtype.
        np.testing.assert_allclose(newest, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_rows_that_did_not_leave_are_not_touched():
    queue = Queue(8, 6)
    before = queue.rows.clone()
    queue.enqueue(torch.randn(3, 6))
    assert torch.equal(queue.rows[3:], before[3:])
    assert not torch.equal(queue.rows[:3], before[:3])


def test_newest_first():
    queue = Queue(5, 2, dtype=torch.float32)
    for angle in range(7):
        queue.enqueue(torch.tensor([[np.cos(angle), np.sin(angle)]], dtype=torch.float32))
    angles = torch.atan2(*queue.newest(4).flip(1).unbind(1)).remainder(2 * np.pi)
    torch.testing.assert_close(angles, torch.tensor([6.0, 5.0, 4.0, 3.0]))
    assert queue.newest(0).shape == (0, 2)
    copied = queue.newest(2)
    queue.enqueue(torch.ones(1, 2))
    assert not torch.equal(copied, queue.newest(2))


def test_rows_enter_detached_and_with_length_one():
    queue = Queue(6, 4, dtype=torch.float32)
    rows = (torch.randn(3, 4) * torch.tensor([[1e-9], [1.0], [1e9]])).requires_grad_()
    queue.enqueue(rows)
    assert not queue.rows.requires_grad
    torch.testing.assert_close(queue.rows[:3], F.normalize(rows.detach().double(), dim=1).float())
    queue.enqueue(torch.zeros(1, 4))
    assert torch.equal(queue.rows[3], torch.zeros(4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_rows_of_any_dtype_and_stride(dtype):
    rows = torch.randn(4, 6).to(dtype)
    plain, strided = Queue(8, 6, dtype=torch.float32), Queue(8, 6, dtype=torch.float32)
    plain.enqueue(rows)
    wide = torch.zeros(4, 15, dtype=dtype)
    wide[:, 3:9] = rows
    strided.enqueue(wide[:, 3:9])
    assert torch.equal(plain.rows, strided.rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        strided.enqueue(rows.t().contiguous().t())
    plain.enqueue(rows)
    assert torch.equal(plain.rows, strided.rows)


def test_a_saved_queue_goes_on_as_the_original():
    """In a public implementation queue and pointer are not part of the state."""
    queue = Queue(10, 6)
    first, second = batches(2, 7)
    queue.enqueue(first)
    other = Queue(10, 6, seed=5)
    other.load_state_dict(copy.deepcopy(queue.state_dict()))
    for each in (queue, other):
        each.enqueue(second)
    for name, value in queue.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert set(queue.state_dict()) == {"rows", "pointer", "filled"}
    with pytest.raises(RuntimeError, match="size mismatch"):
        Queue(9, 6).load_state_dict(queue.state_dict())


def test_it_serves_info_nce():
    """MoCo: contrast first, enqueue afterwards; the backward pass does not see what came in."""
    queue = Queue(64, 16, dtype=torch.float32)
    query = torch.randn(8, 16, requires_grad=True)
    key = torch.randn(8, 16)
    loss = info_nce(query, key, queue=queue.rows, temperature=0.2)
    queue.enqueue(key)
    loss.backward()
    again = query.detach().clone().requires_grad_()
    info_nce(again, key, queue=Queue(64, 16, dtype=torch.float32).rows, temperature=0.2).backward()
    assert torch.equal(query.grad, again.grad)


def test_torch_library_contract():
    queue = Queue(10, 6)
    opcheck(enqueue, (queue.rows, queue.pointer, queue.filled, torch.randn(4, 6), ""))


def test_a_step_compiles_into_one_graph():
    plain, traced = Queue(20, 6), Queue(20, 6)

    def step(queue, z):
        found = nearest_neighbor(z * 2, queue)
        queue.enqueue(z)
        return found.rows + 1

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for z in batches(3, 8):
        assert torch.equal(compiled(traced, z), step(plain, z))
        assert torch.equal(traced.rows, plain.rows)
        assert torch.equal(traced.pointer, plain.pointer)


def test_nothing_is_read_back_from_the_device():
    class NoReading(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert "_local_scalar_dense" not in str(func)
            assert "nonzero" not in str(func)
            return func(*args, **(kwargs or {}))

    queue = Queue(10, 6)
    with NoReading():
        for rows in batches(4, 4):
            # What the operator does, in the open.
            enqueue._init_fn(queue.rows, queue.pointer, queue.filled, rows, "")
            queue.newest(3)


def test_wrong_input_is_named():
    queue = Queue(10, 6)
    with pytest.raises(ValueError, match="rows must fit the queue: 11 rows of all ranks for a queue of 10"):
        queue.enqueue(torch.randn(11, 6))
    with pytest.raises(ValueError, match=r"rows must be \[B, 6\] with B at least 1, got \(4, 5\)"):
        queue.enqueue(torch.randn(4, 5))
    with pytest.raises(ValueError, match=r"got \(0, 6\)"):
        queue.enqueue(torch.randn(0, 6))
    with pytest.raises(ValueError, match=r"got \(6,\)"):
        queue.enqueue(torch.randn(6))
    with pytest.raises(TypeError, match=r"rows must be a floating-point tensor, got torch.int64"):
        queue.enqueue(torch.ones(2, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match="rows must be on the device of the queue, cpu, got meta"):
        queue.enqueue(torch.empty(2, 6, device="meta"))
    with pytest.raises(ValueError, match='group must be a process group, None or "local"'):
        queue.enqueue(torch.randn(2, 6), group="global")
    with pytest.raises(ValueError, match="count must be an integer from 0 to the 10 rows"):
        queue.newest(11)
    with pytest.raises(ValueError, match="size must be an integer of at least 1, got 0"):
        Queue(0, 6)
    with pytest.raises(ValueError, match="width must be an integer of at least 1, got -1"):
        Queue(10, -1)
    with pytest.raises(TypeError, match=r"dtype must be .* got torch.float64"):
        Queue(10, 6, dtype=torch.float64)
