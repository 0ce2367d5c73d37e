"""The pictures of the records: each is drawn from a tiny record, and shows what the record says."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_bench_method import made_up

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MACHINE = {"cpu": {"model": "Some(R) Processor", "usable_cores": 3}, "gpus": []}
OURS, PEER = "fastssl fp32", "lightly NTXentLoss fp32"


@pytest.fixture(scope="module")
def pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("pictures")


@pytest.fixture
def records(tmp_path) -> Path:
    """One record of each kind, with samples whose medians are plain."""
    rows = [
        {
            "batch": b,
            "seconds": {OURS: [b / 1e4] * 3, PEER: [b / 1e3] * 3},
            "peak_mb": {OURS: b, PEER: b * b},
            "left_out": {},
        }
        for b in (16, 64)
    ]
    rows.append(
        {"batch": 256, "seconds": {OURS: [1.234] * 3}, "peak_mb": {OURS: 9.0}, "left_out": {PEER: "needs 7 GB"}}
    )
    memory = {"device": "cpu", "threads": 1, "width": 8, "rows": rows}
    speeds = {"native": [50, 60, 70], "lightly": [10, 11, 12], "dali graph": [20, 21, 22], "floor": [80, 90, 100]}
    least = {"bytes": 10**6, "flops": 10**9, "seconds": 1e-3}
    subject = {"back_end": "fastssl", "dtype": "bf16", "floor": least, "seconds": [1e-5] * 3}
    files = {
        "2000-01-01_x_nt-xent-memory/samples.json": memory,
        "2000-01-01_x_nt-xent-memory/environment.json": MACHINE,
        "2000-01-01_x_data-views/simclr.json": {"images_per_second": speeds},
        "2000-01-01_x_data-views/swav.json": {"images_per_second": speeds},
        "2000-01-01_x_data-views/environment.json": MACHINE,
        "2000-01-01_x_kernels/samples.json": {"device": "cuda", "cases": [{"subjects": {"a": subject}}]},
        "2000-01-01_x_bench-simclr/bench.json": {"result": asdict(made_up(views=0.1, model=1.0))},
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def words(file: Path) -> str:
    return " ".join(re.findall(r">([^<>]+)<", file.read_text(encoding="utf-8")))


def assert_drawn(folder: Path, name: str) -> str:
    """PNG and SVG are there and not empty, on a ground that lets any page through; returns the SVG's words."""
    pixels = np.asarray(Image.open(folder / f"{name}.png").convert("RGBA"))
    alpha = pixels[..., 3]
    assert alpha[0].max() == 0, "the ground is transparent"
    assert 0.002 < (alpha > 128).mean() < 0.9
    strong = pixels[alpha > 250][:, :3].astype(float)
    light = strong @ (0.2126, 0.7152, 0.0722)
    # Neither near-black nor near-white: white figures inside of bars are the one exception.
    assert ((light > 70) & (light < 190)).mean() > 0.95
    return words(folder / f"{name}.svg")


def test_all_pictures_are_drawn(pictures, records, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["pictures.py", "--records", str(records), "--out", str(out)])
    assert pictures.main() == 0
    assert {file.name for file in out.iterdir()} == {
        f"{name}.{kind}" for name in ("roofline", "nt_xent", "views", "step") for kind in ("png", "svg")
    }
    said = assert_drawn(out, "nt_xent")
    assert "fastssl 1,234" in said
    assert "lightly 64" in said
    assert "at 256 lightly needs 7 GB" in said
    said = assert_drawn(out, "views")
    assert "120" in said  # 2 views of 60 images a second
    assert "480" in said
    assert "3 cores of an Some" in said
    said = assert_drawn(out, "roofline")
    assert "predicted" in said
    assert "measured on a GPU" in said
    assert "backward" in assert_drawn(out, "step")
    dark = (out / "nt_xent.svg").read_text()
    assert "prefers-color-scheme:dark" in dark


def test_without_a_timing_the_roofline_says_so(pictures, tmp_path):
    pictures.roofline(tmp_path, tmp_path)
    said = assert_drawn(tmp_path, "roofline")
    assert "nothing here was timed" in said
    assert "measured on a GPU" not in said


def test_predicted_points_are_the_ledgers(pictures):
    roofline = importlib.import_module("roofline")
    points = roofline.predicted()
    assert len(points) == len(roofline.work())
    for point in points:
        assert 0 < point.low <= point.high <= roofline.roof(point.intensity) * (1 + 1e-9)
    average = next(point for point in points if point.name == "moving average")
    # 3 FLOPs on 6 bytes in bf16; the ledger's one row of it.
    rows = json.loads(roofline.LEDGER.read_text(encoding="utf-8"))["rows"]
    kept = [r for r in rows if (r["op"], r["path"], r["target"], r["dtype"]) == ("ema", "average", "sm_90", "bfloat16")]
    assert average.intensity == pytest.approx(0.5)
    assert average.low == pytest.approx(kept[0]["predicted_share"][0] * 1.5e12)


def test_a_missing_record_is_named(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pictures.py", "--records", str(tmp_path), "--out", str(tmp_path / "out")])
    assert pictures.main() == 1
    out, said = capsys.readouterr()
    assert "nt_xent: no record named *_nt-xent-memory" in said
    assert "views: no record named *_data-views" in said
    assert "step is not drawn" in out


def test_the_pictures_of_the_documentation_are_there(pictures):
    images = BENCHMARKS.parent / "docs" / "images"
    for name in ("roofline", "nt_xent", "views"):
        assert_drawn(images, name)
