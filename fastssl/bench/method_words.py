"""The figures of `fastssl bench METHOD` as a table and a verdict in words."""

from __future__ import annotations

from collections.abc import Sequence

from ..report.text import speed, table
from .figures import NAMES, Figures, figures
from .result import Result
from .verdict import advice, verdict

SHOWN = 0.5e-4
"""Seconds: a part that always takes less is left out of the table. (A method without targets is asked for them.)"""


def describe_training(result: Result, *, data: str) -> list[str]:
    """All lines: what was measured, the parts of a step, speeds, operations if there are any, verdict.

    Args:
        data: name of the data, for commands to type.
    """
    found = figures(result)
    sections = [_measured(result, data), _parts(result, found), _speeds(result, found)]
    if result.operations:
        sections.append(_operations(result))
    tries = [f"Try: {line}" for line in advice(result, found, data)]
    sections.append(["verdict", *(f"  {line}" for line in [*verdict(result, found), *tries])])
    return [line for section in sections for line in [*section, ""]][:-1]


def _measured(result: Result, data: str) -> list[str]:
    setting = result.setting
    views = " + ".join(f"{count} × {size}" for count, size in setting["views"])
    processes = setting["processes"]
    lines = [
        f"{setting['method']} ({setting['recipe']}): {setting['backbone']}, views of {views} pixels, "
        f"{setting['device']}, {setting['precision']}" + (f", {processes} processes" if processes > 1 else ""),
        f"batch of {setting['batch_size']:,} of {setting['images']:,} images of {data}, threads: {setting['threads']} "
        f"for the model, {setting['loader_threads']} for views ({setting['renderer']}), " + _ahead(setting["prefetch"]),
    ]
    lines += result.notes
    if setting["prepares_epochs"]:
        lines.append("The clustering before each epoch is not measured: these are the steps within one.")
    return lines


def _ahead(batches: int) -> str:
    if not batches:
        return "which take turns"
    return f"made {batches} batch{'es' * (batches > 1)} ahead"


def _parts(result: Result, found: Figures) -> list[str]:
    rows: list[Sequence[str]] = [
        (f"one step of {result.setting['batch_size']:,} images, ms", "in the step", "10 – 90 %", "share", "alone")
    ]
    for part in found.parts:
        if max(part.in_step, part.alone) >= SHOWN:
            around = f"{_ms(part.low)} – {_ms(part.high)}"
            rows.append((NAMES[part.key], _ms(part.in_step), around, f"{part.share:.1%}", _ms(part.alone)))
    step, left = found.step, found.residual_alone
    rest = "" if left is None else f"{1e3 * left:+,.1f}"
    rows.append(("residual", f"{1e3 * found.residual:+,.1f}", "", f"{found.residual / step.in_step:+.1%}", rest))
    whole = "" if left is None else _ms(step.in_step)
    rows.append(("full step", _ms(step.in_step), f"{_ms(step.low)} – {_ms(step.high)}", "100.0%", whole))
    lines = [
        *table(rows),
        f"  Of {len(result.full)} steps: interquartile means, 10th and 90th percentile. Alone: each part by itself",
        "  (views are thrown away, networks get synthetic ones), interleaved with the full steps.",
    ]
    if left is None:
        return [*lines, "  Views are made beside the model: the step only waits for those that are not ready."]
    shares = f"{found.residual / step.in_step:+.1%} of the step, {left / step.in_step:+.1%} by the parts alone"
    return [
        *lines,
        "  Views and model take turns on the same cores, so both columns should sum to the full step; the residual",
        f"  is what they leave: {shares}.",
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f}"


def _speeds(result: Result, found: Figures) -> list[str]:
    size, method = result.setting["views"][0][1], result.setting["method"]
    rows: list[Sequence[str]] = [("speed", "images/s", "")]
    rows += [
        ("full step", speed(found.full), f"{found.roofline:.0%} of the roofline"),
        ("model, synthetic views", speed(found.model), f"{found.roofline_model:.0%} of the roofline"),
        ("views alone", speed(found.views), ""),
        ("supervised, one view", speed(found.supervised), f"÷ {result.multiple:.2f} is the roofline"),
    ]
    process = "" if result.process_peak_bytes is None else f", {_bytes(result.process_peak_bytes)} of the whole process"
    waiting = "Waiting for views" if result.setting["prefetch"] else "Making views"
    lines = [
        *table(rows),
        f"  Roofline: what this machine makes of the networks alone. An image of {method} takes as many operations as",
        f"  {result.multiple:.2f} of supervised training with that backbone, on one synthetic view of {size} pixels.",
        f"  {waiting}: {found.data_wait:.1%} of the step. Peak memory: {_bytes(result.peak_bytes)} of tensors in a step"
        f"{process}.",
    ]
    if found.efficiency is not None:
        lines.append(f"  Scaling efficiency over {result.setting['processes']} processes: {found.efficiency:.0%}.")
    return lines


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def _operations(result: Result) -> list[str]:
    on_gpu = result.setting["device"] == "cuda"
    rows: list[Sequence[str]] = [("operation, by itself", "calls", "CPU ms", *(["GPU ms"] * on_gpu), "share")]
    for op in result.operations:
        times = [f"{op['cpu_ms']:,.1f}", *([f"{op['gpu_ms']:,.1f}"] * on_gpu)]
        rows.append((op["name"][:60], f"{op['calls']:,}", *times, f"{op['share']:.1%}"))
    return table(rows)
