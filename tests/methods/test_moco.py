"""MoCo against its equations: the queue, the key network, the groups of batch norm."""

from __future__ import annotations

import copy

import pytest
import torch
from fastssl_kernels import sample_negatives
from three_steps import WIDTH, Tiny, blend_, descend, random_views, run_beside, same_after_saving, trained, unit

from fastssl.errors import UserError
from fastssl.methods import StepState
from fastssl.methods.moco import MoCo, MoCoV1Config, MoCoV2Config

torch.set_num_threads(1)
OPTIONS = {"out": 6, "queue": 20, "momentum": 0.9}


def make(norm_groups: int = 2, kind=MoCoV2Config) -> MoCo:
    return MoCo(kind(norm_groups=norm_groups, **OPTIONS), Tiny(), WIDTH)


@pytest.mark.parametrize("kind", [MoCoV1Config, MoCoV2Config])
@pytest.mark.parametrize("counts", [(2,), (2, 2)])
@pytest.mark.parametrize("norm_groups", [1, 2, 4])
def test_three_steps(kind, counts, norm_groups):
    """The queue of 20 wraps in the third step of eight keys."""
    torch.manual_seed(0)
    method = make(norm_groups, kind)
    r = copy.deepcopy(method).double()
    tau = kind().temperature

    def grouped(network, x):
        return torch.cat([network(part) for part in x.split(8 // norm_groups)])

    def step(number, views):
        order = sample_negatives(8, 8, seed=0, step=number)
        with torch.no_grad():
            x = views[1][order] if norm_groups > 1 else views[1]
            shuffled = unit(r.key_projector(grouped(r.key_backbone, x)))
            k = torch.empty_like(shuffled)
            k[order if norm_groups > 1 else torch.arange(8)] = shuffled
        losses = []
        for view in [views[0], *views[2:]]:
            q = unit(r.projector(grouped(r.backbone, view)))
            logits = torch.cat([(q * k).sum(1, keepdim=True), q @ r.queue.rows.T], 1) / tau
            losses.append((torch.logsumexp(logits, 1) - logits[:, 0]).mean())
        loss = sum(losses) / len(losses)
        descend(loss, trained(r))
        blend_([r.key_backbone, r.key_projector], [r.backbone, r.projector], 0.9)
        for row in k:
            place = int(r.queue.pointer)
            r.queue.rows[place] = row
            r.queue.pointer.fill_((place + 1) % 20)
            r.queue.filled.fill_(min(int(r.queue.filled) + 1, 20))
        return loss

    run_beside(method, step, r, counts=counts)


def test_every_step_shuffles_anew():
    orders = [sample_negatives(64, 64, seed=0, step=step) for step in range(3)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(64))
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[1], orders[2])


def test_a_key_does_not_meet_itself():
    """The batch's own keys are no negatives: the queue takes them after the loss."""
    torch.manual_seed(0)
    method = make(1)
    before = method.queue.rows.clone()
    method.loss(random_views(0), StepState(0, 10, 4))
    assert torch.equal(method.queue.rows, before)
    method.after_step(StepState(0, 10, 4))
    assert not torch.equal(method.queue.rows[:8], before[:8])
    assert torch.equal(method.queue.rows[8:], before[8:])


def test_key_network_starts_equal_and_untrained():
    method = make()
    for a, b in zip(method.backbone.parameters(), method.key_backbone.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not b.requires_grad


def test_projectors_are_the_papers():
    one = MoCo(MoCoV1Config(queue=8), Tiny(), 2048).projector
    two = MoCo(MoCoV2Config(queue=8), Tiny(), 2048).projector
    assert {n: tuple(p.shape) for n, p in one.named_parameters()} == {"0.weight": (128, 2048), "0.bias": (128,)}
    assert [tuple(p.shape) for p in two.parameters()] == [(2048, 2048), (2048,), (128, 2048), (128,)]
    assert [type(m).__name__ for m in two] == ["Linear", "ReLU", "Linear"]


def test_a_projector_with_norms_is_centred_after_every_layer():
    """Then two networks cannot tell each other's rows by a mean that drifts."""
    method = MoCo(MoCoV2Config(queue=8, norm_groups=1, head_norm=True), Tiny(), 16)
    assert [type(m).__name__ for m in method.projector] == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert method.shares_norm
    rows = method.projector(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) + 100)
    torch.testing.assert_close(rows.mean(0), torch.zeros(128), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [MoCoV1Config, MoCoV2Config])
def test_saved_and_loaded(kind):
    same_after_saving(lambda: make(kind=kind))


def test_the_seed_of_a_run_draws_the_shuffles_and_the_first_queue():
    """Another order puts other images into a group, whose statistics change the keys."""
    torch.manual_seed(0)
    method, again = make(), make()
    assert not torch.equal(method.queue.rows, again.queue.rows)
    torch.manual_seed(0)
    assert torch.equal(make().queue.rows, method.queue.rows)
    first, same, other = (method.targets(random_views(0), StepState(0, 10, 4, seed), 8) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert (first - other).norm() > 1e-3 * first.norm()


@pytest.mark.parametrize(
    ("config", "counts", "batch", "word"),
    [
        (MoCoV2Config(temperature=0), (2,), 256, "temperature"),
        (MoCoV2Config(momentum=-0.1), (2,), 256, "momentum"),
        (MoCoV2Config(queue=0), (2,), 256, "queue"),
        (MoCoV2Config(), (1,), 256, "two views"),
        (MoCoV2Config(queue=255), (2,), 256, "queue 255 must hold a batch of 256"),
        (MoCoV2Config(norm_groups=3), (2,), 256, "multiple"),
        (MoCoV2Config(norm_groups=8), (2,), 8, "two images a group"),
        (MoCoV2Config(head_norm=True), (2,), 256, "norm-groups must be 1, got 8"),
    ],
)
def test_impossible_constants(config, counts, batch, word):
    def validate():
        config.validate(counts)
        config.validate_batch(batch)

    with pytest.raises(UserError, match=word):
        validate()
