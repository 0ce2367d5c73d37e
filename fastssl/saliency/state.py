"""What a killed run goes on from: the network and its targets after a round."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import UserError

NAME = "saliency.pt"
_FORMAT = 1


@dataclass(frozen=True)
class State:
    made_from: dict[str, int]
    rounds: int
    """Rounds that are finished."""
    weights: dict[str, Any]
    targets: NDArray[np.bool_]
    """bool `[M, S, S]`: what the next round learns from."""
    measures: dict[str, Any]


def save_state(out: Path, state: State) -> None:
    """Write it, whole or not at all."""
    buffer = io.BytesIO()
    packed = torch.from_numpy(np.packbits(state.targets, axis=None))
    torch.save(
        {
            "format": _FORMAT,
            "made_from": state.made_from,
            "rounds": state.rounds,
            "weights": state.weights,
            "shape": list(state.targets.shape),
            "targets": packed,
            "measures": json.dumps(state.measures),
        },
        buffer,
    )
    partial = out / f".{NAME}"
    with open(partial, "wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, out / NAME)


def load_state(out: Path, made_from: dict[str, int]) -> State | None:
    """The state of masks that were begun there, or None. Nothing in the file is executed.

    Raises:
        UserError: damaged, or begun with other settings or other data.
    """
    path = out / NAME
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        same = found["format"] == _FORMAT and found["made_from"] == made_from
        shape = found["shape"]
        bits = np.unpackbits(found["targets"].numpy(), count=int(np.prod(shape)))
        state = State(
            found["made_from"], found["rounds"], found["weights"], bits.reshape(shape).astype(bool),
            json.loads(found["measures"]),
        )  # fmt: skip
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        KeyError,
        TypeError,
        ValueError,
        EOFError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged ({reason}): begin anew with --overwrite") from None
    if not same:
        raise UserError(
            f"--out {out} was begun with other settings or other data: choose another folder, or begin anew with "
            "--overwrite"
        )
    return state


def write_json(path: Path, value: Any) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
