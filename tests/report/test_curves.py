"""Curves: what is read, what is drawn, and that it can be read on light and dark pages."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from colour import DARK_PAGE, LIGHT_PAGE, contrast
from PIL import Image

from fastssl.report import curves
from fastssl.report.curves import BINS, curves_svg, draw_curves, read_metrics, series


def train_row(step: int, **metrics) -> dict:
    timing = {"time": step * 0.5, "images_per_second": 1000.0 + step, "data_wait": 0.1}
    return {
        "kind": "train",
        "step": step,
        "epoch": step / 10,
        "loss": 8 - step / 50,
        "lr": 0.1,
        **metrics,
        "timing": timing,
    }


def knn_row(step: int) -> dict:
    return {"kind": "knn", "step": step, "epoch": step / 10, "knn": 0.5, "rankme": 30.0, "timing": {"time": step * 0.5}}


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written = [train_row(s, accuracy=0.2, entropy=4.0, embedding_std=0.08) for s in range(1, 101)]
    written += [knn_row(s) for s in (50, 100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    return read_metrics(path)


def text_of(svg: str) -> set[str]:
    return {
        "".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("}text")
    }


def test_rows_come_in_order_with_their_timing(rows):
    assert len(rows) == 102
    assert rows[2]["images_per_second"] == 1003.0
    assert "timing" not in rows[0]
    assert rows[-1]["knn"] == 0.5


@pytest.mark.parametrize(
    "torn", ['{"kind":"train","step":3,"lo', "\x00\x00", '{"kind":"tr{"kind":"knn"}', "[1, 2]", "7", ""]
)
def test_torn_lines_are_left_out_wherever_they_are(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    good = json.dumps(train_row(1))
    path.write_text(f"{good}\n{torn}\n{good}\n{torn}")
    assert len(read_metrics(path)) == 2


def test_no_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "metrics.jsonl")


def test_series_takes_finite_numbers_only():
    values = [1.0, math.nan, math.inf, None, "3", True, 2]
    x, y = series([{"epoch": i, "loss": value} for i, value in enumerate(values)], "loss")
    assert x.tolist() == [0, 6]
    assert y.tolist() == [1, 2]
    x, _ = series([{"step": 7, "loss": 1.0}, {"loss": 1.0}], "loss")
    assert x.tolist() == [7]


def test_every_metric_gets_a_panel_with_its_figure(rows):
    shown = text_of(curves_svg(rows))
    assert {panel.title for panel in curves.PANELS} <= shown
    assert {"6", "50.0%", "peak 0.1", "20.0%", "median 1,050", "median 10.0%", "epoch"} <= shown


def test_only_what_was_measured_is_drawn():
    shown = text_of(curves_svg([{"step": s, "loss": 1.0 + s} for s in range(5)]))
    assert {"loss", "step", "5"} <= shown
    assert not {"kNN accuracy", "images / s", "epoch"} & shown


def test_references_are_named(rows):
    shown = text_of(curves_svg(rows, {"knn": [("raw pixels", 0.31), ("untrained network", 0.32)]}))
    assert {"raw pixels", "untrained network"} <= shown


def test_references_lie_inside_their_panel():
    for heights in ([0.5, 0.6, 0.31], [0.5, 0.6, 0.9], [0.0, 0.0], [5.0]):
        for from_zero in (False, True):
            low, high = curves._limits(heights, from_zero)
            assert low <= min(heights)
            assert high > max(heights)
            assert not from_zero or low == 0


@pytest.mark.parametrize("n", [1, 2, BINS, BINS + 1, 10_007])
def test_any_number_of_points_can_be_drawn(tmp_path, n):
    path = draw_curves([train_row(s) for s in range(n)], tmp_path / "curves.png")
    with Image.open(path) as image:
        assert image.size[0] > 300


def test_bins_keep_mean_and_range():
    rng = np.random.default_rng(0)
    y = rng.normal(size=1003)
    x = np.arange(1003.0)
    mean_x, mean_y, low, high = curves._binned(x, y)
    chunks = np.split(np.arange(1003), np.linspace(0, 1003, BINS, endpoint=False).astype(int)[1:])
    assert len(chunks) == len(mean_y) == BINS
    np.testing.assert_allclose(mean_y, [y[c].mean() for c in chunks])
    np.testing.assert_allclose(mean_x, [x[c].mean() for c in chunks])
    np.testing.assert_array_equal(low, [y[c].min() for c in chunks])
    np.testing.assert_array_equal(high, [y[c].max() for c in chunks])


def test_pictures_have_no_background_and_middle_colours(tmp_path, rows):
    picture = np.asarray(Image.open(draw_curves(rows, tmp_path / "c.png")).convert("RGBA"))
    assert (picture[..., 3] == 0).mean() > 0.5
    for color in (curves.INK, curves.LINE):
        for page in (LIGHT_PAGE, DARK_PAGE):
            assert contrast(color, page) > 3  # WCAG 2.1, graphics and large text


def test_svg_takes_the_dark_colours_of_a_dark_page(rows):
    svg = curves_svg(rows)
    style = svg[svg.index("<style>") : svg.index("</style>")]
    assert "prefers-color-scheme:dark" in style
    for light, dark in curves.DARK_PAGE.items():
        assert svg.count(light) > 2  # used outside of the style
        assert f"{{fill:{dark}!important}}" in style
        assert contrast(dark, DARK_PAGE) > 4.5
    assert "http" not in svg.replace('="http://www.w3.org', "")  # nothing but the names of the SVG language


def test_svg_is_the_same_each_time(rows):
    assert curves_svg(rows) == curves_svg(rows)


def test_nothing_to_draw_is_an_error():
    for rows in ([], [{"step": 1}], [{"step": 1, "loss": math.nan}]):
        with pytest.raises(ValueError, match="no metric"):
            curves_svg(rows)
