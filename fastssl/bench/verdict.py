"""What bounds a training, in words, and what to try: of `fastssl bench METHOD`."""

from __future__ import annotations

import math
from typing import Any

from ..report.text import speed
from .figures import Figures
from .result import Result
from .timeline import BACKWARD, FORWARD, LOSS, OPTIMIZER, TARGETS, VIEWS

WAITS = 0.05
"""Where views are made ahead, a larger share of the step that waits for them is data-bound."""
TURNS = 0.5
"""Where views and model take turns, the one with the larger share of the step bounds it."""
BUSY = 0.7
"""Of the time; threads of a CPU that compute for less were kept from it."""
MOST_ADVICE = 3


def verdict(result: Result, found: Figures) -> list[str]:
    """The sentence that says what bounds the step, and those that explain it."""
    lines = [_data(result, found) if data_bound(result, found) else _model(result, found)]
    if found.efficiency is not None:
        processes = result.setting["processes"]
        lines.append(
            f"scaling: {processes} processes are {processes * found.efficiency:.2f} times as fast as one of them by "
            f"itself (efficiency {found.efficiency:.0%}); communication takes the rest."
        )
    if disturbed(found):
        lines.append(
            f"disturbed: the model's threads ran for only {found.busy:.0%} of the time, other processes had their "
            "cores. Threads wait for each other, so every part took longer, and small operations (the optimizer) most: "
            "measure again when the machine is quiet."
        )
    lines.append(_ahead_of(result, found))
    return lines


def disturbed(found: Figures) -> bool:
    """Whether other processes kept the model's threads from computing."""
    return found.busy is not None and found.busy < BUSY


def data_bound(result: Result, found: Figures) -> bool:
    return found.data_wait > (WAITS if result.setting["prefetch"] else TURNS)


def more_cores(result: Result, found: Figures) -> float:
    """Cores beyond the loader's threads that views need to be made as fast as the model takes them; 0 for none.

    Where views and model take turns on the same cores there are none for views alone: all are more.
    """
    setting = result.setting
    here = 0.0
    if setting["prefetch"]:
        here = min(setting["loader_threads"] * setting["processes"], setting["usable_cores"])
    return max(0.0, found.view_cores - here)


def _data(result: Result, found: Figures) -> str:
    more = more_cores(result, found)
    words = f"data-bound: the model takes {speed(found.model)} images/s, "
    if result.setting["prefetch"]:
        words += f"views are made at {speed(found.views)}, and it waits for them {found.data_wait:.0%} of the time"
    else:
        words += f"but views and model take turns on the same cores, and views have {found.data_wait:.0%} of the time"
    if more > 0:
        return f"{words}; the renderer needs {_cores(more)} to keep up."
    return f"{words}; its cores would do, so the disk or other processes hold it back."


def _model(result: Result, found: Figures) -> str:
    shares = {part.key: part.share for part in found.parts}
    networks = shares[FORWARD] + shares[BACKWARD] + shares.get(TARGETS, 0.0)
    rest = {"the loss": shares[LOSS], "the optimizer": shares[OPTIMIZER]}
    others = ", ".join(f"{name} {share:.0%}" for name, share in rest.items())
    if result.setting["prefetch"]:
        data = f"waiting for views {found.data_wait:.0%}"
    else:
        data = f"making views {shares[VIEWS]:.0%}"
    return f"model-bound: the networks take {networks:.0%} of the step, {data}, {others}."


def _cores(count: float) -> str:
    return f"{count:.1f} more core" + "s" * (count >= 1.05 or count < 0.95)


def _ahead_of(result: Result, found: Figures) -> str:
    """How long an epoch and the whole recipe take."""
    images, epochs = result.setting["images"], result.setting["epochs"]
    epoch = images / found.full
    return (
        f"At this speed an epoch of these {images:,} images takes {_duration(epoch)}, the recipe's {epochs:,} epochs "
        f"of them {_duration(epoch * epochs)}."
    )


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"


def advice(result: Result, found: Figures, data: str) -> list[str]:
    """Up to `MOST_ADVICE` things to try that the engine has, what bounds the step first.

    Args:
        data: the name of the data, for a command to type.
    """
    lines = [*_for_data(result.setting, found, data), *_for_model(result, found)]
    if not data_bound(result, found):
        lines = [
            *_for_model(result, found),
            *(_for_data(result.setting, found, data) if found.data_wait > WAITS else []),
        ]
    return lines[:MOST_ADVICE]


def _for_data(setting: dict[str, Any], found: Figures, data: str) -> list[str]:
    lines, processes = [], setting["processes_here"]
    cores = max(1, setting["usable_cores"] // processes)
    if setting["loader_threads"] < cores:
        wanted = min(cores, max(setting["loader_threads"] + 1, math.ceil(found.view_cores / setting["processes"])))
        lines.append(f"--loader.threads {wanted}: {setting['loader_threads']} of {cores} cores a process make views.")
    if setting["renderer"] == "torch":
        lines.append("the native renderer: install fastssl again where a C compiler is found.")
    lines.append(
        f"`fastssl bench data {data} --views {setting['method']} --recipe {setting['recipe']} --packed`: where the "
        "time of views goes, and what `fastssl pack` gains."
    )
    if setting["device"] == "cuda" and setting["renderer"] != "triton":
        lines.append("--loader.device auto: the GPU draws the views (needs triton).")
    return lines


def _for_model(result: Result, found: Figures) -> list[str]:
    setting, lines = result.setting, []
    shares = {part.key: part.share for part in found.parts}
    if setting["device"] == "cuda" and setting["precision"] == "fp32":
        lines.append("--train.precision bf16: about half the memory, and more where the GPU has bf16 arithmetic.")
    if setting["device"] == "cpu" and setting["precision"] == "bf16" and not _computes_bf16(result):
        lines.append("--train.precision fp32: this CPU emulates bf16, many times slower.")
    if setting["device"] == "cpu" and setting["precision"] == "fp32" and _computes_bf16(result):
        lines.append("--train.precision bf16: this CPU has instructions for it.")
    if not setting["channels_last"]:
        lines.append("--train.channels-last: the layout that convolutions are fastest in.")
    cores = max(1, setting["usable_cores"] // setting["processes_here"])
    if setting["device"] == "cpu" and setting["threads"] < cores:
        lines.append(f"--train.threads {cores}: {setting['threads']} of {cores} cores a process compute.")
    if setting["checkpoint_activations"]:
        lines.append("--train.no-checkpoint-activations, if the memory allows: it computes the forward pass twice.")
    if setting["micro_batch"] and setting["micro_batch"] < setting["batch_size"] // setting["processes"]:
        lines.append("no --train.micro-batch, if the memory allows: it computes the forward pass twice.")
    if found.efficiency is not None and found.efficiency < 0.9:
        lines.append("--train.compress-gradients: half the bytes between the processes.")
        if not setting["norm_ranks"] and setting["processes"] > 8:
            lines.append("--train.norm-ranks 8: batch norm waits for 8 processes, not for all.")
    small = setting["batch_size"] < setting["recipe_batch_size"]
    if shares[OPTIMIZER] > 0.1 and not disturbed(found):
        hint = f", as in the recipe's batch of {setting['recipe_batch_size']:,}," if small else ""
        lines.append(
            f"a larger --train.batch-size: the optimizer's {shares[OPTIMIZER]:.0%} does not grow with it{hint} and "
            "--train.micro-batch keeps the memory small."
        )
    if setting["device"] == "cpu" and not lines and not disturbed(found) and not data_bound(result, found):
        lines.append(
            "a GPU, or a small recipe (`fastssl recipes`): on these cores the networks themselves are the limit."
        )
    return lines


def _computes_bf16(result: Result) -> bool:
    sets = result.environment["cpu"]["instruction_sets"]
    return "avx512_bf16" in sets or "amx_bf16" in sets
