"""Runs over odd files, file lists and users' objects, from the command line and from Python."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from odd_images import Outcome, refused, write_odd_images
from small_images import write_images
from test_runs import rows, small

import fastssl
from fastssl.cli import main
from fastssl.engine import checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
]


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny networks lose their time in barriers, the more so beside other work."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


TINY = (
    *("--recipe", "quick", "--backbone.name", "resnet10", "--backbone.width", "0.125", "--method.hidden", "16"),
    *("--method.out", "8", "--augment.views.0.size", "16", "--train.batch-size", "12", "--train.threads", "1"),
    *("--train.precision", "fp32", "--monitor.no-baselines", "--monitor.knn-epochs", "0", "--monitor.no-tensorboard"),
    *("--monitor.no-linear", "--loader.threads", "1"),
)


def odd_folder(kind: str, folder: Path, request: pytest.FixtureRequest) -> dict[str, Outcome]:
    """Fill the folder with the odd files, made here or real."""
    if kind == "made":
        return write_odd_images(folder)
    archive = request.getfixturevalue("real_images") / "odd-images.tar"
    if not archive.is_file():
        pytest.skip("real images: FASTSSL_TEST_DATA holds no odd-images.tar")
    folder.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isreg():
                content = tar.extractfile(member)
                assert content is not None
                (folder / Path(member.name).name).write_bytes(content.read())
    bad = ("09_truncated_50pct", "10_truncated_header", "11_empty", "12_text", "17_arith_or_lossless")
    return {path.name: "" if path.stem in bad else (0, 0) for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["made", pytest.param("real", marks=pytest.mark.data)])
def test_a_run_over_every_odd_file_ends_well(tmp_path, request, kind):
    folder = tmp_path / "images"
    outcomes = odd_folder(kind, folder, request)
    assert len(outcomes) == 18
    good = write_images(tmp_path / "good", classes=1, per_class=30) / "class0"
    for path in good.iterdir():
        shutil.copy(path, folder / path.name)
    config = small(folder, tmp_path / "run", epochs=3, batch_size=12, threads=1)
    result = fastssl.pretrain(config, quiet=True)
    assert result.finished
    listed = json.loads((result.run_dir / "quarantine.json").read_text(encoding="utf-8"))
    assert listed["images"] == 48
    assert {entry["name"] for entry in listed["unreadable"]} == refused(outcomes)
    assert len(listed["unreadable"]) == 5
    assert all(entry["reason"] for entry in listed["unreadable"])
    assert result.summary["unreadable_images"] == 5
    losses = torch.tensor([row["loss"] for row in rows(result.run_dir) if row["kind"] == "train"])
    assert len(losses) == 12
    assert losses.isfinite().all()


def test_more_bad_files_than_allowed_stop_the_command_with_the_list(tmp_path, capsys):
    folder = tmp_path / "images"
    bad = refused(write_odd_images(folder))
    for name in sorted(bad):
        shutil.copy(folder / name, folder / f"again_{name}")
    good = write_images(tmp_path / "good", classes=1, per_class=30) / "class0"
    for path in good.iterdir():
        shutil.copy(path, folder / path.name)
    run_dir = tmp_path / "run"
    arguments = ["pretrain", "simclr", "--data", str(folder), *TINY, "--train.epochs", "2", "--loader.last", "pad"]
    assert main([*arguments, "--run-dir", str(run_dir)]) == 2
    error = capsys.readouterr().err
    sentence = " ".join(error.split())
    assert sentence.startswith("fastssl: error: ")
    assert "of 53 images cannot be decoded, more than the 8 allowed" in sentence
    assert f"all listed in {run_dir / 'quarantine.json'}" in sentence
    assert "repair or remove them, or raise max_bad_fraction" in sentence
    assert "Traceback" not in error
    listed = {e["name"] for e in json.loads((run_dir / "quarantine.json").read_text(encoding="utf-8"))["unreadable"]}
    assert listed <= bad | {f"again_{name}" for name in bad}
    assert all(name in sentence for name in listed)
    tolerant = ["--run-dir", str(tmp_path / "tolerant"), "--loader.max-bad-fraction", "0.5"]
    assert main([*arguments, *tolerant]) == 0
    written = json.loads((tmp_path / "tolerant" / "quarantine.json").read_text(encoding="utf-8"))["unreadable"]
    assert {e["name"] for e in written} == bad | {f"again_{name}" for name in bad}


def test_a_file_list_trains_as_its_folder_does(image_folder, tmp_path):
    paths = sorted((image_folder / "train").rglob("*.jpg"))
    listed = tmp_path / "train.tsv"
    listed.write_text("".join(f"{path}\t{path.parent.name}\n" for path in paths), encoding="utf-8")
    arguments = [*TINY, "--train.epochs", "1", "--run-dir"]
    assert main(["pretrain", "simclr", "--data", str(listed), *arguments, str(tmp_path / "list")]) == 0
    assert (
        main(["pretrain", "simclr", "--data", str(image_folder / "train"), *arguments, str(tmp_path / "folder")]) == 0
    )
    assert rows(tmp_path / "list") == rows(tmp_path / "folder")
    assert rows(tmp_path / "list")


class Mine:
    """A user's own store of images."""

    classes = ("a", "b")

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.rglob("*.jpg"))
        self.labels = [int(path.parent.name == "class1") for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        return self.paths[index].read_bytes()


def test_an_object_trains_as_its_folder_does_and_resumes(image_folder, tmp_path):
    source = Mine(image_folder / "train")
    whole = fastssl.pretrain(small(image_folder / "train", tmp_path / "folder", epochs=2, threads=1), quiet=True)
    config = small(Path("unused"), tmp_path / "object", epochs=2, threads=1)
    result = fastssl.pretrain(config, data=source, quiet=True)
    assert rows(result.run_dir) == rows(whole.run_dir)
    assert result.summary["trained_knn"] == whole.summary["trained_knn"], "its labels reach the evaluation"
    again = fastssl.pretrain(resume=result.run_dir, data=source, quiet=True)
    assert again.finished
    assert rows(result.run_dir) == rows(whole.run_dir)


def test_an_epoch_that_is_filled_up_has_a_step_more(image_folder, tmp_path):
    config = small(image_folder, tmp_path / "run", epochs=2, batch_size=16, threads=1)  # 60 images
    monitor = replace(config.monitor, knn_epochs=0, baselines=False)
    config = replace(config, monitor=monitor, loader=replace(config.loader, last="pad"))
    result = fastssl.pretrain(config, quiet=True)
    assert checkpoint.load(result.run_dir / "last.pt")["step"] == 8
    assert [row["epoch"] for row in rows(result.run_dir) if row["kind"] == "train"] == [s / 4 for s in range(1, 9)]
