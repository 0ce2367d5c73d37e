"""What a run continues from: its state gathered, given back, and written when it is due."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import config as configuration
from ..config import Config
from ..errors import UserError
from ..methods import Method
from .checkpoints import Checkpoints
from .loss_scale import LossScale
from .ranks import Ranks


@dataclass
class Progress:
    """How far a run is, over all the processes that it took.

    step: optimizer steps made. seconds: of training, without evaluation and checkpoints. results: what summary.json
    will say. started: when it would have begun on this process's monotonic clock.
    """

    step: int = 0
    seconds: float = 0.0
    results: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def wall(self) -> float:
        """Seconds since the run began, evaluation included."""
        return time.monotonic() - self.started


class Saving:
    """Gives a run the state of a checkpoint, and writes its checkpoints.

    Only the first rank writes: what a run needs is the same on all, and running statistics are taken from it.

    Args:
        config: of the run.
        ranks: its processes.
        method, optimizer, loss_scale: what is trained; their state goes into a checkpoint and comes out of it.
        state: of the checkpoint that the run continues from, None for a run that begins.

    Raises:
        UserError: a state that does not fit.
    """

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        method: Method,
        optimizer: torch.optim.Optimizer,
        loss_scale: LossScale | None,
        state: dict[str, Any] | None,
    ) -> None:
        self._config, self._ranks = config, ranks
        self._method, self._optimizer, self._loss_scale = method, optimizer, loss_scale
        self.progress = Progress() if state is None else self._restored(state)
        self._resumed_from = -1 if state is None else self.progress.step

    def open(self, run_dir: Path, say: Callable[[str], None]) -> None:
        """From here on checkpoints go to `run_dir`, and what cannot be written is told to `say`."""
        keep = self._config.train.keep_checkpoints
        self._checkpoints = Checkpoints(run_dir, keep=keep, say=say, saved_step=self._resumed_from)
        self._put_off()

    @property
    def saved_step(self) -> int:
        """Step of the newest checkpoint on the disk, -1 for none, when nothing is being written."""
        self.wait()
        return self._checkpoints.saved_step

    def due(self) -> bool:
        """Whether the step just made ends with a checkpoint."""
        steps = self._config.train.checkpoint_steps
        return self.progress.step % steps == 0 if steps else time.monotonic() >= self._due

    def save(self, *, best: bool = False) -> None:
        """Begin to write a checkpoint of the current step, behind the training."""
        if not self._ranks.first:
            return
        progress = self.progress
        state = {
            "config": configuration.to_dict(self._config),
            "method": self._method.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": progress.step,
            "seconds": progress.seconds,
            "wall": progress.wall(),
            "results": progress.results,
        }
        if self._loss_scale is not None:
            state["loss_scale"] = self._loss_scale.state_dict()
        if not best:
            self._put_off()
        self._checkpoints.write(state, best=best)

    def save_now(self) -> bool:
        """Whether the current step's checkpoint is on the disk, written now if need be."""
        if not self._ranks.first:
            return True
        if self.saved_step != self.progress.step:
            self.save()
        return self.saved_step == self.progress.step

    def wait(self) -> None:
        """Return when nothing is being written."""
        self._checkpoints.wait()

    def _put_off(self) -> None:
        self._due = time.monotonic() + 60 * self._config.train.checkpoint_minutes

    def _restored(self, state: dict[str, Any]) -> Progress:
        try:
            self._method.load_state_dict(state["method"])
            self._optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"the checkpoint does not fit config.yaml: {str(error).splitlines()[0]}") from None
        if self._loss_scale is not None:
            if "loss_scale" not in state:
                raise UserError(
                    "the checkpoint has no loss scale, so it is not of a run with --train.precision fp16: "
                    "resume it with the precision that it was started with"
                )
            self._loss_scale.load_state_dict(state["loss_scale"])
        return Progress(state["step"], state["seconds"], state["results"], time.monotonic() - state["wall"])
