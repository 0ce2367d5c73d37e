"""`fastssl eval knn|linear` and `fastssl report`: what a trained backbone is worth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from .options import parse, take_word


@dataclass(frozen=True)
class EvalOptions:
    """Accuracy of a checkpoint's backbone on labelled images."""

    checkpoint: Path
    """last.pt or best.pt of a run directory."""
    data: str | None = None
    """Folder with `train` and `val` (or `test`); by default the data of the run."""
    val_data: str | None = None
    """The labelled images to classify, when they are not beside `train`."""
    k: int = 20
    """Neighbours (knn)."""
    temperature: float = 0.1
    """Weight of a neighbour at cosine s is exp(s / temperature) (knn)."""
    bank: int | None = None
    """Most training images used; by default all of them."""
    decoder: Literal["auto", "dali", "torchvision"] = "auto"
    """JPEG decoder."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute the features."""


def evaluate_command(args: list[str]) -> int:
    kind = take_word(args, ("knn", "linear"), "eval", "kind of evaluation")
    options = parse(EvalOptions, args, prog=f"fastssl eval {kind}")
    from ..engine.evaluation import evaluate_checkpoint

    results = evaluate_checkpoint(
        options.checkpoint,
        "knn" if kind == "knn" else "linear",
        data=options.data,
        val_data=options.val_data,
        k=options.k,
        temperature=options.temperature,
        bank=options.bank,
        decoder=options.decoder,
        device=options.device,
    )
    for name, value in results.items():
        print(f"{name:<22}{value:.2%}" if isinstance(value, float) and value <= 1 else f"{name:<22}{value}")
    return 0


@dataclass(frozen=True)
class ReportOptions:
    """Write report.html of a run again and print its table."""

    run_dir: tyro.conf.Positional[Path]
    """The run directory."""


def report_command(args: list[str]) -> int:
    options = parse(ReportOptions, args, prog="fastssl report")
    from ..engine.report import finish, read_summary

    finish(options.run_dir, read_summary(options.run_dir), say=print)
    return 0


COMMANDS = {"eval": evaluate_command, "report": report_command}
