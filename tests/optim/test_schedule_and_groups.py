"""Schedules as laws; which parameters a recipe excludes."""

import math

import pytest
import torch
from fastssl_kernels import LARS
from torch import nn

from fastssl.errors import UserError
from fastssl.optim import OptimConfig, build_optimizer, cosine_with_warmup


def test_cosine_is_the_formula():
    for step in range(30, 101):
        expected = 0.1 + (2.0 - 0.1) * (1 + math.cos(math.pi * (step - 30) / 70)) / 2
        assert cosine_with_warmup(step, peak=2.0, total_steps=100, warmup_steps=30, final=0.1) == pytest.approx(
            expected
        )


def test_warmup_is_a_line_from_start_to_peak():
    values = [cosine_with_warmup(s, peak=1.0, total_steps=50, warmup_steps=4, start=0.2) for s in range(5)]
    assert values == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 10), (10, 10), (1, 1)])
def test_degenerate_lengths_stay_within_bounds(warmup, total):
    values = [cosine_with_warmup(s, peak=1.0, total_steps=total, warmup_steps=warmup) for s in range(total + 1)]
    assert all(0 <= v <= 1 for v in values)


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_biases_and_norms_are_excluded(name):
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))
    optimizer = build_optimizer(network, OptimConfig(name=name, weight_decay=0.5))
    decayed, excluded = optimizer.param_groups
    assert [p.shape for p in decayed["params"]] == [(4, 3), (2, 4)]
    assert (decayed["weight_decay"], excluded["weight_decay"]) == (0.5, 0.0)
    assert sum(p.numel() for p in excluded["params"]) == 4 + 4 + 4
    if isinstance(optimizer, LARS):
        assert excluded["adapt"] is False


def test_frozen_parameters_are_left_out():
    network = nn.Linear(3, 4)
    network.bias.requires_grad_(False)
    groups = build_optimizer(network, OptimConfig(name="sgd")).param_groups
    assert [len(g["params"]) for g in groups] == [1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0.0), ("lr", -1.0), ("lr", math.nan), ("lr", math.inf), ("momentum", 1.0), ("weight_decay", -1e-9)],
)
def test_out_of_range_is_one_sentence(field, value):
    option = f"--optim.{field.replace('_', '-')}"
    with pytest.raises(UserError, match=option):
        build_optimizer(nn.Linear(2, 2), OptimConfig(**{field: value}))


def test_step_moves_only_what_has_a_gradient():
    network = nn.Linear(3, 2)
    before = [p.detach().clone() for p in network.parameters()]
    network.bias.grad = torch.ones(2)
    build_optimizer(network, OptimConfig(name="lars", lr=0.1, lr_scaling="none")).step()
    assert torch.equal(network.weight, before[0])
    assert not torch.equal(network.bias, before[1])
