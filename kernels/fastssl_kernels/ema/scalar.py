"""Options that may be numbers or zero-dimensional tensors."""

from __future__ import annotations

from typing import cast

from torch import Tensor


def host_scalar(value: float | Tensor, name: str) -> float:
    """A number from a number or a zero-dimensional host tensor, without a dispatched operation.

    Raises:
        ValueError: the tensor lives on a device, where reading it would stop the host.
    """
    if not isinstance(value, Tensor):
        return float(value)
    if value.device.type != "cpu":
        raise ValueError(f"{name} must be a number or a CPU tensor for CPU parameters, got one on {value.device}")
    return float(cast(float, value.tolist()))
