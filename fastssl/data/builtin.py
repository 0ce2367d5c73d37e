"""The built-in data set: twelve shapes in random places, sizes, tilts and colours, made from a seed in a few seconds.

It lets a fresh machine pre-train, evaluate and report without a download. Raw pixels say little about the class (cosine
20-nearest-neighbour accuracy is 23 to 25 %; chance is 8.3 %), shape says all. Every number comes from the counter-based
generator; the images are written as ordinary JPEG files in class folders.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .cache import cache_root
from .counter import BUILTIN_VIEW, uniforms, words

if TYPE_CHECKING:
    from collections.abc import Callable

Array = NDArray[np.float32]

VERSION = 1
"""Changes when the same parameters would give other pixels."""
_SUPERSAMPLING = 4
_COLOR_TRIES = 32
_GEOMETRY_DRAWS = 8
_COLOR_DRAWS = 6 * _COLOR_TRIES
_LUMA = np.array([0.299, 0.587, 0.114])
_QUALITY = 95
_MARKER = "builtin.json"

# ----------------------------------------------------------------------------------------------------------- shapes
# Each takes coordinates in units of its half-size, x to the right and y downwards, and says what lies inside.


def _disc(x: Array, y: Array) -> NDArray[np.bool_]:
    return x * x + y * y < 1


def _ring(x: Array, y: Array) -> NDArray[np.bool_]:
    r = x * x + y * y
    return (r < 1) & (r > 0.6**2)


def _square(x: Array, y: Array) -> NDArray[np.bool_]:
    return np.maximum(np.abs(x), np.abs(y)) < 0.85


def _triangle(x: Array, y: Array) -> NDArray[np.bool_]:
    return (y < 0.8) & (y > 2 * np.abs(x) - 1)


def _star(x: Array, y: Array) -> NDArray[np.bool_]:
    """Five points: outside at most one of the five lines through its edges."""
    outside = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.int8)
    for k in range(5):
        angle = np.pi / 2 + 2 * np.pi * k / 5
        outside += np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y > 0.31
    return outside <= 1


def _plus(x: Array, y: Array) -> NDArray[np.bool_]:
    ax, ay = np.abs(x), np.abs(y)
    return (np.minimum(ax, ay) < 0.32) & (np.maximum(ax, ay) < 1)


def _heart(x: Array, y: Array) -> NDArray[np.bool_]:
    u, v = 1.2 * x, 0.15 - 1.2 * y
    return (u * u + v * v - 1) ** 3 < u * u * v * v * v


def _crescent(x: Array, y: Array) -> NDArray[np.bool_]:
    return (x * x + y * y < 1) & ((x - 0.45) ** 2 + y * y > 0.8**2)


def _arrow(x: Array, y: Array) -> NDArray[np.bool_]:
    shaft = (np.abs(y) < 0.24) & (np.abs(x + 0.4) < 0.6)
    head = (x > 0) & (np.abs(y) < 0.85 * (1 - x))
    return shaft | head


def _frame(x: Array, y: Array) -> NDArray[np.bool_]:
    r = np.maximum(np.abs(x), np.abs(y))
    return (r < 0.88) & (r > 0.52)


def _letter_l(x: Array, y: Array) -> NDArray[np.bool_]:
    return (np.abs(x) < 0.7) & (np.abs(y) < 1) & ((x < -0.2) | (y > 0.5))


def _letter_h(x: Array, y: Array) -> NDArray[np.bool_]:
    return (np.abs(x) < 0.8) & (np.abs(y) < 1) & ((np.abs(x) > 0.32) | (np.abs(y) < 0.22))


SHAPES: dict[str, Callable[[Array, Array], NDArray[np.bool_]]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "plus": _plus,
    "heart": _heart,
    "crescent": _crescent,
    "arrow": _arrow,
    "frame": _frame,
    "L": _letter_l,
    "H": _letter_h,
}
"""The twelve classes, by name; image i is of class i mod 12."""


# ----------------------------------------------------------------------------------------------------------- images


def _colors(u: NDArray[np.float64]) -> tuple[Array, Array]:
    """Uniform colours of shape and background, the first pair whose luminances are more than 0.25 apart. `[N, 3]`."""
    pairs = u.reshape(len(u), _COLOR_TRIES, 2, 3)
    luma = pairs @ _LUMA
    apart = np.abs(luma[:, :, 0] - luma[:, :, 1]) > 0.25
    apart[:, -1] = True  # below one image in a million
    chosen = pairs[np.arange(len(u)), apart.argmax(axis=1)].astype(np.float32)
    return chosen[:, 0], chosen[:, 1]


def _noise(seed: int, split: int, ids: NDArray[np.int64], size: int) -> Array:
    """Nearly normal noise of variance 1, `[N, size, size, 3]`: the sum of the four bytes of a random word."""
    first = _GEOMETRY_DRAWS + _COLOR_DRAWS
    drawn = words(seed, split, ids, BUILTIN_VIEW, 3 * size * size, first=first)
    total = drawn.view(np.uint8).reshape(len(ids), size, size, 3, 4).sum(axis=-1, dtype=np.int32)
    return ((total - 510) / np.sqrt((256**2 - 1) / 3)).astype(np.float32)


def coverage(ids: NDArray[np.int64], *, split: int, seed: int = 0, size: int = 32) -> Array:
    """The share of each pixel that the shape covers: the true masks of `draw_images`, whose arguments these are.

    Returns:
        float32 `[N, size, size]`, multiples of 1/16.
    """
    u = uniforms(seed, split, ids, BUILTIN_VIEW, _GEOMETRY_DRAWS)
    half = 0.45 * (0.5 + 0.5 * u[:, 0])
    cx, cy = (half + u[:, k] * (1 - 2 * half) for k in (1, 2))
    tilt = np.deg2rad(25) * (2 * u[:, 3] - 1)
    mirror = np.where(u[:, 4] < 0.5, -1.0, 1.0)
    fine = size * _SUPERSAMPLING
    grid = ((np.arange(fine) + 0.5) / fine).astype(np.float32)
    cos, sin = (f(tilt) / half for f in (np.cos, np.sin))
    covered = np.empty((len(ids), size, size), dtype=np.float32)
    for number, shape in enumerate(SHAPES.values()):
        for i in np.flatnonzero(ids % len(SHAPES) == number):
            dx, dy = (grid - np.float32(cx[i]))[None, :], (grid - np.float32(cy[i]))[:, None]
            x = np.float32(mirror[i] * cos[i]) * dx + np.float32(mirror[i] * sin[i]) * dy
            y = np.float32(cos[i]) * dy - np.float32(sin[i]) * dx
            inside = shape(x, y).reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING)
            covered[i] = inside.sum(axis=(1, 3), dtype=np.float32) / _SUPERSAMPLING**2
    return covered


def draw_images(ids: NDArray[np.int64], *, split: int, seed: int = 0, size: int = 32) -> NDArray[np.uint8]:
    """Images of the built-in data set.

    A shape of half-size 0.45 · U(0.5, 1) of the side lies anywhere inside the image, tilted by up to 25°, mirrored or
    not, on a background with a linear gradient of 0.15; noise has a standard deviation of 0.03.

    Args:
        ids: int64 `[N]`; image i shows shape number i mod 12.
        split: 0 for training, 1 for testing.
        seed: in [0, 2⁶⁴).
        size: side in pixels.

    Returns:
        uint8 `[N, size, size, 3]`.
    """
    u = uniforms(seed, split, ids, BUILTIN_VIEW, _GEOMETRY_DRAWS + _COLOR_DRAWS)
    direction = 2 * np.pi * u[:, 5]
    pixel = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    slope = np.cos(direction)[:, None, None] * pixel[None, None, :] + np.sin(direction)[:, None, None] * pixel[:, None]
    front, back = _colors(u[:, _GEOMETRY_DRAWS:])
    background = back[:, None, None] + 0.15 * slope[..., None].astype(np.float32)
    covered = coverage(ids, split=split, seed=seed, size=size)[..., None]
    image = background + covered * (front[:, None, None] - background)
    image += 0.03 * _noise(seed, split, ids, size)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------ files


def _write_split(folder: Path, count: int, *, split: int, seed: int, size: int) -> None:
    from PIL import Image

    names = tuple(SHAPES)
    for name in names:
        (folder / name).mkdir(parents=True)
    for start in range(0, count, 256):
        ids = np.arange(start, min(start + 256, count))
        for i, pixels in zip(ids.tolist(), draw_images(ids, split=split, seed=seed, size=size), strict=True):
            path = folder / names[i % len(names)] / f"{i:05d}.jpg"
            Image.fromarray(pixels).save(path, format="JPEG", quality=_QUALITY, subsampling=0)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; a killed process releases its lock."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ensure_builtin(
    root: str | os.PathLike[str] | None = None, seed: int = 0, *, train: int = 4000, test: int = 1000, size: int = 32
) -> Path:
    """Write the built-in data set, unless it is there.

    It appears whole or not at all: files go to a folder beside it that is renamed when all are written.

    Args:
        root: its folder, with `train/<class>/*.jpg` and `test/<class>/*.jpg`; None for one below `cache_root()`.
        seed: in [0, 2⁶⁴).
        train, test: number of images.
        size: side of an image in pixels.

    Returns:
        The folder.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    if min(train, test) < len(SHAPES):
        raise UserError(f"train and test must be at least {len(SHAPES)} images, got {train} and {test}")
    if not 8 <= size <= 256:
        raise UserError(f"size must be in [8, 256] pixels, got {size}")
    made_from = {"version": VERSION, "seed": seed, "train": train, "test": test, "size": size}
    name = "shapes-" + "-".join(str(value) for value in made_from.values())
    folder = Path(root).expanduser() if root is not None else cache_root() / name
    if _finished(folder, made_from):
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{folder.name}.lock")):
            if _finished(folder, made_from):  # by another process, in the meantime
                return folder
            shutil.rmtree(partial, ignore_errors=True)  # of a killed one
            _write_split(partial / "train", train, split=0, seed=seed, size=size)
            _write_split(partial / "test", test, split=1, seed=seed, size=size)
            (partial / _MARKER).write_text(json.dumps(made_from) + "\n")
            if folder.is_dir():
                folder.rmdir()  # empty, as `_finished` has seen
            partial.rename(folder)
    except OSError as error:
        raise UserError(f"built-in data set cannot be written to {folder}: {error.strerror}") from error
    return folder


def _finished(folder: Path, made_from: dict[str, int]) -> bool:
    """Whether the folder holds this data set. Raises UserError where it holds something else."""
    if not folder.exists():
        return False
    try:
        found = json.loads((folder / _MARKER).read_text())
    except (OSError, ValueError):
        found = None
    if found == made_from:
        return True
    if found is None and folder.is_dir() and not any(folder.iterdir()):
        return False
    raise UserError(
        f"{folder} exists and is not the built-in data set with {made_from}: remove it or choose another folder"
    )
