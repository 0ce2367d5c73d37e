"""A process that dies in an epoch: the next one shows the same samples and the same pixels from there on."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_pixels import as_tar

EPOCHS, STEPS = 24, 5
CHILD = """
import os, sys, time, zlib
from fastssl.data import Augmentation, ViewLoader, ViewSpec, open_source
data, log, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
source = open_source(data)
loader = ViewLoader(source, Augmentation((ViewSpec(size=16, count=2, blur=0.5),)), batch_size=8, seed=3, threads=2)
done = len(open(log).read().split("\\n")) - 1 if os.path.exists(log) else 0  # whole lines
written = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for epoch in range(done // loader.steps_per_epoch, int(sys.argv[4])):
    first = max(0, done - epoch * loader.steps_per_epoch)
    for step, batch in enumerate(loader.epoch(epoch, start_step=first), start=first):
        check = zlib.crc32(batch.views.groups[0].numpy().tobytes())
        line = f"{epoch} {step} {batch.ids.tolist()} {batch.labels.tolist()} {check}\\n"
        os.write(written, line.encode())  # one call, one line: a kill tears none
        time.sleep(pause)
loader.close()
"""


def start(data: Path, log: Path, pause: float) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD, str(data), str(log), str(pause), str(EPOCHS)])


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_killed_at_any_moment_the_sequence_goes_on(class_folder, tmp_path, kind):
    data = class_folder if kind == "folder" else as_tar(class_folder, tmp_path / "d.tar")
    undisturbed = start(data, tmp_path / "undisturbed", 0.0)
    log, moments = tmp_path / "killed", random.Random(kind)
    for wanted in (moments.randrange(3, 50), moments.randrange(55, 100)):
        process = start(data, log, 0.005)
        deadline = time.monotonic() + 60
        while len(lines(log)) < wanted and time.monotonic() < deadline:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        time.sleep(moments.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert wanted <= len(lines(log)) < EPOCHS * STEPS
    assert start(data, log, 0.0).wait() == 0
    assert undisturbed.wait() == 0
    assert lines(log) == lines(tmp_path / "undisturbed")
    assert len(lines(log)) == EPOCHS * STEPS
    assert len(set(lines(log))) == EPOCHS * STEPS
