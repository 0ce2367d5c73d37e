"""Nearest neighbours and the queue on a GPU: the same laws, no synchronisation, a CUDA graph; skipped without one."""

import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels import Queue, nearest_neighbor
from fastssl_kernels.nearest_neighbor import nearest_neighbor_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# As in the interpreter's tests: rounding of fp32 sums, or twice that of a row to the dtype of the queue.
SHORT = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def unit(*shape, dtype):
    return F.normalize(torch.randn(*shape, device="cuda"), dim=1).to(dtype)


@pytest.mark.parametrize("stored", list(SHORT))
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(
    ("batch", "queue", "width"),
    [(1, 5, 3), (33, 1000, 64), (512, 98304, 256), (300, 65536, 128), (70, 5000, 130), (64, 3001, 600)],
)
def test_it_finds_the_nearest_rows(batch, queue, width, k, stored):
    z, rows = torch.randn(batch, width, device="cuda"), unit(queue, width, dtype=stored)
    found = nearest_neighbor(z, rows, k)
    index, similarity = found.indices.view(batch, k), found.similarity.view(batch, k)
    assert torch.equal(found.rows.view(batch, k, width), rows[index].float())
    every = F.normalize(z.double(), dim=1) @ rows.double().T
    torch.testing.assert_close(similarity.double(), every.gather(1, index), rtol=0, atol=1e-6)
    assert (every.topk(k).values - similarity).max() <= SHORT[stored] + 1e-6


def test_equal_rows_tie_to_the_lowest_index():
    queue = unit(7, 64, dtype=torch.bfloat16).repeat(3000, 1)
    z = torch.randn(200, 64, device="cuda")
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
    queue = Queue(1000, 128, device="cuda")
    z = torch.randn(300, 128, device="cuda")
    step(queue, z)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            step(queue, z)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert int(queue.pointer) == 1500 % 1000


def test_a_step_is_captured_in_a_graph():
    queue, plain = Queue(1000, 128, device="cuda"), Queue(1000, 128)
    z = torch.randn(300, 128, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(queue, z)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(queue, z)
    plain.enqueue(z.cpu())
    for _ in range(5):
        z.copy_(torch.randn_like(z))
        before = queue.rows.clone()
        graph.replay()
        torch.testing.assert_close(found.rows, before[found.indices].float())
        plain.enqueue(z.cpu())
        torch.testing.assert_close(queue.rows.cpu(), plain.rows, rtol=2**-7, atol=1e-6)
        assert int(queue.pointer) == int(plain.pointer)


def test_memory_does_not_grow_with_the_similarities():
    """A batch of 4,096 against 98,304 rows: the matrix would be 1.6 GB; rows and neighbours are 6 MB."""
    queue = Queue(98304, 256, device="cuda")
    z = torch.randn(4096, 256, device="cuda", dtype=torch.bfloat16)
    nearest_neighbor(z[:64], queue)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    nearest_neighbor(z, queue)
    assert torch.cuda.max_memory_allocated() - before < 16 * 2**20
