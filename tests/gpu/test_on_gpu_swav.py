"""Sinkhorn and SwAV's loss on a GPU: the same laws, no synchronisation, a CUDA graph, memory."""

import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels import sinkhorn, sinkhorn_from_features, swapped_prediction
from fastssl_kernels.sinkhorn import sinkhorn_reference
from fastssl_kernels.swapped_prediction import swapped_prediction_reference
from laws import TOLERANCE, assert_codes, exact_swapped_prediction, loss_scale, relative
from on_device import DEVICE, ON_GPU, captured, large, no_synchronisation, peak_bytes

pytestmark = pytest.mark.gpu


def unit(*shape):
    return F.normalize(torch.randn(*shape, device=DEVICE), dim=-1)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("batch", "prototypes", "queued"),
    [
        (1, 3000, 0),
        (70, 129, 33),
        (50, 20000, 0),
        pytest.param(4096, 3000, 3840, marks=large),
    ],
)
def test_codes(batch, prototypes, queued, dtype):
    weights = unit(prototypes, 128)
    scores = (unit(2, batch, 128) @ weights.T).to(dtype)
    queue = (unit(2, queued, 128) @ weights.T).to(dtype) if queued else None
    assert_codes(scores, tolerance=2e-5, queue=queue)


@pytest.mark.parametrize("size", [100.0, 1e4])
def test_large_scores(size):
    scores = torch.randint(-4, 5, (300, 700), device=DEVICE) * (size / 4)
    assert_codes(scores, tolerance=4 * 2**-24 * size / 0.0625 + 1e-5, epsilon=0.0625)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("batch", "prototypes", "queued", "width"),
    [
        (70, 129, 33, 20),
        pytest.param(4096, 3000, 3840, 128, marks=large),
    ],
)
def test_codes_from_features(batch, prototypes, queued, width, dtype):
    z, weights, queue = unit(2, batch, width).to(dtype), unit(prototypes, width).to(dtype), unit(2, queued, width)
    queue = queue.to(dtype)
    codes = sinkhorn_from_features(z, weights, queue=queue)
    expected = sinkhorn_reference(z.double() @ weights.double().T, queue=queue.double() @ weights.double().T)
    assert relative(codes, expected) <= 1e-4


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("crops", "batch", "prototypes", "width"),
    [
        (2, 1, 50, 16),
        (3, 70, 300, 256),
        pytest.param(8, 256, 3000, 128, marks=large),
    ],
)
def test_loss(crops, batch, prototypes, width, dtype):
    z, weights = (
        unit(crops * batch, width).to(dtype).requires_grad_(),
        unit(prototypes, width).to(dtype).requires_grad_(),
    )
    codes = sinkhorn_from_features(z.view(crops, batch, width)[:2], weights)
    expected, *gradients = exact_swapped_prediction(z, weights, codes, temperature=0.1)
    loss = swapped_prediction(z, weights, codes, temperature=0.1)
    scale = loss_scale(z)
    (loss * scale).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=TOLERANCE[dtype])
    for ours, theirs in zip((z, weights), gradients, strict=True):
        assert relative(ours.grad / scale, theirs) <= TOLERANCE[dtype]
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
    with no_synchronisation():
        step(z, prototypes).backward()


def test_a_step_is_captured_in_a_graph():
    z, prototypes = unit(512, 128).requires_grad_(), unit(300, 128).requires_grad_()

    def whole():
        z.grad = prototypes.grad = None
        loss = step(z, prototypes)
        loss.backward()
        return loss.detach()

    loss, replay = captured(whole)
    with torch.no_grad():
        z.copy_(unit(512, 128))
    replay()
    replayed = [loss.clone(), z.grad.clone(), prototypes.grad.clone()]
    again = whole()
    torch.testing.assert_close(replayed, [again, z.grad, prototypes.grad], rtol=1e-4, atol=1e-8)


def test_scores_are_never_stored():
    """Eight crops of 8,192 images and 3,000 prototypes: scores would be 786 MB in fp32; the codes are 197 MB. On a CPU
    an eighth of the images."""
    images = 8192 if ON_GPU else 1024
    z, prototypes = unit(8 * images, 128).bfloat16().requires_grad_(), unit(3000, 128).requires_grad_()
    codes = torch.full((2, images, 3000), 1 / 3000, device=DEVICE)
    swapped_prediction(z[: 8 * 64], prototypes, codes[:, :64].contiguous(), temperature=0.1).backward()

    def whole():
        swapped_prediction(z, prototypes, codes, temperature=0.1).backward()

    assert peak_bytes(whole, z, prototypes, codes) < (400 if ON_GPU else 50) * 2**20
