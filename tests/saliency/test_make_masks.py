"""Masks of a data set: where they lie, what reads them, what is kept, and what is refused."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.cli import main
from fastssl.data import open_source
from fastssl.data.masks import Masks, as_stored
from fastssl.errors import UserError
from fastssl.saliency import LearningSettings, SaliencySettings, make_masks
from fastssl.saliency.writing import encode_mask, mask_files

SMALL = SaliencySettings(LearningSettings(size=32, rounds=2, epochs=1, batch_size=8), mask_size=40)


@pytest.fixture(autouse=True)
def one_thread():
    """Layers this small lose more by sharing out their work, on cores that are busy, than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def disc(width: int, height: int, x: float, y: float) -> Image.Image:
    columns, rows = np.arange(width), np.arange(height)[:, None]
    inside = (columns - x * width) ** 2 + (rows - y * height) ** 2 < (0.25 * min(width, height)) ** 2
    return Image.fromarray(np.where(inside[:, :, None], [230, 140, 20], [30, 60, 150]).astype(np.uint8))


@pytest.fixture
def images(tmp_path) -> Path:
    """Sixteen discs in two class folders: PNG files of three sizes."""
    root = tmp_path / "images"
    for i in range(16):
        path = root / f"class{i % 2}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        disc(*[(60, 40), (36, 36), (30, 50)][i % 3], 0.4 + 0.02 * i, 0.5).save(path)
    return root


def pixels(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted((out / "train").rglob("*.png"))}


def test_masks_are_where_training_looks_in_the_images_proportions_and_sheet_and_summary_beside(images, tmp_path):
    out = tmp_path / "out"
    summary = make_masks(open_source(images), out, SMALL)
    assert sorted(p.name for p in out.iterdir()) == ["saliency.json", "saliency.png", "saliency.pt", "train"]
    assert set(pixels(out)) == {f"train/class{i % 2}/{i:02d}.png" for i in range(16)}
    source = open_source(images)
    masks = Masks(out, source)
    shares = []
    for i in range(16):
        shown = Image.open(io.BytesIO(source.read(i))).size
        with Image.open(out / "train" / source.name(i)) as mask:
            assert mask.mode == "L"
            assert set(np.unique(mask)) <= {0, 255}
            assert mask.size == {(60, 40): (40, 27), (36, 36): (36, 36), (30, 50): (24, 40)}[shown]
            shares.append((np.asarray(mask) > 127).mean())
        assert masks.foreground(i, shown[1], shown[0]).any()
    assert not masks.missing
    assert json.loads((out / "saliency.json").read_text()) == summary
    assert summary["images"] == summary["masks"] == 16
    assert summary["mean_foreground"] == pytest.approx(np.mean(shares))
    assert len(summary["agreement_of_cues"]) == 6
    assert len(summary["agreement_of_rounds"]) == 2


def test_a_killed_run_ends_with_the_masks_of_one_that_was_not(images, tmp_path, monkeypatch):
    source = open_source(images)
    make_masks(source, tmp_path / "whole", SMALL)
    whole = pixels(tmp_path / "whole")
    import fastssl.saliency.make as make

    learn, rounds = make.learn_round, []

    def killed(*args, **options):
        if rounds:
            raise KeyboardInterrupt
        rounds.append(1)
        return learn(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(make, "learn_round", killed)
        with pytest.raises(KeyboardInterrupt):
            make_masks(source, tmp_path / "out", SMALL)
    assert not pixels(tmp_path / "out")
    make_masks(source, tmp_path / "out", SMALL, threads=1)
    assert pixels(tmp_path / "out") == whole
    # Masks that are there are kept, and the missing ones come from the network that is there.
    gone, kept = tmp_path / "out" / "train/class0/00.png", tmp_path / "out" / "train/class1/01.png"
    gone.unlink()
    Image.new("L", (3, 3), 255).save(kept)
    (tmp_path / "out" / "train" / "class0" / ".00.png.17").write_bytes(b"cut off")
    monkeypatch.setattr(make, "learn_round", None)
    summary = make_masks(source, tmp_path / "out", SMALL)
    assert gone.read_bytes() == whole["train/class0/00.png"]
    with Image.open(kept) as mask:
        assert mask.size == (3, 3)
    assert summary["masks"] == 16
    monkeypatch.undo()
    make_masks(source, tmp_path / "out", SMALL, overwrite=True)
    assert pixels(tmp_path / "out") == whole


def test_other_settings_are_refused_in_a_folder_that_was_begun(images, tmp_path):
    source = open_source(images)
    make_masks(source, tmp_path / "out", SMALL)
    other = SaliencySettings(LearningSettings(size=32, rounds=1, epochs=1, batch_size=8), mask_size=40)
    with pytest.raises(UserError, match=r"begun with other settings or other data.*--overwrite"):
        make_masks(source, tmp_path / "out", other)
    (tmp_path / "out" / "saliency.pt").write_bytes(b"not a file of torch")
    with pytest.raises(UserError, match=r"saliency\.pt is damaged.*--overwrite"):
        make_masks(source, tmp_path / "out", SMALL)


def test_bad_images_are_named_and_left_out(images, tmp_path, capsys):
    (images / "class0" / "00.png").write_bytes(b"nothing of the kind")
    command = ["saliency", "--data", str(images), "--out", str(tmp_path / "out"), "--size", "32", "--rounds", "1"]
    assert main([*command, "--epochs", "1", "--threads", "1"]) == 1
    torch.set_num_threads(1)
    said = capsys.readouterr().out
    assert "15 masks" in said
    assert "1 unreadable" in said
    listed = json.loads((tmp_path / "out" / "quarantine.json").read_text())["unreadable"]
    assert [entry["name"] for entry in listed] == ["class0/00.png"]
    assert "train/class0/00.png" not in pixels(tmp_path / "out")


def test_an_image_in_which_nothing_stands_out_gets_no_mask(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), (90, 90, 90)).save(tmp_path / "flat" / f"{name}.png")
    p = np.zeros((32, 32), np.float32)
    assert encode_mask(p, np.full((40, 40, 3), 90, np.uint8), None, 40)[1] == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_stored_as_its_image_is(tmp_path, orientation):
    """What is written for the upright image, and read back for it, is the same mask."""
    for folder in ("images", "out/train"):
        (tmp_path / folder).mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    disc(50, 30, 0.3, 0.4).save(tmp_path / "images" / "a.png", exif=exif)
    source = open_source(tmp_path / "images")
    data = source.read(0)
    turned = (50, 30) if orientation > 4 else (30, 50)
    mask = np.random.default_rng(orientation).random(turned) < 0.5
    stored = as_stored(mask, data)
    assert stored.shape == (30, 50)
    Image.fromarray(stored.astype(np.uint8) * 255).save(tmp_path / "out/train" / "a.png")
    np.testing.assert_array_equal(Masks(tmp_path / "out", source).foreground(0, *turned), mask)


class Named:
    labels = classes = None

    def __init__(self, *names: str) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        return b""

    def name(self, index: int) -> str:
        return self.names[index]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("cat/1.jpg", "cat/1.png"), "would share the mask cat/1.png"),
        (("/data/1.jpg", "cat/2.jpg"), "outside of the folder"),
        (("../1.jpg",), "outside of the folder"),
        (("cat/.1.jpg",), "hidden"),
        (("1.jpg", "cat/1.jpg"), "both in folders and outside"),
    ],
)
def test_images_whose_masks_could_not_be_told_apart_are_refused(names, says):
    with pytest.raises(UserError, match=says):
        mask_files(Named(*names), Path("out"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--size", "50"], "--size must be a multiple of 16 from 32 to 512 pixels, got 50"),
        (["--mask-size", "8"], "--mask-size must be from 16 to 8192 pixels, got 8"),
        (["--rounds", "0"], "--rounds and --epochs must be at least 1, got 0 and 4"),
        (["--train-images", "1"], "--train-images and --batch-size must be at least 2, got 1 and 16"),
        (["--seed", "-1"], "--seed must be in"),
        (["--threads", "-1"], "--threads must be at least 0, got -1"),
    ],
)
def test_bad_options_get_one_sentence_before_any_work(tmp_path, capsys, options, says):
    data = os.fspath(tmp_path / "missing")
    assert main(["saliency", "--data", data, "--out", str(tmp_path / "out"), *options]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_relicv2_without_masks_names_the_command_that_makes_them(image_folder, tmp_path, capsys):
    command = ["pretrain", "relicv2", "--recipe", "quick", "--data", str(image_folder)]
    removal = ["--augment.views.0.background-removal", "0.5"]
    assert main([*command, "--run-dir", str(tmp_path / "run"), *removal]) == 2
    assert "`fastssl saliency` makes some" in capsys.readouterr().err
