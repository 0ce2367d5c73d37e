"""torch.compile of what a step passes through."""

from __future__ import annotations

import torch

from ..errors import UserError
from ..methods import Method


def compile_networks(method: Method, device: torch.device) -> None:
    """Have torch.compile make programs of the method's networks, each when it is first called, in place.

    Names in `state_dict` stay as they are: a run may go on with or without. Losses and updates have their own kernels.

    Raises:
        UserError: training on the CPU where torch finds no C++ compiler.
    """
    if device.type == "cpu":
        _require_compiler()
    for network in method.children():
        network.compile()


def _require_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError(
            "--train.compile needs a C++ compiler on the CPU and found none: install g++, set CXX, or leave it out"
        ) from None
