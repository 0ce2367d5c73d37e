"""`benchmarks/methods/compare.py`: what its table says of made samples, and one method on tiny images."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
from small_images import write_images

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "methods" / "compare.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("compare_methods", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entry(knn: float, **last: float) -> dict:
    curve = [[1.0, 0.3], [2.2, 0.4], [4.0, knn]]
    return {
        "curve": curve, "random_knn": 0.25, "minutes": 4.0, "images": 3000, "images_per_second": 1234.0,
        "rankme": 12.0, "last": last, "width": 64,
    }  # fmt: skip


def test_the_table_puts_the_best_first_and_reads_the_curve_on_the_way(script):
    """At a quarter kNN had been measured once, at a half still once, at three quarters twice."""
    methods = {"byol": entry(0.45, embedding_std=0.1), "swav": entry(0.5, embedding_std=0.125, code_entropy=1.5)}
    rows = script.table({"images": 1000, "methods": methods})
    assert rows[2] == "| swav | 30.0, 30.0, 40.0, **50.0** | +25.0 | 4.0 | 1,234 | 3.0 | 1.00 | 12 | 1.50 (codes) |"
    assert rows[3] == "| byol | 30.0, 30.0, 40.0, **45.0** | +20.0 | 4.0 | 1,234 | 3.0 | 0.80 | 12 | – |"


def test_an_early_share_of_the_time_has_no_figure_yet(script):
    assert script.at([(1.0, 0.3)], 0.9) is None
    assert script.at([(1.0, 0.3)], 0.96) == 0.3, "a quarter of the steps is about a quarter of the time"
    assert script.at([(1.0, 0.3), (2.0, 0.4)], 1.5) == 0.3


def test_a_method_runs_again_if_its_time_was_more_than_a_tenth_off(script):
    found = {"minutes": 4.6, "steps": 500}
    assert script.in_time(found, 5.0)
    assert not script.in_time(found, 6.0)
    assert not script.in_time(None, 5.0)
    assert not script.in_time(None, 0.0)
    assert script.in_time(found, 0.0), "a recipe's own length takes what it takes"
    assert script.in_time({"minutes": 1.0, "steps": script.PROBE_STEPS}, 0.5), "a probe is the shortest run"


def test_a_run_whose_time_is_off_is_made_again_at_its_own_speed(script):
    """A probe that was a third too slow, one that never comes right, one that is right, and one known from before."""
    minutes = {"simclr": [3.0, 4.8], "byol": [8.0, 2.0, 7.0], "swav": [5.2]}
    speeds = []

    def submit(name, speed):
        speeds.append((name, speed))
        future = Future()
        future.set_result({"minutes": minutes[name].pop(0), "steps": 500, "images_per_second": 100.0})
        return future

    known = {"nnclr": {"minutes": 5.1, "steps": 400, "images_per_second": 90.0}}
    runs = list(script.until_in_time(submit, ["simclr", "byol", "swav", "nnclr"], known, 5.0))
    assert {name: found["minutes"] for name, found in runs} == {"simclr": 4.8, "byol": 7.0, "swav": 5.2}
    assert not any(minutes.values())
    assert sorted(speeds, key=str) == sorted(
        [("simclr", None), ("simclr", 100.0), ("byol", None), ("byol", 100.0), ("byol", 100.0), ("swav", None)], key=str
    )
    assert "nnclr" in known
    assert len(known) == 1


KILLED = """
import multiprocessing, os, signal, sys, time
from concurrent.futures import ProcessPoolExecutor
sys.path.insert(0, {folder!r})
from compare import end_with_parent

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_comparison_leaves_nothing_running(tmp_path):
    file = tmp_path / "killed.py"
    file.write_text(KILLED.format(folder=str(SCRIPT.parent)))
    # This returns when the last process that holds the pipe is gone: the worker, which would sleep for ten minutes.
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert int(done.stdout) > 0


@pytest.mark.slow
def test_a_method_is_measured_once(tmp_path):
    """A short run, then the same command again: nothing is trained, the record is written anew."""
    data, out = tmp_path / "data", tmp_path / "out"
    write_images(data / "train", classes=2, per_class=32)
    write_images(data / "test", classes=2, per_class=10, seed=1)
    command = [sys.executable, str(SCRIPT), str(data), "--recipe", "quick", "--minutes", "0.001", "--jobs", "1"]
    command += ["--data-name", "two classes", "--out", str(out), "--methods"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for trained in (True, False):
        done = subprocess.run([*command, "relicv2"], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert "| relicv2 |" in done.stdout
        assert ("relicv2: kNN" in done.stdout) is trained
    samples = json.loads((out / "samples.json").read_text())
    assert samples["methods"]["relicv2"]["steps"] == 60
    assert len(samples["methods"]["relicv2"]["curve"]) == 4
    assert samples["images"] == 64
    page = (out / "README.md").read_text()
    assert str(data) not in page
    assert "--methods relicv2 --out FOLDER" in page
    assert (out / "curves.png").stat().st_size > 1000
    other = subprocess.run([*command, "relicv2", "--knn-bank", "9"], capture_output=True, text=True, env=environment)
    assert other.returncode == 2
    assert "--knn-bank 9 does not fit" in other.stderr
    assert "whose runs had 50000" in other.stderr
    refused = subprocess.run([*command, "simclr"], capture_output=True, text=True, env=environment)
    assert refused.returncode == 2
    assert "batch_size 256 is greater than the 64 images" in refused.stderr
    assert "Traceback" not in refused.stderr
