"""torchrun starts the processes of a run again when one of them is killed: the run goes on to the same numbers.

Two processes: the sum of two gradients is the same in either order. (DistributedDataParallel lays the gradients of more
out anew after its first step, which rounds their sums otherwise.)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

OPTIONS = [
    *("simclr", "--recipe", "quick", "--requeue", "--train.max-steps", "16", "--train.batch-size", "32"),
    *("--train.threads", "1", "--loader.threads", "1", "--train.checkpoint-steps", "2", "--monitor.log-steps", "1"),
    *("--monitor.knn-epochs", "0", "--monitor.no-baselines", "--monitor.no-linear", "--monitor.no-tensorboard"),
]


def start(run_dir):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", "-m", "fastssl", "pretrain", *OPTIONS, "--run-dir", str(run_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def losses(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows]


def workers(launcher):
    """Process ids of its children."""
    return [int(pid) for pid in open(f"/proc/{launcher}/task/{launcher}/children").read().split()]


def test_a_killed_process_costs_steps_and_no_digit(tmp_path):
    calm = start(tmp_path / "calm")
    assert calm.wait(timeout=120) == 0, calm.stdout.read()
    hurt = start(tmp_path / "hurt")
    try:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "hurt").glob("checkpoints/step-*.pt")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(workers(hurt.pid)[-1], signal.SIGKILL)
        output, _ = hurt.communicate(timeout=120)
    finally:
        hurt.kill()
    assert hurt.returncode == 0, output
    assert "continuing after step" in output
    assert losses(tmp_path / "hurt") == losses(tmp_path / "calm")
    assert len(losses(tmp_path / "calm")) == 16
