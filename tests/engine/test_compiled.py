"""torch.compile of the networks: the same step, under the same names."""

import copy

import pytest
import torch
from torch import nn

from fastssl.data.views import Views
from fastssl.engine.compiled import compile_networks
from fastssl.errors import UserError
from tests.every_method import make, random_views, state

CPU = torch.device("cpu")


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def step(method) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    views = random_views(0)  # of one size: each network is compiled for each
    loss = method.loss(Views(views.groups[:1], views.counts[:1], views.ids, views.labels), state(1)).total
    loss.backward()
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, method.state_dict()


def test_a_compiled_step_is_the_step():
    """A target network and a queue among it. Fused operations round elsewhere: fp32, by each tensor's largest."""
    eager = make("mocov2", network())
    compiled = copy.deepcopy(eager)
    compile_networks(compiled, CPU)
    (loss, gradients, after), (found, found_gradients, found_after) = step(eager), step(compiled)
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
    assert found_gradients.keys() == gradients.keys()
    assert found_after.keys() == after.keys()
    for expected, got in ((gradients, found_gradients), (after, found_after)):
        for key, value in expected.items():
            torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-5 * float(value.abs().max() + 1), msg=key)
    assert compiled.backbone._compiled_call_impl is not None


def test_without_a_compiler_there_is_one_sentence(monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(UserError, match=r"--train.compile needs a C\+\+ compiler on the CPU"):
        compile_networks(make("simclr"), CPU)
