"""Shared by all tests: explicit threads, real images where they are, small images everywhere."""

import os
from pathlib import Path

import pytest
import torch
from small_images import write_images

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of real image archives; tests that use it skip where it is not given."""
    folder = os.environ.get("FASTSSL_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real images: FASTSSL_TEST_DATA does not name a folder that exists")
    return Path(folder)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """A data set of 60 training and 20 test images in two classes."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", classes=2, per_class=30)
    write_images(root / "test", classes=2, per_class=10, seed=1)
    return root
