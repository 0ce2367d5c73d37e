"""`fastssl plan METHOD` and `fastssl plan published`: what a run will take, before a GPU is rented."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..config import Config
from ..errors import UserError
from .options import parse, take_word

PUBLISHED = "published"
"""The word in place of a method."""
SCALES = tuple(2**power for power in range(3, 13))
"""GPUs of the table: 8 to 4,096."""


@dataclass(frozen=True)
class PlanOptions:
    """What a run of a recipe will take: images/s, hours, memory, cores, communication. All of it is predicted."""

    recipe: str | None = None
    """Recipe of the method; by default its first."""
    gpu: str = "h100"
    """v100-16, v100-32, a100-40, a100-80, h100, h200 or b200."""
    gpus: int = 8
    """How many."""
    gpus_per_machine: int = 8
    """GPUs that a machine joins by its inner link."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Arithmetic of the networks; fp32 takes TF32 where the GPU has it."""
    backbone: str | None = None
    """Network in place of the recipe's, as --backbone.name of pretrain."""
    images: int = 1_281_167
    """Images of the data set."""
    epochs: int | None = None
    """Passes over it; by default the recipe's."""
    batch_size: int | None = None
    """Images a step over all GPUs; by default the recipe's."""
    intra_node: float | None = None
    """GB/s from a GPU to the others of its machine, one direction; by default the data sheet's."""
    inter_node: float | None = None
    """GB/s from a machine to others, one direction; by default that of the vendor's machine."""
    hop_us: float = 5.0
    """Microseconds of a hop of a collective call inside a machine, assumed; twice that between machines."""
    norm_ranks: int | None = None
    """GPUs that share batch-norm statistics: groups of so many, 0 for all, 1 for none; by default the recipe's."""
    cores_per_gpu: float | None = None
    """CPU cores that decode for a GPU; by default as many as it takes."""
    decode_rate: float = 390.0
    """Images/s that a core decodes: of `fastssl bench data`, decoding alone divided by its threads; by default those of
    a Zen 3 core on ImageNet."""
    disk: float | None = None
    """GB/s that a machine reads and writes; by default as fast as it takes, and 1 for checkpoints."""
    image_kb: float = 110.0
    """Size of an image's file in kB."""
    efficiency: float | None = None
    """Share of the roofline that is reached; by default what one published figure gives (`fastssl plan published`)."""
    json: Path | None = None
    """JSON file for all predictions."""


@dataclass(frozen=True)
class PublishedOptions:
    """Predictions beside published figures of ResNet-50, and what published self-supervised runs made of their GPUs."""

    json: Path | None = None
    """JSON file for the figures."""


def plan_command(args: list[str]) -> int:
    from ..recipes import RECIPES

    what = take_word(args, (*RECIPES, PUBLISHED), "plan", "method")
    return _published(args) if what == PUBLISHED else _plan(what, args)


def _published(args: list[str]) -> int:
    options = parse(PublishedOptions, args, prog="fastssl plan published")
    _check_folder(options.json)
    from ..plan.published import compare, implied
    from ..plan.words import describe_published

    compared, found = compare(), implied()
    print("\n".join(describe_published(compared, found)))
    _write(options.json, {"supervised": [asdict(c) for c in compared], "self_supervised": [asdict(i) for i in found]})
    return 0


def _plan(method: str, args: list[str]) -> int:
    options = parse(PlanOptions, args, prog=f"fastssl plan {method}")
    _validate(options)
    from ..plan.chips import EFFICIENCY, chip
    from ..plan.predict import Impossible, Plan, Site
    from ..plan.roofline import Machine
    from ..plan.words import describe

    config, it = _config(method, options), chip(options.gpu)
    efficiency = EFFICIENCY if options.efficiency is None else options.efficiency
    site = Site(
        Machine(it, options.precision, efficiency, config.train.channels_last),
        it.intra if options.intra_node is None else options.intra_node,
        it.inter if options.inter_node is None else options.inter_node,
        options.gpus_per_machine,
        options.cores_per_gpu,
        options.decode_rate,
        options.disk,
        1e3 * options.image_kb,
        1e-6 * options.hop_us,
    )
    plan = Plan(config, site, images=options.images)
    asked, scaling = plan.on(options.gpus), [plan.on(gpus) for gpus in SCALES]
    if isinstance(asked, Impossible):
        raise UserError(f"--gpus {asked.gpus} cannot do this: {asked.reason}")
    print("\n".join(describe(plan, asked, scaling)))
    _write(
        options.json,
        {
            "method": method,
            "recipe": config.recipe,
            "site": asdict(site),
            "predicted": asdict(asked),
            "predicted_scaling": [asdict(entry) for entry in scaling],
            "predicted_checkpoint_bytes": plan.checkpoint,
            "predicted_checkpoint_seconds": plan.checkpoint_seconds,
        },
    )
    return 0


def _config(method: str, options: PlanOptions) -> Config:
    from .. import recipes
    from ..config import validate

    config = recipes.get(method, options.recipe)
    if options.backbone is not None:
        config = replace(config, backbone=replace(config.backbone, name=options.backbone))
    chosen: dict[str, Any] = {key: getattr(options, key) for key in ("epochs", "batch_size", "norm_ranks")}
    config = replace(config, train=replace(config.train, **{k: v for k, v in chosen.items() if v is not None}))
    config = replace(config, masks="masks")  # views without background need them; here nothing is read
    validate(config)
    return config


def _validate(options: PlanOptions) -> None:
    for name in ("gpus", "gpus_per_machine", "images"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    for name in ("intra_node", "inter_node", "hop_us", "cores_per_gpu", "decode_rate", "disk", "image_kb"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} must be > 0, got {value}")
    if options.efficiency is not None and not 0 < options.efficiency <= 1:
        raise UserError(f"--efficiency must be in (0, 1], got {options.efficiency}")
    _check_folder(options.json)


def _check_folder(json: Path | None) -> None:
    if json is not None and not json.absolute().parent.is_dir():
        raise UserError(f"--json {json} cannot be written: its folder does not exist")


def _write(json: Path | None, content: dict[str, Any]) -> None:
    if json is None:
        return
    from ..engine.rundir import command, write_json

    try:
        write_json(json, {"command": command(), **content})
    except OSError as error:
        raise UserError(f"--json {json} cannot be written: {error.strerror}") from None


COMMANDS = {"plan": plan_command}
