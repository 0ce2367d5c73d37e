"""`fastssl recipes [METHOD]`: the constants that ship, and where they come from."""

from __future__ import annotations

import sys

from ..config import Config
from ..errors import UserError

COLUMNS = ("recipe", "backbone", "views", "optimizer", "peak lr", "weight decay", "batch", "epochs")


def recipes_command(args: list[str]) -> int:
    from .. import recipes

    if args and args[0] in ("-h", "--help"):
        print(f"usage: fastssl recipes [{'|'.join(recipes.RECIPES)}]\n\nThe recipes of every method, or of one.")
        return 0
    if len(args) > 1 or (args and args[0] not in recipes.RECIPES):
        raise UserError(f"fastssl recipes takes one method, {', '.join(recipes.RECIPES)}, got {' '.join(args)!r}")
    for method in args or recipes.RECIPES:
        known = recipes.RECIPES[method]
        source = (sys.modules[getattr(recipes, method).__module__].__doc__ or "").strip().splitlines()[0]
        print(f"{method}: {source}")
        _print_table([COLUMNS, *(_row(config) for config in known.values())])
        print(f"`fastssl pretrain {method}` takes {next(iter(known))}; --recipe NAME takes another.\n")
    return 0


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
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


COMMANDS = {"recipes": recipes_command}
