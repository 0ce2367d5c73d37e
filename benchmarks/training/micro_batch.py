"""Peak memory and time of one training step: the whole batch, micro-batches, checkpointed activations.

    python benchmarks/training/micro_batch.py --out micro_batch.json

ResNet-18 with a 3 × 3 stem of stride 2 on 2 × 32 × 32, batch 256, SGD, fp32, on the CPU. Memory is what the tensors of
a step take at once, beyond weights, queues and views: every operation is watched, and a storage counts from the one
that made it until it is freed, so the figure has no noise. Gradients and momentum are in it, scratch memory inside an
operation is not. Time is CPU time, which other processes hardly change, of other steps; the ways take turns.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from fastssl.bench.memory import LiveBytes
from fastssl.data.views import Views
from fastssl.engine.step import train_step
from fastssl.methods import METHODS, Method, StepState, build_method
from fastssl.models import BackboneConfig, checkpoint_activations
from fastssl.optim import OptimConfig, build_optimizer

BATCH, MICRO, SIZE = 256, 32, 32
METHODS_MEASURED = ("simclr", "mocov2", "nnclr", "relicv2")
WAYS: dict[str, dict[str, Any]] = {
    "whole batch": {},
    f"micro-batches of {MICRO}": {"micro_batch": MICRO},
    "checkpointed": {"checkpoint": True},
    "both": {"micro_batch": MICRO, "checkpoint": True},
}


class Subject:
    """One way to train one method."""

    def __init__(
        self, method: Method, views: Views, *, micro_batch: int | None = None, checkpoint: bool = False
    ) -> None:
        self.method, self.views, self.micro_batch, self.number = method, views, micro_batch, 0
        if checkpoint:
            checkpoint_activations(method.backbone)
        self.optimizer = build_optimizer(method, OptimConfig(name="sgd", lr=0.01))

    def step(self) -> float:
        """One training step; its loss."""
        state = StepState(self.number, 1000, 100)
        self.number += 1
        options = {"lr": 0.01, "precision": "fp32", "micro_batch": self.micro_batch}
        return train_step(self.method, self.optimizer, self.views, state, **options).total.item()

    def watched_step(self) -> tuple[float, int]:
        """The first step's loss and its peak."""
        with LiveBytes([*self.method.parameters(), *self.method.buffers(), *self.views.groups]) as live:
            loss = self.step()
        return loss, live.peak

    def timed_step(self) -> float:
        """CPU seconds of a step."""
        start = time.process_time()
        self.step()
        return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of every way")
    parser.add_argument("--out", type=Path, help="write raw samples and environment to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record: dict[str, Any] = {
        "environment": {"torch": torch.__version__, "cpu": cpu(), "threads": options.threads, "rounds": options.rounds},
        "setting": {"batch": BATCH, "micro_batch": MICRO, "size": SIZE},
        "methods": {},
    }
    print(f"{'':10}{'':24}{'peak MB':>9}{'ratio':>8}{'median s':>10}{'ratio':>8}{'loss':>12}")
    for name in METHODS_MEASURED:
        ways = WAYS if name == "simclr" else dict(list(WAYS.items())[:2])
        measured = measure(name, ways, options.rounds)
        record["methods"][name] = measured
        whole = measured[next(iter(ways))]
        for way, found in measured.items():
            median, base = statistics.median(found["seconds"]), statistics.median(whole["seconds"])
            print(
                f"{name:10}{way:24}{found['peak_bytes'] / 1e6:9.1f}{found['peak_bytes'] / whole['peak_bytes']:8.3f}"
                f"{median:10.2f}{median / base:8.2f}{found['loss']:12.6f}",
                flush=True,
            )
        if options.out is not None:
            options.out.write_text(json.dumps(record, indent=1))


def measure(name: str, ways: dict[str, dict], rounds: int) -> dict[str, Any]:
    """Loss and peak of the first step and the seconds of the following ones, by way."""
    views = Views((torch.rand(2 * BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)),), (2,))
    torch.manual_seed(0)
    method = build_method(METHODS[name][0](), BackboneConfig("resnet18", stem="cifar-s2")).train()
    subjects = {way: Subject(copy.deepcopy(method), views, **how) for way, how in ways.items()}
    first = {way: subject.watched_step() for way, subject in subjects.items()}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, subject in subjects.items():
            seconds[way].append(subject.timed_step())
    return {way: {"loss": first[way][0], "peak_bytes": first[way][1], "seconds": seconds[way]} for way in ways}


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
