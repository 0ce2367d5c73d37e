"""Both renderers against torchvision and PIL, and the independence of a view's bits from its company.

Tolerances: colour 1/255 (in fact float32 rounding, 2e-6, where torchvision computes in float32 too); geometry 3/255
against PIL, which rounds to 8 bits after each axis; 1e-5 against torchvision's float resampling.
"""

from __future__ import annotations

import colorsys
import math
import sys
from dataclasses import fields, replace
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms.v2 import functional as TF

from fastssl.data import native
from fastssl.data.blur import blur_taps
from fastssl.data.color import GRAY
from fastssl.data.params import ViewParams, center_params, sample_params
from fastssl.data.render import render
from fastssl.data.resize import resize_matrices
from fastssl.data.views import CenterCrop, ViewSpec

FLOAT = 1e-5


@pytest.fixture(params=["torch", "native"], autouse=True)
def _renderer(request, monkeypatch):
    """Every law here holds for both."""
    if request.param == "native":
        if not native.available():
            pytest.skip("the native renderer was not built: no C compiler was found")
        monkeypatch.setattr(sys.modules[__name__], "render", native.render)


def photo(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """uint8 `[H, W, 3]`: smooth colours, sharp edges and saturated corners."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    pixels[: height // 3, : width // 3] = rng.integers(0, 2, 3) * 255
    pixels[height // 2, :] = 255 - pixels[height // 2, :]
    pixels[-2:, -2:] = 128
    return torch.from_numpy(pixels)


def plain(n: int, size: int, **changes) -> ViewParams:
    """Parameters that do nothing but resize the whole image."""
    values = {
        "box": np.tile(np.array([0, 0, size, size], dtype=np.float32), (n, 1)),
        "flip": np.zeros(n, dtype=bool),
        "jitter": np.zeros(n, dtype=bool),
        "factors": np.tile(np.array([1, 1, 1, 0], dtype=np.float32), (n, 1)),
        "order": np.tile(np.arange(4, dtype=np.int8), (n, 1)),
        "gray": np.zeros(n, dtype=bool),
        "sigma": np.zeros(n, dtype=np.float32),
        "solarize": np.zeros(n, dtype=bool),
        "invert": np.zeros(n, dtype=bool),
    }
    return ViewParams(**(values | changes))


def chw(image: torch.Tensor) -> torch.Tensor:
    return image.permute(2, 0, 1).float() / 255


# --------------------------------------------------------------------------------------------------------- geometry


CROPS = [
    (32, 32, (0, 0, 32, 32), 32),
    (32, 32, (3, 5, 20, 11), 32),
    (32, 32, (31, 31, 1, 1), 32),
    (1, 1, (0, 0, 1, 1), 8),
    (96, 70, (10, 0, 86, 70), 24),
    (97, 70, (10, 0, 86, 70), 24),
    (33, 95, (1, 2, 31, 90), 17),
    (375, 500, (20, 31, 300, 401), 224),
    (375, 500, (100, 31, 41, 37), 96),
    (500, 200, (0, 0, 500, 200), 8),
]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width", "box", "size"), CROPS)
@pytest.mark.parametrize("flip", [False, True])
def test_crop_resize_is_torchvisions(height, width, box, size, interpolation, flip):
    image = photo(height, width)
    params = plain(1, size, box=np.array([box], dtype=np.float32), flip=np.array([flip]))
    view = render([image], params, ViewSpec(size=size, interpolation=interpolation))[0]
    mode = TF.InterpolationMode(interpolation)
    y, x, h, w = box
    expected = TF.resized_crop(chw(image), y, x, h, w, [size, size], mode, antialias=True).clamp(0, 1)
    assert (view - (expected.flip(-1) if flip else expected)).abs().max() <= FLOAT


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width", "box", "size"), [CROPS[0], CROPS[1], CROPS[4], CROPS[7], CROPS[8]])
def test_crop_resize_is_pils(height, width, box, size, interpolation):
    """On levels from 48 to 208: PIL cuts the overshoot of the bicubic filter off after the first axis already."""
    image = (photo(height, width).float() * 160 / 255 + 48).to(torch.uint8)
    params = plain(1, size, box=np.array([box], dtype=np.float32))
    view = render([image], params, ViewSpec(size=size, interpolation=interpolation))[0]
    y, x, h, w = box
    crop = Image.fromarray(image.numpy()).crop((x, y, x + w, y + h))
    expected = np.array(crop.resize((size, size), getattr(Image.Resampling, interpolation.upper())))
    assert (view - chw(torch.from_numpy(expected))).abs().max() <= 3 / 255


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_matrices_are_averages_of_the_crop(interpolation):
    start, length = torch.tensor([0.0, 5, 31, 0]), torch.tensor([32.0, 9, 1, 20])
    matrices = resize_matrices(start, length, None, 32, 13, interpolation)
    torch.testing.assert_close(matrices.sum(2), torch.ones(4, 13), atol=1e-6, rtol=0)
    for row, (a, n) in enumerate(zip(start.long().tolist(), length.long().tolist(), strict=True)):
        outside = torch.ones(32, dtype=torch.bool)
        outside[a : a + n] = False
        assert (matrices[row][:, outside] == 0).all()


def test_same_size_is_the_identity():
    image = photo(32, 32)
    for interpolation in ("bilinear", "bicubic"):
        view = render(image[None], plain(1, 32), ViewSpec(size=32, interpolation=interpolation))[0]
        torch.testing.assert_close(view, chw(image), atol=1e-6, rtol=0)


# ----------------------------------------------------------------------------------------------------------- colour


def jittered(images: torch.Tensor, factors, order=(0, 1, 2, 3), **spec) -> torch.Tensor:
    n, size = images.shape[0], images.shape[1]
    params = plain(
        n,
        size,
        jitter=np.ones(n, dtype=bool),
        factors=np.tile(np.array(factors, dtype=np.float32), (n, 1)),
        order=np.tile(np.array(order, dtype=np.int8), (n, 1)),
    )
    return render(images, params, ViewSpec(size=size, **spec))


OPERATIONS = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


@pytest.mark.parametrize(
    ("which", "factor"),
    [(which, f) for which in range(3) for f in (0.0, 0.2, 0.9, 1.0, 1.4, 1.8)]
    + [(3, f) for f in (-0.5, -0.2, -0.01, 0.0, 0.1, 0.2, 0.33, 0.5)],
)
def test_each_operation_is_torchvisions(which, factor):
    images = torch.stack([photo(40, 40, s) for s in range(4)])
    factors = [1.0, 1.0, 1.0, 0.0]
    factors[which] = factor
    views = jittered(images, factors, hue=0.5)
    expected = torch.stack([OPERATIONS[which](chw(image), factor) for image in images])
    # The three neutral operations and the resampling add rounding; float32 throughout.
    assert (views - expected).abs().max() <= 2e-5


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_all_orders(order):
    images = torch.stack([photo(40, 40, s) for s in range(3)])
    factors = (1.5, 0.6, 1.7, -0.15)
    views = jittered(images, factors, order)
    for image, view in zip(images, views, strict=True):
        expected = chw(image)
        for which in order:
            expected = OPERATIONS[which](expected, factors[which])
        assert (view - expected).abs().max() <= 5e-5


def test_hue_of_all_corners_of_the_colour_cube():
    """Every combination of 0, 1, 0.5 and near-equal values: the branches of the HSV conversion."""
    levels = torch.tensor([0, 1, 127, 128, 254, 255], dtype=torch.uint8)
    colors = torch.cartesian_prod(levels, levels, levels)
    image = torch.zeros(15 * 15, 3, dtype=torch.uint8)
    image[: len(colors)] = colors
    image = image.view(1, 15, 15, 3)
    for shift in (-0.5, -0.3, -1 / 6, 0.0, 1 / 6, 0.25, 0.5):
        view = jittered(image, (1, 1, 1, shift), brightness=0, contrast=0, saturation=0, hue=0.5)[0]
        assert (view - TF.adjust_hue(chw(image[0]), shift)).abs().max() <= 1e-5


def channel_contrast(image: torch.Tensor, factor: float) -> torch.Tensor:
    """`tf.image.adjust_contrast`: distance from each channel's mean."""
    mean = image.double().mean((1, 2), keepdim=True)
    return ((image.double() - mean) * factor + mean).clamp(0, 1)


def hsv_saturation(image: torch.Tensor, factor: float) -> torch.Tensor:
    """`tf.image.adjust_saturation`: through the HSV of Python's standard library, pixel by pixel."""
    changed = []
    for pixel in image.double().flatten(1).T.tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        changed.append(colorsys.hsv_to_rgb(hue, min(1.0, saturation * factor), value))
    return torch.tensor(changed, dtype=torch.float64).T.view(image.shape)


@pytest.mark.parametrize("factor", [0.0, 0.2, 0.9, 1.0, 1.4, 3.0])
@pytest.mark.parametrize("operation", [channel_contrast, hsv_saturation])
def test_tensorflows_contrast_and_saturation(operation, factor):
    images = torch.stack([photo(24, 24, s) for s in range(3)])
    factors = [1.0, factor, 1.0, 0.0] if operation is channel_contrast else [1.0, 1.0, factor, 0.0]
    views = jittered(images, factors, color="tensorflow")
    expected = torch.stack([operation(chw(image), factor) for image in images])
    # The three neutral operations and the resampling add rounding; a factor of 3 triples it.
    assert (views - expected).abs().max() <= 5e-5


def test_saturation_in_hsv_of_all_corners_of_the_colour_cube():
    """Black, gray, pure and near-equal colours: a chroma of 0, and saturations at and near 1."""
    levels = torch.tensor([0, 1, 127, 128, 254, 255], dtype=torch.uint8)
    image = torch.zeros(15 * 15, 3, dtype=torch.uint8)
    image[:216] = torch.cartesian_prod(levels, levels, levels)
    image = image.view(1, 15, 15, 3)
    for factor in (0.0, 0.5, 1.0, 1.5, 100.0):
        view = jittered(image, (1, 1, factor, 0), color="tensorflow", brightness=0, contrast=0, hue=0)[0]
        # A difference of two levels that are one apart is known to 2e-5, which a factor of 100 enlarges.
        assert (view - hsv_saturation(chw(image[0]), factor)).abs().max() <= 2e-6 * max(10, factor)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1), (3, 2, 1, 0)])
def test_tensorflows_colour_in_any_order(order):
    images = torch.stack([photo(20, 20, s) for s in range(2)])
    factors = (0.15, 0.7, 1.6, -0.1)
    steps = (lambda x, f: (x + f).clamp(0, 1), channel_contrast, hsv_saturation, TF.adjust_hue)
    views = jittered(images, factors, order, color="tensorflow", additive_brightness=True)
    for image, view in zip(images, views, strict=True):
        expected = chw(image).double()
        for which in order:
            expected = steps[which](expected, factors[which])
        assert (view - expected).abs().max() <= 5e-5


def test_additive_brightness():
    image = photo(32, 32)[None]
    view = jittered(image, (-0.3, 1, 1, 0), additive_brightness=True, contrast=0, saturation=0, hue=0)[0]
    torch.testing.assert_close(view, (chw(image[0]) - 0.3).clamp(0, 1), atol=1e-6, rtol=0)


def test_strength_zero_switches_an_operation_off():
    image = photo(32, 32)[None]
    view = jittered(image, (1.5, 0.1, 0.1, 0.3), contrast=0, saturation=0, hue=0)[0]
    torch.testing.assert_close(view, (chw(image[0]) * 1.5).clamp(0, 1), atol=1e-6, rtol=0)


def test_gray_solarize_invert_and_normalise():
    images = torch.stack([photo(32, 32, s) for s in range(5)])
    params = plain(
        5,
        32,
        gray=np.array([1, 0, 0, 0, 1], dtype=bool),
        solarize=np.array([0, 1, 0, 0, 1], dtype=bool),
        invert=np.array([0, 0, 1, 0, 1], dtype=bool),
    )
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    views = render(images, params, ViewSpec(size=32), mean, std)
    for i, image in enumerate(images):
        expected = chw(image)
        if i in (0, 4):
            expected = TF.rgb_to_grayscale(expected, 3)
        if i in (1, 4):
            # Torchvision's threshold on the 255-scale; levels beside it are the same in both.
            expected = TF.solarize(expected, 0.5)
        if i in (2, 4):
            expected = TF.invert(expected)
        expected = TF.normalize(expected, list(mean), list(std))
        assert (views[i] - expected).abs().max() <= 1e-5


def test_gray_weights():
    assert GRAY == (0.2989, 0.587, 0.114)


# ------------------------------------------------------------------------------------------------------------- blur


@pytest.mark.parametrize(("size", "taps"), [(224, 23), (96, 9), (64, 7), (32, 3), (20, 3), (19, 1), (8, 1)])
def test_taps(size, taps):
    assert blur_taps(size) == taps


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_impulse_response_has_23_taps(sigma):
    image = torch.zeros(1, 224, 224, 3, dtype=torch.uint8)
    image[0, 100, 120] = 255
    view = render(image, plain(1, 224, sigma=np.array([sigma], dtype=np.float32)), ViewSpec(size=224))[0, 0].double()
    x = torch.arange(-11, 12, dtype=torch.float64)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    expected = torch.zeros(224, 224, dtype=torch.float64)
    expected[100 - 11 : 100 + 12, 120 - 11 : 120 + 12] = kernel[:, None] * kernel
    torch.testing.assert_close(view, expected, atol=1e-6, rtol=0)
    if sigma == 2.0:
        assert (view.sum(0) > 0).sum() == 23


@pytest.mark.parametrize("size", [224, 96, 33, 20])
def test_gaussian_blur_is_torchvisions(size):
    images = torch.stack([photo(size, size, s) for s in range(3)])
    sigmas = np.array([0.1, 0.9, 2.0], dtype=np.float32)
    views = render(images, plain(3, size, sigma=sigmas), ViewSpec(size=size))
    taps = 2 * ((size // 10) // 2) + 1
    for image, view, sigma in zip(images, views, sigmas.tolist(), strict=True):
        expected = TF.gaussian_blur(chw(image), [taps, taps], [sigma, sigma])
        assert (view - expected).abs().max() <= FLOAT


@pytest.mark.parametrize("size", [8, 19])
def test_small_views_are_not_blurred(size):
    image = photo(size, size)[None]
    view = render(image, plain(1, size, sigma=np.ones(1, dtype=np.float32)), ViewSpec(size=size))
    assert torch.equal(view, render(image, plain(1, size), ViewSpec(size=size)))


@pytest.mark.parametrize("size", [224, 96, 32, 8])
@pytest.mark.parametrize("radius", [0.1, 0.5, 0.99, 1.0, 1.5, 2.0, 4.0])
def test_pil_blur(size, radius):
    image = photo(size, size)
    params = plain(1, size, sigma=np.array([radius], dtype=np.float32))
    view = render([image], params, ViewSpec(size=size, blur_kind="pil"))[0]
    expected = np.array(Image.fromarray(image.numpy()).filter(ImageFilter.GaussianBlur(radius)))
    # PIL rounds to 8 bits after each of its six passes.
    assert np.abs(view.permute(1, 2, 0).numpy() * 255 - expected).max() <= 3


# ------------------------------------------------------------------------------------------------- whole and company

RECIPES = {
    "simclr": ViewSpec(size=32, sampler="tensorflow"),
    "simclr-224": ViewSpec(sampler="tensorflow", blur=1.0),
    "simclr-cifar": ViewSpec(size=32, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.0),
    "byol": ViewSpec(
        size=64,
        sampler="clip",
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        additive_brightness=True,
        blur=0.1,
        solarize=0.2,
    ),
    "swav": ViewSpec(size=48, scale=(0.05, 0.14), interpolation="bilinear", blur_kind="pil", invert=0.1),
}


@pytest.mark.parametrize("name", list(RECIPES))
def test_whole_chain(name):
    """All stages together, against torchvision's functions applied one after another."""
    spec = RECIPES[name]
    images = [
        photo(*hw, seed)
        for seed, hw in enumerate(
            [(32, 32), (64, 48), (120, 90), (97, 96), (200, 300)] * (1 if spec.size == 224 else 4)
        )
    ]
    heights, widths = [i.shape[0] for i in images], [i.shape[1] for i in images]
    p = sample_params(spec, seed=3, epoch=1, samples=np.arange(len(images)), view=1, heights=heights, widths=widths)
    views = render(images, p, spec)
    for i, image in enumerate(images):
        y, x, h, w = p.box[i].astype(int).tolist()
        mode = TF.InterpolationMode(spec.interpolation)
        expected = TF.resized_crop(chw(image), y, x, h, w, [spec.size] * 2, mode, antialias=True).clamp(0, 1)
        if p.flip[i]:
            expected = expected.flip(-1)
        if p.jitter[i]:
            for which in p.order[i].tolist():
                amount = float(p.factors[i, which])
                if which == 0 and spec.additive_brightness:
                    expected = (expected + amount).clamp(0, 1)
                else:
                    expected = OPERATIONS[which](expected, amount)
        if p.gray[i]:
            expected = TF.rgb_to_grayscale(expected, 3)
        if p.sigma[i] > 0:
            sigma = float(p.sigma[i])
            if spec.blur_kind == "gaussian":
                expected = gaussian(expected, sigma, blur_taps(spec.size))
            else:
                pil = TF.to_pil_image((expected * 255).round().to(torch.uint8)).filter(ImageFilter.GaussianBlur(sigma))
                expected = TF.pil_to_tensor(pil) / 255
        rough = spec.blur_kind == "pil" and p.sigma[i] > 0
        if p.solarize[i]:
            # Levels within rounding of the threshold may fall on either side; they are left out.
            near = (expected - 0.5).abs() < 1e-4
            expected = torch.where(near, views[i], torch.where(expected >= 0.5, 1 - expected, expected))
        if p.invert[i]:
            expected = 1 - expected
        assert (views[i] - expected).abs().max() <= (4 / 255 if rough else 2e-4), i


def gaussian(image: torch.Tensor, sigma: float, taps: int) -> torch.Tensor:
    """Separable Gaussian in float64, borders reflected."""
    x = torch.arange(taps, dtype=torch.float64) - taps // 2
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel /= kernel.sum()
    padded = torch.nn.functional.pad(image.double()[None], [taps // 2] * 4, mode="reflect")
    weight = (kernel[:, None] * kernel).expand(3, 1, taps, taps)
    return torch.nn.functional.conv2d(padded, weight, groups=3)[0].float()


def test_views_share_the_images():
    """V·N rows, view-major: the same as V separate calls."""
    images = [photo(*hw, s) for s, hw in enumerate([(32, 32), (120, 90), (64, 48)])]
    spec = RECIPES["simclr"]
    sizes = [i.shape[0] for i in images], [i.shape[1] for i in images]
    drawn = [
        sample_params(spec, seed=0, epoch=0, samples=[5, 6, 7], view=v, heights=sizes[0], widths=sizes[1])
        for v in range(3)
    ]
    together = render(images, ViewParams.concatenate(drawn), spec)
    assert torch.equal(together, torch.cat([render(images, p, spec) for p in drawn]))


@pytest.mark.parametrize("name", list(RECIPES))
@pytest.mark.parametrize("same_size", [True, False])
def test_bits_do_not_depend_on_the_batch_or_the_threads(name, same_size):
    spec = RECIPES[name]
    sizes = [(32, 32)] * 37 if same_size else [(32, 32), (48, 64), (33, 31), (97, 50), (32, 32), (240, 320)] * 6
    sizes = sizes[:18] if spec.size == 224 else sizes
    images = [photo(*hw, seed) for seed, hw in enumerate(sizes)]
    n = len(images)
    heights, widths = [i.shape[0] for i in images], [i.shape[1] for i in images]
    p = sample_params(spec, seed=0, epoch=0, samples=np.arange(n), view=0, heights=heights, widths=widths)
    whole = render(torch.stack(images) if same_size else images, p, spec)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            for part in ([0], [n - 1], [3, 17, 4], list(range(1, n, 2)), list(range(n))):
                alone = render([images[i] for i in part], p.select(part), spec)
                assert torch.equal(alone, whole[part]), (threads, part)
        finally:
            torch.set_num_threads(2)


def test_center_crop_is_the_middle():
    image = photo(300, 400)
    crop = CenterCrop(size=224, crop=1.0)
    view = render([image], center_params(crop, [300], [400]), ViewSpec(size=224))[0]
    expected = TF.resize(TF.center_crop(chw(image), [300, 300]), [224, 224], TF.InterpolationMode.BICUBIC)
    assert (view - expected.clamp(0, 1)).abs().max() <= FLOAT


def test_extreme_images():
    """Constant black and white images stay so under every operation, with no NaN."""
    for level in (0, 255):
        images = torch.full((4, 32, 32, 3), level, dtype=torch.uint8)
        spec = replace(RECIPES["simclr"], blur=1.0, size=40, brightness=0.0, contrast=0.8)
        p = sample_params(spec, seed=0, epoch=0, samples=range(4), view=0, heights=[32] * 4, widths=[32] * 4)
        views = render(images, p, spec)
        assert views.isfinite().all()
        # The gray weights sum to 0.9999, which grayscale and contrast show.
        assert (views - level / 255).abs().max() <= 2e-4


def test_rows_must_match_the_images():
    with pytest.raises(ValueError, match="multiple of 3 rows"):
        render(torch.zeros(3, 8, 8, 3, dtype=torch.uint8), plain(4, 8), ViewSpec(size=8))


def test_params_have_a_row_in_every_field():
    p = plain(3, 8)
    assert {len(getattr(p, f.name)) for f in fields(ViewParams) if f.name != "study"} == {3}
    assert math.isclose(sum(GRAY), 0.9999)


def test_grayscale_before_the_jitter():
    """MoCo v1: what follows grayscale sees gray, so that saturation and hue change nothing and contrast may."""
    image = photo(40, 40)
    factors = np.array([[1.3, 0.7, 1.6, 0.3]], dtype=np.float32)
    some = plain(1, 40, jitter=np.array([True]), factors=factors, gray=np.array([True]))
    before = render([image], some, ViewSpec(size=40, grayscale_first=True))[0]
    after = render([image], some, ViewSpec(size=40))[0]
    gray = torch.clamp(TF.rgb_to_grayscale(chw(image)) * 1.3, 0, 1)
    expected = TF.adjust_contrast(gray.expand(3, -1, -1), 0.7)
    # Gray's weights sum to 0.9999, so that a second gray level, inside contrast and saturation, is darker by 1e-4.
    assert (before - expected).abs().max() <= 5e-4
    assert (before - after).abs().max() > 0.02
