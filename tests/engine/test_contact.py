"""The contact sheet passes over what cannot be read."""

import pytest
from PIL import Image
from small_images import write_images

from fastssl.data import open_source
from fastssl.engine.contact import draw_views
from fastssl.errors import UserError
from fastssl.recipes import simclr


def test_unreadable_images_are_passed_over(tmp_path):
    root = write_images(tmp_path / "images", classes=1, per_class=6)
    for name in ("000.jpg", "001.jpg", "005.jpg"):
        (root / "class0" / name).write_bytes(b"not an image")
    out = draw_views(tmp_path / "views.png", open_source(root), simclr("quick").augment, seed=0, images=3)
    with Image.open(out) as sheet:
        assert min(sheet.size) > 100


def test_a_source_without_a_readable_image_is_one_sentence(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for index in range(3):
        (root / f"{index}.jpg").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"none of 3 images from 0\.jpg on can be decoded"):
        draw_views(tmp_path / "views.png", open_source(root), simclr("quick").augment, seed=0)
