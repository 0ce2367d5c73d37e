"""`fastssl bench data|METHOD`: what this machine makes of a user's own files, and how fast it trains on them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro

from ..errors import UserError
from .options import parse, progress, take_word


@dataclass(frozen=True)
class DataOptions:
    """Images/s from your files to a recipe's views: each back end, the floor, and where the time goes."""

    data: tyro.conf.Positional[Path]
    """Folder or tar, as for pretrain."""
    views: str = "simclr"
    """Method whose views are drawn (`fastssl recipes` lists them)."""
    recipe: str | None = None
    """Recipe of the method; by default its first."""
    images: int = 512
    """Most images used, spread over the data set."""
    threads: int | None = None
    """Threads that read, decode and draw; by default one a core."""
    rounds: int = 3
    """How often each back end goes over the images, in turn with the others."""
    decoder: Literal["auto", "dali", "torchvision"] = "auto"
    """JPEG decoder of the back ends."""
    packed: bool = False
    """Also pack the images as `fastssl pack` does, to a temporary folder, and measure those."""
    need: float | None = None
    """Images/s that your model trains at: says how many cores feed it."""
    json: Path | None = None
    """JSON file for the raw samples, the environment and the command."""


def data_command(args: list[str]) -> int:
    options = parse(DataOptions, args, prog="fastssl bench data")
    from .. import recipes
    from ..bench.data import Settings, measure, passes
    from ..bench.words import describe
    from ..data import open_splits

    if options.views not in recipes.RECIPES:
        raise UserError(f"--views {options.views!r} is not a method: choose one of {', '.join(recipes.RECIPES)}")
    if options.need is not None and not options.need > 0:
        raise UserError(f"--need must be > 0 images/s, got {options.need}")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise UserError(f"--json {options.json} cannot be written: its folder does not exist")
    config = recipes.get(options.views, options.recipe)
    settings = Settings(options.images, options.threads, options.rounds, options.decoder, options.packed)
    settings.validate()
    source, _ = open_splits(options.data)
    with progress("pass over the images", passes(settings, config.augment)) as tell:
        result = measure(source, config.augment, settings, tell)
    recipe = f"{options.views} ({config.recipe})"
    print("\n".join(describe(result, recipe=recipe, need=options.need)))
    if options.json is not None:
        from ..engine.rundir import command, write_json

        about = {"command": command(), "recipe": recipe, "need": options.need}
        try:
            write_json(options.json, {**about, "result": asdict(result)})
        except OSError as error:
            raise UserError(f"--json {options.json} cannot be written: {error.strerror}") from None
    return 0


def bench_command(args: list[str]) -> int:
    from .. import recipes
    from .bench_method import method_command

    what = take_word(args, (DATA, *recipes.RECIPES), "bench", "thing to measure")
    return data_command(args) if what == DATA else method_command(what, args)


DATA = "data"
"""The word for the data path alone, beside the methods."""

COMMANDS = {"bench": bench_command}
