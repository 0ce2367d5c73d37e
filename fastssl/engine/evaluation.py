"""What the monitor measures with labels: kNN while training, a linear probe at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from .. import config as configuration
from ..config import Config
from ..data import Source, evaluation_batches
from ..data.order import permuted
from ..data.subset import subset
from ..data.views import CenterCrop
from ..errors import UserError
from ..evaluate.features import extract_features, raw_pixel_features
from ..evaluate.knn import knn_accuracy
from ..evaluate.linear import ProbeResult, linear_probe
from ..models import build_backbone
from . import checkpoint
from .precision import Precision, resolve_device, resolve_precision, set_threads
from .ranks import Ranks
from .rundir import open_data

RAW_PIXELS = 32
"""Raw-pixel kNN compares images reduced to this side: larger ones neither fit nor help."""


class Features(NamedTuple):
    """Rows of the bank (training images) and of the queries: `[N, D]` float32 and `[N]` int64."""

    bank: torch.Tensor
    bank_labels: torch.Tensor
    query: torch.Tensor
    query_labels: torch.Tensor


class Evaluator:
    """Evaluates a backbone on held-out labelled images, or, without any, on a tenth of the training images."""

    def __init__(
        self,
        train: Source,
        val: Source | None,
        config: Config,
        device: torch.device,
        precision: Precision,
        ranks: Ranks | None = None,
    ) -> None:
        self._config, self._device, self._precision = config, device, precision
        self._ranks = ranks or Ranks()
        ids = permuted(np.arange(len(train)), n=len(train), seed=config.train.seed, epoch=0)
        held_out = min(10_000, len(train) // 10) if val is None else 0
        self._query: Source = subset(train, np.sort(ids[:held_out])) if val is None else val
        self._bank = subset(train, np.sort(ids[held_out:][: config.monitor.knn_bank]))

    @staticmethod
    def possible(train: Source, val: Source | None) -> bool:
        """Both sides need labels, and a held-out tenth needs ten images."""
        return train.labels is not None and (len(train) >= 10 if val is None else val.labels is not None)

    def raw_pixel_knn(self) -> float:
        """kNN accuracy of the pixels themselves: what needs no network."""
        crop = replace(self._config.evaluate, size=min(RAW_PIXELS, self._config.evaluate.size))
        sides = [raw_pixel_features(self._batches(source, crop)) for source in (self._bank, self._query)]
        return self.knn(Features(*sides[0], *sides[1]))

    def features(self, backbone: torch.nn.Module) -> Features:
        """Each rank takes a part of the images; all of them get all features."""
        return Features(*self._side(backbone, self._bank), *self._side(backbone, self._query))

    def _side(self, backbone: torch.nn.Module, source: Source) -> tuple[torch.Tensor, torch.Tensor]:
        ranks = self._ranks if len(source) >= self._ranks.world else Ranks()  # too few to share are everybody's
        if ranks.world > 1:
            share = ranks.share(len(source))
            source = subset(source, np.arange(share.start, share.stop))
        batches = self._batches(source, self._config.evaluate)
        features, labels = extract_features(
            backbone,
            batches,
            device=self._device,
            precision=self._precision,
            channels_last=self._config.train.channels_last,
        )
        return ranks.concatenated(features), ranks.concatenated(labels)

    def knn(self, features: Features) -> float:
        monitor = self._config.monitor
        return knn_accuracy(*features, k=monitor.knn_k, temperature=monitor.knn_temperature)

    def linear(self, features: Features) -> ProbeResult:
        return linear_probe(*features)

    def _batches(self, source: Source, crop: CenterCrop) -> Iterator:
        config = self._config
        return evaluation_batches(
            source,
            crop,
            config.augment.mean,
            config.augment.std,
            batch_size=512 if crop.size <= 64 else 64,
            decoder=config.loader.decoder,
            threads=config.loader.threads,
            # These views are made on the CPU.
            renderer="auto" if config.loader.renderer == "triton" else config.loader.renderer,
        )


def evaluate_checkpoint(
    path: Path,
    kind: Literal["knn", "linear"],
    *,
    data: str | None = None,
    val_data: str | None = None,
    k: int = 20,
    temperature: float = 0.1,
    bank: int | None = None,
    decoder: Literal["auto", "dali", "torchvision"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    backbone: torch.nn.Module | None = None,
) -> dict[str, Any]:
    """Accuracy of the backbone in checkpoint `path`, as fractions. Raises `UserError` where it cannot be measured.

    `backbone` is the module that was trained, where it was passed to `pretrain`; it gets the checkpoint's weights.
    """
    if k < 1 or not temperature > 0 or (bank is not None and bank < 1):
        raise UserError(f"--k and --bank must be at least 1 and --temperature > 0, got {k}, {bank} and {temperature}")
    state = checkpoint.load(path)
    config = configuration.from_dict(state["config"])
    config = replace(
        config,
        data=data or config.data,
        val_data=val_data or (None if data else config.val_data),
        loader=replace(config.loader, decoder=decoder),
        monitor=replace(config.monitor, knn_k=k, knn_temperature=temperature, knn_bank=bank or sys.maxsize),
    )
    target = resolve_device(device)
    set_threads(config.train)
    train, val = open_data(config)
    if not Evaluator.possible(train, val):
        raise UserError(f"--data {config.data} has no labels: evaluation needs class folders")
    network = build_backbone(config.backbone, (config.evaluate.size,), backbone)
    prefix = "backbone."
    weights = {name.removeprefix(prefix): value for name, value in state["method"].items() if name.startswith(prefix)}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"checkpoint {path} does not fit its backbone: {str(error).splitlines()[0]}") from None
    network.to(target)
    evaluator = Evaluator(train, val, config, target, resolve_precision(config.train.precision, target))
    features = evaluator.features(network)
    measured: dict[str, Any] = {"step": state["step"], "images": len(features.query_labels)}
    if kind == "knn":
        return {"knn": evaluator.knn(features), "k": k, **measured}
    probe = evaluator.linear(features)
    return {"linear_probe": probe.top1, "top5": probe.top5, **measured}
