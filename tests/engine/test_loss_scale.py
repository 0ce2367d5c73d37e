"""fp16: a step that overflows changes nothing but the scale, and nobody waits for the device to know."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from every_method import make, random_views, state
from no_reading import NoReading
from ranks import on_ranks
from test_finite import content
from test_runs import rows, small

import fastssl
from fastssl.config import MonitorConfig
from fastssl.engine import checkpoint
from fastssl.engine.loss_scale import INTERVAL, START, LossScale
from fastssl.engine.ranks import Parallel, Ranks
from fastssl.engine.step import train_step
from fastssl.errors import UserError
from fastssl.methods import METHODS
from fastssl.methods.simclr import SimCLR
from fastssl.optim import OptimConfig, build_optimizer

torch.set_num_threads(1)
OPTIMIZERS = ["lars", "sgd", "adamw"]
ALIKE = ("simclrv2", "mocov1", "relic")
"""Methods that leave behind what another one does."""


def built(name: str, optim: OptimConfig, **options):
    method = make(name)
    optimizer = build_optimizer(method, optim)
    return method, optimizer, LossScale(method, optimizer, **options)


def step(method, optimizer, scale, number: int, *, precision: str = "fp16", micro_batch: int | None = None) -> None:
    options = {"lr": 0.05, "precision": precision, "micro_batch": micro_batch, "loss_scale": scale}
    train_step(method, optimizer, random_views(number), state(number), **options)


def same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    """Bit for bit; state that the step made is as a first step finds it, zero."""
    bits = [
        (a.view(torch.uint8) if a.ndim else a, b.view(torch.uint8) if b.ndim else b)
        for a, b in zip(before, after, strict=False)
    ]
    return all(torch.equal(a, b) for a, b in bits) and not any(t.any() for t in after[len(before) :])


def overflowing(method) -> list:
    """Hooks that put an infinity into one gradient."""
    weight = next(p for p in method.parameters() if p.requires_grad)
    return [weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor(0), math.inf))]


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [*((name, None) for name in METHODS if name not in ALIKE), *(("swav", o) for o in OPTIMIZERS), ("byol", "adamw")],
)
def test_an_overflow_changes_nothing_and_halves_the_scale(name, optimizer):
    """Parameters, running statistics, targets, queues, prototypes, memories, optimizer: in the first step and later."""
    optim = fastssl.recipes.get(name).optim if optimizer is None else OptimConfig(name=optimizer)
    method, optimizer, scale = built(name, optim, start=2.0**6)
    expected, before = 2.0**6, content(method, optimizer)
    for number, bad in enumerate([True, False, False, True, True]):
        hooks = overflowing(method) if bad else []
        step(method, optimizer, scale, number)
        for hook in hooks:
            hook.remove()
        after = content(method, optimizer)
        expected *= 0.5 if bad else 1.0
        assert same(before, after) == bad, number
        assert scale.scale.item() == expected
        before = after
    assert scale.skipped.item() == 3


@pytest.mark.parametrize("variant", "ABC")
def test_lars_divides_and_looks_by_itself_as_on_a_gpu(variant):
    """Its CPU function stands in; it folds the scale into its factors, which rounds at 1e-7 of each step's update."""
    states = []
    for folded in (False, True):
        method, optimizer, scale = built("byol", OptimConfig(name="lars", lars_variant=variant), start=2.0**10)
        scale._folded = folded
        for number, bad in enumerate([True, False, True, False]):
            before, hooks = content(method, optimizer), overflowing(method) if bad else []
            step(method, optimizer, scale, number, precision="fp32")
            for hook in hooks:
                hook.remove()
            assert same(before, content(method, optimizer)) == bad
        assert scale.scale.item() == 2.0**8
        states.append(content(method, optimizer))
    for plain, found in zip(*states, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("micro_batch", [None, 6])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_scale_too_large_overflows_by_itself(optimizer, micro_batch):
    method, optim, scale = built("byol", OptimConfig(name=optimizer), start=2.0**40)
    before = content(method, optim)
    step(method, optim, scale, 0, micro_batch=micro_batch)
    assert same(before, content(method, optim))
    assert scale.scale.item() == 2.0**39


def test_a_loss_that_is_not_finite_is_enough(monkeypatch):
    method, optimizer, scale = built("simclr", OptimConfig(name="sgd"))
    monkeypatch.setattr(method, "loss", with_infinite_loss(method))
    before = content(method, optimizer)
    step(method, optimizer, scale, 0, precision="fp32")
    assert same(before, content(method, optimizer))


def test_what_a_skipped_step_made_a_nan_comes_back():
    """The forward pass may overflow too: copies return whatever stands in their place."""
    method, optimizer, scale = built("mocov2", OptimConfig(name="lars"))
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-45, -3e38, math.inf, math.nan])
    method.backbone.register_buffer("written", values.clone())
    scale = LossScale(method, optimizer)
    for others in (values.flip(0), values.roll(3), torch.full((8,), math.nan)):
        for found in (1.0, 0.0):
            method.backbone.written.copy_(values)
            scale.remember()
            method.backbone.written.copy_(others)
            scale._found.fill_(found)
            scale.settle()
            expected = values if found else others
            assert torch.equal(method.backbone.written.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("micro_batch", [None, 6])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_clean_step_has_the_bits_of_the_step_without_a_scale(optimizer, micro_batch):
    """In fp32 a power of two only moves exponents, as long as nothing leaves their range."""
    optim, states = OptimConfig(name=optimizer), []
    for scaled in (False, True):
        method, optimizer, scale = built("byol", optim, start=2.0**10)
        for number in range(3):
            step(method, optimizer, scale if scaled else None, number, precision="fp32", micro_batch=micro_batch)
        states.append({**method.state_dict(), "momenta": torch.cat([t.flatten() for t in content(method, optimizer)])})
    plain, found = states
    assert all(torch.equal(plain[name], found[name]) for name in plain)


def test_the_scale_doubles_after_the_interval():
    method, optimizer, scale = built("simclr", OptimConfig(name="lars"), start=8.0, interval=3)
    seen = []
    for number in range(7):
        step(method, optimizer, scale, number)
        seen.append(scale.scale.item())
    assert seen == [8, 8, 16, 16, 16, 32, 32]
    hooks = overflowing(method)
    step(method, optimizer, scale, 7)
    hooks[0].remove()
    for number in range(8, 11):
        step(method, optimizer, scale, number)
        seen.append(scale.scale.item())
    assert seen[7:] == [16, 16, 32], "the count begins anew after an overflow"


def test_the_constants_are_those_of_torch():
    theirs = torch.amp.GradScaler("cpu")
    assert (theirs._init_scale, theirs.get_growth_interval()) == (START, INTERVAL)
    assert (theirs.get_growth_factor(), theirs.get_backoff_factor()) == (2.0, 0.5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_step_reads_a_number_back(optimizer):
    """Skipped or not: the first step overflows, the others do not."""
    method, optim, scale = built("byol", OptimConfig(name=optimizer), start=2.0**6)
    hooks = overflowing(method)
    with NoReading() as operations:
        for number in range(3):
            views = random_views(number)
            options = {"lr": 0.05, "precision": "fp16", "micro_batch": None, "loss_scale": scale}
            train_step(method, optim, views, state(number), **options)
            for hook in hooks:
                hook.remove()
    assert "aten::convolution_backward" in operations.seen
    assert (scale.skipped.item(), scale.scale.item()) == (1, 2.0**5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_goes_through_a_checkpoint(optimizer, tmp_path):
    """Saved after a skipped first step, loaded into a new one: the next steps and scales are identical."""
    optim = OptimConfig(name=optimizer)
    method, optimizer, scale = built("byol", optim, start=64.0, interval=2)
    hooks = overflowing(method)
    step(method, optimizer, scale, 0)
    hooks[0].remove()
    step(method, optimizer, scale, 1)
    kept = {"method": method.state_dict(), "optimizer": optimizer.state_dict(), "loss_scale": scale.state_dict()}
    rest = {"config": {}, "step": 2, "seconds": 0.0, "wall": 0.0, "results": {}}
    checkpoint.save(tmp_path / "a.pt", {**kept, **rest})
    loaded = checkpoint.load(tmp_path / "a.pt")
    other, its, again = built("byol", optim, start=1.0, interval=2)
    other.load_state_dict(loaded["method"])
    its.load_state_dict(loaded["optimizer"])
    again.load_state_dict(loaded["loss_scale"])
    for number in (2, 3):
        step(method, optimizer, scale, number)
        step(other, its, again, number)
    assert same(content(method, optimizer), content(other, its))
    assert scale.state_dict() == again.state_dict()


def with_infinite_loss(method):
    """Its loss with a constant added, of which no gradient tells."""

    def loss(views, step):
        losses = type(method).loss(method, views, step)
        return replace(losses, total=losses.total + math.inf)

    return loss


def on_two_processes(rank, world, folder):
    """Overflows of the second process alone: a gradient in step 0, the loss in step 2."""
    dist.init_process_group("gloo", rank=rank, world_size=world)
    for name in OPTIMIZERS:
        method = make("byol")
        optimizer = build_optimizer(method, OptimConfig(name=name))
        parallel = Parallel(method, Ranks(rank, 2, rank, 2))
        scale = LossScale(method, optimizer, start=64.0)
        found = []
        for number in range(4):
            before = content(method, optimizer)
            hooks = overflowing(method) if rank == 1 and number == 0 else []
            views = random_views(2 * number + rank)
            if rank == 1 and number == 2:
                method.loss = with_infinite_loss(method)
            options = {"lr": 0.05, "precision": "fp32", "parallel": parallel, "loss_scale": scale}
            train_step(method, optimizer, views, state(number), **options)
            method.__dict__.pop("loss", None)
            for hook in hooks:
                hook.remove()
            found.append((same(before, content(method, optimizer)), scale.scale.item()))
        torch.save((found, content(method, optimizer)), f"{folder}/{name}-{rank}.pt")
    dist.destroy_process_group()


def test_an_overflow_of_one_process_skips_the_step_of_all(tmp_path):
    on_ranks(on_two_processes, 2, str(tmp_path))
    for name in OPTIMIZERS:
        (first, state), (second, other) = (torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1))
        assert first == second == [(True, 32.0), (False, 32.0), (True, 16.0), (False, 16.0)]
        assert same(state, other)


def fp16(image_folder, run_dir, **train):
    config = small(image_folder, run_dir, precision="fp16", threads=1, **{"epochs": 2, **train})
    return replace(config, monitor=MonitorConfig(log_steps=1, knn_epochs=0, baselines=False, tensorboard=False))


def test_an_interrupted_run_continues_with_its_scale(image_folder, tmp_path, monkeypatch):
    whole = fastssl.pretrain(fp16(image_folder, tmp_path / "whole"), quiet=True)
    real = SimCLR.after_step

    def after_step(self, step):
        if step.step == 6:
            raise KeyboardInterrupt
        real(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(SimCLR, "after_step", after_step)
        with pytest.raises(KeyboardInterrupt):
            fastssl.pretrain(fp16(image_folder, tmp_path / "run", checkpoint_steps=4), quiet=True)
    assert checkpoint.load(tmp_path / "run" / "last.pt")["loss_scale"]["scale"].item() <= START
    fastssl.pretrain(resume=tmp_path / "run", quiet=True)
    last = rows(tmp_path / "whole")[-1], rows(tmp_path / "run")[-1]
    assert last[0] == last[1]
    assert last[0]["loss_scale"] * 2 ** last[0]["skipped_steps"] == START
    assert whole.summary["skipped_steps"] == last[0]["skipped_steps"]


def test_a_run_that_no_scale_helps_ends_in_a_sentence(image_folder, tmp_path, monkeypatch):
    real = SimCLR.loss
    monkeypatch.setattr(SimCLR, "loss", lambda *args: replace(found := real(*args), total=found.total * math.nan))
    with pytest.raises(UserError, match=r"the gradient at any loss scale is not finite at step 17 ") as raised:
        fastssl.pretrain(fp16(image_folder, tmp_path / "run", epochs=9), quiet=True)
    assert "\n" not in str(raised.value)
    json.loads((tmp_path / "run" / "bad_step.json").read_text(), parse_constant=pytest.fail)


def test_an_optimizer_that_cannot_skip_is_refused():
    method = make("simclr")
    with pytest.raises(UserError, match=r"--train.precision fp16 needs .* got Adagrad: choose one of them") as raised:
        LossScale(method, torch.optim.Adagrad(method.parameters()))
    assert "\n" not in str(raised.value)


def test_a_checkpoint_without_a_scale_is_refused_in_a_sentence(image_folder, tmp_path):
    config = small(image_folder, tmp_path / "run", epochs=1, threads=1)
    config = replace(config, monitor=MonitorConfig(log_steps=1, knn_epochs=0, baselines=False, tensorboard=False))
    fastssl.pretrain(config, quiet=True)
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("precision: fp32", "precision: fp16"))
    with pytest.raises(UserError, match=r"has no loss scale, .*--train.precision fp16"):
        fastssl.pretrain(resume=tmp_path / "run", quiet=True)
