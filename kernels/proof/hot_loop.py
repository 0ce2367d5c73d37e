"""The loop in which a kernel spends its time, and what one unit costs in it: for the ledger and for public kernels.

Units come from the tile, owned rows times streamed columns, never from what the compiler emitted: an instruction that
every unit needs, the anchor, only tells which loop is hot. Where there are more anchors than units want, the compiler
has two groups of threads compute the same rows, and the share of a unit grows by what it really costs.
"""

from __future__ import annotations

from dataclasses import dataclass

from .sass import Loop, Program

TENSOR = ("HMMA", "HGMMA", "UTCHMMA", "v_mfma")
# Anchors over those that units need, from which on work is done twice: extents are powers of two. Below it are rescaled
# sums of an online softmax, one exponential for each row that a thread has, and single exponentials that the assembler
# makes again instead of keeping a register.
REPEATED = 2.0


@dataclass(frozen=True)
class HotLoop:
    """loop, or the whole kernel; instructions: of one trip, a loop inside as often as it runs; each: of one unit.

    repetition: anchors over those that the units need, 1 where nothing is computed twice, 0 without an anchor.
    """

    loop: Loop
    instructions: int
    each: float
    repetition: float


def hot_loop(
    program: Program,
    units: float,
    anchor: tuple[str, ...],
    anchors_per_unit: float = 1.0,
    *,
    pieces: float = 0.0,
    products: bool = False,
    whole: bool = False,
) -> HotLoop:
    """units: of one trip, a thread's share. anchor: opcode prefixes. whole: the kernel has no loop over tiles.

    pieces: tensor instructions of a trip, in those of one trip of a loop inside; 0 if no loop inside is expected.
    products: only a loop with tensor instructions is hot.
    """
    inner = _over_pieces(program, anchor) if pieces else []
    loop = program.whole if whole else _hot(program, anchor, inner, products)
    inner = [other for other in inner if loop.contains(other)]
    trips = _trips(loop, inner, pieces) if inner else 1
    instructions = loop.instructions + (trips - 1) * sum(other.instructions for other in inner)
    if not anchor:
        return HotLoop(loop, instructions, instructions / units, 0.0)
    anchors = loop.count(*anchor) + (trips - 1) * sum(other.count(*anchor) for other in inner)
    repetition = anchors / (units * anchors_per_unit)
    if repetition < 1.0:
        raise ValueError(f"{anchors} of {anchor} in the hot loop, {units * anchors_per_unit} by its tile: another loop")
    return HotLoop(loop, instructions, instructions / units, repetition)


def _over_pieces(program: Program, anchor: tuple[str, ...]) -> list[Loop]:
    """Innermost loops of a product and nothing else."""
    others = tuple(prefix for prefix in anchor if not prefix.startswith(TENSOR))
    return [loop for loop in program.innermost() if loop.count(*TENSOR) and not loop.count(*others)]


def _hot(program: Program, anchor: tuple[str, ...], inner: list[Loop], products: bool) -> Loop:
    """Of the innermost loops with an anchor the cheapest, an anchor; the kernel if no loop has one."""
    found = [loop for loop in program.loops if loop.count(*anchor) and (not products or loop.count(*TENSOR))]
    found = [loop for loop in found if any(map(loop.contains, inner))] or found
    found = [loop for loop in found if not any(map(loop.contains, found))]
    hot = min(found or [program.whole], key=lambda loop: loop.instructions / max(1, loop.count(*anchor)))
    if not hot.count(*anchor):
        raise ValueError(f"no instruction begins with any of {anchor}")
    return hot


def _trips(loop: Loop, inner: list[Loop], pieces: float) -> int:
    """How often the loops over pieces run: what the compiler did not take out of them."""
    inside = sum(other.count(*TENSOR) for other in inner)
    trips = (pieces * inside / len(inner) - (loop.count(*TENSOR) - inside)) / inside
    if trips < 1 or trips != int(trips):
        raise ValueError(f"{trips} trips of the loop over pieces: {loop.count(*TENSOR)} tensor instructions, {inside}")
    return int(trips)
