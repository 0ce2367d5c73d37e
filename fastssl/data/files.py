"""Which files are images, and where they lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
"""File names that count as images (in any case); what a file really holds is told by its content."""


def is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_EXTENSIONS)


def entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as scan:
            return sorted((e for e in scan if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise UserError(f"data folder {folder} cannot be read: {error.strerror}") from error


def walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[str]:
    """Image files below a folder, sorted, links followed; a link to a folder above is not followed again."""
    real = folder.resolve()
    if real in above:
        return
    for entry in entries(folder):
        if entry.is_dir():
            yield from walk(Path(entry.path), (*above, real))
        elif is_image(entry.name) and entry.is_file():
            yield entry.path


def no_images(where: str) -> UserError:
    return UserError(f"{where} holds no images (looked for {', '.join(IMAGE_EXTENSIONS)})")
