"""Crops without background against a plain transcription: which they are, what they show, and what stays as it was."""

from __future__ import annotations

import io
import tarfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl import config, recipes
from fastssl.data import Augmentation, ViewLoader, ViewSpec, open_source
from fastssl.data.counter import uniforms
from fastssl.data.masks import Masks
from fastssl.data.params import ViewParams, background_removed, sample_params
from fastssl.data.render import render
from fastssl.errors import UserError

SIZES = [(20, 20), (20, 31), (33, 24)]
PLAIN = ViewSpec(size=16, count=2)
RECIPE = Augmentation((replace(PLAIN, background_removal=0.5, background_fill=0.2), replace(PLAIN, size=8, count=1)))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def mask_of(i: int) -> np.ndarray:
    return np.random.default_rng(100 + i).integers(0, 256, SIZES[i % 3], dtype=np.uint8)


@pytest.fixture(params=["folder", "tar"])
def data(request, tmp_path: Path) -> tuple[Path, Path]:
    """Twelve images of three sizes in two class folders, and their masks in a folder or a tar."""
    for i in range(12):
        name = Path(f"class{i % 2}", f"{i:02d}.png")
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (*SIZES[i % 3], 3), dtype=np.uint8)
        (tmp_path / "images" / name).write_bytes(png(pixels))
        (tmp_path / "masks" / name).write_bytes(png(mask_of(i)))
    if request.param == "folder":
        return tmp_path / "images", tmp_path / "masks"
    with tarfile.open(tmp_path / "masks.tar", "w") as tar:
        tar.add(tmp_path / "masks", arcname=".")
    return tmp_path / "images", tmp_path / "masks.tar"


def batches(images: Path, masks: Path | None, recipe: Augmentation, **options) -> list:
    source = open_source(images)
    given = None if masks is None else Masks(masks, source)
    loader = ViewLoader(source, recipe, batch_size=6, seed=3, masks=given, decoder="torchvision", **options)
    try:
        return [loader.batch(epoch, step) for epoch in range(3) for step in range(2)]
    finally:
        loader.close()


@pytest.mark.parametrize("renderer", ["torch", "auto"])
def test_each_crop_is_cut_from_its_image_times_its_mask(data, renderer):
    images, masks = data
    source = open_source(images)
    removed = 0
    for number, batch in enumerate(batches(images, masks, RECIPE, renderer=renderer)):
        ids, epoch = batch.ids.numpy(), number // 2
        for view, spec in ((0, RECIPE.views[0]), (1, RECIPE.views[0]), (2, RECIPE.views[1])):
            for row, sample in enumerate(ids.tolist()):
                name = int(Path(source.name(sample)).stem)
                pixels = np.array(Image.open(io.BytesIO(source.read(sample)))).astype(np.int64)
                if uniforms(3, epoch, [sample], view, 1, first=524)[0, 0] < spec.background_removal:
                    kept = (mask_of(name) > 127).astype(np.int64)[:, :, None]
                    pixels = pixels * kept + 51 * (1 - kept)
                    removed += 1
                h, w = pixels.shape[:2]
                params = sample_params(spec, seed=3, epoch=epoch, samples=[sample], view=view, heights=[h], widths=[w])
                expected = render([torch.from_numpy(pixels.astype(np.uint8))], params, spec)[0]
                group = batch.views.groups[view // 2]
                assert (group[(view % 2) * 6 + row] - expected).abs().max() <= 5e-6
    assert 25 <= removed <= 47  # of 72 large crops, half


def test_probability_0_changes_nothing_and_batches_are_reproducible(data):
    images, masks = data
    never = replace(RECIPE, views=(replace(RECIPE.views[0], background_removal=0.0), RECIPE.views[1]))
    plain, none = batches(images, None, never), batches(images, masks, never)
    some, again = batches(images, masks, RECIPE), batches(images, masks, RECIPE, threads=1, prefetch=0)
    for a, b, c, d in zip(plain, none, some, again, strict=True):
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.ids, c.ids)
        for g in range(2):
            assert torch.equal(a.views.groups[g], b.views.groups[g])
            assert torch.equal(c.views.groups[g], d.views.groups[g])
        assert torch.equal(a.views.groups[1], c.views.groups[1])
        assert not torch.equal(a.views.groups[0], c.views.groups[0])


@pytest.mark.parametrize("p", [0.0, 0.1, 1.0])
def test_a_crop_in_p_has_no_background(p):
    spec, n = replace(PLAIN, background_removal=p), 10_000
    removed = background_removed(spec, seed=0, epoch=0, samples=np.arange(n), view=0)
    assert abs(removed.mean() - p) <= 3 * (p * (1 - p) / n) ** 0.5
    other = background_removed(spec, seed=0, epoch=0, samples=np.arange(n), view=1)
    assert p != 0.1 or abs(np.corrcoef(removed, other)[0, 1]) < 0.04


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_images_orientation_turns_the_mask_too(tmp_path, orientation):
    """The image itself is its mask: black where it is dark. Turned alike, they agree in every pixel."""
    stored = np.kron(np.random.default_rng(1).integers(0, 2, (4, 6), dtype=np.uint8) * 255, np.ones((8, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.stack([stored] * 3, 2)).save(tmp_path / "images" / "a.png", exif=exif)
    Image.fromarray(stored).save(tmp_path / "masks" / "a.png")
    source = open_source(tmp_path / "images")
    from fastssl.data.decode import decode_one

    image = decode_one(source.read(0))
    inside = Masks(tmp_path / "masks", source).foreground(0, *image.shape[:2])
    assert image.shape[:2] == ((32, 48) if orientation < 5 else (48, 32))
    assert np.array_equal(inside, image[:, :, 0].numpy() > 127)


def test_a_mask_of_another_size_takes_the_nearest_pixel(data):
    images, masks = data
    mask = Masks(masks, open_source(images))
    index = next(i for i in range(12) if open_source(images).name(i).endswith("00.png"))
    stored = mask_of(0) > 127
    assert np.array_equal(mask.foreground(index, 60, 40), np.kron(stored, np.ones((3, 2), dtype=bool)))
    assert np.array_equal(mask.foreground(index, 10, 10), stored[1::2, 1::2])


@pytest.mark.parametrize("data", ["folder"], indirect=True)
def test_missing_and_broken_masks_keep_the_background_and_are_named(data):
    images, masks = data
    (masks / "class0" / "00.png").unlink()
    (masks / "class1" / "01.png").write_bytes(b"no image")
    source = open_source(images)
    given = Masks(masks, source)
    always = Augmentation((replace(PLAIN, background_removal=1.0),))
    loader = ViewLoader(source, always, batch_size=12, seed=3, masks=given, prefetch=0)
    batch = loader.batch(0, 0)
    loader.close()
    assert set(given.missing) == {"class0/00.png", "class1/01.png"}
    assert given.missing["class0/00.png"] == "no mask of that name"
    expected = batch_of_all(images)
    row = batch.ids.tolist().index(next(i for i in range(12) if source.name(i) == "class0/00.png"))
    assert torch.equal(batch.views.groups[0][row], expected.views.groups[0][row])


def batch_of_all(images: Path):
    loader = ViewLoader(open_source(images), Augmentation((PLAIN,)), batch_size=12, seed=3, prefetch=0)
    try:
        return loader.batch(0, 0)
    finally:
        loader.close()


def test_masks_of_other_images_are_refused(tmp_path, data):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.png").write_bytes(png(mask_of(0)))
    with pytest.raises(UserError, match=r"has no mask for any image: it must hold class0/00.png for class0/00.png"):
        Masks(tmp_path / "other", open_source(data[0]))


def test_without_masks_a_recipe_that_wants_them_is_refused(data):
    with pytest.raises(UserError, match=r"views.0.background-removal 0.5 needs masks of the images: name them with"):
        ViewLoader(open_source(data[0]), RECIPE, batch_size=6, seed=0)
    relicv2 = recipes.get("relicv2")
    with pytest.raises(UserError, match=r"views.0.background-removal 0.1 needs masks"):
        config.validate(relicv2)
    config.validate(replace(relicv2, masks="somewhere"))
    assert [spec.background_removal for spec in relicv2.augment.views] == [0.1, 0.1, 0, 0]


def test_draws_of_other_choices_stay():
    some = [
        sample_params(s, seed=0, epoch=0, samples=[1], view=0, heights=[9], widths=[9])
        for s in (PLAIN, RECIPE.views[0])
    ]
    assert all(np.array_equal(getattr(some[0], f.name), getattr(some[1], f.name)) for f in fields(ViewParams))
