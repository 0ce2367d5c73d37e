"""The built-in data set: deterministic, whole or absent, and hard enough for raw pixels."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastssl.data import CenterCrop, ensure_builtin, evaluation_batches, open_splits
from fastssl.data.builtin import SHAPES, draw_images
from fastssl.data.cache import cache_root
from fastssl.errors import UserError

SMALL = {"train": 48, "test": 24}


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    return ensure_builtin(tmp_path_factory.mktemp("builtin") / "shapes")


def test_layout(full):
    train, test = open_splits(full)
    assert (len(train), len(test)) == (4000, 1000)
    assert train.classes == test.classes == tuple(sorted(SHAPES))
    assert len(train.classes) == 12
    assert set(np.bincount(train.labels)) == {333, 334}
    assert set(np.bincount(test.labels)) == {83, 84}
    assert all(train.read(i)[:2] == b"\xff\xd8" for i in range(0, 4000, 500))


def test_raw_pixels_say_little(full):
    """Cosine 20-nearest neighbours on raw pixels: 25.0 % at seed 0, 22.7 % at seed 1; chance is 8.3 %."""
    features, labels = [], []
    for source in open_splits(full):
        batches = list(evaluation_batches(source, CenterCrop(size=32, crop=1.0), batch_size=500))
        features.append(torch.nn.functional.normalize(torch.cat([x.flatten(1) for x, _, _ in batches])))
        labels.append(torch.cat([y for _, y, _ in batches]))
    near = (features[1] @ features[0].T).topk(20, dim=1).indices
    votes = torch.zeros(1000, 12).scatter_add_(1, labels[0][near], torch.ones(1000, 20))
    accuracy = (votes.argmax(1) == labels[1]).double().mean().item()
    assert 0.17 < accuracy < 0.29


def test_pixels_are_a_function_of_seed_split_and_index():
    whole = draw_images(np.arange(60), split=0)
    assert whole.shape == (60, 32, 32, 3)
    assert np.array_equal(draw_images(np.array([59, 3]), split=0), whole[[59, 3]])
    assert not np.array_equal(draw_images(np.arange(60), split=1), whole)
    assert not np.array_equal(draw_images(np.arange(60), split=0, seed=1), whole)
    assert len(np.unique(whole.reshape(60, -1), axis=0)) == 60


def test_stated_constants():
    """Luminance gap, noise and size of the shapes, measured on the pixels."""
    ids = np.arange(0, 1200, 12)  # discs
    images = draw_images(ids, split=0, size=64).astype(np.float64) / 255
    luma = images @ [0.299, 0.587, 0.114]
    low, high = np.percentile(luma, [1, 99], axis=(1, 2))
    assert (high - low > 0.2).mean() > 0.97
    # Noise: differences of neighbours in smooth places have a variance of 2 · 0.03²; the median ignores edges.
    steps = np.diff(images, axis=2).ravel()
    inside = (images[:, :, 1:].ravel() > 0.1) & (images[:, :, 1:].ravel() < 0.9)
    sigma = np.median(np.abs(steps[inside])) / 0.6745 / np.sqrt(2)
    assert 0.027 < sigma < 0.034


def test_shapes_fill_their_half_size():
    """No shape leaves the disc that rotation and position allow for, and none is tiny."""
    grid = ((np.arange(200) + 0.5) / 100 - 1).astype(np.float32) * 1.5
    for name, shape in SHAPES.items():
        inside = shape(grid[None, :], grid[:, None])
        assert 0.15 < inside.mean() * 9 / 4 < 0.85, name
        y, x = np.nonzero(inside)
        assert max(abs(grid[x]).max(), abs(grid[y]).max()) <= 1.05, name


def test_idempotent(tmp_path):
    root = tmp_path / "shapes"
    assert ensure_builtin(root, **SMALL) == root
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.jpg")}
    assert len(times) == 72
    ensure_builtin(root, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.jpg")} == times


def test_other_parameters_or_other_content_are_refused(tmp_path):
    root = ensure_builtin(tmp_path / "shapes", **SMALL)
    with pytest.raises(UserError, match="exists and is not the built-in data set with"):
        ensure_builtin(root, seed=1, **SMALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(UserError, match="remove it or choose another folder"):
        ensure_builtin(tmp_path / "mine", **SMALL)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not touch"
    (tmp_path / "empty").mkdir()
    assert open_splits(ensure_builtin(tmp_path / "empty", **SMALL))[1] is not None
    with pytest.raises(UserError, match="train and test must be at least 12"):
        ensure_builtin(tmp_path / "few", train=5, test=24)
    with pytest.raises(UserError, match="cannot be written"):
        ensure_builtin(tmp_path / "mine" / "thesis.txt" / "shapes", **SMALL)


def test_same_files_every_time(tmp_path):
    a, b = (ensure_builtin(tmp_path / name, seed=5, **SMALL) for name in "ab")
    for path in a.rglob("*.jpg"):
        assert path.read_bytes() == (b / path.relative_to(a)).read_bytes()


def test_a_killed_write_is_redone(tmp_path):
    root = tmp_path / "shapes"
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=ensure_builtin, args=(root,))
    process.start()
    partial = tmp_path / ".shapes.partial"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(partial.rglob("*.jpg"))) < 20:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert partial.is_dir()
    assert not root.exists()
    ensure_builtin(root, **SMALL)
    assert len(list(root.rglob("*.jpg"))) == 72
    assert json.loads((root / "builtin.json").read_text())["train"] == 48
    assert not partial.exists()


def test_cache_root(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_root() == tmp_path / "cache" / "fastssl"
    root = ensure_builtin(**SMALL)
    assert root.parent == tmp_path / "cache" / "fastssl"
    assert ensure_builtin(seed=1, **SMALL) != root
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "home" / ".cache" / "fastssl"
