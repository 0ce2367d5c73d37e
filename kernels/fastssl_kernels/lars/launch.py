"""The launches of the LARS kernels: tables of addresses, options and scalars, two launches a dtype and variant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ema.launch import kernel_type, vector
from ..ema.scalar import host_scalar
from ..ema.table import Table
from .entry import Entry
from .kernel import measure_kernel, update_kernel

BLOCK, WARPS = 1024, 4
# 8 blocks a program make 3,200 programs of ResNet-50.
BLOCKS = 8
# Most programs a tensor, so that adding up their sums stays cheap: chunks grow from 4 million elements on.
PARTS = 512

Key = tuple[torch.dtype, str, bool]


class _Tables(NamedTuple):
    addresses: Table
    options: Table
    owners: Table


class _Launch(NamedTuple):
    grid: tuple[int]
    arguments: dict[str, Any]
    """Of both kernels."""
    update: dict[str, Any]
    """More arguments of the update."""
    alive: list[Tensor]
    """What the tables point to and nobody else holds."""


class Launcher:
    """The launches of one optimizer, with the tables that stay on the device between its steps."""

    def __init__(self) -> None:
        self._tables: dict[Key, _Tables] = {}
        self._ema_momentum = Table(torch.float64)

    def sweep(
        self,
        entries: Sequence[Entry],
        *,
        ema_momentum: float | Tensor,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """Step every entry in place; with `found_inf`, nothing changes where it is set or a gradient is not finite."""
        device = entries[0].weight.device
        if not isinstance(ema_momentum, Tensor) or ema_momentum.device != device:
            ema_momentum = self._ema_momentum.on(device, [host_scalar(ema_momentum, "ema_momentum")])
        buckets: dict[Key, list[Entry]] = {}
        for entry in entries:
            if entry.weight.numel():
                key = (entry.weight.dtype, entry.group["variant"], bool(entry.group["nesterov"]))
                buckets.setdefault(key, []).append(entry)
        with torch.cuda.device_of(entries[0].weight):
            # The flag is complete only after every bucket was measured.
            launches = [self._prepare(key, bucket, grad_scale, found_inf) for key, bucket in buckets.items()]
            for launch in launches:
                measure_kernel[launch.grid](**launch.arguments)
            for launch in launches:
                update_kernel[launch.grid](**launch.arguments, **launch.update, ema_momentum_ptr=ema_momentum)
        torch.autograd.graph.increment_version([t for e in entries for t in _written(e)])

    def _prepare(self, key: Key, entries: list[Entry], grad_scale: Tensor | None, found_inf: Tensor | None) -> _Launch:
        dtype, variant, nesterov = key
        device = entries[0].weight.device
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        tables = self._tables.setdefault(key, _Tables(Table(torch.int64), Table(wide), Table(torch.int32)))
        distinct = {id(entry.group): entry.group for entry in entries}
        groups = {name: _Scalars(group, device, wide) for name, group in distinct.items()}
        rows: list[int] = []
        options: list[float] = []
        owners: list[int] = []
        for i, entry in enumerate(entries):
            group, elements = groups[id(entry.group)], entry.weight.numel()
            blocks = max(BLOCKS, -(-elements // (BLOCK * PARTS)))
            rows += (
                entry.weight.data_ptr(),
                entry.gradient.data_ptr(),
                entry.velocity.data_ptr(),
                0 if entry.average is None else entry.average.data_ptr(),
                0 if entry.copy is None else entry.copy.data_ptr(),
                elements,
                blocks,
                len(owners),
                *group.addresses,
            )
            options += group.options
            owners += [i] * -(-elements // (blocks * BLOCK))
        copied = next((e.copy.dtype for e in entries if e.copy is not None), None)
        arguments = {
            "table_ptr": tables.addresses.on(device, rows),
            "options_ptr": tables.options.on(device, options),
            "owner_ptr": tables.owners.on(device, owners),
            "parts_ptr": torch.empty((len(owners), 2), dtype=torch.float64, device=device),
            "scale_ptr": grad_scale,
            "found_ptr": found_inf,
            "VARIANT": variant,
            "PARAMETER": kernel_type(dtype),
            "WIDE": kernel_type(wide),
            "BLOCK": BLOCK,
            "VEC": vector([t for e in entries for t in (e.gradient, *_written(e))], dtype.itemsize),
            "num_warps": WARPS,
        }
        update = {
            "NESTEROV": nesterov,
            "AVERAGED": any(e.average is not None for e in entries),
            "COPY_TYPE": None if copied is None else kernel_type(copied),
            "PARTS": PARTS,
        }
        return _Launch((len(owners),), arguments, update, [t for group in groups.values() for t in group.alive])


def _written(entry: Entry) -> list[Tensor]:
    return [t for t in (entry.weight, entry.velocity, entry.average, entry.copy) if t is not None]


class _Scalars:
    """Options of a group: numbers that the host knows, and addresses of those that only the device knows."""

    def __init__(self, group: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        on_device = {name: value for name in ("lr", "momentum") if _is_on(value := group[name], device)}
        # Converted where the kernel reads another dtype, by a launch of its own.
        tensors = {name: value.to(dtype) for name, value in on_device.items()}
        numbers = [0.0 if name in tensors else host_scalar(group[name], name) for name in ("lr", "momentum")]
        self.alive = list(tensors.values())
        self.addresses = [tensors[name].data_ptr() if name in tensors else 0 for name in ("lr", "momentum")]
        self.options = [group["weight_decay"], group["eta"], float(group["adapt"]), *numbers]


def _is_on(value: float | Tensor, device: torch.device) -> bool:
    return isinstance(value, Tensor) and value.device == device
