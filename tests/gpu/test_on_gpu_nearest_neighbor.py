"""Nearest neighbours and the queue on a GPU: the same laws, no synchronisation, a CUDA graph, memory."""

import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels import Queue, nearest_neighbor
from fastssl_kernels.nearest_neighbor import nearest_neighbor_reference
from laws import SHORT, assert_nearest
from on_device import DEVICE, ON_GPU, captured, large, no_synchronisation, peak_bytes

pytestmark = pytest.mark.gpu


def unit(*shape, dtype):
    return F.normalize(torch.randn(*shape, device=DEVICE), dim=1).to(dtype)


@pytest.mark.parametrize("stored", list(SHORT))
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(
    ("batch", "queue", "width"),
    [
        (1, 5, 3),
        (33, 1000, 64),
        (70, 5000, 130),
        (64, 3001, 600),
        pytest.param(300, 65536, 128, marks=large),
        pytest.param(512, 98304, 256, marks=large),
    ],
)
def test_it_finds_the_nearest_rows(batch, queue, width, k, stored):
    assert_nearest(torch.randn(batch, width, device=DEVICE), unit(queue, width, dtype=stored), k)


def test_equal_rows_tie_to_the_lowest_index():
    queue = unit(7, 64, dtype=torch.bfloat16).repeat(3000, 1)
    z = torch.randn(200, 64, device=DEVICE)
    found = nearest_neighbor(z, queue, 2)
    expected, _ = nearest_neighbor_reference(z.double(), queue[:7].double())
    assert (found.indices[:, 0] < 7).all()
    assert (found.indices[:, 0] == expected[:, 0]).float().mean() > 0.98
    assert torch.equal(found.indices[:, 1], found.indices[:, 0] + 7)


def step(queue, z):
    found = nearest_neighbor(z, queue)
    queue.enqueue(z)
    return found


def test_a_step_neither_synchronises_nor_leaves_the_device():
    queue = Queue(1000, 128, device=DEVICE)
    z = torch.randn(300, 128, device=DEVICE)
    step(queue, z)
    with no_synchronisation():
        for _ in range(4):
            step(queue, z)
    assert int(queue.pointer) == 1500 % 1000


def test_a_step_is_captured_in_a_graph():
    queue, plain = Queue(1000, 128, device=DEVICE), Queue(1000, 128)
    z = torch.randn(300, 128, device=DEVICE)
    found, replay = captured(lambda: step(queue, z))
    plain.load_state_dict(queue.state_dict())
    for _ in range(5):
        z.copy_(torch.randn_like(z))
        before = queue.rows.clone()
        replay()
        torch.testing.assert_close(found.rows, before[found.indices].float())
        plain.enqueue(z.cpu())
        torch.testing.assert_close(queue.rows.cpu(), plain.rows, rtol=2**-7, atol=1e-6)
        assert int(queue.pointer) == int(plain.pointer)


def test_memory_does_not_grow_with_the_similarities():
    """A batch of 4,096 against 98,304 rows: the matrix would be 1.6 GB; rows and neighbours are 6 MB."""
    queue = Queue(98304, 256, device=DEVICE)
    z = torch.randn(4096 if ON_GPU else 512, 256, device=DEVICE, dtype=torch.bfloat16)
    nearest_neighbor(z[:64], queue)
    assert peak_bytes(lambda: nearest_neighbor(z, queue), z, *queue.buffers()) < 16 * 2**20
