"""Exponential moving average in plain torch: the definition of correct for any dtype.

    target ← m·target + (1 − m)·online

m = 1 leaves the target as it is, m = 0 copies. (BYOL, arXiv 2006.07733, eq. 1; MoCo, arXiv 1911.05722, eq. 2.)
"""

from __future__ import annotations

from torch import Tensor


def ema_reference(target: Tensor, online: Tensor, momentum: float) -> Tensor:
    """The new target, in the target's dtype; shapes are equal, nothing in place."""
    wide = target.double() * momentum + online.double() * (1.0 - momentum)
    return wide.to(target.dtype)
