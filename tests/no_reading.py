"""A step that may read nothing back: every operation is seen, also those inside the operators of this package."""

from __future__ import annotations

from typing import Any

import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

READING = {
    *("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::equal"),
    *("aten::masked_select", "aten::argwhere", "aten::bincount", "aten::allclose", "aten::repeat_interleave"),
    *(
        "aten::_unique",
        "aten::_unique2",
        "aten::unique_dim",
        "aten::unique_consecutive",
        "aten::unique_dim_consecutive",
    ),
}


class NoReading(TorchDispatchMode):
    """Fails on what would make the host wait for a device: scalars, sizes that depend on values, copies to a device.

    An operator registered with torch.library is opaque to a mode: with `inside` its function, which is the CPU's, is
    called in the open instead.
    """

    def __init__(self, inside: bool = True) -> None:
        super().__init__()
        self.inside = inside
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        self.seen.append(name)
        assert name not in READING, name
        assert not (name.startswith("aten::index") and _mask(args)), f"{name} by a mask"
        if name in ("aten::copy_", "aten::_to_copy") and isinstance(args[0], torch.Tensor):
            other = args[1].device if name == "aten::copy_" else torch.device(kwargs.get("device") or args[0].device)
            assert other.type == args[0].device.type, f"{name} from {args[0].device} to {other}"
        if self.inside and name.startswith("fastssl::"):
            with self:
                return OPDEFS[name]._init_fn(*args, **kwargs)
        return func(*args, **kwargs)


def _mask(args: Any) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    return any(isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices)
