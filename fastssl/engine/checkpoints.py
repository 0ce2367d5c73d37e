"""The checkpoints of one run directory: the last few of them, written behind the training.

    checkpoints/step-<n>.pt     the last k, each whole
    last.pt                     a link to the newest
    best.pt                     a file of its own

A write works on a copy of the state that is taken between two steps, so that training goes on meanwhile; a second write
waits for the first. The newest file that is whole is what a run continues from.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError
from . import checkpoint
from .rundir import BEST, LAST

FOLDER = "checkpoints"
DAMAGED = ".damaged"
"""What a file that cannot be used is renamed with, so that nothing takes it for a checkpoint again."""
_NAME = re.compile(r"step-(\d+)\.pt")
_TEMPORARY = re.compile(
    r"\.(step-\d+|last|best)\.pt\.\d+|\.(environment|summary|bad_step)\.json|\.config\.yaml|metrics\.tmp|"
    r"quarantine.*\.partial"
)


class Checkpoints:
    """Writes the checkpoints of a run, one at a time, in a background thread.

    Args:
        run_dir: the run directory.
        keep: files in `checkpoints/`, at least 1. While one more is written the disk holds `keep + 1`, and best.pt.
        say: is told in one sentence, by the background thread, what could not be written.
        saved_step: the step of the checkpoint that the run continued from, or -1.
    """

    def __init__(self, run_dir: Path, *, keep: int, say: Callable[[str], None], saved_step: int = -1) -> None:
        self.saved_step = saved_step
        """Step of the newest checkpoint that is known to be on the disk; -1: none. Settled after `wait`."""
        self._run_dir, self._keep, self._say = run_dir, keep, say
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def write(self, state: dict[str, Any], *, best: bool = False) -> None:
        """Copy `state`, which has a "step", and write it behind the caller: as the newest, or as best.pt."""
        self.wait()
        copied = checkpoint.host_copy(state)
        # Not a daemon: whatever ends the process but a kill lets it finish.
        self._thread = threading.Thread(target=self._write, args=(copied, best), name="fastssl-checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written. Raises what a write raised, except that the disk refused it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, state: dict[str, Any], best: bool) -> None:
        step = state["step"]
        try:
            if best:
                checkpoint.save(self._run_dir / BEST, state)
                return
            path = self._run_dir / FOLDER / f"step-{step}.pt"
            path.parent.mkdir(exist_ok=True)
            checkpoint.save(path, state)
            self.saved_step = step
            _point(self._run_dir / LAST, path)
            for old in stored(self._run_dir)[self._keep :]:
                old.unlink(missing_ok=True)
        except OSError as error:
            name = BEST if best else LAST
            if not best and self.saved_step == step:
                self._say(f"the checkpoint of step {step} is written, but not all around it ({error})")
                return
            kept = f"the one from step {self.saved_step} is kept" if self.saved_step >= 0 else "there is none yet"
            self._say(f"checkpoint {name} of step {step} could not be written ({error}); {kept}")
        except BaseException as error:  # the training thread raises it
            self._error = error


def _point(link: Path, path: Path) -> None:
    """Let `link` lead to `path`, which lies below its folder, in one step."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(path.relative_to(link.parent))
    temporary.replace(link)
    checkpoint.sync_folder(link.parent)


def stored(run_dir: Path) -> list[Path]:
    """The files in `checkpoints/`, the newest first."""
    found = [(int(name[1]), path) for path in (run_dir / FOLDER).glob("*") if (name := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def newest(run_dir: Path) -> dict[str, Any] | None:
    """The state that a run continues from, or None where it has no checkpoint yet.

    A file that is damaged or refused is named on the standard error, renamed to `….damaged` and passed over for the one
    before it. Raises `UserError` where none of several can be used.
    """
    candidates = stored(run_dir)
    last = run_dir / LAST
    if last.is_file() and not last.is_symlink():  # of a version that kept one, or of a copy that followed the link
        candidates.append(last)
    refused: list[tuple[Path, str]] = []
    state = None
    for path in candidates:
        try:
            state = checkpoint.load(path)
        except UserError as error:
            refused.append((path, str(error)))
        else:
            break
    if state is None and refused:
        reasons = "; ".join(reason for _, reason in refused)
        raise UserError(
            f"{run_dir} cannot be continued, none of its checkpoints can be used: {reasons} (without its checkpoints "
            "the run would start again)"
        )
    for path, reason in refused:
        print(
            f"fastssl: warning: {reason}; it is now called {path.name}{DAMAGED}, and the run continues from "
            f"{candidates[len(refused)].name}",
            file=sys.stderr,
            flush=True,
        )
        path.rename(path.with_name(path.name + DAMAGED))
    if refused and state is not None and candidates[len(refused)] != last:
        _point(last, candidates[len(refused)])
    return state


def remove_temporaries(run_dir: Path) -> None:
    """Remove what killed processes were writing. Nothing else may be running in `run_dir`."""
    for folder in (run_dir, run_dir / FOLDER):
        for path in folder.glob("*") if folder.is_dir() else ():
            if _TEMPORARY.fullmatch(path.name) and (path.is_symlink() or path.is_file()):
                path.unlink(missing_ok=True)
