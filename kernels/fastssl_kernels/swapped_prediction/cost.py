"""Least work of SwAV's loss, and the work of its kernels, as formulas of the shapes: V crops of B images, A codes."""

from __future__ import annotations

from ..tile import Tile, padded_rows, padded_width


def floor_flops(batch: int, crops: int, prototypes: int, width: int) -> int:
    """Loss and both gradients: scores once, and a product for each gradient."""
    return 3 * 2 * crops * batch * prototypes * width


def code_bytes(codes: int, batch: int, prototypes: int, *, prototype_gradient: bool) -> int:
    """Codes are read once for the loss and the gradient of the features, once more for that of the prototypes."""
    return 4 * codes * batch * prototypes * (1 + prototype_gradient)


def flops(
    batch: int,
    crops: int,
    codes: int,
    prototypes: int,
    width: int,
    tiles: dict[str, Tile],
    *,
    z_gradient: bool,
    prototype_gradient: bool,
) -> int:
    """What the kernels multiply, padding included; tiles by kernel: "codes", "predict", "prototypes"."""
    wide, rows, columns = padded_width(width), padded_rows(crops * batch), padded_rows(prototypes)
    tile, product = tiles["codes"], 2 * rows * wide

    def up(number: int, block: int) -> int:
        return -(-number // block) * block

    total = 2 * up(codes * batch, tile.owner) * up(prototypes, tile.streamed) * wide
    streamed = up(prototypes, tiles["predict"].streamed)
    total += product * streamed * (1 + z_gradient)
    if prototype_gradient:
        total += 2 * product * columns + 2 * padded_rows(codes * batch) * columns * wide
    return total


def score_bytes(batch: int, prototypes: int, itemsize: int) -> tuple[int, int]:
    """`code_cross_entropy` of a crop: forward scores, targets and four numbers a row; backward also the result."""
    read = batch * prototypes * (itemsize + 4)
    return read + 16 * batch, read + 16 * batch + batch * prototypes * itemsize
