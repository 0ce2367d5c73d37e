"""The same command again: start a run, or continue it where it stopped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import config as configuration
from ..config import Config
from ..errors import UserError
from . import rundir


def continued(config: Config) -> Path | None:
    """The run directory of `config` if it holds a run, None if it is still to be started.

    Raises `UserError` naming the first option in which that run differs from `config`.
    """
    run_dir = rundir.place(config)
    if not (run_dir / "config.yaml").exists():
        return None
    held = replace(configuration.load(run_dir / "config.yaml"), run_dir=config.run_dir)
    found = difference(configuration.to_dict(config), configuration.to_dict(held))
    if found is not None:
        name, ours, theirs = found
        raise UserError(
            f"--requeue: {run_dir} holds a run with {name} {theirs}, not {ours}: give the same options or choose "
            "another --run-dir"
        )
    return run_dir


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first option, as typed, that two configurations do not share, and its values."""
    mine, other = dict(_flat(ours)), dict(_flat(theirs))
    for name in [*mine, *(name for name in other if name not in mine)]:
        if mine.get(name) != other.get(name):
            return name, mine.get(name), other.get(name)
    return None


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers and strings of nested dicts, and of lists of them, by the option that sets each."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        key = "method" if key == "method_name" else str(key).replace("_", "-")
        path = f"{name}.{key}" if name else f"--{key}"
        nested = isinstance(item, dict) or (isinstance(item, list) and any(isinstance(part, dict) for part in item))
        if nested:
            yield from _flat(item, path)
        else:
            yield path, item
