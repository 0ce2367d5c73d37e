"""Checking a data set: every image is decoded, the bad ones are named, the counts are right."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fastssl.cli import main
from fastssl.data import ArraySource, open_source
from fastssl.data.check import check_data, describe


def image(path, width: int, height: int, kind: str = "JPEG") -> int:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (10, 200, 30)).save(buffer, format=kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return len(buffer.getvalue())


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    image(root / "a/1.jpg", 40, 30)
    image(root / "a/2.jpg", 20, 10)
    image(root / "b/3.png", 64, 48, "PNG")
    (root / "b/4.jpg").write_bytes(b"")
    return root


def test_counts_sizes_and_bad_files(folder):
    progress: list[tuple[int, int]] = []
    found = check_data(open_source(folder), progress=lambda done, bad: progress.append((done, bad)))
    assert found.widths.tolist() == [40, 20, 64, 0]
    assert found.heights.tolist() == [30, 10, 48, 0]
    assert found.sizes.tolist() == [p.stat().st_size for p in sorted(folder.rglob("*.*"))]
    assert found.formats == {"JPEG": 2, "PNG": 1, "other": 1}
    assert found.bad == [("b/4.jpg", "empty file")]
    assert found.images_a_class == {"a": 2, "b": 2}
    assert progress[-1] == (4, 1)
    text = "\n".join(describe("train", found))
    assert "4 images, 1 unreadable" in text
    assert "20 to 64 pixels, median 40" in text


def test_arrays_and_all_bad(tmp_path):
    found = check_data(ArraySource(np.zeros((3, 8, 9, 3), dtype=np.uint8), [0, 0, 1]))
    assert found.heights.tolist() == [8, 8, 8]
    assert found.images_a_class == {"0": 2, "1": 1}
    (tmp_path / "x.jpg").write_bytes(b"text")
    found = check_data(open_source(tmp_path))
    assert len(found.bad) == 1
    assert "1 images, 1 unreadable" in describe("train", found)[0]


def test_the_command(folder, tmp_path, capsys):
    assert main(["check-data", str(folder), "--out", str(tmp_path / "bad.json")]) == 1
    shown = capsys.readouterr().out
    assert "unreadable b/4.jpg: empty file" in shown
    assert "b/4.jpg" in (tmp_path / "bad.json").read_text()
    (folder / "b/4.jpg").unlink()
    assert main(["check-data", str(folder)]) == 0
    assert main(["check-data", str(folder / "none")]) == 2
    assert main(["check-data", str(folder), "--threads", "-1"]) == 2


def test_pack_and_read_again_by_commands(folder, tmp_path, capsys):
    assert main(["pack", str(folder), str(tmp_path / "out"), "--short-side", "16", "--images-a-shard", "2"]) == 1
    assert "left out b/4.jpg: empty file" in capsys.readouterr().out
    assert main(["check-data", str(tmp_path / "out")]) == 0
    assert main(["pack", str(folder), str(tmp_path / "out"), "--short-side", "17"]) == 2
