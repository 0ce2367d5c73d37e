"""SimCLR v2's memory of negatives against its equation: the denominators, the slow networks, the order of a step."""

from __future__ import annotations

import copy

import pytest
import torch
from three_steps import WIDTH, Tiny, blend_, descend, random_views, run_beside, same_after_saving, trained, unit

from fastssl.errors import UserError
from fastssl.methods import StepState
from fastssl.methods.simclr import SimCLR, SimCLRConfig
from fastssl.methods.simclrv2 import SimCLRv2, SimCLRv2Config

STEP = StepState(0, 10, 4)
TAU = 0.8
OPTIONS = {"temperature": TAU, "hidden": 10, "out": 6, "init_std": 0.0, "memory_momentum": 0.9}


def make(memory: int = 20) -> SimCLRv2:
    return SimCLRv2(SimCLRv2Config(memory=memory, **OPTIONS), Tiny(), WIDTH)


@pytest.mark.parametrize("counts", [(2,), (2, 1)])
@pytest.mark.parametrize("memory", [0, 20])
def test_three_steps(memory, counts):
    """The memory of 20 wraps in the third step of eight images."""
    torch.manual_seed(0)
    method = make(memory)
    r = copy.deepcopy(method).double()

    def step(number, views):
        sizes = [views[0].shape[-1], *{view.shape[-1] for view in views} - {views[0].shape[-1]}]
        features = [r.backbone(torch.cat([v for v in views if v.shape[-1] == size])) for size in sizes]
        z = unit(r.projector(torch.cat(features)))
        rows, images = len(z), len(views[0])
        losses = []
        for i in range(rows):
            similar = z @ z[i] / TAU
            candidates = torch.cat([similar[:i], similar[i + 1 :]])
            if memory:
                candidates = torch.cat([candidates, r.memory.rows @ z[i] / TAU])
            positives = [similar[p] for p in range(i % images, rows, images) if p != i]
            losses.append(torch.logsumexp(candidates, 0) - sum(positives) / len(positives))
        loss = 2 * torch.stack(losses).mean()
        if memory:
            with torch.no_grad():
                keys = unit(r.key_projector(r.key_backbone(views[1])))
        descend(loss, trained(r))
        if memory:
            blend_([r.key_backbone, r.key_projector], [r.backbone, r.projector], 0.9)
            for row in keys:
                place = int(r.memory.pointer)
                r.memory.rows[place] = row
                r.memory.pointer.fill_((place + 1) % 20)
                r.memory.filled.fill_(min(int(r.memory.filled) + 1, 20))
        return loss

    run_beside(method, step, r, counts=counts)


def test_the_memory_takes_its_rows_in_after_the_loss():
    torch.manual_seed(0)
    method = make()
    before = method.memory.rows.clone()
    method.loss(random_views(0), STEP)
    assert torch.equal(method.memory.rows, before)
    method.after_step(STEP)
    assert not torch.equal(method.memory.rows[:8], before[:8])
    assert torch.equal(method.memory.rows[8:], before[8:])


def test_without_a_memory_it_is_version_1_with_three_layers():
    torch.manual_seed(0)
    method = make(0)
    one = SimCLR(SimCLRConfig(temperature=TAU, hidden=10, out=6, layers=3, init_std=0.0), Tiny(), WIDTH)
    one.load_state_dict(method.state_dict())
    assert torch.equal(method.loss(random_views(0), STEP).total, one.loss(random_views(0), STEP).total)
    method.after_step(STEP)


def test_saved_and_loaded():
    same_after_saving(make)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory": -1}, "--method.memory must be at least 0, got -1"),
        ({"memory": 255}, "--method.memory 255 must hold a batch of 256 images"),
        ({"memory": 512, "memory_momentum": 1.5}, r"--method.memory-momentum must be in \[0, 1\], got 1.5"),
        ({"temperature": 0.0}, "--method.temperature must be > 0"),
    ],
)
def test_impossible_constants(options, words):
    def validate():
        config = SimCLRv2Config(**options)
        config.validate((2,))
        config.validate_batch(256)

    with pytest.raises(UserError, match=words):
        validate()
