"""Whole runs of the methods that look at an epoch before it begins, and of backbones passed in Python."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import fastssl
from fastssl.config import LoaderConfig, MonitorConfig, TrainConfig
from fastssl.engine import checkpoint
from fastssl.engine import run as engine
from fastssl.engine.evaluation import evaluate_checkpoint
from fastssl.errors import UserError
from fastssl.models import BackboneConfig


def small(method, data, run_dir, **train):
    recipe = fastssl.recipes.get(method, "quick")
    constants = {"hidden": 16, "out": 8, "prototypes": 6} if method != "supervised" else {}
    return replace(
        recipe,
        data=str(data),
        run_dir=str(run_dir),
        backbone=BackboneConfig("resnet10", stem="cifar-s2", width=0.125),
        method=replace(recipe.method, **constants),
        augment=replace(recipe.augment, views=(replace(recipe.augment.views[0], size=16),)),
        evaluate=replace(recipe.evaluate, size=16),
        train=TrainConfig(**{"epochs": 3, "batch_size": 11, "precision": "fp32", "threads": 1, **train}),
        loader=LoaderConfig(threads=1, prefetch=1),
        monitor=MonitorConfig(log_steps=1, knn_epochs=2, baselines=False, linear=False, tensorboard=False),
    )


def rows(run_dir):
    parsed = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "timing"} for row in parsed]


@pytest.mark.parametrize("method", ["deepclusterv2", "selav2", "supervised"])
@pytest.mark.parametrize("stop", [5, 7])
def test_a_stopped_run_goes_on_with_the_same_bits(method, stop, image_folder, tmp_path, monkeypatch):
    """Five steps an epoch: stopped where an epoch ends, and in the middle of one."""
    whole = fastssl.pretrain(small(method, image_folder, tmp_path / "whole"), quiet=True)
    after_step = engine.Run._after_step

    def interrupt(run):
        after_step(run)
        run.interruption.signal = 15 if run.step == stop else 0

    with monkeypatch.context() as patch:
        patch.setattr(engine.Run, "_after_step", interrupt)
        assert not fastssl.pretrain(small(method, image_folder, tmp_path / "run"), quiet=True).finished
    assert checkpoint.load(tmp_path / "run" / "last.pt")["step"] == stop
    fastssl.pretrain(resume=tmp_path / "run", quiet=True)
    assert rows(tmp_path / "run") == rows(whole.run_dir)
    ours, theirs = (checkpoint.load(d / "last.pt")["method"] for d in (tmp_path / "run", whole.run_dir))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert 0 <= evaluate_checkpoint(tmp_path / "run" / "last.pt", "knn")["knn"] <= 1


def test_labels_are_asked_for_before_anything_is_written(image_folder, tmp_path):
    with pytest.raises(UserError, match="supervised learns from labels"):
        fastssl.pretrain(small("supervised", image_folder / "train" / "class0", tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_module_as_backbone(image_folder, tmp_path):
    def module():
        return nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    config = small("deepclusterv2", image_folder, tmp_path / "run", epochs=1)
    ours = module()
    result = fastssl.pretrain(config, backbone=ours, quiet=True)
    assert result.finished
    saved = checkpoint.load(tmp_path / "run" / "last.pt")
    assert torch.equal(saved["method"]["backbone.0.weight"], ours[0].weight)
    assert saved["config"]["backbone"]["name"] == "module:Sequential"
    assert 0 <= evaluate_checkpoint(tmp_path / "run" / "last.pt", "knn", backbone=module())["knn"] <= 1
    for call in (
        lambda: evaluate_checkpoint(tmp_path / "run" / "last.pt", "knn"),
        lambda: fastssl.pretrain(resume=tmp_path / "run", quiet=True),
    ):
        with pytest.raises(UserError, match="was a module of a Python program"):
            call()
    assert fastssl.pretrain(resume=tmp_path / "run", backbone=module(), quiet=True).finished
