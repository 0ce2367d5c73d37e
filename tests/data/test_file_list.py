"""Images that a text file lists, with and without labels, by the library and by the commands."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fastssl
from fastssl.cli import main
from fastssl.data import Augmentation, FileList, ViewLoader, ViewSpec, open_source, open_splits
from fastssl.engine.rundir import open_data
from fastssl.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


@pytest.fixture
def listed(tmp_path, make_jpeg):
    """Twelve images in two folders, none of them beside the list."""
    for i in range(12):
        path = tmp_path / "store" / f"shelf {i % 2}" / f"ü{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_jpeg(20, 24, i))
    (tmp_path / "lists").mkdir()

    def write(text: str, name: str = "train.txt", encoding: str = "utf-8"):
        path = tmp_path / "lists" / name
        path.write_bytes(text.encode(encoding))
        return path

    return write


def paths(tmp_path):
    return [f"../store/shelf {i % 2}/ü{i}.jpg" for i in range(12)]


def test_paths_without_labels(listed, tmp_path):
    names = paths(tmp_path)
    source = open_source(listed("\n".join(names)))
    assert isinstance(source, FileList)
    assert source.labels is None
    assert source.classes is None
    assert [source.name(i) for i in range(len(source))] == names, "in the order of the list"
    for i in (7, 0):
        assert source.read(i) == (tmp_path / "lists" / names[i]).read_bytes()


@pytest.mark.parametrize("name", ["train.txt", "train.TSV", "train.lst", "train.list"])
def test_absolute_paths_labels_empty_lines_and_line_ends(listed, tmp_path, name):
    absolute = [str((tmp_path / "lists" / p).resolve()) for p in paths(tmp_path)]
    lines = [f"{p}\t{label}" for p, label in zip(absolute, ["10", "9", "red", "9"] * 3, strict=True)]
    source = open_source(listed("\r\n".join(["", *lines[:5], "  ", *lines[5:], ""]), name, "utf-8-sig"))
    assert [source.name(i) for i in range(len(source))] == absolute
    assert source.classes == ("10", "9", "red")
    assert source.labels.tolist() == [0, 1, 2, 1] * 3


def test_numbers_sort_as_numbers(listed, tmp_path):
    source = open_source(listed("\n".join(f"{p}\t{9 + i % 2}" for i, p in enumerate(paths(tmp_path)))))
    assert source.classes == ("9", "10")
    assert source.labels.tolist() == [0, 1] * 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no paths"),
        ("\n \n", "holds no paths"),
        ("a.jpg\tcat\nb.jpg", "line 2 has no label, unlike the lines above"),
        ("a.jpg\n\nb.jpg\tcat", "line 3 has a label, unlike the lines above"),
        ("a.jpg\tcat\tdog", r"line 1 must be a path, or a path, a tab and a label, got 'a.jpg\\tcat\\tdog'"),
        ("a.jpg\t", "line 1 must be a path"),
        ("\tcat", "line 1 must be a path"),
        ("a\0.jpg", "line 1 must be a path"),
    ],
)
def test_a_wrong_line_is_named(listed, text, words):
    with pytest.raises(UserError, match=rf"file list .*train\.txt.*{words}"):
        open_source(listed(text))


def test_not_a_text_file(listed, make_jpeg, tmp_path):
    path = listed("")
    path.write_bytes(make_jpeg(8, 8))
    with pytest.raises(UserError, match=r"file list .* is not a text file in UTF-8"):
        open_source(path)
    with pytest.raises(UserError, match="does not exist"):
        open_source(tmp_path / "none.txt")


def test_labels_and_ids_travel_with_the_views(listed, tmp_path):
    source = open_source(listed("\n".join(f"{p}\tclass{i % 3}" for i, p in enumerate(paths(tmp_path)))))
    loader = ViewLoader(source, Augmentation((ViewSpec(size=16, count=2),)), batch_size=4, seed=0)
    batches = list(loader.epoch(0))
    loader.close()
    ids = torch.cat([b.ids for b in batches])
    assert sorted(ids.tolist()) == list(range(12))
    assert torch.cat([b.labels for b in batches]).tolist() == [i % 3 for i in ids.tolist()]


def test_a_missing_file_is_a_bad_file_and_check_data_names_it(listed, tmp_path, capsys):
    path = listed("\n".join([*paths(tmp_path), "nowhere/x.jpg"]))
    train, validation = open_splits(path)
    assert len(train) == 13
    assert validation is None
    assert main(["check-data", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "train: 13 images, 1 unreadable" in shown
    assert "unreadable nowhere/x.jpg: cannot be read (No such file or directory)" in shown
    assert main(["check-data", str(listed("\n".join(paths(tmp_path))))]) == 0
    assert main(["check-data", str(listed(""))]) == 2
    assert "holds no paths" in capsys.readouterr().err


def test_labels_of_validation_data_are_numbered_as_those_of_training(listed, tmp_path):
    """Each list by itself would number its classes from 0."""
    names = paths(tmp_path)
    train = listed("".join(f"{p}\t{'abc'[i % 3]}\n" for i, p in enumerate(names)))
    val = listed(f"{names[0]}\tc\n{names[1]}\tb\n", "val.txt")
    config = replace(fastssl.recipes.simclr("quick"), data=str(train), val_data=str(val))
    _, validation = open_data(config)
    assert validation.labels.tolist() == [2, 1]
    assert validation.classes == ("a", "b", "c")
    listed(f"{names[0]}\td\n", "val.txt")
    with pytest.raises(UserError, match=r"--val-data .*val\.txt has classes that --data .*train\.txt has not: d"):
        open_data(config)
