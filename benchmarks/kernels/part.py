"""What a benchmark of one operation consists of: calls side by side, their error, and the least work there is."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Call = Callable[[], object]
COMPILED = "torch.compile"
"""Names of subjects that compile in their first call begin so."""


class Floor(NamedTuple):
    """The least work: bytes of memory traffic, FLOPs of matrix products."""

    bytes: int
    flops: int = 0


class Part(NamedTuple):
    """One operation at sizes that `options` names (batch, width, queue, ..., device).

    subjects: calls of one kind of work each, by name; a call returns its results and keeps nothing.
    error: takes a call's results and says how far they are from the definition in float64 on the same inputs.
    floor: takes the options and the bytes of an element.
    ours: the subject that others are compared with.
    only_ours: the error is ours alone: other subjects change what nobody else can read.
    """

    subjects: Callable[[Namespace], dict[str, Call]]
    error: Callable[[Namespace], Callable[[object], float]]
    floor: Callable[[Namespace, int], Floor]
    ours: str
    only_ours: bool = False

    def has_error(self, name: str) -> bool:
        """lightly's loss keeps a bank of random rows, so that its value is another one."""
        return "with bank" not in name and (name == self.ours or not self.only_ours)


def step(loss: Callable[..., Tensor], *inputs: Tensor, autocast: bool = False) -> list[Tensor]:
    """One forward and backward pass: the loss, and the gradient of each input that has one."""
    with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=autocast):
        value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value.sum(), [x for x in inputs if x.requires_grad])]


def relative(results: object, exact: Sequence[Tensor]) -> float:
    """The largest relative norm of the difference, over loss and gradients (or whatever the results are)."""
    found = [results] if isinstance(results, Tensor) else list(results)  # type: ignore[call-overload]
    pairs = zip(found, exact, strict=True)
    return max(float((ours.double() - best).norm() / best.norm().clamp_min(1e-30)) for ours, best in pairs)


def relative_to(exact: Callable[[Namespace], Sequence[Tensor]]) -> Callable[[Namespace], Callable[[object], float]]:
    """A part's `error` from what its results should be."""

    def error(options: Namespace) -> Callable[[object], float]:
        best = exact(options)
        return lambda results: relative(results, best)

    return error


def in_float64(loss: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """What `step` should return."""
    return step(loss, *(x.detach().double().requires_grad_(x.requires_grad) for x in inputs))


def installed(package: str) -> bool:
    """Baselines of public packages are there where the package is."""
    return importlib.util.find_spec(package) is not None


def dtype_of(name: str) -> str:
    """The dtype of a subject's products, by its name."""
    return next((dtype for dtype in ("bf16", "fp16") if dtype in name), "fp32")


def back_end_of(name: str) -> str:
    """Whose code a subject is, by its name."""
    known = (COMPILED, "fastssl", "lightly", "timm", "native", "torchvision", "render_views")
    found = next((known_name for known_name in known if name.startswith(known_name)), "torch")
    return "fastssl" if found in ("native", "render_views") else found
