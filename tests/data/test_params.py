"""View parameters: their distributions over 10,000 draws, and that each depends on its own sample only.

Continuous quantities: Kolmogorov-Smirnov against the closed form, or two-sample against another implementation of the
published algorithm. Probabilities: within 3 standard deviations of the binomial. Orders: chi-square. Inputs are fixed,
so that a test that passes keeps passing; p-values are held above 10⁻³.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from fastssl.data.params import ORDERS, ViewParams, center_params, sample_params
from fastssl.data.views import CenterCrop, ViewSpec

N = 10_000
SIMCLR = ViewSpec(sampler="tensorflow")


def draw(spec: ViewSpec, height: int = 375, width: int = 500, n: int = N, **options) -> ViewParams:
    keywords = {"seed": 0, "epoch": 0, "view": 0} | options
    return sample_params(spec, samples=np.arange(n), heights=np.full(n, height), widths=np.full(n, width), **keywords)


# ------------------------------------------------------------------------------------------------------ photometric


@pytest.mark.parametrize("p", [0.0, 0.1, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("name", ["flip", "jitter", "grayscale", "solarize", "invert", "blur"])
def test_probabilities(name, p):
    params = draw(replace(SIMCLR, **{name: p}))
    chosen = params.sigma > 0 if name == "blur" else getattr(params, "gray" if name == "grayscale" else name)
    assert abs(chosen.mean() - p) <= 3 * math.sqrt(p * (1 - p) / N)
    if p in (0.0, 1.0):
        assert chosen.all() == (p == 1.0)


def test_choices_are_independent():
    params = draw(replace(SIMCLR, solarize=0.5, invert=0.5, jitter=0.5, grayscale=0.5))
    columns = [params.flip, params.jitter, params.gray, params.sigma > 0, params.solarize, params.invert]
    columns += [*params.factors.T, params.box[:, 0], params.box[:, 1], params.box[:, 2]]
    correlation = np.corrcoef(np.stack(columns).astype(np.float64))
    off = correlation[np.triu_indices(len(columns), 1)]
    # Box sides and offsets constrain one another; the rest must not.
    allowed = {(10, 11), (10, 12), (11, 12)}
    pairs = list(zip(*np.triu_indices(len(columns), 1), strict=True))
    assert all(abs(r) < 4 / math.sqrt(N) for r, pair in zip(off, pairs, strict=True) if pair not in allowed)


@pytest.mark.parametrize("strength", [0.2, 0.4, 0.8, 1.5])
@pytest.mark.parametrize(("column", "name"), [(0, "brightness"), (1, "contrast"), (2, "saturation")])
def test_factors(column, name, strength):
    factors = draw(replace(SIMCLR, **{name: strength})).factors[:, column]
    low = max(0.0, 1 - strength)
    assert stats.kstest(factors, stats.uniform(low, 1 + strength - low).cdf).pvalue > 1e-3


def test_additive_brightness_and_hue():
    params = draw(replace(SIMCLR, brightness=0.4, additive_brightness=True, hue=0.1))
    assert stats.kstest(params.factors[:, 0], stats.uniform(-0.4, 0.8).cdf).pvalue > 1e-3
    assert stats.kstest(params.factors[:, 3], stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-3


def test_blur_sigma():
    sigma = draw(replace(SIMCLR, blur=0.5)).sigma
    assert stats.kstest(sigma[sigma > 0], stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


def test_all_24_orders_are_equally_likely():
    order = draw(SIMCLR).order
    assert np.array_equal(np.sort(order, axis=1), np.tile(np.arange(4), (N, 1)))
    counts = np.unique(order @ np.array([64, 16, 4, 1]), return_counts=True)[1]
    assert len(counts) == len(ORDERS) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


# ------------------------------------------------------------------------------------------------------------ boxes


def torchvision_boxes(spec: ViewSpec, height: int, width: int, n: int) -> np.ndarray:
    torch.manual_seed(0)
    image = torch.empty(3, height, width, dtype=torch.uint8)
    return np.array([RandomResizedCrop.get_params(image, list(spec.scale), list(spec.ratio)) for _ in range(n)])


def tensorflow_boxes(spec: ViewSpec, height: int, width: int, n: int) -> np.ndarray:
    """One box at a time: draw a ratio and a height; mend rounding; accept if area and sides fit."""
    rng = np.random.default_rng(0)

    def box() -> tuple[int, int, int, int]:
        for _ in range(100):
            ratio = rng.uniform(*spec.ratio)
            least, greatest = (s * height * width for s in spec.scale)
            low, high = round(math.sqrt(least / ratio)), round(math.sqrt(greatest / ratio))
            while round(high * ratio) > width:
                high -= 1
            high = min(high, height)
            low = min(low, high)
            h = int(rng.integers(low, high + 1))
            if h * round(h * ratio) < least:
                h += 1
            if h * round(h * ratio) > greatest:
                h -= 1
            w = round(h * ratio)
            if 0 < w <= width and 0 < h <= height and least <= h * w <= greatest and h * w >= 0.1 * height * width:
                y = int(rng.integers(0, max(height - h, 1)))
                x = int(rng.integers(0, max(width - w, 1)))
                return y, x, h, w
        return 0, 0, height, width

    return np.array([box() for _ in range(n)])


def byol_boxes(spec: ViewSpec, height: int, width: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(0)

    def box() -> tuple[int, int, int, int]:
        area = rng.uniform(*spec.scale) * height * width
        ratio = math.exp(rng.uniform(math.log(spec.ratio[0]), math.log(spec.ratio[1])))
        w = min(round(math.sqrt(area * ratio)), width)
        h = min(round(math.sqrt(area / ratio)), height)
        return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w

    return np.array([box() for _ in range(n)])


ORACLES = {"attempts": torchvision_boxes, "tensorflow": tensorflow_boxes, "clip": byol_boxes}


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (224, 224), (32, 32), (100, 900)])
@pytest.mark.parametrize("sampler", list(ORACLES))
def test_boxes_follow_the_published_sampler(sampler, height, width):
    spec = ViewSpec(sampler=sampler)
    ours = draw(spec, height, width).box.astype(np.float64)
    theirs = ORACLES[sampler](spec, height, width, 4000).astype(np.float64)
    quantities = {
        "y": lambda b: b[:, 0],
        "x": lambda b: b[:, 1],
        "height": lambda b: b[:, 2],
        "width": lambda b: b[:, 3],
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 3] / b[:, 2],
    }
    for name, quantity in quantities.items():
        assert stats.ks_2samp(quantity(ours), quantity(theirs)).pvalue > 1e-3, name


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.05, 0.14), (0.2, 1.0), (1.0, 1.0), (0.999, 1.0)])
@pytest.mark.parametrize("sampler", list(ORACLES))
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (1, 1000), (1000, 1), (33, 31), (375, 500)])
def test_boxes_are_whole_and_inside(sampler, height, width, scale):
    y, x, h, w = draw(ViewSpec(sampler=sampler, scale=scale), height, width, n=500).box.T
    assert np.array_equal(np.stack((y, x, h, w)), np.floor((y, x, h, w)))
    assert (y >= 0).all()
    assert (x >= 0).all()
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (y + h <= height).all()
    assert (x + w <= width).all()


def test_attempts_fallback_is_the_central_box_within_the_ratio_bounds():
    """A 1 : 9 panorama with scale 1: no attempt fits, and torchvision's fallback is deterministic."""
    spec = ViewSpec(sampler="attempts", scale=(1.0, 1.0))
    for height, width in ((100, 900), (900, 100), (100, 100)):
        expected = torchvision_boxes(spec, height, width, 1)[0]
        boxes = draw(spec, height, width, n=50).box
        if height != width:
            assert (boxes == expected).all()
        else:
            assert (boxes[:, 2:] <= 100).all()


def test_tensorflow_falls_back_to_the_whole_image():
    boxes = draw(ViewSpec(sampler="tensorflow", scale=(1.0, 1.0)), 100, 900, n=50).box
    assert (boxes == [0, 0, 100, 900]).all()


def test_whole_square_image_is_reachable_by_area():
    """Torchvision's area is uniform where every box fits: Kolmogorov-Smirnov against the closed form."""
    params = draw(ViewSpec(sampler="attempts", scale=(0.05, 0.14)), 1000, 1000)
    share = params.box[:, 2] * params.box[:, 3] / 1e6
    # Rounding to whole pixels moves the area by less than 0.5 %; the test's resolution at 10,000 draws is 2 %.
    assert stats.kstest(share, stats.uniform(0.05, 0.09).cdf).pvalue > 1e-3
    ratio = np.log(params.box[:, 3] / params.box[:, 2])
    assert stats.kstest(ratio, stats.uniform(math.log(3 / 4), 2 * math.log(4 / 3)).cdf).pvalue > 1e-3


# -------------------------------------------------------------------------------------------------------- pure function


def test_row_depends_on_its_own_sample_only():
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(1, 600, 200), rng.integers(1, 600, 200)
    ids = rng.permutation(10_000)[:200]
    for sampler in ORACLES:
        spec = ViewSpec(sampler=sampler, solarize=0.2)
        whole = sample_params(spec, seed=1, epoch=2, samples=ids, view=3, heights=heights, widths=widths)
        pick = [7, 199, 0, 55]
        part = sample_params(
            spec, seed=1, epoch=2, samples=ids[pick], view=3, heights=heights[pick], widths=widths[pick]
        )
        expected = whole.select(pick)
        for field in fields(ViewParams):
            assert np.array_equal(getattr(part, field.name), getattr(expected, field.name)), (sampler, field.name)


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"view": 1}])
def test_seed_epoch_and_view_matter(change):
    a, b = draw(SIMCLR, n=1000), draw(SIMCLR, n=1000, **change)
    assert (a.factors == b.factors).mean() < 0.01
    assert (a.box[:, :2] == b.box[:, :2]).all(axis=1).mean() < 0.05


def test_changing_one_probability_leaves_the_other_choices():
    a, b = draw(SIMCLR, n=500), draw(replace(SIMCLR, blur=1.0, solarize=0.2, flip=0.0), n=500)
    assert np.array_equal(a.box, b.box)
    assert np.array_equal(a.factors, b.factors)
    assert np.array_equal(a.order, b.order)
    assert np.array_equal(a.sigma[a.sigma > 0], b.sigma[a.sigma > 0])


def test_empty_and_concatenate():
    none = draw(SIMCLR, n=0)
    assert len(none) == 0
    assert none.box.shape == (0, 4)
    both = ViewParams.concatenate([draw(SIMCLR, n=3), none, draw(SIMCLR, n=2, view=1)])
    assert len(both) == 5
    assert np.array_equal(both.select([3, 4]).factors, draw(SIMCLR, n=2, view=1).factors)


def test_center_params():
    params = center_params(CenterCrop(size=224, crop=0.875), [256, 500, 1, 333], [256, 375, 1, 1000])
    assert params.box.tolist() == [[16, 16, 224, 224], [86, 23, 328, 328], [0, 0, 1, 1], [21, 354, 291, 291]]
    assert not params.flip.any()
    assert not params.jitter.any()
    assert not params.sigma.any()
