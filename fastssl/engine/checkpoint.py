"""Checkpoints that are whole or not there, and that never execute code.

A file is written under a temporary name, flushed to the disk and renamed, so that a reader finds the old or the new one
and nothing between. Its zip container holds a CRC-32 of every record, which is checked before anything is loaded.
`checkpoints` says which files a run has and when they are written.
"""

from __future__ import annotations

import copy
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError

FORMAT = 2
"""Raised when the layout of a checkpoint changes."""

KEYS = frozenset({"format", "config", "method", "optimizer", "step", "seconds", "wall", "results"})
OPTIONAL = frozenset({"loss_scale"})
"""Of runs in fp16."""


def host_copy(value: Any) -> Any:
    """`value` with every tensor in it copied to host memory: what training does to its own no longer changes them."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        copied = copy.copy(value)  # keeps a state_dict's kind and the versions of its modules
        copied.update({key: host_copy(item) for key, item in value.items()})
        return copied
    if isinstance(value, list | tuple):
        return type(value)(host_copy(item) for item in value)
    return copy.copy(value)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path` atomically. Raises `OSError` and leaves the previous file as it was."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Names must reach the disk too: what was renamed, linked or made in `folder`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: Path, *, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint. Raises `UserError` for a missing, damaged or foreign file; foreign code is never run."""
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise UserError(f"checkpoint {path} is not a fastssl checkpoint or is damaged: {error}") from None
    if damaged is not None:
        raise UserError(f"checkpoint {path} is damaged: the checksum of {damaged} does not match; use an earlier one")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, KeyError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"checkpoint {path} was refused, nothing in it was executed: {reason}") from None
    if not isinstance(state, dict) or state.keys() - OPTIONAL != KEYS:
        raise UserError(f"checkpoint {path} was not written by fastssl: it does not hold a run's state")
    if state["format"] != FORMAT:
        raise UserError(f"checkpoint {path} has format {state['format']}, this version reads format {FORMAT}")
    return state
