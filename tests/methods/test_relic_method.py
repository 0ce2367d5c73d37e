"""RELIC and RELICv2 against their definitions: pairs by enumeration, the divergence, the target."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from fastssl_kernels import sample_negatives
from three_steps import WIDTH, Tiny, blend_, descend, random_views, run_beside, same_after_saving, trained, unit

from fastssl.errors import UserError
from fastssl.methods import StepState
from fastssl.methods.relic import RELIC, RELICConfig, RELICv2Config

torch.set_num_threads(1)
SMALL = {"hidden": 16, "out": 6, "momentum": 0.9}
CASES = [
    (RELICConfig(**SMALL), (2,)),
    (RELICConfig(predictor=True, alpha=0.0, **SMALL), (3,)),
    (RELICv2Config(negatives=3, **SMALL), (2, 2)),
    (RELICv2Config(negatives=0, alpha=2.0, **SMALL), (4, 2)),
]


@pytest.mark.parametrize(("config", "counts"), CASES)
def test_three_steps(config, counts):
    torch.manual_seed(0)
    method = RELIC(config, Tiny(), WIDTH)
    r = copy.deepcopy(method).double()
    tau, large = config.temperature, counts[0]

    def step(number, views):
        o = [unit(r.predictor(r.projector(r.backbone(v)))) for v in views]
        with torch.no_grad():
            t = [unit(r.target_projector(r.target_backbone(v))) for v in views[:large]]
        drawn = range(8)
        if config.negatives:
            drawn = sample_negatives(8, config.negatives, seed=0, step=number).tolist()

        def log_p(i, j, b):
            """Image b among itself and its negatives."""
            others = [n for n in drawn if n != b]
            logits = torch.stack([(o[i][b] * t[j][n]).sum() for n in [b, *others]]) / tau
            return torch.log_softmax(logits, 0)

        total, pairs = 0.0, 0
        for i in range(len(views)):
            for j in range(large):
                if i == j and not config.self_pairs:
                    continue
                pairs += 1
                for b in range(8):
                    p = log_p(i, j, b)
                    total = total - p[0] / 8
                    if i != j and config.alpha:
                        q = (log_p(j, i, b) if i < large else log_p(j, j, b)).detach()
                        total = total + config.alpha * (p.exp() * (p - q)).sum() / 8
        assert pairs == (len(views) * large if config.self_pairs else len(views) * large - large)
        loss = total / pairs
        descend(loss, trained(r))
        decay = 1 - (1 - 0.9) * (math.cos(math.pi * number / 10) + 1) / 2
        blend_([r.target_backbone, r.target_projector], [r.backbone, r.projector], decay)
        return loss

    run_beside(method, step, r, counts=counts)


@pytest.mark.parametrize(("config", "counts"), CASES)
def test_saved_and_loaded(config, counts):
    same_after_saving(lambda: RELIC(config, Tiny(), WIDTH), counts)


def test_the_seed_of_a_run_draws_the_negatives():
    torch.manual_seed(0)
    method = RELIC(RELICv2Config(negatives=2, **SMALL), Tiny(), WIDTH)
    losses = [method.loss(random_views(0), StepState(0, 10, 4, seed)).total.item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("kind", [RELICConfig, RELICv2Config])
def test_heads_are_the_papers(kind):
    """BYOL's: a bias on the first layer alone, a batch norm behind it. RELIC has no predictor."""
    method = RELIC(kind(), Tiny(), 2048)
    heads = [(method.projector, 2048), (method.predictor, 256)][: 2 if kind is RELICv2Config else 1]
    for head, width in heads:
        assert [type(part).__name__ for part in head] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
        shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
        assert shapes == {
            "0.weight": (4096, width), "0.bias": (4096,), "1.weight": (4096,), "1.bias": (4096,),
            "3.weight": (256, 4096),
        }  # fmt: skip
    assert isinstance(method.predictor, torch.nn.Identity) is (kind is RELICConfig)


def test_which_side_of_the_divergence_gets_no_gradient_is_a_constant():
    torch.manual_seed(0)
    method, gradients = RELIC(RELICv2Config(negatives=3, **SMALL), Tiny(), WIDTH), []
    for stop in ("second", "first", "entropy"):
        method.config = RELICv2Config(negatives=3, stop_gradient=stop, **SMALL)
        method.zero_grad()
        method.loss(random_views(0), StepState(0, 10, 4)).total.backward()
        gradients.append(method.predictor[3].weight.grad.clone())
    assert all((a - b).norm() > 1e-3 * a.norm() for a, b in pairwise(gradients))


@pytest.mark.parametrize(
    ("config", "counts", "word"),
    [
        (RELICv2Config(temperature=0), (2,), "temperature"),
        (RELICv2Config(alpha=-1), (2,), "alpha"),
        (RELICv2Config(out=0), (2,), "out"),
        (RELICv2Config(momentum=2), (2,), "momentum"),
        (RELICConfig(), (1, 2), "two views"),
        (RELICv2Config(negatives=8), (2,), "fewer than the 8 images"),
    ],
)
def test_impossible_constants(config, counts, word):
    def validate():
        config.validate(counts)
        config.validate_batch(8)

    with pytest.raises(UserError, match=word):
        validate()
