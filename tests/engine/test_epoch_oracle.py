"""One epoch of the engine against the same epoch written again with plain torch on the same views."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import fastssl
from fastssl.config import LoaderConfig, MonitorConfig, TrainConfig
from fastssl.data import ViewLoader, open_splits
from fastssl.methods.build import build_method
from fastssl.models import BackboneConfig

BATCH, EPOCHS, LR, ETA, MOMENTUM, DECAY = 12, 1, 0.1, 0.001, 0.9, 1e-4


@pytest.fixture
def config(image_folder, tmp_path):
    recipe = fastssl.recipes.simclr("cifar10")
    view = replace(recipe.augment.views[0], size=16)
    return replace(
        recipe,
        data=str(image_folder),
        run_dir=str(tmp_path / "run"),
        backbone=BackboneConfig("resnet10", stem="cifar", width=0.125),
        method=replace(recipe.method, hidden=32, out=16, layers=2),
        augment=replace(recipe.augment, views=(view,)),
        optim=replace(recipe.optim, lr=LR, lr_scaling="none", weight_decay=DECAY, warmup_epochs=0.4),
        train=TrainConfig(epochs=EPOCHS, batch_size=BATCH, precision="fp32", seed=3, threads=2),
        loader=LoaderConfig(decoder="torchvision", threads=1),
        monitor=MonitorConfig(log_steps=1, knn_epochs=0, baselines=False, tensorboard=False),
    )


def independent_losses(config) -> list[float]:
    source, _ = open_splits(config.data)
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        network = build_method(config.method, config.backbone)
    network = copy.deepcopy(network).train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    velocity = [torch.zeros_like(p) for p in parameters]
    loader = ViewLoader(source, config.augment, batch_size=BATCH, seed=3, decoder="torchvision", threads=1)
    steps = len(source) // BATCH
    warmup = round(0.4 * steps)
    losses = []
    for step, batch in enumerate(loader.epoch(0)):
        z = F.normalize(network.projector(network.backbone(batch.views.groups[0])), dim=1)
        logits = (z @ z.T / config.method.temperature).fill_diagonal_(-math.inf)
        target = torch.arange(2 * BATCH).roll(BATCH)
        loss = 2 * F.cross_entropy(logits, target)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, parameters)
        lr = (
            LR * step / warmup
            if step < warmup
            else LR * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
        )
        with torch.no_grad():
            for p, g, v in zip(parameters, gradients, velocity, strict=True):
                ratio = 1.0
                if p.ndim > 1:
                    g = g + DECAY * p
                    if p.norm() > 0 and g.norm() > 0:
                        ratio = ETA * p.norm() / g.norm()
                v.mul_(MOMENTUM).add_(g, alpha=float(lr * ratio))
                p.sub_(v)
    return losses


def test_an_epoch_equals_plain_torch(config):
    result = fastssl.pretrain(config, quiet=True)
    rows = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    expected = independent_losses(config)
    assert len(losses) == len(expected) == 5
    assert losses == pytest.approx(expected, abs=1e-4)
    assert losses[-1] != pytest.approx(losses[0], abs=1e-3), "the network must have moved, or the test shows nothing"
