"""SimCLR's loss against a transcription of eq. 1, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from three_steps import WIDTH, Tiny, descend, run_beside, same_after_saving, trained

from fastssl.data.views import Views
from fastssl.errors import UserError
from fastssl.methods import StepState
from fastssl.methods.simclr import SimCLR, SimCLRConfig
from fastssl.models import BackboneConfig, build_backbone

STEP = StepState(step=0, total_steps=10, steps_per_epoch=5)


def equation_1(z: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean of ℓ(i, j) over all 2N rows, by enumeration of eq. 1."""
    z = F.normalize(z.double(), dim=1)
    rows, half = len(z), len(z) // 2
    losses = []
    for i in range(rows):
        similarity = z @ z[i] / temperature
        others = torch.cat([similarity[:i], similarity[i + 1 :]])
        losses.append(torch.logsumexp(others, 0) - similarity[(i + half) % rows])
    return torch.stack(losses).mean()


def small(**options) -> SimCLR:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig("resnet10", stem="cifar", width=0.125))
    return SimCLR(SimCLRConfig(hidden=32, out=16, **options), backbone, backbone.feature_dim)


@pytest.mark.parametrize(("batch", "temperature"), [(2, 0.5), (7, 0.1)])
def test_loss_and_gradient_are_equation_1(batch, temperature):
    method = small(temperature=temperature, reduction="mean")
    views = Views((torch.rand(2 * batch, 3, 16, 16),), (2,))
    method.loss(views, STEP).total.backward()
    gradients = [p.grad.clone() for p in method.parameters() if p.requires_grad]
    method.zero_grad()
    expected = equation_1(method.embed(views), temperature)
    expected.backward()
    torch.testing.assert_close(method.loss(views, STEP).total.double(), expected, rtol=1e-5, atol=1e-6)
    for ours, parameter in zip(gradients, (p for p in method.parameters() if p.requires_grad), strict=True):
        assert (ours - parameter.grad).norm() <= 1e-4 * parameter.grad.norm() + 1e-7


@pytest.mark.parametrize(("reduction", "factor"), [("mean", 1), ("sum", 2)])
def test_three_steps(reduction, factor):
    torch.manual_seed(0)
    method = SimCLR(SimCLRConfig(hidden=16, out=6, init_std=0.0, reduction=reduction), Tiny(), WIDTH)
    r = copy.deepcopy(method).double()

    def step(number, views):
        loss = factor * equation_1(r.projector(r.backbone(torch.cat(views))), 0.1)
        descend(loss, trained(r))
        return loss

    run_beside(method, step, r)


def test_saved_and_loaded():
    same_after_saving(lambda: SimCLR(SimCLRConfig(hidden=16, out=6), Tiny(), WIDTH))


def test_sum_of_both_directions_is_twice_the_mean():
    views = Views((torch.rand(10, 3, 16, 16),), (2,))
    total = small(reduction="sum").loss(views, STEP).total
    torch.testing.assert_close(total, 2 * small(reduction="mean").loss(views, STEP).total)


def test_metrics_at_the_extremes():
    """Random embeddings: accuracy near chance, deviation near 1/√D. Equal images: all collapse into one point."""
    method = small()
    metrics = method.loss(Views((torch.rand(40, 3, 16, 16),), (2,)), STEP).metrics
    assert set(metrics) == {"accuracy", "entropy", "embedding_std"}
    assert all(not m.requires_grad and m.ndim == 0 for m in metrics.values())
    method.eval()
    flat = method.loss(Views((torch.rand(1, 3, 16, 16).expand(8, -1, -1, -1).contiguous(),), (2,)), STEP).metrics
    assert flat["embedding_std"] < 1e-4


def test_views_of_two_resolutions_meet_in_one_loss():
    """Groups keep the recipe's order: the embeddings are those of each group alone, stacked view-major."""
    method = small().eval()
    large, little = torch.rand(6, 3, 16, 16), torch.rand(3, 3, 8, 8)
    z = method.embed(Views((large, little), (2, 1)))
    assert z.shape == (9, 16)
    torch.testing.assert_close(z[6:], method.projector(method.backbone(little)))


@pytest.mark.parametrize(
    ("options", "views", "words"),
    [
        ({"temperature": 0.0}, 2, "--method.temperature must be > 0, got 0.0"),
        ({"temperature": float("nan")}, 2, "--method.temperature"),
        ({"layers": 0}, 2, "--method.layers"),
        ({}, 1, "at least two views"),
    ],
)
def test_bad_constants_are_one_sentence(options, views, words):
    with pytest.raises(UserError, match=words):
        SimCLRConfig(**options).validate((views,))


def test_first_layers_follow_the_published_initialisation():
    method = small()
    weights = torch.cat([m.weight.flatten() for m in method.projector if isinstance(m, torch.nn.Linear)])
    assert weights.std().item() == pytest.approx(0.01, rel=0.1)
