"""The command line: parses, calls, prints. Options are generated from the dataclasses that hold a run."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from .errors import UserError

Options = TypeVar("Options")

USAGE = """\
usage: fastssl COMMAND ...

  pretrain METHOD     pre-train a backbone without labels; --resume RUN_DIR continues a run
  eval knn|linear     accuracy of a trained backbone on labelled images
  views METHOD        draw the views that a recipe makes of some images
  report RUN_DIR      write the report of a run again and print its table
  doctor              versions, devices and back ends on this machine

`fastssl COMMAND --help` lists the options with types and defaults. Methods: simclr.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 not everything could be written, 2 bad input."""
    args = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], int]] = {
        "pretrain": _pretrain,
        "eval": _evaluate,
        "views": _views,
        "report": _report,
        "doctor": _doctor,
    }
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    try:
        if args[0] == "--version":
            from . import __version__

            print(f"fastssl {__version__}")
            return 0
        if args[0] not in commands:
            raise UserError(f"unknown command {args[0]!r}: choose one of {', '.join(commands)}")
        return commands[args[0]](args[1:])
    except UserError as error:
        print(f"fastssl: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "fastssl":
            raise
        message = f"this command needs the package {error.name}: install fastssl with its `train` extra"
        print(f"fastssl: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def parse(options: type[Options], args: list[str], *, prog: str, default: Options | None = None) -> Options:
    """`args` as an instance of the dataclass `options`. Raises `UserError` with the first sentence of what is wrong."""
    stderr = io.StringIO()
    start = tyro.MISSING_NONPROP if default is None else default
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(options, args=args, prog=prog, default=start, config=(tyro.conf.AvoidSubcommands,))
    except SystemExit as stop:
        if not stop.code:
            raise
    lines = [line.strip("│ ").strip() for line in stderr.getvalue().splitlines()]
    text = [line for line in lines if not line.startswith(("╭", "╰"))]
    end = next((i for i, line in enumerate(text) if not line or line.startswith("──")), len(text))
    raise UserError(f"{' '.join(text[:end])} (see {prog} --help)") from None


def _take_word(args: list[str], choices: Sequence[str], command: str, what: str) -> str:
    """Remove and return the positional word that follows a command."""
    if not args or args[0].startswith("-"):
        if {"-h", "--help"} & set(args):
            print(f"usage: fastssl {command} {'|'.join(choices)} ...")
            print(f"`fastssl {command} {choices[0]} --help` lists the options.")
            raise SystemExit(0)
        raise UserError(f"fastssl {command} needs a {what}: one of {', '.join(choices)}")
    if args[0] not in choices:
        raise UserError(f"unknown {what} {args[0]!r}: choose one of {', '.join(choices)}")
    return args.pop(0)


def _value_of(args: list[str], option: str) -> str | None:
    """The value of `--option VALUE` or `--option=VALUE`, left in place; the last one counts."""
    found = None
    for index, word in enumerate(args):
        if word == option and index + 1 < len(args):
            found = args[index + 1]
        elif word.startswith(option + "="):
            found = word.partition("=")[2]
    return found


@dataclass(frozen=True)
class ResumeOptions:
    """Continue an interrupted or killed run from its last checkpoint, with the constants in its config.yaml."""

    resume: Path
    """The run directory."""


def _pretrain(args: list[str]) -> int:
    if any(word == "--resume" or word.startswith("--resume=") for word in args):
        options = parse(ResumeOptions, args, prog="fastssl pretrain")
        from .engine import pretrain

        return _exit_code(pretrain(resume=options.resume))
    from . import recipes
    from .config import Config

    method = _take_word(args, list(recipes.RECIPES), "pretrain", "method")
    default = recipes.get(method, _value_of(args, "--recipe"))
    config = parse(Config, args, prog=f"fastssl pretrain {method}", default=default)
    from .engine import pretrain

    return _exit_code(pretrain(config))


def _exit_code(result) -> int:
    if result.signal:
        return 128 + result.signal
    return 0 if result.saved else 1


@dataclass(frozen=True)
class EvalOptions:
    """Accuracy of a checkpoint's backbone on labelled images."""

    checkpoint: Path
    """last.pt or best.pt of a run directory."""
    data: str | None = None
    """Folder with `train` and `val` (or `test`); by default the data of the run."""
    val_data: str | None = None
    """The labelled images to classify, when they are not beside `train`."""
    k: int = 20
    """Neighbours (knn)."""
    temperature: float = 0.1
    """Weight of a neighbour at cosine s is exp(s / temperature) (knn)."""
    bank: int | None = None
    """Most training images used; by default all of them."""
    decoder: Literal["auto", "dali", "torchvision"] = "auto"
    """JPEG decoder."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute the features."""


def _evaluate(args: list[str]) -> int:
    kind = _take_word(args, ("knn", "linear"), "eval", "kind of evaluation")
    options = parse(EvalOptions, args, prog=f"fastssl eval {kind}")
    from .engine.evaluation import evaluate_checkpoint

    results = evaluate_checkpoint(
        options.checkpoint,
        "knn" if kind == "knn" else "linear",
        data=options.data,
        val_data=options.val_data,
        k=options.k,
        temperature=options.temperature,
        bank=options.bank,
        decoder=options.decoder,
        device=options.device,
    )
    for name, value in results.items():
        print(f"{name:<22}{value:.2%}" if isinstance(value, float) and value <= 1 else f"{name:<22}{value}")
    return 0


@dataclass(frozen=True)
class ViewsOptions:
    """Draw a contact sheet: some images, each followed by its views under a recipe."""

    data: str = "builtin"
    """Folder or tar of images, or "builtin"."""
    recipe: str | None = None
    """Recipe of the method; by default its first."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("views.png")
    """The PNG to write."""
    images: int = 6
    """How many images."""
    repeats: int = 1
    """Epochs drawn: each gives every image another set of views."""
    seed: int = 0
    """Seed of the views and of the choice of images."""


def _views(args: list[str]) -> int:
    from . import recipes

    method = _take_word(args, list(recipes.RECIPES), "views", "method")
    options = parse(ViewsOptions, args, prog=f"fastssl views {method}")
    config = recipes.get(method, options.recipe)
    from .engine.contact import draw_views
    from .engine.rundir import open_data

    source, _ = open_data(replace(config, data=options.data))
    draw_views(options.out, source, config.augment, seed=options.seed, images=options.images, epochs=options.repeats)
    print(f"wrote {options.out}: {method} ({config.recipe}), {config.augment.views_per_image} views an image")
    return 0


@dataclass(frozen=True)
class ReportOptions:
    """Write report.html of a run again and print its table."""

    run_dir: tyro.conf.Positional[Path]
    """The run directory."""


def _report(args: list[str]) -> int:
    options = parse(ReportOptions, args, prog="fastssl report")
    from .engine.report import finish, read_summary

    finish(options.run_dir, read_summary(options.run_dir), say=print)
    return 0


def _doctor(args: list[str]) -> int:
    if args:
        if args[0] in ("-h", "--help"):
            print("usage: fastssl doctor\n\nVersions, devices and back ends on this machine, and what to install.")
            return 0
        raise UserError(f"fastssl doctor takes no options, got {args[0]!r}")
    from .doctor import print_report

    print_report()
    return 0
