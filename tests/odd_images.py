"""Files that decoders stumble over, made for the tests: one of each kind, and what must become of it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH = 60, 44

Outcome = tuple[int, int] | str
"""Height and width as decoded, or a part of the reason why the file is refused."""


def photo() -> NDArray[np.uint8]:
    """A smooth colour image `[60, 44, 3]`, no two corners alike."""
    coarse = np.array([[[230, 30, 40], [40, 200, 60]], [[50, 60, 220], [235, 225, 70]]], dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def flipped_bits(jpeg: bytes) -> bytes:
    """Three bits of the entropy-coded data changed, no marker made or lost."""
    data = bytearray(jpeg)
    start = data.index(b"\xff\xda") + 20
    free = [i for i in range(start, len(data) - 4) if data[i] < 0xF0 and data[i - 1] != 0xFF]
    for i in (free[len(free) // 4], free[len(free) // 2], free[3 * len(free) // 4]):
        data[i] ^= 0x08
    return bytes(data)


def odd_images() -> dict[str, tuple[bytes, Outcome]]:
    """(content, outcome) by file name."""
    pixels = photo()
    image = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[0x0112] = 6  # shown a quarter turn to the right
    good = encode(image, "JPEG", quality=95, subsampling=0)
    wedge = np.linspace(0, 65535, 64, dtype=np.uint16)[None, :].repeat(64, axis=0)
    rgba = np.dstack([pixels, np.full((HEIGHT, WIDTH), 90, dtype=np.uint8)])
    upright, size = (HEIGHT, WIDTH), len(good)
    return {
        "00_good.jpg": (good, upright),
        "01_cmyk.jpg": (encode(image.convert("CMYK"), "JPEG", quality=95, subsampling=0), upright),
        "02_gray.jpg": (encode(image.convert("L"), "JPEG", quality=95), upright),
        "03_progressive.jpg": (encode(image, "JPEG", quality=95, subsampling=0, progressive=True), upright),
        "04_exif6.jpg": (encode(image, "JPEG", quality=95, subsampling=0, exif=turned), (WIDTH, HEIGHT)),
        "05_png_named_jpeg.jpg": (encode(image, "PNG"), upright),
        "06_webp.webp": (encode(image, "WEBP", lossless=True), upright),
        "07_png_rgba.png": (encode(Image.fromarray(rgba), "PNG"), upright),
        "08_png_16bit_gray.png": (encode(Image.fromarray(wedge), "PNG"), (64, 64)),
        "09_truncated_50pct.jpg": (good[: size // 2], "truncated"),
        "10_truncated_header.jpg": (good[:100], "truncated JPEG header"),
        "11_empty.jpg": (b"", "empty file"),
        "12_text.jpg": (b"<html><body>404 Not Found</body></html>\n", "not an image of a known format"),
        "13_bitflips.jpg": (flipped_bits(good), upright),
        "14_gif.gif": (encode(image.quantize(64), "GIF"), upright),
        "15_tiny_1x1.jpg": (encode(image.resize((1, 1)), "JPEG"), (1, 1)),
        "16_garbage_tail.jpg": (good + bytes(range(256)) * 20, upright),
        "17_false_sof3.jpg": (good.replace(b"\xff\xc0", b"\xff\xc3", 1), "lossless, hierarchical or arithmetic JPEG"),
    }


def refused(names: dict[str, Outcome]) -> set[str]:
    return {name for name, outcome in names.items() if isinstance(outcome, str)}


def write_odd_images(folder: Path) -> dict[str, Outcome]:
    """Write them all, and return what must become of each."""
    folder.mkdir(parents=True, exist_ok=True)
    made = odd_images()
    for name, (content, _) in made.items():
        (folder / name).write_bytes(content)
    return {name: outcome for name, (_, outcome) in made.items()}
