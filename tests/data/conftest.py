"""Small JPEG folders, and the real images that FASTSSL_TEST_DATA points to."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def jpeg(height: int, width: int, seed: int = 0, *, quality: int = 90, **options) -> bytes:
    """A smooth random image."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, **options)
    return buffer.getvalue()


@pytest.fixture
def make_jpeg() -> Callable[..., bytes]:
    return jpeg


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    """Forty JPEGs of 32 × 32 in four class folders."""
    for i in range(40):
        folder = tmp_path / "images" / f"class{i % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:03d}.jpg").write_bytes(jpeg(32, 32, i))
    return tmp_path / "images"


@pytest.fixture
def mixed_folder(tmp_path: Path) -> Path:
    """Twenty-four JPEGs of many sizes, small and large, portrait and landscape."""
    sizes = [(32, 32), (48, 40), (40, 48), (96, 97), (150, 100), (120, 200), (33, 33), (300, 240)]
    for i in range(24):
        folder = tmp_path / "mixed" / f"class{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:03d}.jpg").write_bytes(jpeg(*sizes[i % len(sizes)], i))
    return tmp_path / "mixed"


@pytest.fixture(scope="session")
def unpacked(real_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Unpack an archive of real images, once."""
    folders: dict[str, Path] = {}

    def get(name: str) -> Path:
        if not (real_images / name).is_file():
            pytest.skip(f"real images: FASTSSL_TEST_DATA holds no {name}")
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name.split(".")[0])
            with tarfile.open(real_images / name) as tar:
                tar.extractall(folders[name], filter="data")
        return folders[name]

    return get
