"""Sinkhorn and SwAV's loss on a GPU: the same laws, no synchronisation, a CUDA graph; skipped where there is none."""

import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels import sinkhorn, sinkhorn_from_features, swapped_prediction
from fastssl_kernels.sinkhorn import sinkhorn_reference
from fastssl_kernels.swapped_prediction import swapped_prediction_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def unit(*shape):
    return F.normalize(torch.randn(*shape, device="cuda"), dim=-1)


def relative(ours, exact):
    assert ours.isfinite().all()
    return ((ours.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("batch", "prototypes", "queued"), [(1, 3000, 0), (70, 129, 33), (4096, 3000, 3840), (50, 20000, 0)]
)
def test_codes(batch, prototypes, queued, dtype):
    weights = unit(prototypes, 128)
    scores = (unit(2, batch, 128) @ weights.T).to(dtype)
    queue = (unit(2, queued, 128) @ weights.T).to(dtype) if queued else None
    codes = sinkhorn(scores, queue=queue)
    expected = sinkhorn_reference(scores.double(), queue=queue.double() if queued else None)
    assert relative(codes, expected) <= 2e-5


@pytest.mark.parametrize("size", [100.0, 1e4])
def test_large_scores(size):
    scores = torch.randint(-4, 5, (300, 700), device="cuda") * (size / 4)
    codes = sinkhorn(scores, epsilon=0.0625)
    assert relative(codes, sinkhorn_reference(scores.double(), epsilon=0.0625)) <= 4 * 2**-24 * size / 0.0625 + 1e-5


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("batch", "prototypes", "queued", "width"), [(70, 129, 33, 20), (4096, 3000, 3840, 128)])
def test_codes_from_features(batch, prototypes, queued, width, dtype):
    z, weights, queue = unit(2, batch, width).to(dtype), unit(prototypes, width).to(dtype), unit(2, queued, width)
    queue = queue.to(dtype)
    codes = sinkhorn_from_features(z, weights, queue=queue)
    expected = sinkhorn_reference(z.double() @ weights.double().T, queue=queue.double() @ weights.double().T)
    assert relative(codes, expected) <= 1e-4


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("crops", "batch", "prototypes", "width"), [(2, 1, 50, 16), (8, 256, 3000, 128), (3, 70, 300, 256)]
)
def test_loss(crops, batch, prototypes, width, dtype):
    z, weights = (
        unit(crops * batch, width).to(dtype).requires_grad_(),
        unit(prototypes, width).to(dtype).requires_grad_(),
    )
    codes = sinkhorn_from_features(z.view(crops, batch, width)[:2], weights)
    exact = [t.detach().double().requires_grad_() for t in (z, weights)]
    expected = swapped_prediction_reference(
        exact[0].view(crops, batch, width) @ exact[1].T, codes.double(), temperature=0.1
    )
    expected.backward()
    loss = swapped_prediction(z, weights, codes, temperature=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=TOLERANCE[dtype])
    for ours, theirs in zip((z, weights), exact, strict=True):
        assert relative(ours.grad, theirs.grad) <= TOLERANCE[dtype]
    scores = (z.detach() @ weights.detach().T).float().requires_grad_()
    of_scores = swapped_prediction(scores, None, codes, temperature=0.1)
    of_scores.backward()
    again = scores.detach().double().requires_grad_()
    swapped_prediction_reference(again.view(crops, batch, -1), codes.double(), temperature=0.1).backward()
    assert relative(scores.grad, again.grad) <= 1e-5


def step(z, prototypes):
    scores = z @ prototypes.T
    codes = sinkhorn(scores.view(4, -1, scores.shape[1])[:2])
    other = sinkhorn_from_features(z.view(4, -1, z.shape[1])[:2], prototypes)
    loss = swapped_prediction(z, prototypes, codes, temperature=0.1)
    return loss + swapped_prediction(scores, None, other, temperature=0.1)


def test_a_step_neither_synchronises_nor_leaves_the_device():
    z, prototypes = unit(512, 128).requires_grad_(), unit(300, 128).requires_grad_()
    step(z, prototypes).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(z, prototypes).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_is_captured_in_a_graph():
    z, prototypes = unit(512, 128).requires_grad_(), unit(300, 128).requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            z.grad = prototypes.grad = None
            step(z, prototypes).backward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    z.grad = prototypes.grad = None
    with torch.cuda.graph(graph):
        loss = step(z, prototypes)
        loss.backward()
    with torch.no_grad():
        z.copy_(unit(512, 128))
    graph.replay()
    captured = [loss.clone(), z.grad.clone(), prototypes.grad.clone()]
    z.grad = prototypes.grad = None
    again = step(z, prototypes)
    again.backward()
    torch.testing.assert_close(captured, [again, z.grad, prototypes.grad], rtol=1e-4, atol=1e-8)


def test_scores_are_never_stored():
    """Eight crops of 8,192 images and 3,000 prototypes: scores would be 786 MB in fp32; the codes are 197 MB."""
    z, prototypes = unit(8 * 8192, 128).bfloat16().requires_grad_(), unit(3000, 128).requires_grad_()
    codes = torch.full((2, 8192, 3000), 1 / 3000, device="cuda")
    swapped_prediction(z[: 8 * 64], prototypes, codes[:, :64].contiguous(), temperature=0.1).backward()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    swapped_prediction(z, prototypes, codes, temperature=0.1).backward()
    assert torch.cuda.max_memory_allocated() - before < 400 * 2**20
