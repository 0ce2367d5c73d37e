"""A run of two processes that is stopped goes on with one or with four: the same images, batch by batch."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from ranks import on_ranks

import fastssl
from fastssl import recipes
from fastssl.config import LoaderConfig, MonitorConfig, TrainConfig
from fastssl.data.order import batch_ids
from fastssl.engine import run as engine
from fastssl.models import BackboneConfig

IMAGES, BATCH, STOP, STEPS = 40, 8, 3, 12


class Noise:
    """Images made when they are read."""

    labels = None

    def __len__(self):
        return IMAGES

    def read(self, index):
        pixels = np.random.default_rng(index).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG")
        return file.getvalue()


def configuration():
    return replace(
        recipes.get("nnclr", "quick"),
        backbone=BackboneConfig(name="resnet10", stem="cifar-s2", width=0.125),
        train=TrainConfig(batch_size=BATCH, max_steps=STEPS, precision="fp32", threads=1),
        loader=LoaderConfig(threads=1, prefetch=1),
        monitor=MonitorConfig(log_steps=1, knn_epochs=0, baselines=False, linear=False, tensorboard=False),
    )


def work(rank, world, run_dir, stop, folder):
    seen = []
    step = engine.Run._step

    def watched(run, batch, clock):
        seen.append((run.step, batch.ids.tolist()))
        if run.step + 1 == stop and run.ranks.rank == world - 1:
            run.interruption.signal = 15  # one process alone is told
        return step(run, batch, clock)

    engine.Run._step = watched
    if stop:
        result = fastssl.pretrain(configuration(), data=Noise(), run_dir=run_dir, quiet=True)
    else:
        result = fastssl.pretrain(data=Noise(), resume=run_dir, quiet=True)
    assert result.finished == (not stop)
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(seen, file)


def run(world, run_dir, stop, folder):
    """Step and global batch, in the order of the processes."""
    folder.mkdir()
    on_ranks(work, world, str(run_dir), stop, str(folder))
    parts = [dict(json.loads((folder / f"{rank}.json").read_text())) for rank in range(world)]
    assert all(list(part) == list(parts[0]) for part in parts)
    return {step: [number for part in parts for number in part[step]] for step in parts[0]}


def expected(step):
    epoch, position = divmod(step, IMAGES // BATCH)
    return batch_ids(position, n=IMAGES, batch_size=BATCH, seed=0, epoch=epoch).tolist()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    return folder / "run", run(2, folder / "run", STOP, folder / "ids")


def test_a_signal_to_one_process_stops_both_after_the_same_step(stopped):
    assert stopped[1] == {step: expected(step) for step in range(STOP)}


@pytest.mark.parametrize("world", [1, 4])
def test_the_global_order_goes_on(stopped, world, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "run", symlinks=True)
    found = run(world, tmp_path / "run", 0, tmp_path / "ids")
    assert found == {step: expected(step) for step in range(STOP, STEPS)}
