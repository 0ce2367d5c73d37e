"""The entrance: a configuration or a run directory in, a finished run out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from .. import config as configuration
from ..config import Config
from ..data import Source
from ..errors import UserError
from ..models import module_config
from . import checkpoints
from .precision import resolve_device
from .ranks import Ranks, joined
from .requeue import continued
from .run import Result, Run


def pretrain(
    config: Config | None = None,
    *,
    data: str | Path | Source | None = None,
    run_dir: str | Path | None = None,
    resume: str | Path | None = None,
    backbone: nn.Module | None = None,
    requeue: bool = False,
    quiet: bool = False,
) -> Result:
    """Run `config`, or continue the run in the directory `resume`, to its end; with `requeue`, whichever it takes.

    `data` and `run_dir` override the configuration's; `data` may be any object with `__len__` and `read(i) -> bytes`
    (see `fastssl.data.Source`), which a resumed run must be given again. `backbone` takes the place of the
    configuration's: a module from images `[B, 3, S, S]` to features `[B, D]`, which is trained in place and which a
    resumed run must be given again too. `requeue` continues the run in the run directory if there is one already, which
    must have been started with the same `config`, and starts it if there is none: the same call again after any end.
    Raises `UserError` for anything that the user can mend, before any training. Ctrl-C, SIGTERM and SIGUSR1 save a
    checkpoint after the current step and return with `finished=False`.

    Started by torchrun, or where `torch.distributed` is initialised, it is one of the run's processes (see `ranks`).
    """
    state = None
    if requeue and (config is None or resume is not None):
        raise UserError("requeue=True needs a configuration and no resume=: the run directory is the configuration's")
    if resume is not None:
        config = replace(configuration.load(Path(resume) / "config.yaml"), run_dir=str(resume))
    if config is None:
        raise UserError(
            "pretrain needs a configuration, for example fastssl.recipes.simclr(), or resume=<run directory>"
        )
    source = None if data is None or isinstance(data, str | Path) else data
    path = config.data if data is None else type(data).__name__ if source is not None else str(data)
    config = replace(config, data=path, run_dir=config.run_dir if run_dir is None else str(run_dir))
    if backbone is not None:
        config = replace(config, backbone=module_config(backbone))
    configuration.validate(config)
    with joined(resolve_device(config.train.device)) as ranks:
        if requeue and (resume := ranks.once(partial(continued, config))) is not None:
            config = replace(config, run_dir=str(resume))
        if resume is not None:
            state = _state_of(Path(resume), ranks)
        return Run(config, ranks, state, source, backbone, new=resume is None, quiet=quiet).train()


def _state_of(run_dir: Path, ranks: Ranks) -> dict[str, Any] | None:
    """What the run in `run_dir` continues from. The first rank clears away what cannot be used, then the others read.

    Killed before its first checkpoint, a run starts again: the same run, since all randomness is the seed's.
    """
    state = None

    def read() -> None:
        nonlocal state
        checkpoints.remove_temporaries(run_dir)
        state = checkpoints.newest(run_dir)

    ranks.once(read)
    return state if ranks.first else checkpoints.newest(run_dir)
