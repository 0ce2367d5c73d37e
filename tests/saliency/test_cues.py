"""Each cue against its definition, written out slowly: Fourier sums, paths by pixel, sums over pairs of pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fastssl.saliency.fusion import CUES, cut, fuse, otsu, overlap
from fastssl.saliency.guided_filter import guided_filter
from fastssl.saliency.histogram_contrast import colour_contrast, histogram_contrast, quantised
from fastssl.saliency.lab import lab
from fastssl.saliency.minimum_barrier import barrier_distance, border_contrast, minimum_barrier
from fastssl.saliency.spectral_residual import residual_energy


def disc(size: int = 64, radius: float = 0.25, *, noise: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An orange disc right of the middle on blue; the image uint8 `[1, S, S, 3]` and its mask."""
    y, x = np.mgrid[:size, :size] / size
    inside = (x - 0.55) ** 2 + (y - 0.45) ** 2 < radius**2
    image = np.where(inside[:, :, None], [220, 130, 30], [40, 70, 160])
    image = image + np.random.default_rng(0).integers(-noise, noise + 1, image.shape)
    return image.clip(0, 255).astype(np.uint8)[None], inside[None]


def random_images(n: int = 3, size: int = 32) -> np.ndarray:
    coarse = np.random.default_rng(1).integers(0, 256, (n, 5, 5, 3), dtype=np.uint8)
    return np.stack([np.array(Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC)) for c in coarse])


@pytest.mark.parametrize("name", list(CUES))
def test_a_cue_is_higher_on_a_disc_than_on_its_ground(name):
    image, inside = disc(noise=6)
    found = CUES[name](image)
    assert found.dtype == np.float32
    assert found.shape == inside.shape
    assert found.min() == 0
    assert found.max() == 1
    # The spectral residual finds the outline of something large, the others all of it.
    least = 1.5 if name == "spectral residual" else 5
    assert found[inside].mean() > least * found[~inside].mean()


@pytest.mark.parametrize("name", list(CUES))
def test_a_flat_image_has_nothing_salient(name):
    flat = np.full((2, 32, 32, 3), 77, dtype=np.uint8)
    assert not CUES[name](flat).any()
    assert not cut(fuse({name: CUES[name](flat)}, flat)).any()


@pytest.mark.parametrize("name", list(CUES))
def test_a_cue_of_an_image_does_not_depend_on_its_neighbours(name):
    images = random_images()
    together = CUES[name](images)
    for i in range(3):
        np.testing.assert_allclose(CUES[name](images[i : i + 1])[0], together[i], atol=2e-6)  # orders of summation


def test_lab_of_known_colours():
    """sRGB's primaries, white and black in CIE L*a*b* under D65, to two decimals."""
    colours = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8)
    known = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]
    np.testing.assert_allclose(lab(colours), known, atol=0.01)


# ------------------------------------------------------------------------------------------------ spectral residual


def test_the_spectral_residual_is_the_papers_written_with_fourier_sums():
    n = 8
    gray = np.random.default_rng(2).random((n, n))
    wave = np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n)
    spectrum = wave @ gray @ wave
    log = np.log(np.abs(spectrum) + 1e-8)
    phase = np.angle(spectrum)
    residual = np.empty((n, n))
    for u in range(n):
        for v in range(n):
            around = [log[(u + i) % n, (v + j) % n] for i in (-1, 0, 1) for j in (-1, 0, 1)]
            residual[u, v] = log[u, v] - sum(around) / 9
    back = wave.conj() @ np.exp(residual + 1j * phase) @ wave.conj() / n**2
    np.testing.assert_allclose(residual_energy(gray[None])[0], np.abs(back) ** 2, rtol=1e-6)


# -------------------------------------------------------------------------------------------------- minimum barrier


def scanned(levels: np.ndarray, scans: int) -> np.ndarray:
    """FastMBD as the paper's algorithm reads, pixel by pixel."""
    h, w = levels.shape
    distance = np.full((h, w), np.inf)
    distance[[0, -1]] = distance[:, [0, -1]] = 0
    high, low = levels.copy(), levels.copy()
    for scan in range(scans):
        step = 1 if scan % 2 == 0 else -1
        for y in range(h)[::step]:
            for x in range(w)[::step]:
                for ny, nx in ((y - step, x), (y, x - step)):
                    if 0 <= ny < h and 0 <= nx < w and np.isfinite(distance[ny, nx]):
                        top, bottom = max(high[ny, nx], levels[y, x]), min(low[ny, nx], levels[y, x])
                        if top - bottom < distance[y, x]:
                            distance[y, x], high[y, x], low[y, x] = top - bottom, top, bottom
    return distance


def exact_barriers(levels: np.ndarray) -> np.ndarray:
    """The least u - l so that levels in [l, u] connect a pixel to the border, by trying all l and u."""
    h, w = levels.shape
    best = np.full((h, w), np.inf)
    values = np.unique(levels)
    for low in values:
        for high in values[values >= low]:
            allowed = (levels >= low) & (levels <= high)
            reached = np.zeros((h, w), dtype=bool)
            todo = [
                (y, x) for y in range(h) for x in range(w) if allowed[y, x] and (y in (0, h - 1) or x in (0, w - 1))
            ]
            while todo:
                y, x = todo.pop()
                if 0 <= y < h and 0 <= x < w and allowed[y, x] and not reached[y, x]:
                    reached[y, x] = True
                    todo += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
            best[reached] = np.minimum(best[reached], high - low)
    return best


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (6, 5), (9, 14)])
@pytest.mark.parametrize("scans", [1, 2, 3])
def test_barriers_by_diagonals_are_those_of_the_raster_scan(size, scans):
    levels = np.random.default_rng(3).integers(0, 9, (*size, 4)).astype(np.float32)
    found = barrier_distance(levels, scans)
    for m in range(4):
        np.testing.assert_array_equal(found[:, :, m], scanned(levels[:, :, m], scans))


def test_barriers_are_never_below_the_exact_ones_and_mostly_equal():
    levels = np.random.default_rng(4).integers(0, 6, (7, 7, 12)).astype(np.float32)
    found = barrier_distance(levels, scans=4)
    exact = np.stack([exact_barriers(levels[:, :, m]) for m in range(12)], axis=2)
    assert (found >= exact).all()
    assert (found == exact).mean() > 0.9
    # A disc on a flat ground is exact: its pixels are a step away, a hole in it is two.
    ring = np.zeros((9, 9, 1), dtype=np.float32)
    ring[2:7, 2:7] = 5
    ring[4, 4] = 1
    np.testing.assert_array_equal(barrier_distance(ring)[:, :, 0], exact_barriers(ring[:, :, 0]))


def test_border_contrast_is_the_sum_of_mahalanobis_distances_without_the_greatest():
    colours = lab(random_images(1, 20))
    pixels = colours[0].astype(np.float64)
    maps = []
    for strip in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
        flat = strip.reshape(-1, 3)
        inverse = np.linalg.inv(np.cov(flat.T, bias=True) + np.eye(3))
        apart = pixels - flat.mean(axis=0)
        distance = np.sqrt(np.array([[d @ inverse @ d for d in row] for row in apart]))
        maps.append((distance - distance.min()) / np.ptp(distance))
    total = sum(maps) - np.max(maps, axis=0)
    np.testing.assert_allclose(border_contrast(colours)[0], (total - total.min()) / np.ptp(total), atol=1e-5)


# ----------------------------------------------------------------------------------------------- histogram contrast


def test_contrast_is_the_papers_sum_over_all_pairs_of_pixels():
    image = random_images(1, 12)[0]
    colours, number = quantised(image)
    pixels = colours[number.ravel()]
    contrast = np.array([np.mean([np.linalg.norm(p - q) for q in pixels]) for p in colours])
    n, smooth = len(colours), []
    m = max(2, n // 4)
    assert n > 8
    for c in range(n):
        near = sorted(range(n), key=lambda i: np.linalg.norm(colours[c] - colours[i]))[:m]
        distance = [np.linalg.norm(colours[c] - colours[i]) for i in near]
        total = sum(distance)
        smooth.append(sum((total - d) * contrast[i] for d, i in zip(distance, near, strict=True)) / ((m - 1) * total))
    shares = np.bincount(number.ravel(), minlength=n) / number.size
    np.testing.assert_allclose(colour_contrast(colours, shares), smooth, rtol=1e-9)
    found = histogram_contrast(image[None])[0]
    expected = np.array(smooth)[number]
    np.testing.assert_allclose(found, (expected - expected.min()) / np.ptp(expected), atol=1e-6)


def test_rare_colours_become_the_nearest_frequent_one():
    image = np.zeros((20, 20, 3), dtype=np.uint8)
    image[:10] = (250, 0, 0)
    image[10:19] = (0, 0, 250)
    image[19, :4] = (250, 60, 0)  # 1 %, nearer to the red
    image[19, 4:] = (0, 0, 250)
    colours, number = quantised(image)
    assert len(colours) == 2
    assert (number[19, :4] == number[0, 0]).all()


@pytest.mark.parametrize("colours", [1, 2, 3])
def test_images_of_few_colours(colours):
    image = np.zeros((1, 16, 16, 3), dtype=np.uint8)
    for i in range(colours):
        image[0, :, 5 * i : 5 * i + 3 - i] = (200, 90 * i, 30)
    assert np.isfinite(histogram_contrast(image)).all()
    assert np.isfinite(minimum_barrier(image)).all()


# ----------------------------------------------------------------------------------------------------------- fusion


def test_the_guided_filter_is_the_papers_window_by_window():
    rng = np.random.default_rng(5)
    p, image = rng.random((1, 9, 11)).astype(np.float32), rng.integers(0, 256, (1, 9, 11, 3), dtype=np.uint8)
    guide = (image[0] / 255) @ [0.299, 0.587, 0.114]
    r, eps = 2, 0.01
    a, b = np.empty((9, 11)), np.empty((9, 11))
    for y in range(9):
        for x in range(11):
            window = np.s_[max(0, y - r) : y + r + 1, max(0, x - r) : x + r + 1]
            g, v = guide[window], p[0][window]
            a[y, x] = ((g * v).mean() - g.mean() * v.mean()) / (g.var() + eps)
            b[y, x] = v.mean() - a[y, x] * g.mean()
    expected = np.empty((9, 11))
    for y in range(9):
        for x in range(11):
            window = np.s_[max(0, y - r) : y + r + 1, max(0, x - r) : x + r + 1]
            expected[y, x] = a[window].mean() * guide[y, x] + b[window].mean()
    found = guided_filter(p, image, radius=r, epsilon=eps)[0]
    np.testing.assert_allclose(found, expected.clip(0, 1), atol=1e-6)


def test_otsus_level_has_the_greatest_variance_between_classes():
    rng = np.random.default_rng(6)
    maps = np.stack([rng.beta(0.5, 0.8, (16, 16)), rng.random((16, 16)) ** 3]).astype(np.float32)
    for values, level in zip(np.minimum(np.floor(maps * 256), 255), otsu(maps), strict=True):
        best = -1.0
        for k in range(1, 256):
            low, high = values[values < k], values[values >= k]
            if low.size and high.size:
                best = max(best, low.size * high.size * (low.mean() - high.mean()) ** 2)
        low, high = values[values < 256 * level], values[values >= 256 * level]
        assert low.size * high.size * (low.mean() - high.mean()) ** 2 == pytest.approx(best, rel=1e-9)


def test_overlap_is_intersection_over_union_and_1_where_both_are_empty():
    a = np.zeros((3, 2, 2), dtype=bool)
    b = a.copy()
    a[0, 0], b[0, :, 0] = True, True
    a[1, 0, 0] = True
    np.testing.assert_allclose(overlap(a, b), [1 / 3, 0, 1])
