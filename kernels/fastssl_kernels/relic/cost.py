"""The least work of RELIC, and the work of its two kernels with products, as formulas of the shapes.

A product is one multiply-add of two rows for every logit of a pair of views. The least is one product a pair forward,
as counterparts are pairs themselves, and two backward; bytes count every row once.
"""

from __future__ import annotations

from ..nt_xent.cost import Cost
from ..tile import Tile, padded_rows, padded_width


def relic_floor(
    batch: int, width: int, negatives: int, *, large: int, small: int, self_pairs: bool = True, itemsize: int = 2
) -> tuple[Cost, Cost]:
    """Forward and backward of `relic` with `negatives` negatives an image."""
    pairs = (large + small) * large - (0 if self_pairs else large)
    logits = pairs * batch * negatives
    rows = (2 * large + small) * batch * width * itemsize
    written = (large + small) * batch * width * itemsize
    return Cost(rows, 2 * logits * width, logits), Cost(rows + written, 4 * logits * width, logits)


def computed_predictions(large: int, small: int, self_pairs: bool, invariance: bool) -> int:
    """Programs of `pair_sums_kernel` that work, for each tile of images and split."""
    if not invariance:
        return (large + small) * large - (0 if self_pairs else large)
    return large * (large - 1) // 2 + small * large + (large if self_pairs and not small else 0)


def sums_cost(
    batch: int,
    width: int,
    negatives: int,
    columns: int,
    tile: Tile,
    *,
    large: int,
    small: int,
    self_pairs: bool,
    invariance: bool,
    sampled: bool,
    splits: int,
    statistics: int,
    itemsize: int,
) -> Cost:
    """`pair_sums_kernel` on `columns` padded rows of negatives a view; loads and stores of all programs.

    statistics: sums that are kept of a prediction, 1 to 4.
    """
    wide, rows = padded_width(width), padded_rows(batch)
    row_tiles, pairs, pieces = rows // tile.owner, (large + small) * large, padded_width(width) // tile.piece
    both = 2 if invariance else 1
    active = row_tiles * computed_predictions(large, small, self_pairs, invariance)
    tiles = active * _tiles(negatives, columns, tile, sampled)
    owners = row_tiles * pairs * splits * both * tile.owner * tile.piece
    streamed = tiles * both * (tile.streamed * wide + (pieces - 1) * tile.owner * tile.piece)
    identities = active * negatives * 8 if sampled else 0
    logits = tiles * both * tile.owner * tile.streamed
    kept = (large + small) * large - (0 if self_pairs or (invariance and small) else large)
    stored = kept * row_tiles * splits * tile.owner * statistics * 4
    return Cost((owners + streamed) * itemsize + identities + stored, 2 * logits * wide, logits)


def gradient_cost(
    batch: int,
    width: int,
    negatives: int,
    columns: int,
    tile: Tile,
    *,
    large: int,
    small: int,
    self_pairs: bool,
    invariance: bool,
    second: bool,
    sampled: bool,
    splits: int,
    itemsize: int,
) -> Cost:
    """`pair_gradient_kernel`, loads and stores of all programs; `second`: the gradient reaches the counterpart."""
    wide, rows, views = padded_width(width), padded_rows(batch), large + small
    row_tiles, pieces, both = rows // tile.owner, wide // tile.piece, 2 if invariance else 1
    second = second and invariance
    with_itself = max(small if second else 0, 1 if self_pairs else 0)
    works = large * (large - 1 + with_itself) + small * large
    tiles = works * row_tiles * pieces * _tiles(negatives, columns, tile, sampled)
    owners = pieces * splits * (views + (works if invariance else 0)) * rows * tile.piece
    streamed = tiles * both * (tile.streamed * wide + (pieces - 1) * tile.owner * tile.piece)
    if pieces > 1:
        streamed += tiles * tile.streamed * tile.piece
    table = works * pieces * splits * batch * 4 * (1 + invariance + second)
    identities = works * row_tiles * pieces * negatives * 8 if sampled else 0
    logits = tiles * tile.owner * tile.streamed
    stored = splits * views * rows * wide * 4
    bytes_moved = (owners + streamed) * itemsize + table + identities + stored
    return Cost(bytes_moved, 2 * logits * (both * wide + tile.piece), logits * (1 + second))


def _tiles(negatives: int, columns: int, tile: Tile, sampled: bool) -> int:
    """Tiles of negatives that a tile of images meets."""
    assert columns % tile.streamed == 0
    return -(-negatives // tile.streamed)
