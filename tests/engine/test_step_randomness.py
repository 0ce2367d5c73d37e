"""What networks draw for themselves is a function of run, step and process, so that a resumed run draws alike."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from ranks import on_ranks
from small_images import write_images
from torch import nn

import fastssl
from fastssl import recipes
from fastssl.config import LoaderConfig, MonitorConfig, TrainConfig
from fastssl.engine.step import seed_generators

STEPS, STOP = 4, 2


class Dropping(nn.Module):
    """A network with dropout, which notes what it drew."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.Dropout(0.5)
        self.drawn: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(torch.relu(self.norm(self.conv(x))).mean((2, 3)) + 1)
        if self.training:
            self.drawn.append(int((x == 0).sum()) * 1000 + int((x[0] == 0).sum()))
        return x


def drawn_by(seed: int, step: int, rank: int) -> tuple[float, ...]:
    seed_generators(seed, step, rank)
    return tuple(torch.rand(4).tolist())


def test_every_step_process_and_run_draws_its_own():
    found = {drawn_by(*key) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**40, 2**33, 5)]}
    assert len(found) == 5
    assert drawn_by(3, 4, 5) == drawn_by(3, 4, 5)


def configuration():
    return replace(
        recipes.get("simclr", "quick"),
        train=TrainConfig(batch_size=8, max_steps=STEPS, precision="fp32", threads=1),
        loader=LoaderConfig(threads=1),
        monitor=MonitorConfig(log_steps=1, knn_epochs=0, baselines=False, linear=False, tensorboard=False),
    )


def work(rank, world, data, run_dir, stop, folder):
    from fastssl.engine import run as engine

    step = engine.Run._step

    def stopping(run, batch, clock):
        run.interruption.signal = 15 if run.step + 1 == stop else run.interruption.signal
        return step(run, batch, clock)

    engine.Run._step = stopping
    torch.manual_seed(7)
    network = Dropping()
    known = {"resume": run_dir} if os.path.isdir(run_dir) else {"config": configuration(), "run_dir": run_dir}
    fastssl.pretrain(**known, data=data, backbone=network, quiet=True)
    torch.save(network.drawn, f"{folder}/{rank}.pt")


def run(world, data, run_dir, stop, folder):
    """What every process drew."""
    folder.mkdir()
    on_ranks(work, world, str(data), str(run_dir), stop, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@pytest.mark.parametrize("world", [1, 2])
def test_a_resumed_run_draws_what_an_undisturbed_one_does(world, tmp_path):
    data = tmp_path / "data"
    write_images(data, classes=2, per_class=8)
    whole = run(world, data, tmp_path / "whole", 0, tmp_path / "a")
    first = run(world, data, tmp_path / "resumed", STOP, tmp_path / "b")
    second = run(world, data, tmp_path / "resumed", 0, tmp_path / "c")
    assert [a + b for a, b in zip(first, second, strict=True)] == whole
    assert len({tuple(drawn) for drawn in whole}) == world
    ends = [torch.load(tmp_path / name / "last.pt", weights_only=True)["method"] for name in ("whole", "resumed")]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
