"""How products of rows become logits, on every back end.

Unit rows bound the cosine: with l_ij = (s_ij − 1) / τ no exponent is positive, and in fp32 the smallest term exp(−2/τ)
stays normal down to τ = 0.023, so that no maximum has to be tracked. Below that, and for rows of any length, sums are
kept relative to a running maximum ("online").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# The smallest temperature whose exp(−2/τ) is a normal fp32 number.
KNOWN_MAXIMUM_FROM = 0.023


@dataclass(frozen=True)
class Logits:
    """How products of rows become logits.

    temperature: τ.
    normalize: rows are divided by their length, so that |s| ≤ 1.
    products: dtype of the operands of matrix products (fp32, bf16, fp16); sums are fp32 always.
    """

    temperature: float
    normalize: bool
    products: torch.dtype

    @property
    def known_maximum(self) -> bool:
        return self.normalize and self.temperature >= KNOWN_MAXIMUM_FROM

    @property
    def online(self) -> bool:
        return not self.known_maximum

    @property
    def online_with_attraction(self) -> bool:
        """fp16 products also need exponentials near 1, as they become operands."""
        return self.online or self.products == torch.float16
