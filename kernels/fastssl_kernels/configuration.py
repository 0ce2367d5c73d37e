"""What an operation ships: its kernels with the arguments and options of a real launch.

Each operation that has Triton kernels states them in `<op>/shipped.py`, as a function

    def configurations(target: str) -> list[Configuration]

for a target such as "sm_90" or "gfx942". The proof harness beside this package compiles every one of them and keeps
what it reads in the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Configuration:
    """One kernel as it is launched.

    path: what the kernel does in this configuration, as a reader would call it ("forward-triangular").
    dtype: of the operands. config: what else tells this row from its neighbours ("D=128, 128×128, 8 warps").
    arguments: every parameter by name; a torch.dtype stands for a pointer, numbers specialise as at run time.
    options: num_warps, num_stages and other launch options.
    unit: what instructions are counted for: a "logit", an "element".
    anchor: opcode prefixes that tell the hot loop: a thread needs `anchors_per_unit` such instructions for each of its
        units. Among innermost loops with an anchor the cheapest is the hot one; if no loop has one the whole kernel
        counts. More anchors than the units need are work that is done twice, a fault.
    units_per_trip: what a program handles in one trip of the hot loop: owned rows times streamed columns.
    pieces: tensor instructions of a trip, in those of one piece of one product, if widths go in pieces by a loop
        (`tile.piece_products`).
    units_per_program: for a kernel that counts as a whole and has no anchor: what one program handles.
    flops, exponentials, bytes: work of one unit on the tensor cores, the exp unit and in device memory.
    unaligned: it reads bytes at any address, which rules loads of 128 bits out.
    budget: most instructions a unit that the hot loop may take, by target; absent means reported only.
    """

    path: str
    kernel: Any
    dtype: str
    config: str
    arguments: Mapping[str, Any]
    options: Mapping[str, Any]
    unit: str
    anchor: tuple[str, ...] = ()
    anchors_per_unit: float = 1.0
    units_per_trip: int = 0
    pieces: float = 0.0
    units_per_program: int = 0
    flops: float = 0.0
    exponentials: float = 0.0
    bytes: float = 0.0
    unaligned: bool = False
    budget: Mapping[str, float] = field(default_factory=dict)
