"""`fastssl pretrain METHOD`, the same with `--requeue`, or `--resume RUN_DIR`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from ..config import Config
from .options import parse, take_word, value_of


@dataclass(frozen=True)
class ResumeOptions:
    """Continue an interrupted or killed run from its last checkpoint, with the constants in its config.yaml."""

    resume: Path
    """The run directory."""


@dataclass(frozen=True)
class StartOptions(Config):
    """One pre-training run."""

    requeue: bool = False
    """Continue the run in `run_dir` if it is there already, with these same options; else start it."""


def pretrain_command(args: list[str]) -> int:
    if any(word == "--resume" or word.startswith("--resume=") for word in args):
        continued = parse(ResumeOptions, args, prog="fastssl pretrain")
        from ..engine import pretrain

        return exit_code(pretrain(resume=continued.resume))
    from .. import recipes

    method = take_word(args, list(recipes.RECIPES), "pretrain", "method")
    default = recipes.get(method, value_of(args, "--recipe"))
    names = [field.name for field in fields(Config)]
    start = StartOptions(**{name: getattr(default, name) for name in names})
    options = parse(StartOptions, args, prog=f"fastssl pretrain {method}", default=start)
    config = Config(**{name: getattr(options, name) for name in names})
    from ..engine import pretrain

    return exit_code(pretrain(config, requeue=options.requeue))


def exit_code(result) -> int:
    """0: done. 1: done, but the last checkpoint could not be written. 128 + n: signal n interrupted it."""
    if result.signal and not result.finished:
        return 128 + result.signal
    return 0 if result.saved else 1


COMMANDS = {"pretrain": pretrain_command}
