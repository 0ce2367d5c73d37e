"""Draws of rotation, noise, Sobel and cutout over 10,000 samples, and which constants are refused."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import stats

from fastssl import config
from fastssl.data import Augmentation, native, triton_render
from fastssl.data.loader import ViewLoader
from fastssl.data.params import ViewParams, sample_params
from fastssl.data.sources import ArraySource
from fastssl.data.study import StudyParams, normal_numbers, sample_study
from fastssl.data.views import ViewSpec
from fastssl.errors import UserError
from fastssl.recipes import simclr

N = 10_000
EVERYTHING = ViewSpec(size=40, rotation=0.7, noise=0.6, noise_sigma=(0.0, 0.3), sobel=0.4, cutout=0.6)


def draw(spec: ViewSpec, n: int = N, **options) -> StudyParams:
    return sample_study(spec, samples=np.arange(n), **({"seed": 0, "epoch": 0, "view": 0} | options))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_probabilities_and_distributions(p):
    spec = ViewSpec(size=200, rotation=p, noise=p, noise_sigma=(0.1, 0.4), sobel=p, cutout=p, cutout_side=(0.2, 0.6))
    study = draw(spec)
    chosen = {"noise": study.noise > 0, "sobel": study.sobel, "cutout": study.cutout[:, 2] > 0}
    chosen["rotation"] = study.turns > 0
    for name, rows in chosen.items():
        q = 0.75 * p if name == "rotation" else p
        assert abs(rows.mean() - q) <= 3 * math.sqrt(q * (1 - q) / N), name
    if p < 0.5:
        return
    counts = np.bincount(study.turns, minlength=4)
    shares = np.array([1 - 0.75 * p, p / 4, p / 4, p / 4])
    assert stats.chisquare(counts, shares * N).pvalue > 1e-3
    assert stats.kstest(study.noise[study.noise > 0], stats.uniform(0.1, 0.3).cdf).pvalue > 1e-3
    top, left, side = study.cutout[study.cutout[:, 2] > 0].T
    assert (np.minimum(top, left) >= 0).all()
    assert (np.maximum(top, left) + side <= 200).all()
    # Sides and places are whole: a uniform number within the whole one's cell makes them continuous again.
    jitter = np.random.default_rng(0).random((2, len(side)))
    assert stats.kstest(side + jitter[0] - 0.5, stats.uniform(40, 80).cdf).pvalue > 1e-3
    for place in (top, left):
        assert stats.kstest((place + jitter[1]) / (201 - side), "uniform").pvalue > 1e-3


def test_choices_are_independent_of_one_another_and_of_the_others():
    spec = ViewSpec(size=200, rotation=0.5, noise=0.5, noise_sigma=(0.1, 0.4), sobel=0.5, cutout=0.5)
    sizes = {"heights": np.full(N, 300), "widths": np.full(N, 300)}
    params = sample_params(spec, seed=0, epoch=0, samples=np.arange(N), view=0, **sizes)
    study = params.study
    columns = [study.turns > 0, study.noise > 0, study.sobel, study.cutout[:, 2] > 0, params.flip, params.gray]
    columns += [params.sigma > 0, *params.factors.T, params.box[:, 2]]
    correlation = np.corrcoef(np.stack(columns).astype(np.float64))
    assert np.abs(correlation[np.triu_indices(len(columns), 1)]).max() < 4 / math.sqrt(N)


def test_other_choices_stay_where_they_are():
    sizes = {"heights": np.full(50, 300), "widths": np.full(50, 200)}
    plain, more = ViewSpec(size=40), EVERYTHING
    a, b = (sample_params(s, seed=0, epoch=0, samples=np.arange(50), view=0, **sizes) for s in (plain, more))
    assert a.study is None
    assert all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(ViewParams) if f.name != "study")
    c = draw(replace(more, rotation=0.0, sobel=1.0), 50)
    assert np.array_equal(b.study.cutout, c.cutout)
    assert np.array_equal(b.study.noise, c.noise)


@pytest.mark.parametrize("change", [{"seed": 1}, {"seed": 1 << 32}, {"epoch": 1}, {"view": 1}])
def test_noise_is_another_for_every_seed_epoch_view_and_sample(change):
    spec = ViewSpec(noise=1.0)
    keys = np.concatenate([draw(spec, 3).key, draw(spec, 3, **change).key])
    numbers = np.stack([normal_numbers(key, 8) for key in keys])
    assert len(np.unique(numbers)) == numbers.size


def test_parts_join_only_with_their_like():
    params = sample_params(EVERYTHING, seed=0, epoch=0, samples=[1, 2], view=0, heights=[9, 9], widths=[9, 9])
    assert len(ViewParams.concatenate([params, params]).study.turns) == 4
    with pytest.raises(ValueError, match="all parts or in none"):
        ViewParams.concatenate([params, replace(params, study=None)])


# ----------------------------------------------------------------------------------------------------------- refused


WRONG = [
    ({"rotation": 1.1}, r"rotation is a probability between 0 and 1, got 1.1"),
    ({"noise": -0.1}, r"noise is a probability"),
    ({"sobel": float("nan")}, r"sobel is a probability"),
    ({"cutout": 2.0}, r"cutout is a probability"),
    ({"noise_sigma": (-0.1, 0.1)}, r"noise.sigma must satisfy 0 <= low <= high, got -0.1 0.1"),
    ({"noise_sigma": (0.2, 0.1)}, r"noise.sigma must satisfy"),
    ({"cutout_side": (0.0, 0.5)}, r"cutout.side must satisfy 0 < low <= high <= 1, got 0.0 0.5"),
    ({"cutout_side": (0.5, 1.5)}, r"cutout.side must satisfy"),
    ({"cutout_fill": 1.5}, r"cutout.fill must be between 0 and 1, got 1.5"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_impossible_constants_are_refused(changes, message):
    recipe = Augmentation((ViewSpec(size=16, count=2, **changes),))
    with pytest.raises(UserError, match=message):
        ViewLoader(ArraySource(np.zeros((4, 8, 8, 3), dtype=np.uint8)), recipe, batch_size=2, seed=0)
    with pytest.raises(UserError, match="--augment.views.0." + message):
        config.validate(replace(simclr("cifar10"), augment=recipe))


@pytest.mark.parametrize("name", ["rotation", "noise", "sobel", "cutout"])
def test_dali_has_none_of_them(name):
    base = simclr("cifar10")
    recipe = replace(base.augment, views=(replace(base.augment.views[0], **{name: 0.5}),))
    with pytest.raises(UserError, match=f"views.0.{name} 0.5 cannot be drawn by --loader.renderer dali"):
        config.validate(replace(base, augment=recipe, loader=replace(base.loader, renderer="dali")))


def test_a_cutout_outside_the_view_is_refused():
    spec, images = ViewSpec(size=24, cutout=1.0), torch.zeros(1, 9, 9, 3, dtype=torch.uint8)
    params = sample_params(spec, seed=0, epoch=0, samples=[0], view=0, heights=[9], widths=[9])
    wrong = replace(params, study=replace(params.study, cutout=params.study.cutout + 24))
    for drawn in [native.render] * native.available() + [triton_render.render]:
        with pytest.raises(ValueError, match=r"inside views of 24 pixels"):
            drawn(images, wrong, spec)


def test_ids_beyond_the_noises_counter_are_refused():
    with pytest.raises(UserError, match="below 2\\^47"):
        sample_study(ViewSpec(noise=1.0), seed=0, epoch=0, samples=[1 << 47], view=0)
