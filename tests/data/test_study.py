"""Rotation, noise, Sobel and cutout: each renderer against plain numpy."""

from __future__ import annotations

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from fastssl.data import native, triton_render
from fastssl.data.counter import philox
from fastssl.data.params import ViewParams, sample_params
from fastssl.data.render import render
from fastssl.data.views import ViewSpec

QUIET = ViewSpec(size=24, jitter=0.0, grayscale=0.0, blur=0.0)
FLOAT = 3e-6
SIZES = [(32, 32), (31, 47), (90, 70), (5, 60), (1, 1)]


@pytest.fixture(params=["torch", "native", "triton"], autouse=True)
def _renderer(request, monkeypatch):
    """Every law here holds for all; the operator's CPU path stands in for the kernels, which are tested apart."""
    if request.param == "native" and not native.available():
        pytest.skip("the native renderer was not built: no C compiler was found")
    if request.param != "torch":
        drawn = native.render if request.param == "native" else triton_render.render
        monkeypatch.setattr(sys.modules[__name__], "render", drawn)


def case(spec: ViewSpec, views: int = 4) -> tuple[list[torch.Tensor], ViewParams]:
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]
    heights, widths = zip(*SIZES, strict=True)
    sizes = {"heights": heights, "widths": widths}
    samples = np.arange(len(SIZES)) + (1 << 35)
    drawn = [sample_params(spec, seed=1 << 40, epoch=2, samples=samples, view=v, **sizes) for v in range(views)]
    return images, ViewParams.concatenate(drawn)


def without(params: ViewParams) -> ViewParams:
    return replace(params, study=None)


# ------------------------------------------------------------------------------------------------------------ pixels


@pytest.mark.parametrize("size", [24, 33, 8])
def test_rotation_is_numpys(size):
    spec = replace(QUIET, size=size, rotation=1.0)
    images, params = case(spec)
    views, plain = render(images, params, spec), render(images, without(params), spec)
    assert set(params.study.turns.tolist()) == {0, 1, 2, 3}
    for view, before, turns in zip(views, plain, params.study.turns.tolist(), strict=True):
        assert np.array_equal(view, np.rot90(before.numpy(), turns, (1, 2)))


def test_rotation_comes_before_colour_and_blur_and_leaves_them_as_they_are():
    """Nothing between them tells directions apart, so turning last gives the same to rounding."""
    spec = replace(QUIET, size=40, rotation=1.0, jitter=1.0, blur=1.0)
    images, params = case(spec)
    views, plain = render(images, params, spec), render(images, without(params), spec)
    for view, before, turns in zip(views, plain, params.study.turns.tolist(), strict=True):
        assert np.abs(view.numpy() - np.rot90(before.numpy(), turns, (1, 2))).max() <= FLOAT


def sobel(view: np.ndarray) -> np.ndarray:
    """By explicit sums, pixel by pixel."""
    gray = 0.2989 * view[0] + 0.587 * view[1] + 0.114 * view[2]
    size = len(gray)
    out = np.empty_like(gray)
    for y in range(size):
        for x in range(size):

            def at(dy: int, dx: int, y: int = y, x: int = x) -> float:
                return gray[min(max(y + dy, 0), size - 1), min(max(x + dx, 0), size - 1)]

            right = at(-1, 1) + 2 * at(0, 1) + at(1, 1) - at(-1, -1) - 2 * at(0, -1) - at(1, -1)
            down = at(1, -1) + 2 * at(1, 0) + at(1, 1) - at(-1, -1) - 2 * at(-1, 0) - at(-1, 1)
            out[y, x] = min(math.hypot(right, down) / 4, 1)
    return np.stack([out] * 3)


@pytest.mark.parametrize("size", [17, 8])
def test_sobel_is_the_sum_over_neighbours(size):
    spec = replace(QUIET, size=size, sobel=1.0)
    images, params = case(spec, views=1)
    views, plain = render(images, params, spec), render(images, without(params), spec)
    for view, before in zip(views, plain, strict=True):
        assert np.abs(view.numpy() - sobel(before.double().numpy())).max() <= FLOAT


def test_sobel_of_an_edge_is_white_and_of_a_plain_image_black():
    image = torch.zeros(16, 16, 3, dtype=torch.uint8)
    image[:, 8:] = 255
    spec = replace(QUIET, size=16, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, sobel=1.0)
    params = sample_params(spec, seed=0, epoch=0, samples=[0], view=0, heights=[16], widths=[16])
    view = render([image], params, spec)[0]
    assert torch.allclose(view[:, :, 7:9], torch.tensor(0.9999), atol=FLOAT)  # the gray weights' sum
    assert view[:, :, :6].abs().max() <= FLOAT
    assert view[:, :, 10:].abs().max() <= FLOAT


def test_cutout_is_a_slice_and_the_last_operation():
    spec = replace(QUIET, cutout=0.7, cutout_side=(0.1, 0.9), cutout_fill=0.25, noise=1.0, invert=1.0)
    images, params = case(spec)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    views = render(images, params, spec, mean, std)
    others = replace(params, study=replace(params.study, cutout=np.zeros_like(params.study.cutout)))
    expected = render(images, others, spec, mean, std)
    assert 0 < (params.study.cutout[:, 2] == 0).sum() < len(views)
    for view, (top, left, side) in zip(expected, params.study.cutout.tolist(), strict=True):
        for c in range(3):
            view[c, top : top + side, left : left + side] = (0.25 - mean[c]) / std[c]
    assert (views - expected).abs().max() <= FLOAT / min(std)


def gray_case(spec: ViewSpec, count: int) -> tuple[torch.Tensor, ViewParams]:
    """Images of the level 128, whose views are constant."""
    images = torch.full((count, 8, 8, 3), 128, dtype=torch.uint8)
    sides = [8] * count
    return images, sample_params(spec, seed=3, epoch=1, samples=range(count), view=2, heights=sides, widths=sides)


def test_noise_is_normal_and_independent():
    """110,592 numbers: Kolmogorov-Smirnov against the normal distribution; mean, variance and the correlation of
    neighbours, channels and views within 4 standard deviations of their estimate."""
    spec = replace(QUIET, size=96, noise=1.0, noise_sigma=(0.05, 0.05))  # 0.5 is ten σ away: nothing is clipped
    images, params = gray_case(spec, 4)
    z = ((render(images, params, spec) - 128 / 255) / 0.05).double().numpy()
    n = z.size
    assert abs(z.mean()) <= 4 / math.sqrt(n)
    assert abs(z.var() - 1) <= 4 * math.sqrt(2 / n)
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    assert all(stats.kstest(z[:, c].ravel(), "norm").pvalue > 1e-3 for c in range(3))
    pairs = [(z[..., 1:], z[..., :-1]), (z[:, :, 1:], z[:, :, :-1]), (z[1:], z[:-1])]
    pairs += [(z[:, 0], z[:, 1]), (z[:, 0], z[:, 2]), (z[:, 1], z[:, 2]), (z[:, 0] ** 2, z[:, 1] ** 2)]
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) <= 4 / math.sqrt(a.size)


def test_noise_is_the_formula_of_each_pixels_own_counter():
    """Pixel by pixel with Python's mathematics, at the ends of the view and of the unit interval."""
    spec = replace(QUIET, size=32, noise=1.0, noise_sigma=(0.06, 0.06))
    images, params = gray_case(spec, 3)
    views = render(images, params, spec)
    for row in range(3):
        for pixel in (0, 1, 255, 256, 257, 511, 1023):
            c2 = 1 << 31 | 2 << 15
            words = philox((np.uint64(pixel), np.uint64(row), np.uint64(c2), np.uint64(1)), (3, 0)).tolist()
            u, v, s, t = (word >> 8 for word in words)
            far, turn = math.sqrt(-2 * math.log((u + 1) / 2**24)), 2 * math.pi * v / 2**24
            blue = math.sqrt(-2 * math.log((s + 1) / 2**24)) * math.cos(2 * math.pi * t / 2**24)
            for c, normal in enumerate((far * math.cos(turn), far * math.sin(turn), blue)):
                expected = min(max(128 / 255 + 0.06 * normal, 0), 1)
                assert abs(views[row, c].flatten()[pixel].item() - expected) <= 1e-6


def test_noise_is_clipped():
    spec = replace(QUIET, noise=1.0, noise_sigma=(100.0, 100.0))
    images, params = gray_case(spec, 2)
    views = render(images, params, spec)
    assert views.min() == 0
    assert views.max() == 1


EVERYTHING = ViewSpec(
    size=40, rotation=0.7, noise=0.6, noise_sigma=(0.0, 0.3), sobel=0.4, cutout=0.6, solarize=0.3, invert=0.3
)


def test_bits_do_not_depend_on_the_batch():
    images, params = case(EVERYTHING)
    shown = np.arange(len(params)) % len(images)
    whole = render(images, params, EVERYTHING, shown=shown)
    for part in ([0], [len(params) - 1], [3, 17, 4], list(range(1, len(params), 2))):
        some = render(images, params.select(part), EVERYTHING, shown=shown[part])
        assert torch.equal(some, whole[part])


def test_threads_change_no_bit():
    images, params = case(EVERYTHING)
    alone = native.render(images, params, EVERYTHING)
    with ThreadPoolExecutor(4) as pool:
        assert torch.equal(native.render(images, params, EVERYTHING, pool=pool, threads=4), alone)


@pytest.mark.parametrize("size", [40, 17])
def test_all_renderers_draw_the_same(size):
    spec = replace(EVERYTHING, size=size)
    images, params = case(spec)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    difference = (render(images, params, spec, mean, std) - torch_views(images, params, spec, mean, std)).abs()
    # The law: 2/255 at most and 0.2/255 on average. In fact float32 rounding, of pixels at rounded coordinates.
    assert difference.max() <= 2e-5 / min(std)


torch_views = render
