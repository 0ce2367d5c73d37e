"""From words to dataclasses, with one sentence for what is wrong."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import tyro

from ..errors import UserError

Options = TypeVar("Options")


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


def take_word(args: list[str], choices: Sequence[str], command: str, what: str) -> str:
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


def value_of(args: list[str], option: str) -> str | None:
    """The value of `--option VALUE` or `--option=VALUE`, left in place; the last one counts."""
    found = None
    for index, word in enumerate(args):
        if word == option and index + 1 < len(args):
            found = args[index + 1]
        elif word.startswith(option + "="):
            found = word.partition("=")[2]
    return found


def thread_count(wanted: int) -> int:
    if wanted < 0:
        raise UserError(f"--threads must be at least 0, got {wanted}")
    if wanted:
        return wanted
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line every ten seconds elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console, last = Console(stderr=True), time.monotonic()
    if console.is_terminal:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=done)
        return

    def line(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 10:
            last = time.monotonic()
            print(f"{what}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    yield line
