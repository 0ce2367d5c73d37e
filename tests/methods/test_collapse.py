"""Collapse measures on matrices whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastssl.methods.collapse import embedding_std, rankme

torch.set_num_threads(2)


def test_std_of_directions_spread_over_the_sphere_is_one_over_root_d():
    z = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    # a standard deviation from 4096 draws is known to about 1/√(2·4096) = 1.1 %, its mean over 64 dimensions to 0.15 %
    assert embedding_std(z).item() == pytest.approx(1 / math.sqrt(64), rel=0.005)


def test_std_of_equal_embeddings_is_zero_whatever_their_length():
    z = torch.randn(1, 16, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 33)[:, None]
    assert embedding_std(z).item() == pytest.approx(0, abs=1e-6)


def test_std_equals_numpy_and_ignores_length():
    z = torch.randn(33, 7, generator=torch.Generator().manual_seed(2)) + 0.5
    array = z.double().numpy()
    expected = (array / np.linalg.norm(array, axis=1, keepdims=True)).std(axis=0).mean()
    assert embedding_std(z).item() == pytest.approx(expected, rel=1e-5)
    assert embedding_std(z * torch.logspace(-2, 2, 33)[:, None]).item() == pytest.approx(expected, rel=1e-5)


def test_std_of_one_row_is_zero():
    assert embedding_std(torch.randn(1, 8)).item() == 0


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_rankme_of_equal_singular_values_is_the_rank(rank):
    generator = torch.Generator().manual_seed(rank)
    left = torch.linalg.qr(torch.randn(50, rank, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(16, rank, generator=generator))[0]
    # float32 leaves singular values of about 1e-7 beside the true ones, and ε adds 16 · 1e-7 · log(1e7)
    assert rankme(left @ right.T * 37).item() == pytest.approx(rank, rel=1e-4)


def test_rankme_of_known_singular_values():
    sigma = np.array([4.0, 2.0, 1.0, 1.0])
    p = sigma / sigma.sum()
    expected = math.exp(-(p * np.log(p)).sum())  # 2^1.75
    assert expected == pytest.approx(2**1.75)
    assert rankme(torch.diag(torch.tensor(sigma))).item() == pytest.approx(expected, rel=1e-5)


def test_rankme_ignores_scale_and_stays_within_its_bounds():
    z = torch.randn(40, 12, generator=torch.Generator().manual_seed(3))
    assert rankme(z * 1e4).item() == pytest.approx(rankme(z).item(), rel=1e-5)
    assert 1 <= rankme(z).item() <= 12
    assert rankme(z[:5]).item() <= 5 + 1e-4


def test_rankme_of_collapsed_embeddings_is_one():
    assert rankme(torch.ones(64, 32)).item() == pytest.approx(1, rel=1e-4)
    assert rankme(torch.zeros(64, 32)).item() == pytest.approx(1, rel=1e-4)


def test_both_take_half_precision_and_carry_no_graph():
    z = torch.randn(32, 8, generator=torch.Generator().manual_seed(4)).bfloat16().requires_grad_()
    for measure in (embedding_std, rankme):
        value = measure(z)
        assert value.dtype == torch.float32
        assert value.ndim == 0
        assert not value.requires_grad


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (8,), (2, 3, 4)])
def test_bad_shapes_are_refused(shape):
    for measure in (embedding_std, rankme):
        with pytest.raises(ValueError, match="matrix of embeddings"):
            measure(torch.zeros(shape))
