"""Runs the files of `interpreted/` in processes of their own, two at a time, and reports each as one test."""

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).with_name("interpreted").glob("test_*.py"))


@pytest.fixture(scope="module")
def runs(request):
    """File -> the finished process, as a future; of those files whose tests were chosen."""
    here = [item for item in request.session.items if item.path == request.path]
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {file: pool.submit(_run, file) for file in (item.callspec.params["file"] for item in here)}


def _run(file: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(file)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem.removeprefix("test_"))
def test_kernels_in_the_interpreter(file: Path, runs: dict[Path, "Future[subprocess.CompletedProcess[str]]"]):
    done = runs[file].result()
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
