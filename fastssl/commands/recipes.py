"""`fastssl recipes [METHOD]`: the constants that ship, and where they come from."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Iterable
from itertools import pairwise
from types import ModuleType
from typing import Any

from ..config import Config
from ..errors import UserError

COLUMNS = ("recipe", "backbone", "views", "optimizer", "peak lr", "weight decay", "batch", "epochs")
OPTIM = (
    "lr", "lr_scaling", "schedule", "milestones", "warmup_epochs", "warmup_start", "final_lr", "momentum", "lars_eta",
    "exclude",
)  # fmt: skip
CUT = ("size", "count", "scale", "ratio", "sampler", "interpolation", "flip")
COLOUR = (
    "jitter", "brightness", "additive_brightness", "contrast", "saturation", "hue", "color", "grayscale",
    "grayscale_first", "blur", "blur_sigma", "blur_kind", "solarize", "invert",
)  # fmt: skip
FURTHER: dict[str, tuple[str, ...]] = {
    "background_removal": ("background_fill",),
    "rotation": (),
    "noise": ("noise_sigma",),
    "sobel": (),
    "cutout": ("cutout_side", "cutout_fill"),
}
"""Operations, with their constants, that are shown where a recipe has them."""
NETWORK = ("name", "stem", "width", "sk_ratio", "zero_init_residual")

LARS = {
    "A": "the momentum buffer carries the learning rate (Google's)",
    "B": "the learning rate multiplies the momentum buffer (DeepMind's)",
    "C": "the trust ratio is ‖w‖ / (‖g‖ + weight decay · ‖w‖) (LARC)",
}


def recipes_command(args: list[str]) -> int:
    from .. import recipes

    if args and args[0] in ("-h", "--help"):
        print(f"usage: fastssl recipes [{'|'.join(recipes.RECIPES)}]\n\nThe recipes of every method, or all of one.")
        return 0
    if len(args) > 1 or (args and args[0] not in recipes.RECIPES):
        raise UserError(f"fastssl recipes takes one method, {', '.join(recipes.RECIPES)}, got {' '.join(args)!r}")
    for method in args or recipes.RECIPES:
        known = recipes.RECIPES[method]
        module = sys.modules[getattr(recipes, method).__module__]
        about = inspect.cleandoc(module.__doc__ or "")
        print(f"{method}: {about if args else about.splitlines()[0]}", end="\n\n" if args else "\n")
        _print_table([COLUMNS, *(_row(config) for config in known.values())])
        if args:
            _print_constants(known)
            _print_notes(known, module)
        print(f"`fastssl pretrain {method}` takes {next(iter(known))}; --recipe NAME takes another.\n")
    if not args:
        print("`fastssl recipes METHOD` shows every constant of a method, and what is known of each recipe.")
    return 0


def _print_constants(known: dict[str, Config]) -> None:
    """Constants of method, network, optimizer and views, a row a recipe or a group of views."""
    variants = sorted({c.optim.lars_variant for c in known.values() if c.optim.name == "lars"})
    for variant in variants:
        print(f"  lars {variant}: {LARS[variant]}")
    methods = [(name, dataclasses.asdict(config.method)) for name, config in known.items()]
    if methods[0][1]:
        _print_options("the method (--method.NAME VALUE)", methods, methods[0][1])
    _print_options("the network (--backbone.NAME VALUE)", [(n, vars(c.backbone)) for n, c in known.items()], NETWORK)
    _print_options("the optimizer (--optim.NAME VALUE)", [(n, vars(c.optim)) for n, c in known.items()], OPTIM)
    views = [(name, vars(view)) for name, config in known.items() for view in config.augment.views]
    _print_options("the crops of the views, in every recipe the first size first", views, CUT)
    _print_options("their colours", views, COLOUR)
    used = [switch for switch in FURTHER if any(view[switch] for _, view in views)]
    if used:
        _print_options("and further", views, [name for switch in used for name in (switch, *FURTHER[switch])])
    facts = [
        (
            n,
            {
                "mean": c.augment.mean,
                "std": c.augment.std,
                **{f"evaluation_{k}": v for k, v in vars(c.evaluate).items()},
            },
        )
        for n, c in known.items()
    ]
    _print_options("the normalisation, and the view of evaluation", facts, facts[0][1])


def _print_options(title: str, rows: list[tuple[str, dict[str, Any]]], names: Iterable[str]) -> None:
    names = tuple(names)
    print(f"\n  {title}")
    _print_table([_header(names)] + [(recipe, *(_word(values[name]) for name in names)) for recipe, values in rows])


def _print_notes(known: dict[str, Config], module: ModuleType) -> None:
    """What the sources of the recipes say of each: the string that follows its definition."""
    names = {name for name, value in vars(module).items() if any(value is config for config in known.values())}
    body = ast.parse(inspect.getsource(module)).body
    print()
    for statement, after in pairwise(body):
        if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
            continue
        name = statement.targets[0].id
        note = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
        if name in names and isinstance(note, str):
            text = f"{getattr(module, name).recipe}: {note}"
            print(textwrap.fill(" ".join(text.split()), 118, initial_indent="  ", subsequent_indent="    "))
    print()


def _header(names: Iterable[str]) -> tuple[str, ...]:
    return "recipe", *(name.replace("_", "-") for name in names)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " – ".join(_word(part) for part in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _row(config: Config) -> tuple[str, ...]:
    backbone, optim = config.backbone, config.optim
    kernels = " SK" if backbone.sk_ratio else ""
    variant = f" {optim.lars_variant}" if optim.name == "lars" else ""
    sizes = dict.fromkeys(view.size for view in config.augment.views)
    views = " + ".join(f"{count} × {size}" for size, count in zip(sizes, config.augment.counts, strict=True))
    return (
        config.recipe,
        f"{backbone.name} × {backbone.width:g}{kernels}",
        views,
        optim.name + variant,
        f"{optim.peak_lr(config.train.batch_size):.4g}",
        f"{optim.weight_decay:g}",
        f"{config.train.batch_size}",
        f"{config.train.epochs}",
    )


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


COMMANDS = {"recipes": recipes_command}
