"""The generator against published answers, and the independence of its draws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fastssl.data.counter import philox, uniforms, words
from fastssl.errors import UserError

F = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123, kat_vectors, philox4x32-10
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((F, F, F, F), (F, F), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, expected):
    assert tuple(philox(counter, key).tolist()) == expected


def reference_words(seed: int, epoch: int, sample: int, view: int, draw: int) -> int:
    """One draw in Python integers, written from the paper and the documented layout."""
    c = [view << 16 | draw // 4, sample & F, sample >> 32, epoch]
    k = [seed & F, seed >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & F, (p0 >> 32) ^ c[3] ^ k[1], p0 & F]
        k = [(k[0] + 0x9E3779B9) & F, (k[1] + 0xBB67AE85) & F]
    return c[draw % 4]


def test_layout_of_counter_and_key():
    seed, epoch, view = (1 << 63) + 12345, F, 77
    samples = [0, 1, F, 1 << 32, (1 << 40) + 3]
    drawn = words(seed, epoch, samples, view, 11, first=5)
    expected = [[reference_words(seed, epoch, s, view, d) for d in range(5, 16)] for s in samples]
    assert drawn.tolist() == expected


def test_draw_does_not_depend_on_what_is_asked_with_it():
    all_of_them = uniforms(3, 4, np.arange(100), 5, 40)
    for first, n in ((0, 1), (3, 2), (4, 4), (7, 33), (39, 1)):
        part = uniforms(3, 4, [17, 99], 5, n, first=first)
        assert np.array_equal(part, all_of_them[[17, 99], first : first + n])
    assert uniforms(3, 4, [], 5, 7).shape == (0, 7)
    assert uniforms(3, 4, [1], 5, 0).shape == (1, 0)


def test_uniform_numbers_are_exact_in_float32_and_below_one():
    u = uniforms(0, 0, np.arange(2000), 0, 16)
    assert u.dtype == np.float64
    assert np.array_equal(u.astype(np.float32).astype(np.float64), u)
    assert u.min() >= 0
    assert u.max() < 1


@pytest.mark.parametrize("axis", ["seed", "epoch", "sample", "view", "draw"])
def test_uniform_along_every_axis(axis):
    n = 4096
    u = {
        "seed": lambda: np.array([uniforms(s, 0, [0], 0, 1)[0, 0] for s in range(n)]),
        "epoch": lambda: np.array([uniforms(0, e, [0], 0, 1)[0, 0] for e in range(n)]),
        "sample": lambda: uniforms(0, 0, np.arange(n), 0, 1)[:, 0],
        "view": lambda: np.array([uniforms(0, 0, [0], v, 1)[0, 0] for v in range(n)]),
        "draw": lambda: uniforms(0, 0, [0], 0, n)[0],
    }[axis]()
    # Kolmogorov-Smirnov against the uniform distribution and no correlation of neighbours; fixed inputs.
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 4 / np.sqrt(n)


@pytest.mark.parametrize(("seed", "epoch"), [(-1, 0), (1 << 64, 0), (0, -1), (0, 1 << 32)])
def test_out_of_range(seed, epoch):
    with pytest.raises(UserError, match="must be in"):
        uniforms(seed, epoch, [0], 0, 1)
