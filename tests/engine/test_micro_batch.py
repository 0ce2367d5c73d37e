"""A batch in micro-batches: the loss, the gradient and the state of the whole batch, in less memory."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace

import pytest
import torch
from every_method import make, random_views, state
from saved_bytes import saved_bytes
from torch import Tensor, nn

import fastssl
from fastssl import config as configuration
from fastssl.data.views import Views
from fastssl.engine.micro_batch import backward_in_micro_batches
from fastssl.engine.step import train_step
from fastssl.errors import UserError
from fastssl.methods import METHODS, Method

torch.set_num_threads(1)
TOLERANCE = 1e-5
"""Of fp32 sums in another order, relative to the norm of each gradient; the tests hold in float32."""


class WithDropout(nn.Module):
    """A small network without batch norm that draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.dropout = nn.Dropout(0.5)
        self.feature_dim = 8

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(torch.relu(self.conv(x)).mean((2, 3)))


def with_networks_in_float64(method: Method) -> Method:
    """Queues and memories keep the dtype that they store."""
    for module in method.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm)):
            module.double()
    return method


def gradients(method: Method) -> dict[str, Tensor]:
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = TOLERANCE) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if value.is_floating_point():
            error = (ours[name].double() - value.double()).norm().item()
            scale = max(value.double().norm().item(), 1e-3)
            assert error <= tolerance * scale, f"{name}: {error} of {scale}"
        else:
            assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("images", [4, 5, 12])
@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradient_are_the_whole_batchs_where_statistics_are_fixed(name, images):
    """Twelve images in 4 + 4 + 4, and in 5 + 5 + 2; networks in float64, where no activation crosses its kink by
    rounding."""
    whole = with_networks_in_float64(make(name)).eval()
    parts = copy.deepcopy(whole)
    views = random_views(0)
    views = replace(views, groups=tuple(group.double() for group in views.groups))
    expected = whole.loss(views, state(0))
    expected.total.backward()
    losses = backward_in_micro_batches(parts, views, state(0), images, precision="fp32")
    assert not losses.total.requires_grad
    torch.testing.assert_close(losses.total, expected.total.detach(), rtol=TOLERANCE, atol=1e-6)
    same(losses.metrics, expected.metrics, 1e-4)
    assert gradients(whole)
    same(gradients(parts), gradients(whole))


@pytest.mark.parametrize("name", METHODS)
def test_three_steps_leave_the_same_state(name):
    """Weights, queues, targets, memories, prototypes; the queues of 28 rows wrap."""
    first, second = make(name).eval(), make(name).eval()
    same(dict(second.state_dict()), dict(first.state_dict()), 0.0)
    for method, micro_batch in ((first, None), (second, 5)):
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.05, momentum=0.9)
        for step in range(3):
            train_step(
                method,
                optimizer,
                random_views(step),
                state(step),
                lr=0.05,
                precision="fp32",
                micro_batch=micro_batch,
            )
    # Three steps multiply the rounding of the first.
    same(dict(second.state_dict()), dict(first.state_dict()), 10 * TOLERANCE)


@pytest.mark.parametrize("images", [3, 6, 9])
def test_groups_of_batch_norm_stay_whole_in_moco(images):
    """In training mode, with the statistics of groups of three: 3 + 3 + 3 + 3, 6 + 6 and 9 + 3 are exact."""
    whole, views = make("mocov2"), random_views(0)
    parts = copy.deepcopy(whole)
    expected = whole.loss(views, state(0))
    expected.total.backward()
    losses = backward_in_micro_batches(parts, views, state(0), images, precision="fp32")
    torch.testing.assert_close(losses.total, expected.total.detach(), rtol=TOLERANCE, atol=1e-6)
    same(gradients(parts), gradients(whole))


@pytest.mark.parametrize("name", METHODS)
def test_running_statistics_move_once_a_micro_batch(name):
    """Those of the passes forward, and none of the second ones."""
    method, views = make(name), random_views(0)
    passed = copy.deepcopy(method)
    with torch.no_grad():
        for part in views.micro_batches(6):
            passed.embed(part)
        passed.targets(views, state(0), 6)
    backward_in_micro_batches(method, views, state(0), 6, precision="fp32")
    moved = 0
    for (name, ours), theirs in zip(method.named_buffers(), passed.buffers(), strict=True):
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(ours, theirs), name
            moved += name.endswith("num_batches_tracked") and ours.item() > 0
    assert moved


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_passes_draw_the_same_masks(precision):
    """The gradient is that of the loss that the first pass gave, with the masks drawn a micro-batch at a time."""
    method, views = make("mocov2", WithDropout(), norm_groups=1), random_views(0)
    plain = copy.deepcopy(method)
    torch.manual_seed(5)
    losses = backward_in_micro_batches(method, views, state(0), 5, precision=precision)
    after = torch.rand(3)
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        rows = [plain.embed(part).unflatten(0, (-1, part.batch_size)) for part in views.micro_batches(5)]
        with torch.no_grad():
            keys = plain.targets(views, state(0), 5)
        loss = plain.loss_of(torch.cat(rows, 1).flatten(0, 1), keys, views, state(0)).total
    loss.backward()
    assert torch.equal(losses.total, loss.detach())
    # bf16: sums of gradients are rounded to 2⁻⁸ a micro-batch.
    same(gradients(method), gradients(plain), TOLERANCE if precision == "fp32" else 2e-2)
    assert torch.equal(after, torch.rand(3)), "the generator goes on as if there had been one pass"


def test_gradients_are_exchanged_with_the_last_micro_batch_only():
    """Data-parallel training hangs on it: its module runs every pass with a graph, all but the last in its context.

    A parameter that the loss itself reads (SwAV's prototypes) gets its gradient in the last one too.
    """
    method, views, events = make("swav", queue=0).eval(), random_views(0), []
    method.prototypes.weight.register_post_accumulate_grad_hook(lambda p: events.append("prototypes"))

    def embed(part: Views) -> Tensor:
        assert torch.is_grad_enabled()
        events.append(part.batch_size)
        return method.embed(part)

    @contextlib.contextmanager
    def unsynchronised():
        events.append("(")
        yield
        events.append(")")

    backward_in_micro_batches(method, views, state(0), 5, precision="fp32", embed=embed, unsynchronised=unsynchronised)
    assert events == ["(", 5, ")", "(", 5, ")", 2, "prototypes"]


@pytest.mark.parametrize("name", METHODS)
def test_activations_of_an_eighth_take_an_eighth(name):
    """Peak bytes that autograd keeps, beside parameters and buffers, which it keeps in any case."""
    method = make(name).eval()
    views = random_views(0, images=16)
    with saved_bytes(method) as whole:
        losses = method.loss(views, state(0))
        losses.total.backward()
    del losses
    with saved_bytes(method) as eighth:
        backward_in_micro_batches(method, views, state(0), 2, precision="fp32")
    # The comparison of all embeddings takes less than a micro-batch's activations, and is over by then.
    assert 0 < eighth.peak <= whole.peak / 8


def small(**train) -> configuration.Config:
    recipe = fastssl.recipes.moco() if train.pop("moco", False) else fastssl.recipes.simclr("quick")
    return replace(recipe, train=replace(recipe.train, **{"batch_size": 64, **train}))


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"micro_batch": 0}, "--train.micro-batch must be at least 2, got 0"),
        ({"micro_batch": 1}, "--train.micro-batch must be at least 2, got 1"),
        ({"micro_batch": 65}, "--train.micro-batch 65 is larger than --train.batch-size 64"),
        ({"micro_batch": 21}, "leaves a single image"),
    ],
)
def test_an_impossible_micro_batch_is_one_sentence(train, words):
    with pytest.raises(UserError, match=words):
        configuration.validate(small(**train))


def test_any_other_micro_batch_is_taken():
    for images in (None, 2, 24, 64):
        configuration.validate(small(micro_batch=images))


def test_a_micro_batch_of_moco_holds_whole_groups():
    config = METHODS["mocov2"][0](norm_groups=8)
    config.validate_micro_batch(64, 256)
    with pytest.raises(UserError, match="choose a multiple of 32, which is --train"):
        config.validate_micro_batch(48, 256)
    replace(config, norm_groups=1).validate_micro_batch(48, 256)
