"""NT-Xent and InfoNCE on a GPU: the same laws, no synchronisation, and a CUDA graph; skipped where there is none."""

import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels import info_nce, nt_xent
from fastssl_kernels.nt_xent import info_nce_reference, nt_xent_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def relative(ours, exact):
    assert ours.isfinite().all()
    return ((ours.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("metrics", [False, True])
@pytest.mark.parametrize(
    ("batch", "width", "views"),
    [(2, 16, 2), (127, 128, 2), (1024, 128, 2), (300, 256, 3), (130, 600, 2), (4096, 128, 2)],
)
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_nt_xent(batch, width, views, temperature, metrics, dtype):
    images = torch.randn(batch, width, device="cuda", dtype=torch.float64)
    z = (images + 0.5 * torch.randn(views, *images.shape, device="cuda")).flatten(0, 1).to(dtype)
    ours, exact = z.clone().requires_grad_(), z.double().requires_grad_()
    result = nt_xent(ours, temperature=temperature, views=views, return_metrics=metrics)
    loss = result[0] if metrics else result
    expected, counted = nt_xent_reference(exact, temperature=temperature, views=views, return_metrics=True)
    loss.backward()
    expected.backward()
    tolerance = TOLERANCE[dtype] * (1 if temperature > 0.05 else 4)
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)
    assert relative(ours.grad, exact.grad) <= tolerance or exact.grad.norm() < 1e-9
    if metrics:
        assert result[1].accuracy.item() == pytest.approx(counted.accuracy.item(), abs=0.02)
        assert result[1].entropy.item() == pytest.approx(counted.entropy.item(), rel=10 * tolerance, abs=10 * tolerance)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("queue", [None, 1000, 65536])
@pytest.mark.parametrize(("batch", "width"), [(256, 128), (70, 256)])
def test_info_nce(batch, width, queue, dtype):
    query = F.normalize(torch.randn(batch, width, device="cuda"), dim=1).to(dtype)
    key = (0.3 * query + F.normalize(torch.randn(batch, width, device="cuda"), dim=1)).to(dtype)
    negatives = None if queue is None else F.normalize(torch.randn(queue, width, device="cuda"), dim=1).to(dtype)
    ours = [t.clone().requires_grad_() for t in (query, key)]
    exact = [t.double().requires_grad_() for t in (query, key)]
    loss = info_nce(*ours, queue=negatives, temperature=0.1)
    expected = info_nce_reference(*exact, queue=None if queue is None else negatives.double(), temperature=0.1)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=TOLERANCE[dtype])
    for mine, other in zip(ours, exact, strict=True):
        assert relative(mine.grad, other.grad) <= TOLERANCE[dtype]


def test_a_step_neither_synchronises_nor_leaves_the_device():
    z = torch.randn(512, 128, device="cuda", requires_grad=True)
    queue = F.normalize(torch.randn(4096, 128, device="cuda"), dim=1)

    def step():
        loss, metrics = nt_xent(z, temperature=0.1, return_metrics=True)
        (loss + info_nce(z[:256], z[256:], queue=queue, temperature=0.1)).backward()
        return metrics

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_is_captured_in_a_graph():
    z = torch.randn(512, 128, device="cuda", requires_grad=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            z.grad = None
            nt_xent(z, temperature=0.1).backward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    z.grad = None
    with torch.cuda.graph(graph):
        loss = nt_xent(z, temperature=0.1)
        loss.backward()
    with torch.no_grad():
        z.copy_(torch.randn_like(z))
    graph.replay()
    exact = z.detach().double().requires_grad_()
    expected = nt_xent_reference(exact, temperature=0.1)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert relative(z.grad, exact.grad) <= 1e-5


def test_memory_is_linear_in_the_batch():
    """B = 32,768: a matrix of logits would be 16 GB; the rows are 16 MB in bf16."""
    z = torch.randn(65536, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    nt_xent(z[:1024], temperature=0.1).backward()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    nt_xent(z, temperature=0.1).backward()
    assert torch.cuda.max_memory_allocated() - before < 160 * 2**20
