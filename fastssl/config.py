"""A run, as data: what the command line is generated from and what `config.yaml` holds."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cattrs
import yaml

from .data.dali_graph import check_view as check_dali_view
from .data.masks import check_masks
from .data.study import check as check_study
from .data.views import Augmentation, CenterCrop, ViewSpec, check_words
from .errors import UserError
from .methods import METHODS, MethodConfig, method_name
from .methods.simclr import SimCLRConfig
from .models import BackboneConfig
from .optim import OptimConfig

BUILTIN = "builtin"
"""The value of `--data` that names the built-in data set."""


@dataclass(frozen=True)
class TrainConfig:
    """How long, how large, how precise."""

    epochs: int = 100
    """Passes over the data."""
    batch_size: int = 4096
    """Images a step over all processes; each image gives all views of the recipe."""
    micro_batch: int | None = None
    """Images that pass through the networks at a time, for the loss and gradient of the whole batch in the memory of so
    many images and with a second forward pass. Batch norm takes its statistics from them. None for the whole batch."""
    checkpoint_activations: bool = False
    """Keep only what enters each block of the backbone, and compute the rest again for the gradient, bit for bit."""
    compile: bool = False
    """Have torch.compile fuse the networks' operations: a minute or more at the start, equal to rounding."""
    max_steps: int | None = None
    """Stop after so many steps; the schedule then spans them."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "bf16"
    """Arithmetic of the networks; losses and weights are always fp32. auto: bf16 where the hardware computes it. fp16
    scales the loss and skips steps that overflow."""
    channels_last: bool = True
    """Memory layout of images and convolutions."""
    seed: int = 0
    """Every random choice is a function of it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU when there is one."""
    threads: int = 0
    """CPU threads of the arithmetic; 0 takes all cores, shared by the processes on a machine."""
    norm_ranks: int = 0
    """Processes that share batch-norm statistics: neighbours in groups of so many, 0 for all, 1 for none."""
    compress_gradients: bool = False
    """Send gradients between processes in bfloat16: half the bytes, 8 bits of precision."""
    checkpoint_minutes: float = 5.0
    """Save `last.pt` so often, and at the end."""
    checkpoint_steps: int | None = None
    """Save every so many steps instead."""
    keep_checkpoints: int = 2
    """Checkpoints in `checkpoints/`; `last.pt` is the newest, and if that is damaged, a resume takes the one before."""
    max_bad_steps: int = 10
    """Stop after so many steps in a row whose loss or gradients are not finite; each is skipped (CPU; a GPU stops)."""
    stall_minutes: float = 10.0
    """Say where the threads stand when no step has ended for so long; 0 never."""


@dataclass(frozen=True)
class LoaderConfig:
    """How bytes become views."""

    decoder: Literal["auto", "dali", "torchvision"] = "auto"
    """JPEG decoder; auto takes DALI where it is installed."""
    renderer: Literal["auto", "native", "triton", "torch", "dali"] = "auto"
    """Who draws the views; auto takes native on the CPU, triton on a GPU, torch where they are missing, never dali."""
    device: Literal["auto", "cpu"] = "auto"
    """Where views are made: where training is, or on the CPU, from where a GPU copies them behind the step before."""
    hw_decoder_load: float = 0.65
    """Share of a batch's JPEG data that DALI gives to a GPU's hardware decoder (A100, H100; others have none)."""
    threads: int = 2
    """Threads that read, decode and render."""
    prefetch: int | None = None
    """Batches made ahead of the step; by default 2 for a GPU and 0 for the CPU, where both want the same cores."""
    last: Literal["drop", "pad"] = "drop"
    """What is left after an epoch's last full batch: left out, or filled up with the epoch's first images."""
    max_bad_fraction: float = 0.01
    """Stop when more than this share of the images seen cannot be read."""


@dataclass(frozen=True)
class MonitorConfig:
    """What is measured while training."""

    log_steps: int = 10
    """Write metrics every so many steps."""
    knn_epochs: float = 10
    """kNN accuracy of the backbone every so many epochs, or parts of one, and at the end (needs labels); 0 never."""
    knn_k: int = 20
    """Neighbours."""
    knn_temperature: float = 0.1
    """Weight of a neighbour at cosine s is exp(s / temperature)."""
    knn_bank: int = 50_000
    """Most training images used as neighbours."""
    baselines: bool = True
    """kNN accuracy of raw pixels and of the untrained network, before training (needs labels)."""
    linear: bool = False
    """Linear probe of the trained backbone at the end (needs labels)."""
    tensorboard: bool = True
    """Write TensorBoard events."""


@dataclass(frozen=True)
class Config:
    """One pre-training run."""

    data: str = BUILTIN
    """Folder of class folders or of images (its subfolder `train` if there is one), tar, file list, or "builtin"."""
    val_data: str | None = None
    """Labelled images that the monitor evaluates; by default `val`, `validation` or `test` beside `train`."""
    masks: str | None = None
    """Folder or tar of the images' foreground masks, for views with a background removal."""
    run_dir: str | None = None
    """Where everything is written; by default runs/<method>-<recipe>."""
    recipe: str = "imagenet-1000ep"
    """Which published set of constants the rest starts from."""
    method: MethodConfig = field(default_factory=SimCLRConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    augment: Augmentation = field(default_factory=Augmentation)
    evaluate: CenterCrop = field(default_factory=CenterCrop)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)

    @property
    def method_name(self) -> str:
        return method_name(self.method)


def validate(config: Config) -> None:
    """Raise `UserError` for the first constant that cannot be: before any work starts."""
    config.optim.validate()
    config.backbone.validate()
    config.method.validate(config.augment.counts)
    config.method.validate_batch(config.train.batch_size)
    for index, spec in enumerate(config.augment.views):
        _validate_view(spec, f"--augment.views.{index}")
        check_masks(spec, f"--augment.views.{index}", config.masks is not None)
        if config.loader.renderer == "dali":
            check_dali_view(spec, f"--augment.views.{index}")
    if config.evaluate.size < 8 or not 0 < config.evaluate.crop <= 1:
        raise UserError(
            "--evaluate.size must be at least 8 and --evaluate.crop in (0, 1], "
            f"got {config.evaluate.size} and {config.evaluate.crop}"
        )
    if min(config.augment.std) <= 0:
        raise UserError(f"--augment.std must be > 0 in every channel, got {config.augment.std}")
    _validate_numbers(config)
    if config.train.micro_batch is not None:
        _validate_micro_batch(config, config.train.micro_batch)


def _validate_micro_batch(config: Config, images: int) -> None:
    batch = config.train.batch_size
    if images > batch:
        raise UserError(
            f"--train.micro-batch {images} is larger than --train.batch-size {batch}: choose a divisor of that, or "
            "leave it out"
        )
    if batch % images == 1:
        raise UserError(
            f"--train.micro-batch {images} leaves a single image of --train.batch-size {batch} to the last one, which "
            "has no statistics for batch norm: choose another, best a divisor of the batch"
        )
    config.method.validate_micro_batch(images, batch)


def _validate_view(spec: ViewSpec, name: str) -> None:
    if spec.size < 8:
        raise UserError(f"{name}.size must be at least 8 pixels, got {spec.size}")
    if spec.count < 1:
        raise UserError(f"{name}.count must be at least 1, got {spec.count}")
    for key, low, high in (("scale", 0.0, 1.0), ("ratio", 0.0, math.inf), ("blur_sigma", 0.0, math.inf)):
        least, most = getattr(spec, key)
        if not low < least <= most <= high or math.isinf(most):
            raise UserError(
                f"{name}.{key.replace('_', '-')} must satisfy {low} < low <= high <= {high}, got {least} {most}"
            )
    for key in ("flip", "jitter", "grayscale", "blur", "solarize", "invert"):
        if not 0 <= getattr(spec, key) <= 1:
            raise UserError(f"{name}.{key} is a probability between 0 and 1, got {getattr(spec, key)}")
    for key, limit in (("brightness", math.inf), ("contrast", math.inf), ("saturation", math.inf), ("hue", 0.5)):
        value = getattr(spec, key)
        if not 0 <= value <= limit or math.isinf(value):
            raise UserError(f"{name}.{key} must be between 0 and {limit}, got {value}")
    check_words(spec, f"{name}.")
    check_study(spec, f"{name}.")


def _validate_numbers(config: Config) -> None:
    at_least: tuple[tuple[str, float | None, float], ...] = (
        ("train.epochs", config.train.epochs, 1),
        ("train.batch-size", config.train.batch_size, 2),
        ("train.micro-batch", config.train.micro_batch, 2),
        ("train.max-steps", config.train.max_steps, 1),
        ("train.threads", config.train.threads, 0),
        ("train.norm-ranks", config.train.norm_ranks, 0),
        ("train.checkpoint-minutes", config.train.checkpoint_minutes, 0),
        ("train.checkpoint-steps", config.train.checkpoint_steps, 1),
        ("train.keep-checkpoints", config.train.keep_checkpoints, 1),
        ("train.max-bad-steps", config.train.max_bad_steps, 1),
        ("train.stall-minutes", config.train.stall_minutes, 0),
        ("train.seed", config.train.seed, 0),
        ("loader.hw-decoder-load", config.loader.hw_decoder_load, 0),
        ("loader.threads", config.loader.threads, 1),
        ("loader.prefetch", config.loader.prefetch, 0),
        ("loader.max-bad-fraction", config.loader.max_bad_fraction, 0),
        ("monitor.log-steps", config.monitor.log_steps, 1),
        ("monitor.knn-epochs", config.monitor.knn_epochs, 0),
        ("monitor.knn-k", config.monitor.knn_k, 1),
        ("monitor.knn-bank", config.monitor.knn_bank, 1),
    )
    for name, value, least in at_least:
        if value is not None and not value >= least:
            raise UserError(f"--{name} must be at least {least:g}, got {value}")
    if config.loader.hw_decoder_load > 1:
        raise UserError(f"--loader.hw-decoder-load must be at most 1, got {config.loader.hw_decoder_load}")
    if math.isinf(config.monitor.knn_epochs):
        raise UserError("--monitor.knn-epochs must be finite, got inf; 0 never measures kNN accuracy")
    if not config.monitor.knn_temperature > 0:
        raise UserError(f"--monitor.knn-temperature must be > 0, got {config.monitor.knn_temperature}")


_NAME = "method_name"
_converter = cattrs.Converter(forbid_extra_keys=True)
# The class of the method's constants hangs on the method's name, which `from_dict` puts among them.
_converter.register_structure_hook_func(
    lambda kind: kind is MethodConfig,
    lambda plain, _: _converter.structure(
        {key: value for key, value in plain.items() if key != _NAME}, METHODS[plain[_NAME]][0]
    ),
)


def to_dict(config: Config) -> dict[str, Any]:
    """Plain lists, numbers and strings; the method's name stands under `method_name`."""
    plain = _lists(dataclasses.asdict(config))
    return {_NAME: config.method_name, **plain}


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_lists(item) for item in value]
    return value


def from_dict(plain: dict[str, Any]) -> Config:
    """The inverse of `to_dict`. Raises `UserError` naming what is unknown or of the wrong type."""
    plain = dict(plain)
    name = plain.pop(_NAME, None)
    if name not in METHODS:
        raise UserError(f"config.yaml: method_name must be one of {', '.join(METHODS)}, got {name!r}")
    if not isinstance(plain.get("method", {}), dict):
        raise UserError(f"config.yaml: method must hold the constants of {name}, got {plain['method']!r}")
    plain["method"] = {**plain.get("method", {}), _NAME: name}
    try:
        return _converter.structure(plain, Config)
    except cattrs.BaseValidationError as error:
        raise UserError("config.yaml: " + "; ".join(cattrs.transform_error(error))) from None


def save(config: Config, path: Path) -> None:
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def load(path: Path) -> Config:
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: is {path.parent} a run directory?") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable as YAML: {error}") from None
    if not isinstance(plain, dict):
        raise UserError(f"{path} does not hold a configuration")
    return from_dict(plain)
