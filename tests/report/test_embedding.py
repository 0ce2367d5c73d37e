"""The embedding picture: structure survives, colours can be told apart by everyone, odd input does no harm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from colour import DARK_PAGE, LIGHT_PAGE, VISION, contrast, distances
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_info

from fastssl.errors import UserError
from fastssl.report import embedding
from fastssl.report.embedding import PALETTE, embedding_picture, planar


def clusters(n=120, dim=64, classes=4, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = spread * np.random.default_rng(9).normal(size=(classes, dim))[y] + rng.normal(size=(n, dim))
    return x.astype(np.float32), y


def test_neighbours_stay_neighbours_and_the_seed_decides():
    x, y = clusters()
    points = planar(x, seed=3)
    assert points.shape == (120, 2)
    accuracy = KNeighborsClassifier(5).fit(points[:60], y[:60]).score(points[60:], y[60:])
    assert accuracy > 0.95
    np.testing.assert_array_equal(points, planar(x, seed=3))


def test_only_directions_matter():
    x, _ = clusters(40)
    np.testing.assert_allclose(planar(x * 1024), planar(x), rtol=1e-5)  # a power of two changes no digit


def test_a_collapsed_network_is_a_point_or_a_line():
    same = np.ones((50, 16), np.float32)
    assert np.ptp(planar(same * np.linspace(1, 9, 50, dtype=np.float32)[:, None]), axis=0).max() == 0
    line = planar(np.linspace(-1, 1, 50, dtype=np.float32)[:, None])
    assert np.ptp(line[:, 1]) == 0
    assert len(np.unique(line[:, 0].round(3))) == 2  # one dimension, normalised: -1 and 1


def test_before_and_after_stand_side_by_side_in_the_colours_of_the_classes(tmp_path):
    before, y = clusters(spread=0.0)
    after, _ = clusters(spread=2.0)
    path = embedding_picture(before, torch.from_numpy(after), torch.from_numpy(y), tmp_path / "e.png", classes="abcd")
    picture = np.asarray(Image.open(path).convert("RGBA"))
    assert (picture[..., 3] == 0).mean() > 0.5
    halves = np.split(picture[:, : picture.shape[1] // 2 * 2], 2, axis=1)
    for color in PALETTE[:4]:
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        for half in halves:
            assert ((half[..., :3] == rgb).all(-1) & (half[..., 3] == 255)).sum() > 100
    assert not (picture[..., :3] == [int(PALETTE[4][i : i + 2], 16) for i in (1, 3, 5)]).all(-1).any()


def test_names_of_classes_and_titles_are_in_the_picture(tmp_path):
    x, y = clusters(30, classes=3)
    path = embedding_picture(
        x, x, y + 5, tmp_path / "e.svg", classes=["-"] * 5 + ["cat", "dog <b>"], titles=("kNN 40 %", "kNN 80 %")
    )
    text = path.read_text()
    for comment in ("cat", "dog", "7", "kNN 40 %", "kNN 80 %"):  # matplotlib notes each text beside its outlines
        assert f"<!-- {comment}" in text


def test_more_classes_than_colours_shows_the_first_and_says_so(tmp_path):
    x, _ = clusters(200, classes=4)
    y = np.arange(200) % 40
    rows, shown = embedding._chosen(y, 2000)
    assert shown == list(range(12))
    assert set(y[rows]) == set(range(12))
    assert "<!-- 12 of 40 classes" in embedding_picture(x, x, y, tmp_path / "e.svg").read_text()


def test_points_are_thinned_evenly():
    y = np.sort(np.arange(5000) % 5)
    rows, shown = embedding._chosen(y, 1000)
    assert len(rows) == 1000
    assert shown == [0, 1, 2, 3, 4]
    assert np.bincount(y[rows]).tolist() == [200] * 5


def test_images_without_labels_are_drawn_without_a_legend(tmp_path):
    x, _ = clusters(30)
    assert embedding_picture(x, x, np.full(30, -1), tmp_path / "e.png").exists()
    rows, shown = embedding._chosen(np.array([-1, 3, -1, 3]), 10)
    assert (rows.tolist(), shown) == ([1, 3], [3])


def test_thread_limits_are_lifted_afterwards(tmp_path):
    x, y = clusters(30)
    before = [(pool["filepath"], pool["num_threads"]) for pool in threadpool_info()]
    embedding_picture(x, x, y, tmp_path / "e.png")
    after = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
    assert all(after[path] == threads for path, threads in before)


@pytest.mark.parametrize("n", [3, 4, 7])
def test_a_handful_of_images_is_enough(tmp_path, n):
    x, y = clusters(n, classes=2)
    assert embedding_picture(x, x[:, :5], y, tmp_path / "e.png").exists()


@pytest.mark.parametrize(
    ("before", "after", "labels", "message"),
    [
        (np.ones((9, 4)), np.ones((8, 4)), np.zeros(9), "after must be embeddings"),
        (np.ones(9), np.ones((9, 4)), np.zeros(9), "before must be embeddings"),
        (np.ones((9, 4)), np.full((9, 4), np.nan), np.zeros(9), "after has embeddings that are not finite"),
        (np.ones((2, 4)), np.ones((2, 4)), np.zeros(2), "at least 3 images"),
    ],
)
def test_bad_input_is_named(tmp_path, before, after, labels, message):
    with pytest.raises(UserError, match=message):
        embedding_picture(before, after, labels, tmp_path / "e.png")


def test_palette_is_safe_for_colour_blind_readers_on_light_and_dark_pages():
    assert len(set(PALETTE)) >= 12
    assert distances(PALETTE, "trichromat").min() > 0.16
    for vision in VISION:
        assert distances(PALETTE, vision).min() > 0.105, vision  # five just noticeable differences
    for color in PALETTE:
        assert contrast(color, LIGHT_PAGE) > 1.55
        assert contrast(color, DARK_PAGE) > 1.9
    for color in (embedding.INK, embedding.FRAME):
        assert min(contrast(color, LIGHT_PAGE), contrast(color, DARK_PAGE)) > 3
