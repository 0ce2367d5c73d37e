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


def contact_sheet(rows: Sequence[Row], path: Path) -> Path:
    """Draw one line for each image: the original with its title and size, then its views with their captions.

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
    lines = [_lay_out(row, side, font) for row in parsed]
    return _paint(lines, font, path)


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


def _lay_out(row: tuple, side: int, font: ImageFont.FreeTypeFont) -> list[list[_Tile]]:
    """Lines of tiles: the original, then the views; further lines start below the first view."""
    title, original, views, captions = row
    tile = round(side * _factor(side))
    picture = _scaled(original, _factor(max(original.shape[:2]), tile))
    size = f"{original.shape[1]} × {original.shape[0]}"
    lines = [[_Tile(picture, [*_wrapped(title, font, tile, 2), size])]]
    x = start = MARGIN + tile + 2 * GAP
    for view, caption in zip(views, captions, strict=True):
        picture = _scaled(view, _factor(side))
        if x + picture.width > SHEET - MARGIN and x > start:
            lines.append([])
            x = start
        lines[-1].append(_Tile(picture, _wrapped(caption, font, max(picture.width, 40), CAPTION_LINES)))
        x += picture.width + GAP
    return lines


def _factor(side: int, target: int | None = None) -> float:
    """How much larger an image of that greatest side is shown: a whole number, or less than 1."""
    if side > (target or WIDEST):
        return (target or WIDEST) / side
    return max(1, round((target or TILE) / side)) if target is None or side * 2 <= target else 1


def _scaled(pixels: NDArray[np.uint8], factor: float) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.NEAREST)


def _paint(rows: list[list[list[_Tile]]], font: ImageFont.FreeTypeFont, path: Path) -> Path:
    start = MARGIN + max(line[0].picture.width for (line, *_) in rows) + 2 * GAP
    placed, y, width = [], MARGIN, 0
    for lines in rows:
        for number, line in enumerate(lines):
            x = MARGIN if number == 0 else start
            for place, tile in enumerate(line):
                placed.append((x, y, tile))
                x = start if number == 0 and place == 0 else x + tile.picture.width + GAP
                width = max(width, placed[-1][0] + tile.picture.width)
            y += max(tile.height for tile in line) + GAP
    sheet = Image.new("RGBA", (width + MARGIN, y - GAP + MARGIN), (0, 0, 0, 0))
    draw = ImageDraw.Draw(sheet)
    for x, y, tile in placed:
        sheet.paste(tile.picture, (x, y))
        # An outline outside of the pixels, or white views would melt into a white page.
        draw.rectangle((x - 1, y - 1, x + tile.picture.width, y + tile.picture.height), outline=OUTLINE)
        for number, text in enumerate(tile.caption):
            draw.text((x, y + tile.picture.height + 3 + number * LINE_HEIGHT), text, fill=INK, font=font)
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
