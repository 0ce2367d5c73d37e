"""`python benchmarks/kernels` on tiny sizes: the record holds every case, figures follow from samples."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import fastssl_kernels
import pytest
import torch

KERNELS = Path(__file__).parents[2] / "benchmarks" / "kernels"


def command(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(KERNELS), *arguments], capture_output=True, text=True, env=environment
    )


@pytest.fixture(scope="module")
def scripts():
    """The modules `cases` and `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(KERNELS))
        yield importlib.import_module("cases"), importlib.import_module("folder")


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("record")
    done = command("--sizes", "tiny", "--minutes", "0.1", "--threads", "1", "--device", "cpu", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def run(record) -> dict:
    return json.loads((record / "samples.json").read_text())


@pytest.mark.slow
def test_the_record_holds_every_case_and_every_subject(run, scripts):
    cases, _ = scripts
    cpu = torch.device("cpu")
    grid = cases.grid(cpu, "tiny")
    assert [(entry["op"], entry["sizes"]) for entry in run["cases"]] == [(case.op, case.sizes) for case in grid]
    assert {case.op for case in grid} == {case.op for case in cases.grid(cpu, "full")}
    for case, entry in zip(grid, run["cases"], strict=True):
        if case.op not in ("LARS", "ema_update_"):  # whose subjects are whole networks
            expected = {*case.part.subjects(case.options(cpu)), *case.without}
            assert {*entry["subjects"], *entry["left_out"]} == expected, case.op
        assert entry["ours"] in entry["subjects"]
        assert not {*entry["subjects"]} & {*entry["left_out"]}
        assert all(reason for reason in entry["left_out"].values())


def test_no_package_is_needed(scripts, monkeypatch):
    cases, _ = scripts
    cpu = torch.device("cpu")
    wanted = [case for case in cases.grid(cpu, "tiny") if case.op not in ("LARS", "ema_update_")]
    for name in ("nt_xent", "sinkhorn", "nearest_neighbor", "byol"):
        monkeypatch.setattr(importlib.import_module(name), "installed", lambda package: False)
    for case in wanted:
        names = {*case.part.subjects(case.options(cpu))}
        assert case.part.ours in names
        assert not {name for name in names if name.startswith("lightly")}


def test_every_public_operation_has_a_case(scripts):
    cases, _ = scripts
    measured = {re.split("[.,]", case.op)[0] for case in cases.grid(torch.device("cpu"), "full")}
    measured.add("sinkhorn_from_features")  # a subject of sinkhorn
    operations = {name for name in fastssl_kernels.__all__ if name[0].islower()} | {"LARS", "Queue"}
    arguments = {"view_parameters", "study_parameters", "exclude_from_adaptation"}
    assert operations - arguments <= measured


@pytest.mark.slow
def test_errors_are_those_of_the_dtype(run):
    """A benchmark compares what computes the same. Views in 16 bit are rounded at the end; bf16 peers round logits."""
    for entry in run["cases"]:
        for name, subject in entry["subjects"].items():
            if subject["error"] is not None:
                assert subject["error"] <= (1e-4 if subject["dtype"] == "fp32" else 2e-2), (entry["op"], name)
        assert entry["subjects"][entry["ours"]]["error"] is not None


@pytest.mark.slow
def test_figures_follow_from_samples(run, scripts):
    _, folder = scripts
    for entry in run["cases"]:
        own = median(entry["subjects"][entry["ours"]]["seconds"])
        for name, subject in entry["subjects"].items():
            assert len(subject["seconds"]) == entry["rounds"] >= 1
            assert folder.ratios(entry)[name] == pytest.approx(median(subject["seconds"]) / own)
            assert subject["peak_bytes"] >= 0
            floor, rates = subject["floor"], run["rates"]
            usable = ("fp32",) if subject["dtype"] == "fp32" else ("fp32", "bf16")
            rate = max(rates[name]["per_second"] for name in usable)
            least = max(floor["bytes"] / rates["copy"]["per_second"], floor["flops"] / rate)
            assert floor["seconds"] == pytest.approx(least, rel=1e-4)
    for rate in run["rates"].values():
        assert rate["per_second"] == pytest.approx(rate["work"] / min(rate["seconds"]))


@pytest.mark.slow
def test_the_page_says_it_all(record, run):
    page = (record / "README.md").read_text()
    for entry in run["cases"]:
        for name in entry["subjects"]:
            assert f"| {entry['op']} | {entry['size']} | {name} |" in page
        for name, reason in entry["left_out"].items():
            assert f"{entry['op']}, {entry['size']}: {name}: {reason}." in page
    assert "    python benchmarks/kernels --sizes tiny --minutes 0.1" in page
    assert str(record) not in page + (record / "samples.json").read_text()
    assert "Predicted for an H100" in page
    assert json.loads((record / "environment.json").read_text())["cpu"]["threads"] == 1
    shares = re.findall(r"\| ([\d.]+)% \|$", page, re.MULTILINE)
    assert len(shares) >= sum(len(entry["subjects"]) for entry in run["cases"])
    assert all(math.isfinite(float(share)) for share in shares)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a CUDA device is needed")
def test_a_missing_gpu_is_one_sentence():
    done = command("--device", "cuda")
    assert done.returncode == 2
    assert done.stderr.strip() == "--device cuda needs a CUDA device and torch finds none: use --device cpu"


@pytest.mark.parametrize("minutes", ["0", "-1"])
def test_minutes_must_be_some(minutes):
    done = command(f"--minutes={minutes}")
    assert done.returncode == 2
    assert "--minutes must be more than 0" in done.stderr


@pytest.mark.slow
def test_nt_xent_against_the_batch_writes_a_record(tmp_path):
    file = KERNELS / "nt_xent_memory.py"
    arguments = ["--batches", "8", "16", "--rounds", "2", "--threads", "1", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-W", "ignore", str(file), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "samples.json").read_text())
    assert [row["batch"] for row in run["rows"]] == [8, 16]
    for row in run["rows"]:
        assert row["seconds"].keys() | row["left_out"].keys() >= {"fastssl fp32", "lightly NTXentLoss fp32"}
        assert row["seconds"].keys() == row["peak_mb"].keys()
        assert all(len(seconds) == 2 for seconds in row["seconds"].values())
    assert str(tmp_path) not in (tmp_path / "README.md").read_text() + json.dumps(run)
    assert json.loads((tmp_path / "environment.json").read_text())["cpu"]["cores"]
