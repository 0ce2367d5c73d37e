"""SwAV against its equations: codes from a literal Sinkhorn, frozen prototypes, a queue that waits until it is full."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from fastssl_kernels import sinkhorn_from_features, swapped_prediction
from three_steps import WIDTH, Tiny, descend, random_views, run_beside, same_after_saving, trained, unit

from fastssl.errors import UserError
from fastssl.methods import StepState, swav
from fastssl.methods.swav import SwAV, SwAVConfig, code_metrics

torch.set_num_threads(1)
OPTIONS = {"hidden": 16, "out": 6, "prototypes": 5}


def make(**options) -> SwAV:
    return SwAV(SwAVConfig(**{**OPTIONS, "freeze_steps": 1, **options}), Tiny(), WIDTH)


def literal_codes(scores, rows: int, epsilon: float = 0.05):
    """The authors' order: all, prototypes, samples; the last `rows` samples."""
    q = torch.exp(scores / epsilon).T
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T[-rows:]


@pytest.mark.parametrize("counts", [(2,), (2, 3), (3,)])
@pytest.mark.parametrize("queue", [0, 16])
def test_three_steps(counts, queue):
    """The queue of 16 is filled from step 1 on, two batches: the fourth step uses it."""
    torch.manual_seed(0)
    method = make(queue=queue, queue_epoch=0.25)
    r = copy.deepcopy(method).double()

    def step(number, views):
        with torch.no_grad():
            r.prototypes.weight.copy_(unit(r.prototypes.weight))
        sizes = dict.fromkeys(v.shape[-1] for v in views)
        z = torch.cat([r.backbone(torch.cat([v for v in views if v.shape[-1] == size])) for size in sizes])
        z = [unit(part) for part in r.projector(z).split(8)]
        losses = []
        for i in range(2):
            rows = z[i].detach()
            if queue and number >= 3:
                rows = torch.cat([r.queues[i].rows, rows])
            codes = literal_codes(rows @ r.prototypes.weight.detach().T, 8)
            others = [j for j in range(len(views)) if j != i]
            log_p = [torch.log_softmax(r.prototypes(z[j]) / 0.1, 1) for j in others]
            losses.append(sum(-(codes * p).sum(1).mean() for p in log_p) / len(others))
        loss = sum(losses) / 2
        descend(loss, [p for p in trained(r) if number >= 1 or p is not r.prototypes.weight])
        if queue and number >= 1:
            for i in range(2):
                for row in z[i].detach():
                    q = r.queues[i]
                    place = int(q.pointer)
                    q.rows[place] = row
                    q.pointer.fill_((place + 1) % queue)
                    q.filled.fill_(min(int(q.filled) + 1, queue))
        return loss

    # Codes at ε = 0.05 are twenty times as sensitive to a rounding as the scores they come from.
    run_beside(method, step, r, counts=counts, steps=4, tolerance=2e-3)


def test_prototypes_are_unit_and_stand_still_at_first():
    torch.manual_seed(0)
    method = make(freeze_steps=2)
    state = StepState(1, 10, 4)
    method.loss(random_views(0), state).total.backward()
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(5))
    method.after_backward(state)
    assert method.prototypes.weight.grad is None
    method.loss(random_views(1), StepState(2, 10, 4)).total.backward()
    method.after_backward(StepState(2, 10, 4))
    assert method.prototypes.weight.grad.abs().sum() > 0


def test_codes_come_from_the_assigned_crops_only(monkeypatch):
    """Two large crops and three small ones: two problems of Sinkhorn, and their features are the large crops'."""
    torch.manual_seed(0)
    method, seen = make(), []

    def spying(features, *args, **options):
        seen.append(features)
        return sinkhorn_from_features(features, *args, **options)

    monkeypatch.setattr(swav, "sinkhorn_from_features", spying)
    views = random_views(0, (2, 3))
    method.eval()
    method.loss(views, StepState(0, 10, 4))
    with torch.no_grad():
        large = unit(method.projector(method.backbone(views.groups[0])))
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], large.view(2, 8, -1))


def test_scores_are_cosines_with_the_prototypes(monkeypatch):
    """No bias, and both sides of unit length when they meet, however long the prototypes have become."""
    torch.manual_seed(0)
    method, met = make(), []
    with torch.no_grad():
        method.prototypes.weight.mul_(7.0)

    def spying(z, prototypes, codes, **options):
        met.append((z, prototypes))
        return swapped_prediction(z, prototypes, codes, **options)

    monkeypatch.setattr(swav, "swapped_prediction", spying)
    method.loss(random_views(0), StepState(0, 10, 4))
    assert [name for name, _ in method.named_parameters() if name.startswith("prototypes")] == ["prototypes.weight"]
    for side in met[0]:
        torch.testing.assert_close(side.norm(dim=1), torch.ones(len(side)))


def test_first_loss_is_near_the_logarithm_of_the_prototypes():
    torch.manual_seed(0)
    method = SwAV(SwAVConfig(hidden=16, out=128, prototypes=3000), Tiny(), WIDTH)
    loss = method.loss(random_views(0, images=16), StepState(0, 10, 4)).total.item()
    assert loss == pytest.approx(math.log(3000), abs=0.6)  # 8.006; random features see scores of ±0.09 / τ
    method.config = SwAVConfig(hidden=16, out=128, prototypes=3000, temperature=100.0)
    flat = method.loss(random_views(0, images=16), StepState(0, 10, 4)).total.item()
    assert flat == pytest.approx(8.006, abs=0.002), "and hardly any score at τ = 100"


def test_code_metrics():
    hard = torch.eye(4).repeat(3, 1)
    metrics = code_metrics(hard)
    assert metrics["code_entropy"] == pytest.approx(0, abs=1e-6)
    assert metrics["prototype_use"] == pytest.approx(1)
    same = torch.zeros(2, 6, 4)
    same[..., 1] = 1
    assert code_metrics(same)["prototype_use"] == pytest.approx(0.25)
    assert code_metrics(torch.full((6, 4), 0.25))["code_entropy"] == pytest.approx(math.log(4))


def test_head_is_the_papers():
    method = SwAV(SwAVConfig(), Tiny(), 2048)
    kinds = [(type(m).__name__, getattr(m, "bias", None) is not None) for m in method.projector]
    assert kinds == [("Linear", True), ("BatchNorm1d", True), ("ReLU", False), ("Linear", True)]
    assert tuple(method.prototypes.weight.shape) == (3000, 128)
    assert method.prototypes.bias is None


def test_saved_and_loaded():
    same_after_saving(lambda: make(queue=8, queue_epoch=0), (2, 2))


@pytest.mark.parametrize(
    ("options", "counts", "word"),
    [
        ({"temperature": 0}, (2,), "temperature"),
        ({"epsilon": 0}, (2,), "epsilon"),
        ({"iterations": 0}, (2,), "iterations"),
        ({"prototypes": 1}, (2,), "prototypes must be at least 2"),
        ({"assign": 3}, (2, 6), "assign"),
        ({"assign": 1}, (1,), "assign"),
        ({"queue": -1}, (2,), "queue"),
        ({"queue": 255}, (2,), "queue 255 must hold a batch of 256"),
    ],
)
def test_impossible_constants(options, counts, word):
    config = SwAVConfig(**options)

    def validate():
        config.validate(counts)
        config.validate_batch(256)

    with pytest.raises(UserError, match=word):
        validate()
