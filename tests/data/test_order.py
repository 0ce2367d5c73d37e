"""The epoch's order is a permutation, a fresh one for every seed and epoch, and the ranks share it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fastssl.data.order import batch_ids, permuted, steps_per_epoch
from fastssl.errors import UserError


@pytest.mark.parametrize("n", [1, 2, 3, 12, 255, 256, 257, 1000, 50_000, (1 << 16) + 1])
def test_is_a_permutation(n):
    for seed, epoch in ((0, 0), (0, 1), (7, 0)):
        order = permuted(np.arange(n), n, seed, epoch)
        assert order.dtype == np.int64
        assert np.array_equal(np.sort(order), np.arange(n))


def test_position_is_independent_of_its_company():
    whole = permuted(np.arange(1000), 1000, 3, 4)
    assert np.array_equal(permuted([999, 0, 500], 1000, 3, 4), whole[[999, 0, 500]])
    assert permuted([], 1000, 3, 4).shape == (0,)


def test_large_data_set():
    n = (1 << 32) - 5
    positions = np.array([0, 1, n // 2, n - 1])
    items = permuted(positions, n, 0, 0)
    assert len(set(items.tolist())) == 4
    assert items.min() >= 0
    assert items.max() < n


def test_epochs_and_seeds_differ():
    orders = [permuted(np.arange(1000), 1000, s, e) for s in range(3) for e in range(3)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            # Random permutations agree in one place on average (Poisson).
            assert (first == second).sum() < 8


@pytest.mark.parametrize("n", [3, 12, 100])
def test_every_item_is_equally_likely_everywhere(n):
    epochs = 1500
    orders = np.stack([permuted(np.arange(n), n, 11, e) for e in range(epochs)])
    for position in {0, n // 2, n - 1}:
        counts = np.bincount(orders[:, position], minlength=n)
        assert stats.chisquare(counts).pvalue > 1e-4


def test_neighbours_are_not_related():
    """Successive items of one order: their difference mod n is uniform."""
    n = 20_000
    order = permuted(np.arange(n), n, 5, 0)
    gaps = (order[1:] - order[:-1]) % n
    assert stats.kstest(gaps / n, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 4 / np.sqrt(n)


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_share_the_global_batch(world):
    n, size = 101, 12
    for step in range(n // size):
        one = batch_ids(step, n=n, batch_size=size, seed=1, epoch=2)
        parts = [batch_ids(step, n=n, batch_size=size, seed=1, epoch=2, rank=r, world=world) for r in range(world)]
        assert np.array_equal(np.concatenate(parts), one)


def test_an_epoch_shows_no_sample_twice():
    n, size = 101, 12
    shown = np.concatenate(
        [batch_ids(s, n=n, batch_size=size, seed=0, epoch=0) for s in range(steps_per_epoch(n, size))]
    )
    assert len(shown) == 96
    assert len(set(shown.tolist())) == 96


@pytest.mark.parametrize(("n", "size"), [(101, 12), (96, 12), (12, 12), (13, 12), (59, 12)])
def test_padding_shows_every_sample_and_the_first_ones_again(n, size):
    """Over all ranks and steps: each sample once, and as many of the epoch's first as are missing in the last batch."""
    steps = steps_per_epoch(n, size, "pad")
    assert steps == -(-n // size)
    order = permuted(np.arange(n), n, 3, 5)
    for world in (1, 2, 3, 4):
        shown = np.concatenate(
            [
                batch_ids(s, n=n, batch_size=size, seed=3, epoch=5, rank=r, world=world, last="pad")
                for s in range(steps)
                for r in range(world)
            ]
        )
        assert np.array_equal(shown, np.concatenate([order, order[: steps * size - n]]))
        assert all(len(set(batch.tolist())) == size for batch in shown.reshape(steps, size))


@pytest.mark.parametrize("last", ["drop", "pad"])
@pytest.mark.parametrize("worlds", [(1, 2), (2, 1), (4, 3), (3, 4), (1, 4, 2, 3)])
def test_another_number_of_ranks_in_mid_epoch_continues_the_same_order(last, worlds):
    """Each number of ranks makes a few steps; the union is what one rank shows, each sample exactly once."""
    n, size = 113, 12
    steps = steps_per_epoch(n, size, last)
    turns = np.array_split(np.arange(steps), len(worlds))
    shown = [
        batch_ids(int(s), n=n, batch_size=size, seed=0, epoch=2, rank=r, world=world, last=last)
        for world, turn in zip(worlds, turns, strict=True)
        for s in turn
        for r in range(world)
    ]
    ids = np.concatenate(shown)
    assert np.array_equal(ids[: min(n, steps * size)], permuted(np.arange(min(n, steps * size)), n, 0, 2))
    times = np.bincount(ids, minlength=n)
    again = set(permuted(np.arange(steps * size - n), n, 0, 2).tolist()) if last == "pad" else set()
    assert [i for i in range(n) if times[i] == 2] == sorted(again)
    assert (times == 0).sum() == (n % size if last == "drop" else 0)
    assert times.max() <= 2


def test_errors():
    with pytest.raises(UserError, match="last must be drop or pad, got 'wrap'"):
        steps_per_epoch(10, 2, "wrap")
    with pytest.raises(UserError, match="batch_size 11 is greater than the 10 images"):
        steps_per_epoch(10, 11, "pad")
    with pytest.raises(UserError, match="batch_size 8 must be a multiple of the number of processes, 3"):
        batch_ids(0, n=100, batch_size=8, seed=0, epoch=0, world=3)
    with pytest.raises(UserError, match="batch_size 101 is greater than the 100 images"):
        batch_ids(0, n=100, batch_size=101, seed=0, epoch=0)
    with pytest.raises(UserError, match="batch_size must be at least 1, got 0"):
        steps_per_epoch(10, 0)
    with pytest.raises(ValueError, match=r"step must be in \[0, 10\), got 10"):
        batch_ids(10, n=100, batch_size=10, seed=0, epoch=0)
    with pytest.raises(ValueError, match="indices"):
        permuted([100], 100, 0, 0)
