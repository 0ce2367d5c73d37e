"""Least work of Sinkhorn's codes, and the work of its kernels, as formulas of the shapes.

R = B + Q rows take part, batch and queue; codes are made for B of them.
"""

from __future__ import annotations

from ..tile import padded_rows, padded_width
from .tiles import REDUCE_BLOCK, Passes


def score_reads(batch: int, queue: int, prototypes: int, iterations: int, itemsize: int, problems: int = 1) -> int:
    """Bytes of scores that N + 1 passes read; the last one needs the batch only."""
    return problems * (iterations * (batch + queue) + batch) * prototypes * itemsize


def floor_bytes(batch: int, queue: int, prototypes: int, iterations: int, itemsize: int, problems: int = 1) -> int:
    """N + 1 reads of the scores and one write of the codes."""
    reads = score_reads(batch, queue, prototypes, iterations, itemsize, problems)
    return reads + 4 * problems * batch * prototypes


def sums_bytes(slots: list[int], iterations: int, prototypes: int, first_slots: int, problems: int = 1) -> int:
    """What the passes write and read beside scores and codes: sums of rows, slot by slot, and potentials.

    slots: programs a problem of an iterating pass, for the batch and for the queue; first_slots: of the first pass.
    """
    numbers = problems * prototypes
    each = sum(slots)
    first = 2 * first_slots + 2 * first_slots + 2  # stored, reduced, base and mass stored
    iterating = 2 * each + each + 1 + each + 1  # potentials read; sums, moved stored; reduced; mass stored
    return 4 * numbers * (first + (iterations - 1) * iterating + 2 * slots[0])


def exponentials(rows: int, prototypes: int, iterations: int, passes: Passes, problems: int = 1) -> int:
    """Exponentials of rows that fill their tiles, queue excluded: one a score and pass, and rescaling in the first."""
    padded = passes.chunk * passes.chunks
    blocks = -(-prototypes // passes.first_block)
    first = problems * blocks * passes.first_block * (rows + rows // passes.first_rows)
    return first + problems * iterations * rows * padded


def reduce_exponentials(prototypes: int, slot_tiles: int, slots_a_tile: int, problems: int = 1) -> int:
    """Exponentials of the reduction after the first pass."""
    programs = -(-problems * prototypes // REDUCE_BLOCK)
    return programs * slot_tiles * REDUCE_BLOCK * (slots_a_tile + 1)


def product_flops(batch: int, queue: int, prototypes: int, width: int, iterations: int, problems: int = 1) -> int:
    """Of `sinkhorn_from_features` on padded rows: 2N products of which the last needs the batch only, and the codes."""
    owners, wide = padded_rows(prototypes), padded_width(width)
    rows = padded_rows(batch) + (padded_rows(queue) if queue else 0)
    logits = (2 * iterations - 1) * rows * owners + 2 * padded_rows(batch) * owners
    return 2 * problems * logits * wide


def product_floor_flops(batch: int, queue: int, prototypes: int, width: int, iterations: int) -> int:
    """N + 1 products: what rows of scores that stay on chip would need."""
    return 2 * (iterations * (batch + queue) + batch) * prototypes * width
