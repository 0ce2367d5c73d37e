"""The files of a run: the data it reads and the folder it claims."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from .. import config as configuration
from ..config import BUILTIN, Config
from ..data import Source, ensure_builtin, open_source, open_splits
from ..data.sources import number_alike
from ..errors import UserError

LAST, BEST = "last.pt", "best.pt"


def open_data(config: Config, source: Source | None = None) -> tuple[Source, Source | None]:
    """The training source and, where there is one, the labelled source of the monitor.

    `source` is what Python code trains on in place of a path.
    """
    if source is not None:
        train, val = open_source(source), None
    else:
        train, val = open_splits(ensure_builtin() if config.data == BUILTIN else Path(config.data))
    if config.val_data is not None:
        val = open_source(Path(config.val_data))
        number_alike(train, val, f"--val-data {config.val_data}", f"--data {config.data}")
    return train, val


def place(config: Config) -> Path:
    """The run directory that `config` names or, if it names none, implies."""
    return Path(config.run_dir or f"runs/{config.method_name}-{config.recipe}")


def claim(config: Config, environment: dict[str, Any]) -> Path:
    """Create the run directory of a new run. Raises `UserError` where another run lives."""
    run_dir = place(config)
    if (run_dir / "config.yaml").exists():
        raise UserError(
            f"--run-dir {run_dir} already holds a run: continue it with `fastssl pretrain --resume {run_dir}` "
            "or choose another directory"
        )
    if (run_dir / LAST).exists():
        raise UserError(
            f"--run-dir {run_dir} holds checkpoints of a run without a config.yaml: choose another directory"
        )
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(run_dir / "environment.json", {"command": command(), **environment})
        temporary = run_dir / ".config.yaml"  # a run is there or it is not: a kill leaves no half of a configuration
        configuration.save(config, temporary)
        temporary.replace(run_dir / "config.yaml")
    except OSError as error:
        raise UserError(f"--run-dir {run_dir} cannot be written: {error.strerror or error}") from None
    return run_dir


def command() -> str:
    """The command line as it could be typed again."""
    name = Path(sys.argv[0]).name if sys.argv else ""
    program = "fastssl" if name in ("fastssl", "__main__.py") else f"python {name}"
    return shlex.join([*program.split(), *sys.argv[1:]])


def write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
