"""Rotation, noise, Sobel and cutout of views: their rows of parameters, and the definition of correct in plain torch.

They are the further operations of SimCLR's study (arXiv 2002.05709, section 3), which few recipes use, so they have
parameters and a launch of their own: x ← rotate(x) → what `reference` does after the resize → noise, clip → Sobel →
cutout → normalise. Rotation may come last, before the noise: nothing before it tells one direction from another.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STUDY_COLUMNS = (
    "turns",  # quarter turns against the clock
    "sobel",  # 0 or 1
    "top", "left", "side",  # of the square that is filled; side 0 for none
    "sigma", "level",  # of the noise, and of the square: the bits of float32 numbers
    "c1", "c2", "c3", "k0", "k1",  # Philox: three words of the counter, two of the key
)  # fmt: skip
"""The columns of a row, int32; the rest of its 64 bytes is unused."""
STUDY_WORDS = 16


def study_column(name: str) -> int:
    return STUDY_COLUMNS.index(name)


def study_parameters(
    *, turns: Tensor, noise: Tensor, key: Tensor, sobel: Tensor, cutout: Tensor, fill: float = 0.5
) -> Tensor:
    """Pack rotation, noise, Sobel and cutout of M views, one a row, for `render_views`. All tensors are on the CPU.

    Args:
        turns: whole numbers `[M]`, 0 to 3 quarter turns against the clock.
        noise: `[M]` σ of the noise, where white is 1; 0 for none.
        key: whole numbers in [0, 2³²) `[M, 5]`: words c1, c2, c3 of the Philox4x32-10 counters of the view's noise and
            the two words of their key. Word c0 is the number of the pixel, y · S + x.
        sobel: bool `[M]`, show the length of the gray level's gradient.
        cutout: whole numbers `[M, 3]` top, left and side of the square that is filled, in pixels; side 0 for none.
        fill: its level before the normalisation.

    Returns:
        int32 `[M, 16]`.

    Raises:
        ValueError: a tensor of another shape or on a device, numbers out of range.
    """
    rows = turns.shape[0] if turns.ndim == 1 else 0
    shapes = {"turns": (rows,), "noise": (rows,), "key": (rows, 5), "sobel": (rows,), "cutout": (rows, 3)}
    given = {"turns": turns, "noise": noise, "key": key, "sobel": sobel, "cutout": cutout}
    for name, tensor in given.items():
        if tuple(tensor.shape) != shapes[name] or tensor.device.type != "cpu":
            raise ValueError(
                f"{name} must be {list(shapes[name])} on the CPU, got {list(tensor.shape)} on {tensor.device.type}"
            )
    turns, key, cutout = turns.long(), key.long(), cutout.long()
    for name, tensor, stop in (("turns", turns, 4), ("key", key, 1 << 32), ("cutout", cutout, 1 << 15)):
        if ((tensor < 0) | (tensor >= stop)).any():
            raise ValueError(f"{name} must hold numbers in [0, {stop}), got {tensor.min()} to {tensor.max()}")
    if not (noise.isfinite() & (noise >= 0)).all():
        raise ValueError(f"noise must be finite and >= 0, got {noise.min()} to {noise.max()}")
    if not math.isfinite(fill):
        raise ValueError(f"fill must be finite, got {fill}")
    packed = torch.zeros(rows, STUDY_WORDS, dtype=torch.int32)
    packed[:, study_column("turns")] = turns.int()
    packed[:, study_column("sobel")] = sobel.int()
    packed[:, study_column("top") : study_column("sigma")] = cutout.int()
    packed[:, study_column("sigma")] = noise.float().contiguous().view(torch.int32)
    packed[:, study_column("level")] = torch.tensor(fill, dtype=torch.float32).view(torch.int32)
    packed[:, study_column("c1") : study_column("k1") + 1] = torch.where(key < 1 << 31, key, key - (1 << 32)).int()
    return packed


def _philox(pixels: int, key: list[int]) -> Tensor:
    """int64 `[4, pixels]`: the four words of each pixel."""
    low = (1 << 32) - 1
    c0 = torch.arange(pixels)
    c1, c2, c3 = (torch.full_like(c0, word & low) for word in key[:3])
    k0, k1 = (word & low for word in key[3:])
    for _ in range(10):
        # Products wrap around beyond 63 bits; their bits stay right.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (b >> 32 & low) ^ c1 ^ k0, b & low, (a >> 32 & low) ^ c3 ^ k1, a & low
        k0, k1 = k0 + 0x9E3779B9 & low, k1 + 0xBB67AE85 & low
    return torch.stack((c0, c1, c2, c3))


def normal_numbers(size: int, key: list[int], dtype: torch.dtype) -> Tensor:
    """`[3, S, S]`: by Box and Muller, red and green from the first two words of a pixel, blue from the others."""
    word = (_philox(size * size, key) >> 8).double() / (1 << 24)
    radius = (-2 * (word[0::2] + 2.0**-24).log()).sqrt()
    angle = 2 * math.pi * word[1::2]
    normal = torch.stack((radius[0] * angle[0].cos(), radius[0] * angle[0].sin(), radius[1] * angle[1].cos()))
    return normal.view(3, size, size).to(dtype)


def gradient_length(level: Tensor) -> Tensor:
    """`[S, S]`: a quarter of the length of the 3 × 3 Sobel gradient, border pixels repeated, at most 1."""
    framed = torch.nn.functional.pad(level[None, None], (1, 1, 1, 1), mode="replicate")
    across = torch.tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=level.dtype)
    both = torch.nn.functional.conv2d(framed, torch.stack((across, across.T))[:, None])[0]
    return (both.square().sum(0).sqrt() / 4).clamp(max=1)


def add_study(x: Tensor, row: Tensor, gray_weights: tuple[float, float, float]) -> Tensor:
    """Noise, Sobel and cutout of one view `[3, S, S]`. row: int32 `[16]`."""
    number = {name: int(row[i]) for i, name in enumerate(STUDY_COLUMNS)}
    sigma, level = row[study_column("sigma") : study_column("level") + 1].view(torch.float32).tolist()
    x = x.clone()
    if sigma > 0:
        key = [number[name] for name in ("c1", "c2", "c3", "k0", "k1")]
        x = (x + sigma * normal_numbers(x.shape[-1], key, x.dtype)).clamp(0, 1)
    if number["sobel"]:
        gray = x[0] * gray_weights[0] + x[1] * gray_weights[1] + x[2] * gray_weights[2]
        x = gradient_length(gray).repeat(3, 1, 1)
    top, left, side = number["top"], number["left"], number["side"]
    x[:, top : top + side, left : left + side] = level
    return x
