"""What public functions check of their arguments; a failure is one sentence that names argument, value and remedy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DTYPES = frozenset((torch.float64, torch.float32, torch.float16, torch.bfloat16))


def kind(value: object) -> str:
    """What a value is, for a message: the dtype of a tensor, else its type."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def floating(name: str, x: object, error: type[ValueError] | type[TypeError] = ValueError) -> None:
    """A dense tensor of floating dtype, 16 bits or more."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise error(f"{name} must be a floating-point tensor, got {kind(x)}")
    if x.dtype not in DTYPES:
        raise error(f"{name} must have 16 bits or more, got {x.dtype}: convert it")
    if x.layout != torch.strided:
        raise error(f"{name} must be dense, got layout {x.layout}: call .to_dense() on it")


def rows(name: str, x: object, may_be_empty: bool = False) -> None:
    """[rows, width] of floating dtype with at least one column, and one row unless it may be empty."""
    floating(name, x)
    assert isinstance(x, Tensor)
    if x.dim() != 2:
        raise ValueError(f"{name} must have two dimensions [rows, width], got shape {tuple(x.shape)}")
    if x.shape[1] == 0 or (x.shape[0] == 0 and not may_be_empty):
        raise ValueError(f"{name} must not be empty, got shape {tuple(x.shape)}")


def number(name: str, value: object, *, zero: bool = False) -> None:
    """A finite number of the host above 0, or at least 0."""
    if isinstance(value, Tensor):
        raise ValueError(f"{name} must be a Python number, got a tensor: call .item() on it once, outside the step")
    try:
        good = math.isfinite(value) and (value > 0 or (zero and value == 0))  # type: ignore[arg-type, operator]
    except TypeError:
        good = False
    if not good:
        raise ValueError(f"{name} must be finite and {'>= 0' if zero else '> 0'}, got {value!r}")


def whole(name: str, value: object, least: int) -> None:
    """An integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
