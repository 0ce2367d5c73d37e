"""Random numbers without state: each is a pure function of (seed, epoch, sample, view, draw).

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): ten rounds
that turn a 128-bit counter and a 64-bit key into four 32-bit words. All arithmetic is on 32-bit words, so that C and
GPU code repeat it exactly. Layout of the counter and the key:

    c0 = view << 16 | draw // 4        c2 = sample >> 32          k0 = seed & 0xffffffff
    c1 = sample & 0xffffffff           c3 = epoch                 k1 = seed >> 32

Draw number d of a (sample, view) is word d % 4 of that counter's block, and the uniform number is its upper 24 bits
times 2⁻²⁴: in [0, 1), never 1, and exact in float32. Views count from 0; the last ones are reserved below.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UserError

ORDER_VIEW = 0xFFFF
"""View number whose draws key the epoch's permutation."""
REPLACEMENT_VIEW = 0xFFFE
"""View number whose draws choose the stand-in of an unreadable sample."""
BUILTIN_VIEW = 0xFFFD
"""View number whose draws make the images of the built-in data set."""
MAX_VIEWS = BUILTIN_VIEW

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(counter: tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Four random words for each counter.

    Args:
        counter: four arrays of 32-bit words, of shapes that broadcast to `[...]`.
        key: two 32-bit words.

    Returns:
        uint32 `[..., 4]`.
    """
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(c, dtype=np.uint64) for c in counter))
    k0, k1 = key
    for _ in range(10):
        # 32 × 32 → 64 bit products; the high half is mixed into the other pair, the low half moves on.
        p0 = c0 * _MULTIPLIERS[0]
        p1 = c2 * _MULTIPLIERS[1]
        c0, c1 = (p1 >> _HALF) ^ c1 ^ np.uint64(k0), p1 & _LOW
        c2, c3 = (p0 >> _HALF) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), axis=-1).astype(np.uint32)


def words(seed: int, epoch: int, samples: ArrayLike, view: ArrayLike, n: int, *, first: int = 0) -> NDArray[np.uint32]:
    """The 32-bit words of draws `first` … `first + n - 1`; arguments as in `uniforms`. uint32 `[N, n]`."""
    if not 0 <= seed < 1 << 64:
        raise UserError(f"seed must be in [0, 2^64), got {seed}")
    if not 0 <= epoch < 1 << 32:
        raise UserError(f"epoch must be in [0, 2^32), got {epoch}")
    views = np.asarray(view, dtype=np.int64)
    if not ((views >= 0) & (views < 1 << 16)).all():
        raise ValueError(f"view must be in [0, 65536), got {views.min()} … {views.max()}")
    if first < 0 or first + n > 1 << 18:
        raise ValueError(f"draws must lie in [0, 2^18), got {first} … {first + n - 1}")
    sample = np.asarray(samples, dtype=np.int64).astype(np.uint64)[:, None]
    start, stop = first // 4, -(-(first + n) // 4)
    block = np.arange(start, stop, dtype=np.uint64)[None, :] | (views << 16).astype(np.uint64).reshape(-1, 1)
    drawn = philox((block, sample & _LOW, sample >> _HALF, np.uint64(epoch)), (seed & 0xFFFFFFFF, seed >> 32))
    flat = drawn.reshape(sample.shape[0], 4 * (stop - start))
    return flat[:, first - 4 * start : first - 4 * start + n]


def uniforms(
    seed: int, epoch: int, samples: ArrayLike, view: ArrayLike, n: int, *, first: int = 0
) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), multiples of 2⁻²⁴.

    Args:
        seed: the run's seed, in [0, 2⁶⁴).
        epoch: in [0, 2³²).
        samples: int64 `[N]` sample ids.
        view: number of the view within the recipe, in [0, 2¹⁶): one, or int64 `[N]`, one a sample.
        n: how many draws for each sample; draw numbers stay below 2¹⁸.
        first: number of the first draw.

    Returns:
        float64 `[N, n]`; column j is draw `first + j`, whatever `n` and `first`.

    Raises:
        UserError: seed or epoch out of range.
    """
    return (words(seed, epoch, samples, view, n, first=first) >> np.uint32(8)).astype(np.float64) * 2.0**-24
