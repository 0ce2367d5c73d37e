"""torchrun starts the processes of a run again when one of them is killed: the run goes on to the same numbers.

On one machine, and on two: a machine is a launcher of its own here, killed with its processes and started again.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import torch
from ranks import free_port

OPTIONS = [
    *("simclr", "--recipe", "quick", "--requeue", "--train.max-steps", "16", "--train.batch-size", "32"),
    *("--train.threads", "1", "--loader.threads", "1", "--train.checkpoint-steps", "2", "--monitor.log-steps", "1"),
    *("--monitor.knn-epochs", "1000", "--monitor.no-baselines", "--monitor.no-linear", "--monitor.no-tensorboard"),
]


def start(run_dir, *launch, **environment):
    command = [sys.executable, "-m", "torch.distributed.run", *launch, "--nproc-per-node", "2", "--max-restarts", "2"]
    command += ["-m", "fastssl", "pretrain", *OPTIONS, "--run-dir", str(run_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def start_node(run_dir, port):
    """As on a machine of its own: each launcher keeps its own count of restarts, so the store must be new each time."""
    meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "run")
    return start(run_dir, "--nnodes", "2", *meeting, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")


def losses(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def workers(launcher):
    """Process ids of its children."""
    return [int(pid) for pid in open(f"/proc/{launcher}/task/{launcher}/children").read().split()]


def wait_until_it_listens(port):
    """Whoever binds the address keeps the store, which must outlive the machine that is killed."""
    deadline = time.monotonic() + 60
    while True:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_a_checkpoint(run_dir):
    deadline = time.monotonic() + 90
    while not list(run_dir.glob("checkpoints/step-*.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def weights(run_dir):
    return torch.load(run_dir / "last.pt", weights_only=True)["method"]


def test_a_killed_process_costs_steps_and_no_digit(tmp_path):
    calm = start(tmp_path / "calm", "--standalone")
    assert calm.wait(timeout=120) == 0, calm.stdout.read()
    hurt = start(tmp_path / "hurt", "--standalone")
    try:
        wait_for_a_checkpoint(tmp_path / "hurt")
        os.kill(workers(hurt.pid)[-1], signal.SIGKILL)
        output, _ = hurt.communicate(timeout=120)
    finally:
        hurt.kill()
    assert hurt.returncode == 0, output
    assert "continuing after step" in output
    assert losses(tmp_path / "hurt") == losses(tmp_path / "calm")
    assert len(losses(tmp_path / "calm")) == 16


def test_a_killed_machine_costs_steps_and_no_digit(tmp_path):
    """Two machines of two processes: gradients, statistics and embeddings of four are added in the order they were."""
    port = free_port()
    calm = [start_node(tmp_path / "calm", port) for _ in range(2)]
    assert [node.wait(timeout=180) for node in calm] == [0, 0], calm[0].stdout.read()

    port = free_port()
    host = start_node(tmp_path / "hurt", port)
    wait_until_it_listens(port)
    nodes = [host, start_node(tmp_path / "hurt", port)]
    try:
        wait_for_a_checkpoint(tmp_path / "hurt")
        gone = workers(nodes[1].pid)
        nodes[1].kill()
        for pid in gone:
            os.kill(pid, signal.SIGKILL)
        nodes.append(start_node(tmp_path / "hurt", port))
        outputs = [node.communicate(timeout=240)[0] for node in (nodes[0], nodes[2])]
    finally:
        for node in nodes:
            node.kill()
    assert [nodes[0].returncode, nodes[2].returncode] == [0, 0], outputs
    assert any("continuing after step" in output for output in outputs)
    assert losses(tmp_path / "hurt") == losses(tmp_path / "calm")
    found, expected = weights(tmp_path / "hurt"), weights(tmp_path / "calm")
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    accuracy = [json.loads((tmp_path / name / "summary.json").read_text())["trained_knn"] for name in ("calm", "hurt")]
    assert accuracy[0] == accuracy[1] > 0
