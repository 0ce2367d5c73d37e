"""What a call computes, as numbers that both back ends and the operators share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..nt_xent.logits import KNOWN_MAXIMUM_FROM
from ..tile import PADDING, padded_rows
from .reference import StopGradient


@dataclass(frozen=True)
class Pairs:
    """The pairs of views of one call and the weights of their terms.

    large, small: L and S; online views are 0 to L + S − 1, target views 0 to L − 1. batch: images of this process.
    """

    large: int
    small: int
    batch: int
    temperature: float
    alpha: float
    self_pairs: bool
    stop_gradient: StopGradient
    products: torch.dtype

    @property
    def views(self) -> int:
        return self.large + self.small

    @property
    def count(self) -> int:
        """Pairs in the mean."""
        return self.views * self.large - (0 if self.self_pairs else self.large)

    @property
    def predictions(self) -> int:
        """Predictions of an image that are computed, the pairs in the mean and what they should equal."""
        return self.views * self.large - (0 if self.diagonal else self.large)

    @property
    def invariance(self) -> bool:
        return self.alpha > 0

    @property
    def diagonal(self) -> bool:
        """Whether predictions of a large crop by itself are needed: as pairs, or as what small crops should equal."""
        return self.self_pairs or (self.invariance and self.small > 0)

    @property
    def online(self) -> bool:
        """Whether running maxima are kept: below this temperature exponentials of cosines leave the range of fp32."""
        return self.temperature < KNOWN_MAXIMUM_FROM

    @property
    def through_log(self) -> float:
        """α where the divergence's gradient reaches p through log p."""
        return self.alpha if self.stop_gradient == "second" else 0.0

    @property
    def through_expectation(self) -> float:
        """α where it reaches p as the weights of E_p log q."""
        return self.alpha if self.stop_gradient != "first" else 0.0

    @property
    def through_second(self) -> float:
        """α where it reaches q."""
        return self.alpha if self.stop_gradient != "second" else 0.0


def padded_columns(count: int) -> int:
    """Rows that a view's negatives take up on a GPU: a power of two for few, so that ten need a tile of sixteen."""
    return max(16, 1 << (count - 1).bit_length()) if count <= PADDING else padded_rows(count)
