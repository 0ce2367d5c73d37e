"""Whole runs with micro-batches and with checkpointed activations."""

import json
from dataclasses import replace

import pytest
import torch

import fastssl
from fastssl.config import LoaderConfig, MonitorConfig, TrainConfig
from fastssl.models import BackboneConfig


def losses(image_folder, run_dir, **train) -> list[float]:
    recipe = fastssl.recipes.mocov2()
    views = tuple(replace(view, size=16) for view in recipe.augment.views)
    config = replace(
        recipe,
        data=str(image_folder),
        run_dir=str(run_dir),
        backbone=BackboneConfig("resnet10", stem="cifar-s2", width=0.125),
        method=replace(recipe.method, out=8, queue=60, norm_groups=2),
        augment=replace(recipe.augment, views=views),
        evaluate=replace(recipe.evaluate, size=16),
        train=TrainConfig(epochs=1, batch_size=12, precision="fp32", threads=1, **train),
        loader=LoaderConfig(threads=1),
        monitor=MonitorConfig(log_steps=1, knn_epochs=0, baselines=False, tensorboard=False),
    )
    fastssl.pretrain(config, quiet=True)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


@pytest.fixture(scope="module")
def plain(image_folder, tmp_path_factory) -> list[float]:
    return losses(image_folder, tmp_path_factory.mktemp("plain"))


def test_a_run_in_micro_batches_has_the_losses_of_the_plain_one(image_folder, tmp_path, plain):
    """MoCo's groups of six stay whole. The rounding of every step grows in the next ones."""
    found = losses(image_folder, tmp_path / "run", micro_batch=6)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(plain), rtol=1e-3, atol=1e-4)


def test_a_run_with_checkpointed_activations_keeps_its_bits(image_folder, tmp_path, plain):
    assert losses(image_folder, tmp_path / "run", checkpoint_activations=True) == plain
