"""The page of a run: complete, self-contained, escaped, and patient with what is missing."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser

import pytest
import yaml
from PIL import Image

from fastssl.report import html
from fastssl.report.html import duration, shown, write_report

SUMMARY = {
    "raw_pixel_knn": 0.334,
    "random_knn": 0.412,
    "trained_knn": 0.753,
    "linear_probe": 0.791,
    "images_per_second": 1604.4,
    "training_seconds": 193.2,
    "best_knn": 0.7534,
    "steps": 12345,
}
CONFIG = {
    "method_name": "simclr",
    "recipe": "quick",
    "data": "flowers",
    "method": {"out": 64},
    "backbone": {"name": "resnet18"},
}
FILES = ("summary.json", "config.yaml", "environment.json", "metrics.jsonl", "views.png", "embeddings.png")


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    environment = {"command": "fastssl pretrain simclr --data flowers", "python": "3.12.1", "gpus": []}
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    rows = [
        {"kind": "train", "step": s, "epoch": s / 9, "loss": 5.0 - s, "lr": 0.1, "embedding_std": 0.1} for s in range(3)
    ]
    rows.append({"kind": "knn", "step": 3, "epoch": 0.3, "knn": 0.753})
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({**row, "timing": {"time": 1.0}}) + "\n" for row in rows)
    )
    for name, color in (("views.png", "red"), ("embeddings.png", "blue")):
        Image.new("RGB", (8, 8), color).save(tmp_path / name)
    return tmp_path


class Page(HTMLParser):
    """Text, attributes and balance of the tags of a page."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.words: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.feed(self.source)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def test_the_page_says_what_was_run_and_what_came_out(run_dir):
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    page = Page(path)
    for text in (
        *("SimCLR on flowers", "recipe quick", "resnet18", "33.4%", "41.2%", "75.3%", "79.1%", "1,604 images / s"),
        *("3 min 13 s", "best kNN 75.3%", "steps 12,345", "kNN accuracy", "untrained network", "1/√D"),
        *("fastssl pretrain simclr --data flowers", "Python 3.12.1", "GPUs none", "method_name: simclr"),
    ):
        assert text in page.text, text
    assert "missing" not in page.text
    assert "Not measured" not in page.text


def test_pictures_are_inside(run_dir):
    page = Page(write_report(run_dir))
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    expected = {(run_dir / name).read_bytes() for name in ("views.png", "embeddings.png")}
    assert {base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources} == expected
    assert all(value for tag, name, value in page.attributes if (tag, name) == ("img", "alt"))
    assert "<svg" in page.source


def test_nothing_is_loaded_from_anywhere(run_dir):
    page = Page(write_report(run_dir))
    tags = {tag for tag, _, _ in page.attributes}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            assert value.startswith(("data:", "#")), (tag, name, value[:40])
        assert not name.startswith("on")
    assert "@import" not in page.source
    assert "url(http" not in page.source
    policy = [
        value for tag, name, value in page.attributes if tag == "meta" and name == "content" and "default-src" in value
    ]
    assert policy == ["default-src 'none';img-src data:;style-src 'unsafe-inline'"]


def test_it_follows_the_colour_scheme_of_the_reader(run_dir):
    source = write_report(run_dir).read_text()
    assert "color-scheme:light dark" in source
    assert source.count("prefers-color-scheme:dark") == 2  # the page and the curves


@pytest.mark.parametrize("absent", FILES)
def test_one_missing_file_is_named_and_the_rest_stands(run_dir, absent):
    (run_dir / absent).unlink()
    page = Page(write_report(run_dir))
    assert f"{absent} is missing or cannot be read." in page.text
    assert page.text.count("is missing or cannot be read") == (
        2 if absent == "environment.json" else 1
    )  # the command too


def test_an_empty_directory_gives_a_page_that_says_so(tmp_path):
    page = Page(write_report(tmp_path))
    assert "A pre-training run" in page.text
    for name in FILES:
        assert f"{name} is missing or cannot be read." in page.text
    assert "the command is missing" in page.text


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00", "null"])
def test_broken_files_count_as_missing(run_dir, content):
    for name in ("summary.json", "environment.json"):
        (run_dir / name).write_text(content)
    (run_dir / "metrics.jsonl").write_text(content)
    (run_dir / "config.yaml").write_text(": [" + content)
    page = Page(write_report(run_dir))
    assert "summary.json is missing or cannot be read." in page.text
    assert "metrics.jsonl holds no measurements yet." in page.text


def test_what_was_not_measured_is_said(run_dir):
    (run_dir / "summary.json").write_text(
        json.dumps({"images_per_second": 10.0, "trained_knn": None, "random_knn": "x"})
    )
    page = Page(write_report(run_dir))
    assert "Not measured: raw pixels, kNN; untrained network, kNN; trained network, kNN." in page.text


def test_strings_are_escaped_everywhere(run_dir):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;"
    (run_dir / "summary.json").write_text(json.dumps({**SUMMARY, evil: evil, "nested": {evil: [evil]}}))
    (run_dir / "config.yaml").write_text(
        yaml.safe_dump(
            {"method_name": evil, "recipe": evil, "data": evil, "backbone": {"name": evil}, "method": {"out": evil}}
        )
    )
    (run_dir / "environment.json").write_text(json.dumps({"command": evil, evil: evil}))
    rows = [json.dumps({"kind": evil, "step": 1, "epoch": 1.0, "loss": 1.0, evil: 2.0})]
    (run_dir / "metrics.jsonl").write_text("\n".join(rows))
    for page in (Page(write_report(run_dir)), Page(write_report(run_dir, command=evil))):
        assert {tag for tag, _, _ in page.attributes}.isdisjoint({"script"})
        assert len([1 for tag, name, _ in page.attributes if (tag, name) == ("img", "src")]) == 2
        assert not any(name == "onerror" for _, name, _ in page.attributes)
        assert page.text.count("<script>alert(1)</script>") >= 8


def test_command_can_be_given(run_dir):
    assert "torchrun -m fastssl" in Page(write_report(run_dir, command="torchrun -m fastssl")).text


def test_odd_numbers_do_no_harm(run_dir):
    odd = {
        "raw_pixel_knn": float("nan"),
        "random_knn": 1.7,
        "trained_knn": -0.1,
        "images_per_second": float("inf"),
        "ok": True,
    }
    (run_dir / "summary.json").write_text(json.dumps(odd))
    page = Page(write_report(run_dir))
    assert "ok yes" in page.text
    widths = [value for tag, name, value in page.attributes if (tag, name) == ("i", "style")]
    assert widths == ["width:100.0%", "width:0.0%"]


def test_a_failed_write_leaves_the_old_page(run_dir, monkeypatch):
    path = write_report(run_dir)
    old = path.read_text()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_report(run_dir)
    assert path.read_text() == old


def test_an_untrained_page_is_small(run_dir):
    assert write_report(run_dir).stat().st_size < 200_000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((None, "none"), (True, "yes"), (1234567, "1,234,567"), (1234567.8, "1,234,568"), (0.123456789, "0.12346")),
        *((1e-7, "1e-07"), ([], "none"), (["a", 2], "a, 2")),
        ({"a_b": 1, "c": None, "cpu": {"d": [1.5]}}, "a b 1, CPU d 1.5"),
    ],
)
def test_values_are_shown_for_people(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599.7, "1 h 0 min"), (90061, "25 h 1 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_methods_have_their_papers_names():
    assert html._title({"method_name": "swav"}, {})[0] == "SwAV"
    assert html._title({"method_name": "mine", "data": "builtin"}, {})[0] == "mine"
    assert html._title({}, {"method": "byol", "data": "x"})[0] == "BYOL on x"
