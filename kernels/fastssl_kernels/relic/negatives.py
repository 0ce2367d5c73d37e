"""Negatives that are drawn once for a batch, and their rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import check
from ..gather import gather_rows, size_and_rank

# SplitMix64 (Steele, Lea and Flood 2014), in two's complement.
_STEP, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def sample_negatives(
    images: int, count: int, *, seed: int, step: int | Tensor, device: torch.device | str | None = None
) -> Tensor:
    """`count` different images of a global batch of `images`, [count] int64: a function of seed and step alone.

    Every rank draws the same, every device too, and nothing is read back: `step` may be an integer tensor on the
    device, so that a captured graph draws anew. The sample is the `count` images with the smallest hashes, that is
    uniform over subsets. An image that is among its own negatives is skipped by `relic`, which leaves it one fewer.

    images: rows of one view over all ranks, W·B. count: 1 to images (RELICv2 takes 10 of 4,096).
    device: of the result; default that of `step`, else the CPU.
    Raises ValueError where images, count, seed or step make no sense.
    """
    check.whole("images", images, 1)
    for name, value in (("seed", seed), ("step", step)):
        if isinstance(value, Tensor) and name == "step":
            if value.numel() != 1 or value.is_floating_point():
                got = f"{value.dtype} {tuple(value.shape)}"
                raise ValueError(f"step must be an integer or a zero-dimensional integer tensor, got {got}")
        elif not isinstance(value, int):
            raise ValueError(f"{name} must be an integer, got {value!r}")
    if not isinstance(count, int) or not 1 <= count <= images:
        raise ValueError(f"count must be from 1 to images={images}, got {count}")
    if device is None:
        device = step.device if isinstance(step, Tensor) else "cpu"
    if isinstance(step, Tensor):
        moment = step.to(device=device, dtype=torch.int64)
    else:  # filled there: a number that is copied to a device is waited for
        moment = torch.full((), step, dtype=torch.int64, device=device)
    base = _mixed(moment * _STEP + _signed(seed))
    keys = _mixed(base + (torch.arange(images, device=device) + 1) * _STEP)
    return keys.topk(count, largest=False).indices


def sampled_rows(target: Tensor, large: int, negatives: Tensor, group: str) -> Tensor:
    """The rows [L·n, D] of images `negatives` [n] of the global batch, from every rank's `target` [L·B, D].

    Only these rows travel: each rank sends what stands at their places in its own share, and the owner's is taken.
    """
    by_view = target.view(large, -1, target.shape[1])
    if not group:
        return by_view[:, negatives].flatten(0, 1)
    ranks, rank = size_and_rank(group)
    batch, count = by_view.shape[1], len(negatives)
    mine = by_view[:, (negatives - rank * batch).clamp(0, batch - 1)]
    everyone = gather_rows(mine.flatten(0, 1), 1, group).view(ranks, large, count, -1)
    owned = everyone[negatives // batch, :, torch.arange(count, device=target.device)]
    return owned.transpose(0, 1).flatten(0, 1)


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's output function on int64."""
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: torch's copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(seed: int) -> int:
    """The low 64 bits of a seed as int64."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)
