"""Whole runs: determinism, resume after SIGKILL, interruption, full disks, bad images."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fastssl
from fastssl import config as configuration
from fastssl.config import LoaderConfig, MonitorConfig, TrainConfig
from fastssl.engine import checkpoint, checkpoints
from fastssl.engine.precision import resolve_precision
from fastssl.errors import UserError
from fastssl.models import BackboneConfig


def small(data: Path, run_dir: Path, **train) -> configuration.Config:
    recipe = fastssl.recipes.simclr("quick")
    view = replace(recipe.augment.views[0], size=16)
    return replace(
        recipe,
        data=str(data),
        run_dir=str(run_dir),
        backbone=BackboneConfig("resnet10", stem="cifar-s2", width=0.125),
        method=replace(recipe.method, hidden=16, out=8),
        augment=replace(recipe.augment, views=(view,)),
        evaluate=replace(recipe.evaluate, size=16),
        train=TrainConfig(**{"epochs": 4, "batch_size": 10, "precision": "fp32", "threads": 2, **train}),
        loader=LoaderConfig(threads=1),
        monitor=MonitorConfig(log_steps=1, knn_epochs=2, linear=False, tensorboard=False),
    )


def rows(run_dir: Path) -> list[dict]:
    """All metrics but the timings."""
    parsed = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "timing"} for row in parsed]


def test_one_seed_one_run(image_folder, tmp_path):
    first = fastssl.pretrain(small(image_folder, tmp_path / "a"), quiet=True)
    again = fastssl.pretrain(small(image_folder, tmp_path / "b"), quiet=True)
    other = fastssl.pretrain(small(image_folder, tmp_path / "c", seed=1), quiet=True)
    assert rows(first.run_dir) == rows(again.run_dir)
    assert rows(first.run_dir) != rows(other.run_dir)


@pytest.mark.pictures
def test_a_run_leaves_everything_behind(image_folder, tmp_path):
    result = fastssl.pretrain(small(image_folder, tmp_path / "run"), quiet=True)
    names = {path.name for path in result.run_dir.iterdir()}
    assert names >= {
        "config.yaml",
        "metrics.jsonl",
        "last.pt",
        "checkpoints",
        "best.pt",
        "environment.json",
        "report.html",
        "summary.json",
        "views.png",
        "embeddings.png",
    }
    page = (result.run_dir / "report.html").read_text()
    assert page.count("contrastive accuracy") >= 1
    assert page.count("data:image/png") == 2
    summary = json.loads((result.run_dir / "summary.json").read_text())
    assert summary == result.summary
    for key in ("raw_pixel_knn", "random_knn", "trained_knn"):
        assert 0 <= summary[key] <= 1
    assert summary["images_per_second"] > 0
    kinds = [row["kind"] for row in rows(result.run_dir)]
    assert (kinds.count("train"), kinds.count("knn")) == (24, 2)
    assert not [name for name in names if name.startswith(".")]


@pytest.mark.parametrize(
    ("epochs", "measured"), [(0.5, [3, 6, 9, 12]), (1.5, [9, 12]), (0.01, [*range(1, 13)]), (0, [])]
)
def test_knn_accuracy_is_measured_within_epochs_too(image_folder, tmp_path, epochs, measured):
    """Epochs of 6 steps; a part of one is rounded to steps."""
    config = small(image_folder, tmp_path / "run", epochs=2)
    result = fastssl.pretrain(replace(config, monitor=replace(config.monitor, knn_epochs=epochs)), quiet=True)
    assert [row["step"] for row in rows(result.run_dir) if row["kind"] == "knn"] == measured


def test_metrics_are_written_where_they_are_read(image_folder, tmp_path):
    """Every so many steps and at the end, with the values of a run that writes them at every step."""
    every = small(image_folder, tmp_path / "every", epochs=2)
    seldom = replace(every, run_dir=str(tmp_path / "seldom"), monitor=replace(every.monitor, log_steps=5))
    found = [
        [row for row in rows(fastssl.pretrain(c, quiet=True).run_dir) if row["kind"] == "train"]
        for c in (every, seldom)
    ]
    assert [row["step"] for row in found[1]] == [5, 10, 12]
    assert "accuracy" in found[1][0]
    for row in found[1]:
        same = found[0][row["step"] - 1]
        assert row.keys() == same.keys()
        assert all(row[key] == pytest.approx(same[key], rel=1e-4) for key in row if key != "kind")


def start(config: configuration.Config, folder: Path, *extra: str) -> subprocess.Popen:
    """The run as a process of its own."""
    script = (
        "import sys, fastssl; from pathlib import Path; from fastssl import config as c; "
        "fastssl.pretrain(c.load(Path(sys.argv[1])), quiet=True)"
    )
    configuration.save(config, folder / "start.yaml")
    return subprocess.Popen([sys.executable, "-c", script, str(folder / "start.yaml"), *extra])


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be stopped"
        path = run_dir / "metrics.jsonl"
        if path.exists() and any(f'"step": {step},' in line for line in path.read_text().splitlines()):
            return
        time.sleep(0.005)
    process.kill()
    pytest.fail(f"step {step} was not reached")


def test_sigkill_in_mid_epoch_then_resume_is_bit_identical(image_folder, tmp_path):
    """Six steps an epoch, a checkpoint every 4: the kill after step 9 falls into the second epoch."""
    long = {"epochs": 30, "checkpoint_steps": 4}
    whole = fastssl.pretrain(small(image_folder, tmp_path / "whole", **long), quiet=True)
    config = small(image_folder, tmp_path / "killed", **long)
    process = start(config, tmp_path)
    run_dir = tmp_path / "killed"
    wait_for_step(run_dir, 9, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = checkpoint.load(run_dir / "last.pt")["step"]
    assert saved % 4 == 0
    assert 4 <= saved < 180
    result = fastssl.pretrain(resume=run_dir, quiet=True)
    assert result.finished
    assert rows(run_dir) == rows(whole.run_dir)
    ours, theirs = (checkpoint.load(d / "last.pt")["method"] for d in (run_dir, whole.run_dir))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_interruption_saves_and_says_how_to_go_on(image_folder, tmp_path, number):
    config = small(image_folder, tmp_path / "run", epochs=2000)
    configuration.save(config, tmp_path / "start.yaml")
    script = (
        "import sys, fastssl; from pathlib import Path; from fastssl import config as c; "
        "from fastssl.commands.pretrain import exit_code; "
        "sys.exit(exit_code(fastssl.pretrain(c.load(Path(sys.argv[1])))))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "start.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    wait_for_step(tmp_path / "run", 7, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"continue with `fastssl pretrain --resume {tmp_path / 'run'}`" in output
    written = rows(tmp_path / "run")
    assert checkpoint.load(tmp_path / "run" / "last.pt")["step"] == max(row["step"] for row in written)


def test_a_full_disk_keeps_the_previous_checkpoint(image_folder, tmp_path, monkeypatch, capsys):
    real = os.fsync
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 4:  # the file of the second checkpoint; each takes a file and two folders
            raise OSError(28, "No space left on device")
        real(descriptor)

    config = small(image_folder, tmp_path / "run", epochs=1, checkpoint_steps=2)
    config = replace(config, monitor=replace(config.monitor, knn_epochs=0))
    monkeypatch.setattr(checkpoint.os, "fsync", full)
    kept = []
    save = checkpoint.save

    def remember(path, state):
        kept.append([stored.name for stored in checkpoints.stored(tmp_path / "run")])
        save(path, state)

    monkeypatch.setattr(checkpoint, "save", remember)
    result = fastssl.pretrain(config)
    assert kept == [[], ["step-2.pt"], ["step-2.pt"]]
    assert result.saved
    output = " ".join(capsys.readouterr().out.split())
    assert "could not be written ([Errno 28] No space left on device); the one from step 2 is kept" in output
    assert sorted(p.name for p in result.run_dir.rglob(".*")) == []


@pytest.mark.parametrize(("native", "said"), [(True, 0), (False, 1)])
def test_arithmetic_that_the_cpu_only_emulates_is_told(image_folder, tmp_path, monkeypatch, capsys, native, said):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": native})
    config = small(image_folder, tmp_path / "run", precision="bf16", max_steps=1)
    fastssl.pretrain(replace(config, monitor=replace(config.monitor, knn_epochs=0, baselines=False)))
    output = " ".join(capsys.readouterr().out.split())
    assert output.count("only emulates bf16, many times slower: --train.precision auto takes fp32") == said
    assert resolve_precision("auto", torch.device("cpu")) == ("bf16" if native else "fp32")


def test_an_unreadable_image_is_named_counted_and_replaced(image_folder, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    bad = folder / "train" / "class0" / "003.jpg"
    bad.write_bytes(b"\xff\xd8\xff\xe0 this is not an image")
    config = small(folder, tmp_path / "run")
    config = replace(config, loader=replace(config.loader, max_bad_fraction=0.1))
    result = fastssl.pretrain(config, quiet=True)
    assert result.finished
    assert "003.jpg" in (result.run_dir / "quarantine.json").read_text()
    assert result.summary["unreadable_images"] == 1


def test_a_run_killed_before_its_first_checkpoint_starts_again(image_folder, tmp_path):
    whole = fastssl.pretrain(small(image_folder, tmp_path / "whole"), quiet=True)
    config = small(image_folder, tmp_path / "killed")
    (tmp_path / "killed").mkdir()
    configuration.save(config, tmp_path / "killed" / "config.yaml")
    torn = (whole.run_dir / "metrics.jsonl").read_text()[:1500]
    (tmp_path / "killed" / "metrics.jsonl").write_text(torn)
    fastssl.pretrain(resume=tmp_path / "killed", quiet=True)
    assert rows(tmp_path / "killed") == rows(whole.run_dir)


def test_resuming_a_finished_run_changes_nothing(image_folder, tmp_path):
    result = fastssl.pretrain(small(image_folder, tmp_path / "run"), quiet=True)
    before = rows(result.run_dir)
    again = fastssl.pretrain(resume=result.run_dir, quiet=True)
    assert again.finished
    assert rows(result.run_dir) == before
    assert again.summary["trained_knn"] == result.summary["trained_knn"]


def test_too_many_unreadable_images_stop_the_run_but_lose_no_step(image_folder, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    for path in sorted((folder / "train" / "class0").iterdir())[:12]:
        path.write_bytes(b"not an image")
    config = small(folder, tmp_path / "run")
    config = replace(config, loader=replace(config.loader, max_bad_fraction=0.0))
    config = replace(config, monitor=replace(config.monitor, baselines=False, knn_epochs=0))
    with pytest.raises(UserError, match=r"cannot be decoded, more than the \d+ allowed"):
        fastssl.pretrain(config, quiet=True)
    steps = [row["step"] for row in rows(tmp_path / "run")] if (tmp_path / "run" / "metrics.jsonl").exists() else []
    saved = tmp_path / "run" / "last.pt"
    assert (checkpoint.load(saved)["step"] if saved.exists() else 0) == max(steps, default=0)


def test_flat_folder_trains_without_labels(image_folder, tmp_path):
    result = fastssl.pretrain(small(image_folder / "train" / "class0", tmp_path / "run", epochs=2), quiet=True)
    assert "trained_knn" not in result.summary
    assert result.finished


def test_labels_without_a_validation_split_hold_out_a_tenth(image_folder, tmp_path):
    result = fastssl.pretrain(small(image_folder / "train", tmp_path / "run", epochs=2), quiet=True)
    assert 0 <= result.summary["trained_knn"] <= 1
