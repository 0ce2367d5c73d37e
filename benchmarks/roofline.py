"""Points of the roofline: least work by `cost.py` at a recipe's size, and the share of the peak that is predicted.

A predicted point's FLOP/s are the roof at its intensity times the share in `kernels/ledger.json`: clocks of tensor
cores or memory over the sum of all clocks (`low`: nothing overlaps), and over the longest ones (`high`: all does).
FLOPs are of matrix products; for what has none, multiply-adds count 2 and exponentials 1.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from fastssl_kernels.byol import cost as byol
from fastssl_kernels.ema import cost as ema
from fastssl_kernels.lars import cost as lars
from fastssl_kernels.nearest_neighbor import cost as nearest_neighbor
from fastssl_kernels.nt_xent import cost as nt_xent
from fastssl_kernels.relic import cost as relic
from fastssl_kernels.sinkhorn import cost as sinkhorn
from fastssl_kernels.swapped_prediction import cost as swapped

LEDGER = Path(__file__).parents[1] / "kernels" / "ledger.json"
TARGET = "sm_90"


class Peak(NamedTuple):
    flops: float
    bandwidth: float


PEAK = Peak(798e12, 3.0e12)
"""Of an H100 SXM, dense bf16 and a copy, both measured values."""


class Point(NamedTuple):
    """intensity: FLOP a byte. low, high: FLOP/s."""

    name: str
    intensity: float
    low: float
    high: float


class Work(NamedTuple):
    """An operation at a size. op, paths, config: the rows of the ledger that it spends its time in."""

    name: str
    op: str
    paths: tuple[str, ...]
    config: str
    flops: float
    bytes: float


def work() -> list[Work]:
    rows, codes = 4096, (4096, 0, 3000, 128, 3)
    loss = [sum(both) for both in zip(*nt_xent.nt_xent_floor(rows, 128), strict=True)]
    queue = nt_xent.info_nce_floor(256, 65536, 128)
    pairs = [
        sum(both) for both in zip(*relic.relic_floor(2048, 256, 2047, large=2, small=0, self_pairs=False), strict=True)
    ]
    nearest = nearest_neighbor.floor(rows, 98304, 256)
    passes = sinkhorn.score_reads(rows, 0, 3000, 3, 1)
    sizes = [25_557_032]
    features = 2 * (8 * rows + 3000) * 128
    found = [
        ("NT-Xent, B = 4,096, D = 128", "nt_xent", ("forward-triangular", "backward"), "D=128", loss[1], loss[0]),
        ("InfoNCE, 256 × 65,536, D = 128", "nt_xent", ("forward-rectangular queue, with gradient",), "D=128",
         queue.flops, queue.bytes),
        ("RELIC, B = 2,048, D = 256", "relic", ("forward, all negatives", "backward, all negatives"), "D=256",
         pairs[1], pairs[0]),
        ("nearest neighbour, 4,096 in 98,304", "nearest_neighbor", ("scan",), "D=256", nearest.flops, nearest.bytes),
        ("Sinkhorn from features, 4,096 × 3,000", "sinkhorn", ("half an iteration, from features",), "D=128",
         sinkhorn.product_floor_flops(*codes), 2 * (rows + 3000) * 128 + 4 * rows * 3000),
        ("Sinkhorn from scores", "sinkhorn", ("iteration", "codes"), "K=3000",
         3 * passes, sinkhorn.floor_bytes(rows, 0, 3000, 3, 2)),
        ("SwAV's loss, 8 × 4,096 × 3,000", "swapped_prediction",
         ("loss and gradient of features", "gradient of prototypes"), "D=128",
         swapped.floor_flops(rows, 8, 3000, 128),
         swapped.code_bytes(2, rows, 3000, prototype_gradient=True) + 2 * features),
        ("BYOL's loss", "byol", ("forward", "backward"), "", byol.flops(rows, 256),
         byol.forward_bytes(rows, 256, 2) + byol.backward_bytes(rows, 256, 2)),
        ("moving average", "ema", ("average",), "", ema.flops(sizes), ema.parameter_bytes(sizes, 2, 2)),
        ("LARS", "lars", ("measure", "update"), "", lars.flops(sizes), lars.parameter_bytes(sizes, 2)),
    ]  # fmt: skip
    return [Work(*entry) for entry in found]


def roof(intensity: float) -> float:
    return min(PEAK.flops, intensity * PEAK.bandwidth)


def predicted(ledger: Path = LEDGER) -> list[Point]:
    rows = json.loads(ledger.read_text(encoding="utf-8"))["rows"]
    points = []
    for entry in work():
        shares = [
            row["predicted_share"]
            for row in rows
            if (row["op"], row["target"], row["dtype"]) == (entry.op, TARGET, "bfloat16")
            and row["path"] in entry.paths
            and entry.config in row["config"]
        ]
        if not shares:
            raise ValueError(f"{ledger.name} has no {TARGET} rows of {entry.op}: {', '.join(entry.paths)}")
        intensity = entry.flops / entry.bytes
        low, high = min(share[0] for share in shares), min(share[1] for share in shares)
        points.append(Point(entry.name, intensity, low * roof(intensity), high * roof(intensity)))
    return points


def measured(run: dict[str, Any]) -> list[tuple[float, float]]:
    """Intensity and FLOP/s of our 16-bit subjects with products, in a GPU's record of `benchmarks/kernels`."""
    found = []
    for case in run["cases"] if run["device"] == "cuda" else ():
        for subject in case["subjects"].values():
            least = subject["floor"]
            if subject["back_end"] == "fastssl" and subject["dtype"] == "bf16" and least["flops"]:
                found.append((least["flops"] / least["bytes"], least["flops"] / median(subject["seconds"])))
    return found
