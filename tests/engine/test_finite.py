"""A step that is not finite changes nothing, and too many of them end the run."""

import json
import math
from dataclasses import replace

import pytest
import torch
from test_runs import rows, small

import fastssl
from fastssl.config import MonitorConfig
from fastssl.data.views import Views
from fastssl.engine import checkpoint
from fastssl.engine.checkpoints import Checkpoints
from fastssl.engine.finite import Guard
from fastssl.engine.ranks import Ranks
from fastssl.engine.run import Run
from fastssl.engine.step import train_step
from fastssl.errors import UserError
from fastssl.methods import DataFacts, StepState, build_method
from fastssl.methods.simclr import SimCLR
from fastssl.models import BackboneConfig
from fastssl.optim import OptimConfig, build_optimizer

METHODS = {
    "simclr": {"hidden": 16, "out": 8},
    "mocov2": {"queue": 16, "out": 8, "norm_groups": 2},
    "byol": {"hidden": 16, "out": 8},
    "swav": {"hidden": 16, "out": 8, "prototypes": 6, "queue": 16, "queue_epoch": 0, "freeze_steps": 0},
    "selav2": {"hidden": 16, "out": 8, "prototypes": 4, "heads": 2, "freeze_steps": 0},
    "nnclr": {"hidden": 16, "out": 8, "predictor_hidden": 16, "queue": 16},
}


def built(name: str, optimizer: str):
    torch.manual_seed(0)
    config = replace(fastssl.recipes.get(name).method, **METHODS[name])
    backbone = BackboneConfig("resnet10", stem="cifar", width=0.125)
    method = build_method(config, backbone, DataFacts(16, 2), sizes=(16,)).train()
    if name == "selav2":
        method.assignments.copy_(torch.arange(16) % 4)
    return method, build_optimizer(method, OptimConfig(name=optimizer, lr=0.1))


def views(seed: int, poison: float | None = None) -> Views:
    images = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    if poison is not None:
        images[3, 1, 5, 5] = poison
    return Views((images,), (2,), ids=torch.arange(8), labels=torch.arange(8) % 2)


def content(method, optimizer) -> list[torch.Tensor]:
    state = [state[name] for state in optimizer.state.values() for name in sorted(state)]
    return [t.clone() for t in [*method.state_dict().values(), *(s for s in state if isinstance(s, torch.Tensor))]]


def make(method, optimizer, guard, step: int, poison: float | None = None) -> None:
    state = StepState(step, 100, 10)
    train_step(method, optimizer, views(step, poison), state, lr=0.1, precision="fp32", guard=guard)


@pytest.mark.parametrize(
    ("name", "optimizer"), [*((name, "lars") for name in METHODS), ("simclr", "sgd"), ("simclr", "adamw")]
)
def test_a_step_that_is_not_finite_changes_nothing(name, optimizer):
    """Parameters, running statistics, prototypes, targets, queues and the optimizer, from the very first step on."""
    method, optim = built(name, optimizer)
    guard = Guard(method, torch.device("cpu"), most=9)
    before = content(method, optim)
    for step, poison in enumerate([math.nan, None, None, math.inf, math.nan]):
        make(method, optim, guard, step, poison)
        after = content(method, optim)
        assert (guard.refused is None) == (poison is None)
        same = len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert same == (poison is not None)
        before = after
    assert guard.in_a_row == 2


def test_a_gradient_alone_is_enough_and_is_named():
    method, optim = built("simclr", "sgd")
    guard = Guard(method, torch.device("cpu"), most=9)
    weight = method.projector[0].weight
    handle = weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor(0), -math.inf))
    make(method, optim, guard, 0)
    assert guard.refused == "gradient of projector.0.weight"
    handle.remove()
    make(method, optim, guard, 1)
    assert guard.refused is None
    assert guard.in_a_row == 0


def test_finite_extremes_are_no_fault():
    method, optim = built("simclr", "sgd")
    guard = Guard(method, torch.device("cpu"), most=9)
    largest = torch.finfo(torch.float32).max
    method.projector[0].weight.register_hook(lambda gradient: torch.full_like(gradient, largest))
    make(method, optim, guard, 0)
    assert guard.refused is None


def poisoned(monkeypatch, steps: set[int]) -> None:
    """SimCLR's loss becomes NaN in `steps`, counted from 0."""
    real = SimCLR.loss

    def loss(self, views, step):
        losses = real(self, views, step)
        return replace(losses, total=losses.total * math.nan) if step.step in steps else losses

    monkeypatch.setattr(SimCLR, "loss", loss)


def test_skipped_steps_are_counted_and_the_run_goes_on(image_folder, tmp_path, monkeypatch):
    poisoned(monkeypatch, {2, 3, 7})
    config = small(image_folder, tmp_path / "run", epochs=2, max_bad_steps=3, threads=1)
    config = replace(config, monitor=MonitorConfig(log_steps=4, knn_epochs=0, baselines=False, tensorboard=False))
    result = fastssl.pretrain(config, quiet=True)
    assert result.finished
    written = rows(result.run_dir)
    assert [(row["step"], row["skipped_steps"]) for row in written if row["kind"] == "skipped"] == [
        (3, 1),
        (4, 2),
        (8, 3),
    ]
    assert [row["step"] for row in written if row["kind"] == "train"] == [12]
    assert result.summary["skipped_steps"] == 3
    assert not (result.run_dir / "bad_step.json").exists()


def test_too_many_in_a_row_stop_the_run_with_their_state(image_folder, tmp_path, monkeypatch):
    poisoned(monkeypatch, {1, *range(5, 12)})
    config = small(image_folder, tmp_path / "run", epochs=2, max_bad_steps=3, checkpoint_steps=4, threads=1)
    config = replace(config, monitor=replace(config.monitor, knn_epochs=0, baselines=False))
    with pytest.raises(
        UserError, match=r"the loss became nan at step 8 .*in 3 steps in a row.*is from step 4"
    ) as raised:
        fastssl.pretrain(config, quiet=True)
    assert "\n" not in str(raised.value)
    state = json.loads((tmp_path / "run" / "bad_step.json").read_text(), parse_constant=pytest.fail)
    assert (state["step"], state["in_a_row"], state["not_finite"], state["loss"]) == (8, 3, ["loss"], "nan")
    assert len(state["ids"]) == len(set(state["ids"])) == len(state["images"]) == 10
    assert state["lr"] > 0
    assert all(math.isfinite(value) for value in state["metrics"].values())


def test_a_step_that_ends_in_the_middle_is_not_saved(image_folder, tmp_path, monkeypatch):
    """The optimizer has moved a part of the parameters when the second Ctrl-C comes: that state is no step's."""
    real = SimCLR.after_step

    def after_step(self, step):
        if step.step == 6:
            raise KeyboardInterrupt
        real(self, step)

    monkeypatch.setattr(SimCLR, "after_step", after_step)
    config = small(image_folder, tmp_path / "run", epochs=2, checkpoint_steps=4, threads=1)
    config = replace(config, monitor=replace(config.monitor, knn_epochs=0, baselines=False))
    with pytest.raises(KeyboardInterrupt):
        fastssl.pretrain(config, quiet=True)
    assert checkpoint.load(tmp_path / "run" / "last.pt")["step"] == 4


def test_a_better_best_does_not_put_off_the_next_checkpoint(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoints, "write", lambda self, state, *, best=False: None)
    config = small(image_folder, tmp_path / "run", epochs=1, threads=1)
    config = replace(config, monitor=replace(config.monitor, knn_epochs=0, baselines=False))
    run = Run(config, Ranks(), None, None, None, new=True, quiet=True)
    due = run.saving._due
    run.saving.save(best=True)
    assert run.saving._due == due
    run.saving.save()
    assert run.saving._due > due
