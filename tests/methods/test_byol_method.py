"""BYOL against its equations, and the constants of its target."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from three_steps import WIDTH, Tiny, blend_, descend, run_beside, same_after_saving, trained, unit

from fastssl.errors import UserError
from fastssl.methods import StepState
from fastssl.methods.byol import BYOL, BYOLConfig
from fastssl.methods.momentum import cosine_momentum

torch.set_num_threads(1)
CONFIG = BYOLConfig(hidden=16, out=6, momentum=0.9)


def make(projector_norm: bool = False) -> BYOL:
    return BYOL(replace(CONFIG, projector_norm=projector_norm), Tiny(), WIDTH)


@pytest.mark.parametrize(("counts", "norm"), [((2,), False), ((2, 3), False), ((3,), False), ((2,), True)])
def test_three_steps(counts, norm):
    torch.manual_seed(0)
    method = make(norm)
    r = copy.deepcopy(method).double()

    def step(number, views):
        large = counts[0]
        q = [unit(r.predictor(r.projector(r.backbone(v)))) for v in views]
        with torch.no_grad():
            z = [unit(r.target_projector(r.target_backbone(v))) for v in views[:large]]
        pairs = [(i, j) for i in range(len(views)) for j in range(large) if i != j]
        distances = [((q[i] - z[j]) ** 2).sum(1).mean() for i, j in pairs]
        loss = 2 * sum(distances) / len(pairs)
        if len(pairs) == 2:
            assert loss.item() == pytest.approx(sum(distances).item()), "the sum of the two exchanges"
        descend(loss, trained(r))
        tau = 1 - (1 - 0.9) * (math.cos(math.pi * number / 10) + 1) / 2
        blend_([r.target_backbone, r.target_projector], [r.backbone, r.projector], tau)
        return loss

    run_beside(method, step, r, counts=counts)


def test_a_norm_after_the_projector_takes_the_mean_from_the_targets():
    """Then predicting the mean of all targets is no solution; the predictor stays as published."""
    torch.manual_seed(0)
    method = make(projector_norm=True)
    assert [type(m).__name__ for m in method.projector][-2:] == ["Linear", "BatchNorm1d"]
    assert type(method.predictor[-1]).__name__ == "Linear"
    rows = method.target_projector.train()(torch.randn(64, WIDTH) + 10)
    torch.testing.assert_close(rows.mean(0), torch.zeros(6), atol=1e-5, rtol=0)


def test_loss_bounds():
    torch.manual_seed(0)
    method = make()
    from three_steps import random_views

    assert 0 <= method.loss(random_views(0), StepState(0, 10, 4)).total.item() <= 8


def test_momentum_runs_from_its_base_to_one():
    assert cosine_momentum(0.996, StepState(0, 1000, 10)) == pytest.approx(0.996, abs=1e-15)
    assert cosine_momentum(0.996, StepState(500, 1000, 10)) == pytest.approx(0.998, abs=1e-15)
    assert cosine_momentum(0.996, StepState(1000, 1000, 10)) == 1.0


def test_target_starts_elsewhere_and_is_not_trained():
    torch.manual_seed(0)
    method = make()
    assert not torch.equal(method.backbone.conv.weight, method.target_backbone.conv.weight)
    assert not any(p.requires_grad for p in method.target_backbone.parameters())
    assert not any(p.requires_grad for p in method.target_projector.parameters())


def test_heads_are_the_papers():
    method = BYOL(BYOLConfig(), Tiny(), 2048)
    for head, width in ((method.projector, 2048), (method.predictor, 256)):
        assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {
            "0.weight": (4096, width),
            "0.bias": (4096,),
            "1.weight": (4096,),
            "1.bias": (4096,),
            "3.weight": (256, 4096),
        }


def test_saved_and_loaded():
    same_after_saving(make)


@pytest.mark.parametrize(
    ("config", "counts", "word"),
    [
        (BYOLConfig(hidden=0), (2,), "hidden"),
        (BYOLConfig(momentum=1.1), (2,), "momentum"),
        (BYOLConfig(), (1, 6), "two views"),
    ],
)
def test_impossible_constants(config, counts, word):
    with pytest.raises(UserError, match=word):
        config.validate(counts)
