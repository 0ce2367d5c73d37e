"""A contact sheet: images and the views that a recipe makes of them, to be checked by eye before any training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

INK = "#7d868f"
"""Middle gray: contrast of at least 3.6 on white and on near-black, as the sheet has no background of its own."""
OUTLINE = (128, 128, 128, 110)
TILE = 160
"""Views smaller than this are enlarged by the whole factor that comes nearest to it, larger ones shown as they are."""
WIDEST = 256
"""Views and originals are reduced to this side."""
SHEET = 1600
"""Views that do not fit into this width go on in the next line."""
PAGE = 1140
"""Images with few views stand side by side up to this width."""
GAP, MARGIN = 10, 12
FONT_SIZE = 14
LINE_HEIGHT = 18
CAPTION_LINES = 4

Row = tuple[Any, ...]
"""(title, original uint8 `[H, W, 3]`, views float `[3, S, S]` in 0 … 1) and, if wanted, a caption for each view."""


@dataclass(frozen=True)
class _Tile:
    picture: Image.Image
    caption: list[str]

    @property
    def height(self) -> int:
        return self.picture.height + LINE_HEIGHT * len(self.caption) + 4


@dataclass(frozen=True)
class _Block:
    """What belongs to one image: tiles at their places from the block's upper left corner."""

    tiles: list[tuple[int, int, _Tile]]

    @property
    def width(self) -> int:
        return max(x + tile.picture.width for x, _, tile in self.tiles)

    @property
    def height(self) -> int:
        return max(y + tile.height for _, y, tile in self.tiles)


def contact_sheet(rows: Sequence[Row], path: Path) -> Path:
    """Draw each image: the original with its title and size, then its views with their captions.

    All views are scaled alike, so that a small crop looks smaller. Small views are enlarged by a whole factor without
    interpolation: what is seen is what the network gets.

    Args:
        rows: (title, original, views) or (title, original, views, captions). The original is a uint8 array or tensor
            `[H, W, 3]`, each view a float tensor or array `[3, H, W]` in 0 … 1, not normalised.
        path: the PNG to write, with a transparent background.

    Raises:
        ValueError: no rows, a wrong shape, values outside of 0 … 1, or captions that do not match the views.
    """
    if not rows:
        raise ValueError("rows is empty: there are no images to show")
    parsed = [_parse(row) for row in rows]
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), FONT_SIZE)
    side = max((max(view.shape[:2]) for _, _, views, _ in parsed for view in views), default=TILE)
    return _paint([_lay_out(row, side, font) for row in parsed], font, path)


def _parse(row: Row) -> tuple[str, NDArray[np.uint8], list[NDArray[np.uint8]], list[str]]:
    title, original, views = row[:3]
    original = np.asarray(original)
    if original.dtype != np.uint8 or original.ndim != 3 or original.shape[2] != 3 or original.size == 0:
        raise ValueError(f"{title}: the original must be uint8 [H, W, 3], got {original.dtype} {list(original.shape)}")
    captions = list(row[3]) if len(row) > 3 else [""] * len(views)
    if len(captions) != len(views):
        raise ValueError(f"{title}: {len(captions)} captions for {len(views)} views")
    return str(title), original, [_pixels(view, title) for view in views], captions


def _pixels(view: Any, title: str) -> NDArray[np.uint8]:
    array = np.asarray(view.detach().float().cpu() if hasattr(view, "detach") else view, dtype=np.float32)
    if array.ndim != 3 or array.shape[0] != 3 or array.size == 0:
        raise ValueError(f"{title}: a view must be [3, S, S], got {list(array.shape)}")
    # A hundredth covers the rounding of bf16 and the overshoot of bicubic filters.
    if not (array.min() >= -0.01 and array.max() <= 1.01):
        found = f"{array.min():.3g} … {array.max():.3g}"
        raise ValueError(f"{title}: a view must lie in 0 … 1, got {found}: show it before normalisation")
    return (array.clip(0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)


def _lay_out(row: tuple, side: int, font: ImageFont.FreeTypeFont) -> _Block:
    """The original, and right of it the views, in as many lines as they need."""
    title, original, views, captions = row
    factor = WIDEST / side if side > WIDEST else max(1, round(TILE / side))
    column = round(side * factor)
    longest = max(original.shape[:2])
    picture = _scaled(original, column / longest if longest > column else column // longest)
    size = f"{original.shape[1]} × {original.shape[0]}"
    block = _Block([(0, 0, _Tile(picture, [*_wrapped(title, font, column, 2), size]))])
    x = start = column + 2 * GAP
    y = 0
    for view, caption in zip(views, captions, strict=True):
        picture = _scaled(view, factor)
        if x + picture.width > SHEET - 2 * MARGIN and x > start:
            x, y = start, block.height + GAP
        block.tiles.append((x, y, _Tile(picture, _wrapped(caption, font, max(picture.width, 40), CAPTION_LINES))))
        x += picture.width + GAP
    return block


def _scaled(pixels: NDArray[np.uint8], factor: float) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.NEAREST)


def _paint(blocks: Sequence[_Block], font: ImageFont.FreeTypeFont, path: Path) -> Path:
    """Narrow blocks stand side by side, up to the width of a page."""
    pitch = max(block.width for block in blocks) + 4 * GAP
    columns = max(1, min(len(blocks), (PAGE - 2 * MARGIN + 4 * GAP) // pitch))
    placed: list[tuple[int, int, _Tile]] = []
    y = MARGIN
    for first in range(0, len(blocks), columns):
        line = blocks[first : first + columns]
        placed += [
            (MARGIN + i * pitch + dx, y + dy, tile) for i, block in enumerate(line) for dx, dy, tile in block.tiles
        ]
        y += max(block.height for block in line) + GAP
    sheet = Image.new("RGBA", (2 * MARGIN + columns * pitch - 4 * GAP, y - GAP + MARGIN), (0, 0, 0, 0))
    draw = ImageDraw.Draw(sheet)
    for x, top, tile in placed:
        sheet.paste(tile.picture, (x, top))
        # An outline outside of the pixels, or white views would melt into a white page.
        draw.rectangle((x - 1, top - 1, x + tile.picture.width, top + tile.picture.height), outline=OUTLINE)
        for number, text in enumerate(tile.caption):
            draw.text((x, top + tile.picture.height + 3 + number * LINE_HEIGHT), text, fill=INK, font=font)
    sheet.save(path, optimize=True)
    return path


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """`text` in at most `most` lines of `width` pixels; what does not fit ends in "…".

    Lines break at spaces, but not after a single letter ("σ 1.2"), and inside words that are longer than a line.
    """
    lines: list[str] = []
    words = re.sub(r"(?<!\S)(\w) ", "\\1\u00a0", " ".join(text.split())).split(" ") if text.strip() else []
    while words and len(lines) < most - 1:
        line = words.pop(0)
        while words and font.getlength(f"{line} {words[0]}") <= width:
            line = f"{line} {words.pop(0)}"
        fitting = len(line)
        while fitting > 1 and font.getlength(line[:fitting]) > width:
            fitting -= 1
        words = [line[fitting:], *words] if fitting < len(line) else words
        lines.append(line[:fitting])
    return [*lines, _shortened(" ".join(words), font, width)] if words else lines


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
