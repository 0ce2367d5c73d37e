"""`fastssl pretrain METHOD`, or `--resume RUN_DIR`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .options import parse, take_word, value_of


@dataclass(frozen=True)
class ResumeOptions:
    """Continue an interrupted or killed run from its last checkpoint, with the constants in its config.yaml."""

    resume: Path
    """The run directory."""


def pretrain_command(args: list[str]) -> int:
    if any(word == "--resume" or word.startswith("--resume=") for word in args):
        options = parse(ResumeOptions, args, prog="fastssl pretrain")
        from ..engine import pretrain

        return exit_code(pretrain(resume=options.resume))
    from .. import recipes
    from ..config import Config

    method = take_word(args, list(recipes.RECIPES), "pretrain", "method")
    default = recipes.get(method, value_of(args, "--recipe"))
    config = parse(Config, args, prog=f"fastssl pretrain {method}", default=default)
    from ..engine import pretrain

    return exit_code(pretrain(config))


def exit_code(result) -> int:
    if result.signal:
        return 128 + result.signal
    return 0 if result.saved else 1


COMMANDS = {"pretrain": pretrain_command}
