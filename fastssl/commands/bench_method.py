"""`fastssl bench METHOD`: how fast a recipe trains on this machine and data, and what bounds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import Config
from ..errors import UserError
from .options import parse, progress, value_of

if TYPE_CHECKING:
    from ..bench.result import Result


@dataclass(frozen=True)
class BenchOptions:
    """How long is measured."""

    steps: int = 30
    """Most rounds, each with a full step and all its parts."""
    seconds: float = 75.0
    """Seconds that the rounds should take, all in all; a batch that is not given is chosen to fit."""


@dataclass(frozen=True)
class MethodOptions(Config):
    """Speed of training on this machine and these images: the parts of a step, the roofline, a verdict."""

    bench: BenchOptions = field(default_factory=BenchOptions)
    profile: Path | None = None
    """Folder for trace.json, for the viewer of Chrome (chrome://tracing) or Perfetto (ui.perfetto.dev); also prints the
    operations that took most."""
    out: Path | None = None
    """Folder for bench.json (every sample, the environment, the command), bench.csv, bench.png and bench.svg."""


def method_command(method: str, args: list[str]) -> int:
    from .. import recipes

    default = recipes.get(method, value_of(args, "--recipe"))
    names = [field.name for field in fields(Config)]
    start = MethodOptions(**{name: getattr(default, name) for name in names})
    options = parse(MethodOptions, args, prog=f"fastssl bench {method}", default=start)
    config = Config(**{name: getattr(options, name) for name in names})
    for name, folder in (("--out", options.out), ("--profile", options.profile)):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise UserError(f"{name} {folder} is a file: name a folder")
    from ..bench.method import measure
    from ..bench.method_words import describe_training
    from ..bench.result import Settings

    settings = Settings(
        steps=options.bench.steps,
        seconds=options.bench.seconds,
        fixed_batch=_given(args, "batch-size"),
        fixed_precision=_given(args, "precision"),
        profile=options.profile,
    )
    with progress("measured, %", 100) as tell:
        result = measure(config, settings, tell=tell)
    if not result.first:
        return 0
    print("\n".join(describe_training(result, data=config.data)))
    if options.profile is not None:
        print(f"\ntrace: {options.profile / 'trace.json'} (open it at https://ui.perfetto.dev)")
    if options.out is not None:
        _write(options.out, result)
        print(f"\nfigures: {options.out}/bench.json, bench.csv, bench.png, bench.svg")
    return 0


def _given(args: list[str], name: str) -> bool:
    return any(value_of(args, f"--train.{word}") is not None for word in (name, name.replace("-", "_")))


def _write(folder: Path, result: Result) -> None:
    import csv

    from ..bench.figures import rows
    from ..bench.picture import draw_training
    from ..engine.rundir import command, write_json

    table = rows(result)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "bench.json", {"command": command(), "result": asdict(result)})
        with (folder / "bench.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(table[0]))
            writer.writeheader()
            writer.writerows(table)
        draw_training(result, folder / "bench.png", folder / "bench.svg")
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror or error}") from None
