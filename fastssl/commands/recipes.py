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
OPTIM = ("lr", "lr_scaling", "schedule", "warmup_epochs", "warmup_start", "final_lr", "momentum", "exclude")
VIEW = (
    "size", "count", "scale", "flip", "jitter", "brightness", "contrast", "saturation", "hue", "grayscale", "blur",
    "solarize",
)  # fmt: skip


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
        print(f"{method}: {(module.__doc__ or '').strip().splitlines()[0]}")
        _print_table([COLUMNS, *(_row(config) for config in known.values())])
        if args:
            _print_constants(known)
            _print_notes(known, module)
        print(f"`fastssl pretrain {method}` takes {next(iter(known))}; --recipe NAME takes another.\n")
    if not args:
        print("`fastssl recipes METHOD` shows every constant of a method, and what is known of each recipe.")
    return 0


def _print_constants(known: dict[str, Config]) -> None:
    """Constants of method, optimizer and views, a row a recipe or a group of views."""
    variants = sorted({c.optim.lars_variant for c in known.values() if c.optim.name == "lars"})
    for variant in variants:
        print(f"  lars {variant}: {LARS[variant]}")
    methods = [dataclasses.asdict(config.method) for config in known.values()]
    if methods[0]:
        print("\n  the method (--method.NAME VALUE)")
        _print_table(
            [_header(methods[0])] + [(n, *map(_word, m.values())) for n, m in zip(known, methods, strict=True)]
        )
    optims = [dataclasses.asdict(config.optim) for config in known.values()]
    print("\n  the optimizer (--optim.NAME VALUE)")
    _print_table(
        [_header(OPTIM)] + [(n, *(_word(o[key]) for key in OPTIM)) for n, o in zip(known, optims, strict=True)]
    )
    print("\n  the views, in every recipe the first size first")
    groups = [(name, dataclasses.asdict(view)) for name, config in known.items() for view in config.augment.views]
    _print_table([_header(VIEW)] + [(name, *(_word(view[key]) for key in VIEW)) for name, view in groups])


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
