"""Supervised training against its equation, and the labels that it needs."""

from __future__ import annotations

import copy

import pytest
import torch
from three_steps import WIDTH, Tiny, descend, run_beside, same_after_saving, trained

from fastssl.errors import UserError
from fastssl.methods import DataFacts
from fastssl.methods.supervised import Supervised, SupervisedConfig

torch.set_num_threads(1)


def make(smoothing: float = 0.0) -> Supervised:
    return Supervised(SupervisedConfig(label_smoothing=smoothing), Tiny(), WIDTH, DataFacts(32, 3))


@pytest.mark.parametrize("counts", [(1,), (2, 1)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_three_steps(counts, smoothing):
    torch.manual_seed(0)
    method = make(smoothing)
    r = copy.deepcopy(method).double()

    def step(number, views, ids, labels):
        sizes = dict.fromkeys(v.shape[-1] for v in views)
        x = torch.cat([r.backbone(torch.cat([v for v in views if v.shape[-1] == size])) for size in sizes])
        log_p = torch.log_softmax(x @ r.classifier.weight.T + r.classifier.bias, 1)
        wanted = torch.full_like(log_p, smoothing / 3)
        for row in range(len(log_p)):
            wanted[row, labels[row % 8]] += 1 - smoothing
        loss = -(wanted * log_p).sum(1).mean()
        descend(loss, trained(r))
        return loss

    run_beside(method, step, r, counts=counts)


def test_classifier_starts_small_and_without_bias():
    method = Supervised(SupervisedConfig(), Tiny(), 2048, DataFacts(10, 1000))
    assert method.classifier.weight.shape == (1000, 2048)
    assert method.classifier.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert not method.classifier.bias.any()


def test_saved_and_loaded():
    same_after_saving(make)


@pytest.mark.parametrize(
    ("smoothing", "facts", "word"),
    [
        (1.0, DataFacts(32, 3), "label-smoothing must be in"),
        (-0.1, DataFacts(32, 3), "label-smoothing must be in"),
        (0.0, DataFacts(32, 0), "learns from labels"),
        (0.0, DataFacts(32, 1), "one class only"),
    ],
)
def test_impossible_combinations(smoothing, facts, word):
    config = SupervisedConfig(label_smoothing=smoothing)

    def validate():
        config.validate((1,))
        config.validate_data(facts, 8)

    with pytest.raises(UserError, match=word):
        validate()
