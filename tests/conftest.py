"""Shared by all tests: explicit threads, real images where they are, small images everywhere."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of real image archives; tests that use it skip where it is not given."""
    folder = os.environ.get("FASTSSL_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real images: FASTSSL_TEST_DATA does not name a folder that exists")
    return Path(folder)


def write_images(root: Path, *, classes: int, per_class: int, size: int = 16, seed: int = 0) -> Path:
    """Class folders of small JPEGs: class c has stripes of period 2c + 2, in random colours, with noise."""
    rng = np.random.default_rng(seed)
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for index in range(per_class):
            stripes = (np.arange(size) + rng.integers(8)) // (label + 1) % 2
            pixels = np.where(stripes[:, None, None], rng.integers(0, 255, 3), rng.integers(0, 255, 3))
            pixels = np.broadcast_to(pixels, (size, size, 3)) + rng.normal(0, 16, (size, size, 3))
            pixels = pixels.clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:03d}.jpg", quality=95)
    return root


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """A data set of 60 training and 20 test images in two classes."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", classes=2, per_class=30)
    write_images(root / "test", classes=2, per_class=10, seed=1)
    return root
