"""RELIC on a GPU: the same laws, no synchronisation, and a CUDA graph."""

import pytest
import torch
from fastssl_kernels import relic, sample_negatives
from fastssl_kernels.relic import relic_reference
from laws import TOLERANCE, assert_relic
from on_device import DEVICE, captured, large, needs_gpu, no_synchronisation

pytestmark = pytest.mark.gpu


def crops(batch, width, views, dtype=torch.float32):
    torch.manual_seed(0)
    images = torch.randn(batch, width, device=DEVICE, dtype=torch.float64)
    online, target = (images + 0.5 * torch.randn(n, *images.shape, device=DEVICE) for n in (sum(views), views[0]))
    return online.flatten(0, 1).to(dtype), target.flatten(0, 1).to(dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("stop", ["second", "first", "entropy"])
@pytest.mark.parametrize(
    ("batch", "width", "views", "self_pairs", "drawn"),
    [
        (1, 16, (2, 0), False, 0),
        (127, 128, (2, 0), False, 0),
        pytest.param(2048, 128, (2, 0), False, 0, marks=large),
        (300, 256, (4, 2), True, 10),
        (300, 256, (3, 1), False, 200),
        (130, 600, (2, 1), True, 0),
    ],
)
@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_relic(batch, width, views, self_pairs, drawn, stop, dtype, temperature):
    online, target = crops(batch, width, views, dtype)
    negatives = sample_negatives(batch, drawn, seed=0, step=0, device=DEVICE) if drawn else None
    options = {"views": views, "self_pairs": self_pairs, "negatives": negatives, "stop_gradient": stop}
    tolerance = TOLERANCE[dtype] * (1 if temperature > 0.05 else 8)
    assert_relic(online, target, tolerance=tolerance, temperature=temperature, alpha=0.3, **options)


def step(online, target, counter):
    negatives = sample_negatives(256, 10, seed=0, step=counter)
    online.grad = None
    loss = relic(online, target, views=(2, 1), temperature=0.2, alpha=0.3, negatives=negatives)
    loss.backward()
    return loss


def test_a_step_neither_synchronises_nor_leaves_the_device():
    online, target = crops(256, 128, (2, 1))
    online.requires_grad_()
    counter = torch.zeros((), dtype=torch.int64, device=DEVICE)
    step(online, target, counter)
    with no_synchronisation():
        step(online, target, counter)
        relic(online, target, views=(2, 1), temperature=0.2, alpha=0.3, return_metrics=True)[0].backward()


def test_a_captured_step_draws_anew():
    online, target = crops(256, 128, (2, 1))
    online.requires_grad_()
    counter = torch.zeros((), dtype=torch.int64, device=DEVICE)
    loss, replay = captured(lambda: step(online, target, counter))
    for moment in (1, 2):
        counter.fill_(moment)
        replay()
        negatives = sample_negatives(256, 10, seed=0, step=moment, device=DEVICE)
        exact = online.detach().double().requires_grad_()
        expected = relic_reference(
            exact, target.double(), views=(2, 1), temperature=0.2, alpha=0.3, negatives=negatives
        )
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert (online.grad - exact.grad).norm() <= 1e-5 * exact.grad.norm()


@needs_gpu
def test_devices_draw_the_same_negatives():
    for moment in range(5):
        drawn = [sample_negatives(1000, 10, seed=3, step=moment, device=d).tolist() for d in ("cpu", "cuda")]
        assert drawn[0] == drawn[1]
