"""The figures of `fastssl bench data` as a table and a verdict in words."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from ..report.text import count, table
from .data import Result
from .stages import STAGES, WHOLE

DECODERS = {
    "dali": "DALI's libjpeg-turbo",
    "torchvision": "torchvision's libjpeg-turbo",
}
BUSY = 0.8
"""Threads that compute for less of the time are worth a word."""
LARGE = 1.15
"""Short sides beyond this many times what `pack` makes of them are worth a word."""


def describe(result: Result, *, recipe: str, need: float | None = None) -> list[str]:
    """All lines: what was measured, back ends beside the floor, stages, verdict.

    Args:
        recipe: its name, for the first line.
        need: images a second that a model takes, or None.
    """
    parts = [_measured(result, recipe), _backends(result), _stages(result)]
    if result.packed is not None:
        parts.append(_packed(result.packed, result.images["bytes"]))
    parts.append(_verdict(result, need))
    return [line for part in parts for line in [*part, ""]][:-1]


def fastest(result: Result) -> str:
    return str(result.stages["backend"])


def floor_decoder(result: Result) -> str:
    """The faster of this machine's decoders, by CPU time."""
    return min(result.floor, key=lambda kind: median(result.floor[kind]["decode"]["cpu_ms"]))


def _rate(entry: dict[str, Any]) -> tuple[str, str, str]:
    """Median and spread of images a second, and the median CPU time of an image."""
    values = entry["images_per_second"]
    return f"{median(values):,.1f}", f"{min(values):,.1f} – {max(values):,.1f}", f"{median(entry['cpu_ms']):.2f}"


def _measured(result: Result, recipe: str) -> list[str]:
    images, bad = result.images, result.images["unreadable"]
    views = " + ".join(f"{view['count']} × {view['size']}" for view in result.views)
    lines = [
        f"{recipe}: views of {views} pixels, {count(result.threads, 'thread')} on "
        f"{count(result.usable_cores, 'core')}, batches of {result.batch_size}, decoder {result.decoder}",
        f"{images['measured']:,} of {images['total']:,} images, in whole batches, {images['bytes'] / 1e6:,.1f} MB, "
        f"median {images['width']} × {images['height']} pixels; {len(bad)} unreadable, left out",
    ]
    lines += [f"  {entry['name']}: {entry['reason']}" for entry in bad[:5]]
    return lines + ([f"  and {len(bad) - 5:,} more: `fastssl check-data` lists all"] if len(bad) > 5 else [])


def _backends(result: Result) -> list[str]:
    decoder = floor_decoder(result)
    floor = result.floor[decoder]["floor"]
    rows: list[tuple[str, ...]] = [
        ("back end", "images/s", "least – most", "core ms an image", "of the floor", "by CPU time")
    ]
    for name, entry in result.backends.items():
        if entry["unavailable"]:
            rows.append((name, f"not available: {entry['unavailable']}"))
            continue
        share = median(entry["images_per_second"]) / median(floor["images_per_second"])
        cpu_share = f"{median(floor['cpu_ms']) / median(entry['cpu_ms']):.0%}" if entry["device"] == "cpu" else ""
        rows.append((name, *_rate(entry), f"{share:.0%}", cpu_share))
    rows += [(f"decoding alone, {kind}", *_rate(parts["decode"]), "", "") for kind, parts in result.floor.items()]
    rows.append(("floor", *_rate(floor), "100%", "100%"))
    return [
        *table(rows),
        f"  Medians of {len(floor['cpu_ms'])} rounds in turn. Core ms is the CPU time of all threads: other processes "
        "hardly change it.",
        f"  Floor: {DECODERS[decoder]} with this loader's check of the markers (the fastest decoder here, by CPU",
        "  time), then one copy of the views' floats. No renderer behind this decoder can be faster.",
        *(f"  {name}: {entry['note']}." for name, entry in result.backends.items() if entry["note"]),
    ]


def _stages(result: Result) -> list[str]:
    rounds = result.stages["rounds"]
    times = {name: median(sample[name] for sample in rounds) for name in (*STAGES, WHOLE)}
    whole, rest = times[WHOLE], times[WHOLE] - sum(times[name] for name in STAGES)
    unit = "core ms an image" if result.stages["device"] == "cpu" else "ms an image"
    rows: list[tuple[str, ...]] = [(f"where the time goes, {fastest(result)}", unit, "share")]
    rows += [(name, f"{times[name]:.3f}", f"{times[name] / whole:.1%}") for name in STAGES]
    rows.append(("residual", f"{rest:+.3f}", f"{rest / whole:+.1%}"))
    rows.append((WHOLE, f"{whole:.3f}", "100.0%"))
    return [
        *table(rows),
        "  Differences between runs that do one stage more each; other: drawing the parameters, solarize, invert, "
        "normalise.",
        "  Residual: what the whole, measured by itself, has more than the stages. Files were read from memory, where "
        "they fit.",
    ]


def _packed(packed: dict[str, Any], bytes_before: int) -> list[str]:
    before, after = packed["original"], packed["packed"]
    faster = gain(packed)
    cheaper = median(before["cpu_ms"]) / median(after["cpu_ms"])
    rows: list[tuple[str, ...]] = [
        (f"packed, {packed['backend']}", "images/s", "least – most", "core ms an image", "MB")
    ]
    for name, entry, size in (("as they are", before, bytes_before), (_side(packed), after, packed["bytes"])):
        row = (name, *_rate(entry), f"{size / 1e6:,.1f}")
        rows.append(row)
    return [
        *table(rows),
        f"  Packed images are {faster:.2f} × as fast ({cheaper:.2f} × by CPU time); packing these took "
        f"{packed['pack_seconds']:.1f} s.",
    ]


def gain(packed: dict[str, Any]) -> float:
    """How many times as many packed images a second are made."""
    return median(packed["packed"]["images_per_second"]) / median(packed["original"]["images_per_second"])


def _side(packed: dict[str, Any]) -> str:
    return f"short side {packed['short_side']}"


def _verdict(result: Result, need: float | None) -> list[str]:
    name = fastest(result)
    rate = median(result.backends[name]["images_per_second"])
    a_core = rate / result.threads
    threads = count(result.threads, "thread")
    lines = [f"{name} is the fastest: {rate:,.0f} images/s with {threads}, {a_core:,.0f} a thread."]
    busy = rate * median(result.backends[name]["cpu_ms"]) / 1e3 / result.threads
    if result.backends[name]["device"] == "cpu" and busy < BUSY:
        lines.append(
            f"The threads ran for only {busy:.0%} of the time: other processes, the disk or waiting had the rest; "
            f"by CPU time alone it would be {rate / busy:,.0f} images/s."
        )
    if need is not None:
        lines.append(_needed(need, rate, a_core, result))
    advice = _advice(result)
    return ["verdict", *(f"  {line}" for line in lines), *(f"  Try: {line}" for line in advice)]


def _needed(need: float, rate: float, a_core: float, result: Result) -> str:
    cores = math.ceil(need / a_core)
    if rate >= need:
        return f"A model that trains at {need:,g} images/s is fed: {count(cores, 'such core')} would do."
    if result.packed is not None:
        less = f", or {math.ceil(need / a_core / gain(result.packed))} with packed images"
    else:
        less = ""
    return f"A model that trains at {need:,g} images/s would wait: it needs {count(cores, 'such core')}{less}."


def _advice(result: Result) -> list[str]:
    found, entry = [], result.backends
    if result.threads < result.usable_cores:
        found.append(f"more threads: {result.threads} of {result.usable_cores} cores were used.")
    if entry["native"]["unavailable"]:
        found.append("the native renderer: install fastssl again where a C compiler is found.")
    decoder = floor_decoder(result)
    ratio = _ratio(result, decoder, result.decoder)
    if ratio > 1.05:
        found.append(f"--loader.decoder {decoder}, which decodes {ratio:.2f} × as fast as {result.decoder} here.")
    if len(result.floor) == 1:
        found.append("DALI's decoder: install nvidia-dali, and measure again.")
    side, images = 256, result.images
    if result.packed is None and images["short_side"] > LARGE * side:
        found.append(
            f"`fastssl pack IMAGES OUT --short-side {side}`: half of the images have more than {images['short_side']} "
            "pixels on their short side. --packed measures what that gains."
        )
    return found


def _ratio(result: Result, kind: str, other: str) -> float:
    """How many times as fast one decoder is as the other, by CPU time."""
    return median(result.floor[other]["decode"]["cpu_ms"]) / median(result.floor[kind]["decode"]["cpu_ms"])
