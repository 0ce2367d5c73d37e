"""What a run measures before, during and after training: how well the features tell classes apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..config import Config
from ..data import Source
from ..data.masks import Masks
from ..methods.collapse import rankme
from . import contact, report
from .evaluation import Evaluator, Features
from .monitor import Display, Row
from .ranks import Ranks


class Measurements:
    """kNN, rank and linear probe of a run's backbone, where its data has labels; figures go to `results`.

    All processes make the features, the first one compares and writes.
    """

    def __init__(
        self,
        config: Config,
        train: Source,
        evaluator: Evaluator | None,
        backbone: nn.Module,
        ranks: Ranks,
        run_dir: Path,
        display: Display,
        results: dict[str, Any],
    ) -> None:
        self.config, self.source, self.evaluator, self.backbone = config, train, evaluator, backbone
        self.ranks, self.run_dir, self.display, self.results = ranks, run_dir, display, results

    @property
    def possible(self) -> bool:
        return self.evaluator is not None

    def untrained(self, masks: Masks | None) -> None:
        """Draw the views, and measure raw pixels and the network before its first step."""
        config = self.config
        if self.ranks.first:
            contact.draw_views(
                self.run_dir / "views.png", self.source, config.augment, seed=config.train.seed, masks=masks
            )
        if self.evaluator is None or not config.monitor.baselines:
            return
        untrained = self.features()
        if not self.ranks.first:
            return
        self.results["raw_pixel_knn"] = self.evaluator.raw_pixel_knn()
        report.keep_embeddings(self.run_dir, "before", untrained, self.source.classes)
        self.results["random_knn"] = self.evaluator.knn(untrained)
        self.display.say(
            f"before training: raw pixels {self.results['raw_pixel_knn']:.1%}, "
            f"random network {self.results['random_knn']:.1%} (kNN, k = {config.monitor.knn_k})"
        )

    def features(self) -> Features:
        assert self.evaluator is not None
        self.ranks.same_buffers(self.backbone)
        return self.evaluator.features(self.backbone)

    def knn(self, features: Features, step: int, epoch: float) -> tuple[Row, bool]:
        """-> the row of the metrics, and whether no accuracy was higher before."""
        assert self.evaluator is not None
        accuracy = self.evaluator.knn(features)
        row: Row = {"kind": "knn", "step": step, "epoch": epoch, "knn": accuracy}
        row["rankme"] = float(rankme(features.query))
        self.display.say(f"epoch {epoch:.0f}: kNN {accuracy:.1%}  RankMe {row['rankme']:.1f}")
        self.results["trained_knn"] = accuracy
        best = accuracy > self.results.get("best_knn", -1.0)
        if best:
            self.results["best_knn"], self.results["best_step"] = accuracy, step
        return row, best

    def trained(self, features: Features) -> None:
        """What else is known at the end."""
        assert self.evaluator is not None
        report.keep_embeddings(self.run_dir, "after", features, self.source.classes)
        if self.config.monitor.linear:
            self.results["linear_probe"] = self.evaluator.linear(features).top1
