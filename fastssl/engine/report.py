"""The pictures, the summary and the page that a run leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..report.embedding import embedding_picture
from ..report.html import write_report
from . import rundir
from .evaluation import Features

EMBEDDED = 1_000
"""Query images in the embedding picture."""


def keep_embeddings(run_dir: Path, name: str, features: Features, classes: tuple[str, ...] | None) -> None:
    """Store an evenly spread part of the query embeddings for the picture."""
    chosen = np.linspace(0, len(features.query) - 1, min(EMBEDDED, len(features.query))).astype(int)
    np.savez(
        run_dir / f"embeddings_{name}.npz",
        features=features.query.numpy()[chosen],
        labels=features.query_labels.numpy()[chosen],
        classes=np.array(classes or (), dtype=np.str_),
    )


def read_summary(run_dir: Path) -> dict[str, Any]:
    """What a finished run measured. Raises `UserError` where there is none."""
    try:
        return json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise UserError(f"{run_dir} holds no finished run: summary.json is missing or unreadable") from None


def finish(run_dir: Path, results: dict[str, Any], *, say: Callable[[str], None]) -> None:
    """Write summary.json, embeddings.png and report.html; print the table."""
    rundir.write_json(run_dir / "summary.json", results)
    sides = [run_dir / f"embeddings_{name}.npz" for name in ("before", "after")]
    if all(side.exists() for side in sides):
        before, after = (np.load(side) for side in sides)
        embedding_picture(
            before["features"],
            after["features"],
            after["labels"],
            run_dir / "embeddings.png",
            classes=tuple(after["classes"]) or None,
        )
    page = write_report(run_dir)
    say("")
    for line in table(results):
        say(line)
    say(f"{'report':<22}{page}")


def table(results: dict[str, Any]) -> list[str]:
    """The results as aligned lines."""
    names = {
        "raw_pixel_knn": "raw-pixel kNN",
        "random_knn": "random-network kNN",
        "trained_knn": "trained kNN",
        "linear_probe": "linear probe",
    }
    lines = [f"{title:<22}{results[key]:.1%}" for key, title in names.items() if key in results]
    return [*lines, f"{'images/s':<22}{results['images_per_second']:,.0f}"]
