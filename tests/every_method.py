"""Every method, small, and views for it."""

from __future__ import annotations

import torch
from torch import nn

from fastssl.data.views import Views
from fastssl.methods import METHODS, DataFacts, Method, StepState, build_method
from fastssl.models import BackboneConfig

IMAGES, CLASSES = 48, 3
SMALL = {
    "simclr": {"hidden": 16, "out": 8},
    "simclrv2": {"hidden": 16, "out": 8, "memory": 28, "memory_momentum": 0.9},
    "mocov1": {"out": 8, "queue": 28, "norm_groups": 4, "head_norm": False},
    "mocov2": {"out": 8, "queue": 28, "norm_groups": 4, "head_norm": False},
    "byol": {"hidden": 16, "out": 8},
    "swav": {"hidden": 16, "out": 8, "prototypes": 6, "freeze_steps": 1, "queue": 12, "queue_epoch": 0.0},
    "deepclusterv2": {"hidden": 16, "out": 8, "prototypes": 6, "heads": 2},
    "selav2": {"hidden": 16, "out": 8, "prototypes": 6, "heads": 2, "freeze_steps": 1},
    "nnclr": {"hidden": 16, "out": 8, "predictor_hidden": 16, "queue": 28},
    "relic": {"hidden": 16, "out": 8},
    "relicv2": {"hidden": 16, "out": 8, "negatives": 3},
    "supervised": {},
}
"""Every method, with queues that wrap in the third step of twelve images."""
COUNTS, SIZES = (2, 1), (16, 12)


def state(step: int) -> StepState:
    return StepState(step, total_steps=10, steps_per_epoch=4)


def random_views(step: int, images: int = 12) -> Views:
    generator = torch.Generator().manual_seed(step)
    groups = tuple(
        torch.rand(n * images, 3, size, size, generator=generator) for n, size in zip(COUNTS, SIZES, strict=True)
    )
    ids = torch.randperm(IMAGES, generator=generator)[:images]
    return Views(groups, COUNTS, ids, ids % CLASSES)


def make(name: str, network: nn.Module | None = None, **options) -> Method:
    torch.manual_seed(0)
    config = METHODS[name][0](**{**SMALL[name], **options})
    backbone = BackboneConfig("resnet10", stem="cifar", width=0.125, zero_init_residual=False)
    method = build_method(config, backbone, DataFacts(IMAGES, CLASSES), network=network, sizes=(16,))
    with torch.no_grad():
        # Statistics and memories as after some training: what is fixed is not trivial.
        for module in method.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
        method.before_epoch(state(0), lambda: (random_views(step) for step in range(8)))
    return method.train()
