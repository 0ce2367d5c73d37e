"""RELICv2 with masks from the command line to the loss: a run of crops without background."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_images import write_images
from test_runs import rows

from fastssl.cli import main

COMMAND = (
    *("pretrain", "relicv2", "--recipe", "quick", "--backbone.width", "0.125", "--method.hidden", "16"),
    *("--method.out", "8", "--method.negatives", "3", "--augment.views.0.size", "16", "--train.batch-size", "8"),
    *("--train.epochs", "2", "--train.threads", "1", "--train.precision", "fp32", "--loader.threads", "1"),
    *("--monitor.log-steps", "1", "--monitor.no-baselines", "--monitor.knn-epochs", "0", "--monitor.no-tensorboard"),
    "--monitor.no-linear",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), classes=2, per_class=12)


def masks(images: Path, folder: Path, kept: float) -> Path:
    """Of each image the left part is foreground."""
    for image in images.rglob("*.jpg"):
        mask = np.zeros((16, 16), np.uint8)
        mask[:, : round(16 * kept)] = 255
        path = folder / image.relative_to(images).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    return folder


def losses(images: Path, run_dir: Path, *options: str) -> list[float]:
    assert main([*COMMAND, "--data", str(images), "--run-dir", str(run_dir), *options]) == 0
    return [row["loss"] for row in rows(run_dir) if row["kind"] == "train"]


def test_backgrounds_are_removed_with_the_masks_of_a_run(images, tmp_path):
    """A mask that covers the whole image removes nothing: the run is that without masks, to the bit."""
    plain = losses(images, tmp_path / "plain")
    assert len(plain) == 6
    removal = ("--augment.views.0.background-removal", "0.5", "--masks")
    half = losses(images, tmp_path / "half", *removal, str(masks(images, tmp_path / "left", 0.5)))
    whole = losses(images, tmp_path / "whole", *removal, str(masks(images, tmp_path / "all", 1.0)))
    assert whole == plain
    assert all(a != b for a, b in zip(half, plain, strict=True))
    assert np.isfinite(half).all()


def test_masks_that_are_missing_end_a_run_before_it_begins(images, tmp_path, capsys):
    removal = ("--augment.views.0.background-removal", "0.5")
    assert main([*COMMAND, "--data", str(images), "--run-dir", str(tmp_path / "run"), *removal]) == 2
    assert "background-removal 0.5 needs masks" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
