"""Views by DALI's operators: against oracles written from DALI's definitions, and against the torch renderer.

Tolerances are in levels of 255. Every step rounds to 8 bits, half a level; DALI's resize reads its filter from a table.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastssl import config as configuration
from fastssl import recipes
from fastssl.data import ArraySource, Augmentation, CenterCrop, ViewLoader, evaluation_batches, open_source, reader
from fastssl.data.blur import blur
from fastssl.data.decode import decode_one
from fastssl.data.params import ViewParams, sample_params
from fastssl.data.render import render
from fastssl.data.views import ViewSpec
from fastssl.errors import UserError

pytest.importorskip("nvidia.dali", reason="DALI is not installed")

from fastssl.data.dali_graph import ARGUMENTS, DaliRenderer, arguments

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 40


@pytest.fixture(scope="module")
def dali() -> DaliRenderer:
    return DaliRenderer(threads=1)


def photo(height: int, width: int, seed: int = 0, low: int = 0, high: int = 255) -> torch.Tensor:
    """uint8 `[H, W, 3]`: smooth colours and a sharp edge, levels from `low` to `high`."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(low, high, (1, 3, 5, 5)))
    pixels = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)[0]
    pixels[:, : height // 3, : width // 3] = torch.tensor([low, high, low], dtype=pixels.dtype)[:, None, None]
    return pixels.round().to(torch.uint8).permute(1, 2, 0).contiguous()


def plain(n: int, size: int = SIZE, **changes) -> ViewParams:
    """Parameters that do nothing to an image of this size."""
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


def jittered(n: int, factors, **changes) -> ViewParams:
    rows = np.tile(np.array(factors, dtype=np.float32), (n, 1)) if np.ndim(factors) == 1 else np.float32(factors)
    return plain(n, jitter=np.ones(n, dtype=bool), factors=rows, **changes)


def levels(views: torch.Tensor) -> np.ndarray:
    """float64 `[N, H, W, 3]`, 0 to 255."""
    return 255 * views.double().permute(0, 2, 3, 1).numpy()


def drawn(spec: ViewSpec, images: list[torch.Tensor], views: int = 2) -> ViewParams:
    sizes = {"heights": [i.shape[0] for i in images], "widths": [i.shape[1] for i in images]}
    ids = np.arange(len(images))
    return ViewParams.concatenate(
        [sample_params(spec, seed=3, epoch=1, samples=ids, view=v, **sizes) for v in range(views)]
    )


# --------------------------------------------------------------------------------------------------------- geometry


def kernel(x: np.ndarray, interpolation: str) -> np.ndarray:
    x = np.abs(x)
    if interpolation == "bilinear":
        return np.maximum(1 - x, 0)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def repeated_border_matrix(length: int, size: int, interpolation: str) -> np.ndarray:
    """float64 `[size, length]`: antialiased resampling in which taps past the border read the pixel at the border."""
    scale = length / size
    wide = max(scale, 1)
    reach = int(np.ceil(2 * wide)) + 1
    matrix = np.zeros((size, length))
    for i in range(size):
        center = (i + 0.5) * scale
        taps = np.arange(int(center) - reach, int(center) + reach + 1)
        weights = kernel((taps + 0.5 - center) / wide, interpolation)
        np.add.at(matrix[i], np.clip(taps, 0, length - 1), weights / weights.sum())
    return matrix


CROPS = [
    (32, 32, (0, 0, 32, 32), 32),
    (32, 32, (3, 5, 20, 11), 32),
    (32, 32, (31, 31, 1, 1), 32),
    (1, 1, (0, 0, 1, 1), 8),
    (97, 70, (10, 0, 86, 70), 24),
    (33, 95, (1, 2, 31, 90), 17),
    (375, 500, (20, 31, 300, 401), 224),
    (375, 500, (100, 31, 41, 37), 96),
    (500, 200, (0, 0, 500, 200), 8),
]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width", "box", "size"), CROPS)
def test_crop_resize_and_mirror(dali, height, width, box, size, interpolation):
    """Within 1.5 levels of the formula; of the torch renderer within 3 inside, 16 where the filter leaves the crop."""
    image = photo(height, width, seed=height)
    spec = ViewSpec(size=size, interpolation=interpolation)
    params = plain(2, box=np.array([box, box], dtype=np.float32), flip=np.array([False, True]))
    views = dali.render([image], params, spec)
    assert torch.equal(views[1], views[0].flip(-1))
    y, x, h, w = box
    crop = image[y : y + h, x : x + w].double().numpy()
    down, across = (repeated_border_matrix(n, size, interpolation) for n in (h, w))
    expected = np.einsum("yh,hwc,xw->yxc", down, crop, across, optimize=True).clip(0, 255)
    assert np.abs(levels(views)[0] - expected).max() <= 1.5
    distance = 255 * (views - render([image], params, spec)).abs()
    border = 1 if interpolation == "bilinear" else 2
    assert distance.max() <= 16
    assert distance[..., border:-border, border:-border].max() <= 3


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_nothing_to_do_changes_nothing(dali, interpolation):
    images = torch.stack([photo(SIZE, SIZE, seed) for seed in range(3)])
    neutral = jittered(3, (1, 1, 1, 0))  # through the colour operators, with factors of one
    for params in (plain(3), neutral):
        views = dali.render(images, params, ViewSpec(size=SIZE, interpolation=interpolation))
        assert np.abs(levels(views) - images.numpy()).max() <= 1e-4


def test_normalisation(dali):
    images = torch.stack([photo(SIZE, SIZE, seed) for seed in range(2)])
    views = dali.render(images, plain(2), ViewSpec(size=SIZE), MEAN, STD)
    expected = (images.numpy() / 255 - MEAN) / STD
    assert np.abs(views.permute(0, 2, 3, 1).numpy() - expected).max() <= 1e-5
    assert views.dtype == torch.float32
    assert views.is_contiguous()


# ----------------------------------------------------------------------------------------------------------- colour


YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])


def twisted(image: torch.Tensor, factors, *, gray: bool = False, additive: bool = False) -> np.ndarray:
    """DALI's colour twist in float64: chroma scaled and turned in YIQ, contrast around 128, brightness."""
    brightness, contrast, saturation, turns = (float(f) for f in factors)
    angle = 2 * np.pi * turns
    turn = np.array([[1, 0, 0], [0, np.cos(angle), np.sin(angle)], [0, -np.sin(angle), np.cos(angle)]])
    scale = np.diag([1, *[0 if gray else saturation] * 2])
    x = image.double().numpy() @ (np.linalg.inv(YIQ) @ turn @ scale @ YIQ).T
    x = contrast * x + 128 * (1 - contrast)
    if additive:
        return (x.clip(0, 255) + 255 * brightness).clip(0, 255)
    return (brightness * x).clip(0, 255)


@pytest.mark.parametrize("additive", [False, True])
def test_colour_is_dalis_colour_twist(dali, additive):
    """Twenty draws of all four factors; a level and a half for the rounding (of two steps, where additive)."""
    rng = np.random.default_rng(0)
    factors = rng.uniform([0.2, 0.2, 0, -0.5], [1.8, 1.8, 1.8, 0.5], (20, 4)).astype(np.float32)
    factors[:, 0] -= additive
    gray = rng.random(20) < 0.3
    images = torch.stack([photo(SIZE, SIZE, seed) for seed in range(20)])
    spec = ViewSpec(size=SIZE, hue=0.5, additive_brightness=additive)
    views = levels(dali.render(images, jittered(20, factors, gray=gray), spec))
    for view, image, row, colorless in zip(views, images, factors, gray, strict=True):
        assert np.abs(view - twisted(image, row, gray=colorless, additive=additive)).max() <= 1.5


@pytest.mark.parametrize(
    ("factors", "within"),
    [((0.2, 1, 1, 0), 0.51), ((1.7, 1, 1, 0), 0.51), ((1, 1, 0, 0), 1.5), ((1, 1, 0.4, 0), 1.5), ((1, 1, 1.8, 0), 1.5)],
)
def test_brightness_and_saturation_are_the_references(dali, factors, within):
    """Brightness to the rounding; saturation to gray weights that differ in the fourth decimal, too."""
    images = torch.stack([photo(SIZE, SIZE, seed) for seed in range(4)])
    spec = ViewSpec(size=SIZE)
    params = jittered(4, factors)
    assert 255 * (dali.render(images, params, spec) - render(images, params, spec)).abs().max() <= within


def test_additive_brightness_grayscale_solarize_and_invert_are_the_references(dali):
    images = torch.stack([photo(SIZE, SIZE, seed) for seed in range(4)])
    yes, no = np.ones(4, dtype=bool), np.zeros(4, dtype=bool)
    cases = [
        (plain(4, gray=yes), 1.5),
        (plain(4, solarize=yes), 1e-4),
        (plain(4, invert=yes), 1e-4),
        (plain(4, solarize=yes, invert=np.array([True, False, True, False])), 1e-4),
        (jittered(4, (-0.3, 1, 1, 0), gray=no), 0.51),
    ]
    spec = ViewSpec(size=SIZE, additive_brightness=True)
    for params, within in cases:
        assert 255 * (dali.render(images, params, spec) - render(images, params, spec)).abs().max() <= within


@pytest.mark.parametrize("factor", [0.3, 0.8, 1.3])
def test_contrast_differs_by_its_pivot_alone(dali, factor):
    """Without clipping: (1 - factor) · (128 - mean gray level), the same in every pixel."""
    images = torch.stack([photo(SIZE, SIZE, seed, low=70, high=190) for seed in range(4)])
    spec = ViewSpec(size=SIZE)
    params = jittered(4, (1, factor, 1, 0))
    views, reference = (levels(f(images, params, spec)) for f in (dali.render, render))
    mean = (images.double().mean(dim=(1, 2)) @ torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64)).numpy()
    expected = ((1 - factor) * (128 - mean))[:, None, None, None]
    assert np.abs(views - reference - expected).max() <= 1


@pytest.mark.parametrize("turns", [-0.2, 0.1, 0.5])
def test_hue_keeps_luma_and_leaves_gray_alone(dali, turns):
    """The reference keeps the greatest and the least channel instead, so the two meet where there is no colour."""
    images = torch.stack([photo(SIZE, SIZE, seed, low=100, high=155) for seed in range(3)])
    images[0] = images[0][..., :1]
    spec = ViewSpec(size=SIZE, hue=0.5)
    params = jittered(3, (1, 1, 1, turns))
    views, reference = (levels(f(images, params, spec)) for f in (dali.render, render))
    assert np.abs((views - images.numpy()) @ YIQ[0]).max() <= 1
    assert np.abs(views[0] - reference[0]).max() <= 1
    assert np.abs(views[1:] - reference[1:]).max() > 3  # it is an approximation, and the documentation says so


def test_strength_zero_switches_an_operation_off(dali):
    images = photo(SIZE, SIZE)[None]
    params = jittered(1, (1.5, 0.1, 0.1, 0.3))
    views = dali.render(images, params, ViewSpec(size=SIZE, contrast=0, saturation=0, hue=0))
    assert np.abs(levels(views)[0] - (1.5 * images[0].double().numpy()).clip(0, 255)).max() <= 0.51
    off = ViewSpec(size=SIZE, brightness=0, contrast=0, saturation=0, hue=0, additive_brightness=True)
    assert np.abs(levels(dali.render(images, params, off)) - images.numpy()).max() <= 1e-4


# ------------------------------------------------------------------------------------------------------------- blur


@pytest.mark.parametrize("size", [20, 41, 96, 224])
def test_blur_is_the_references(dali, size):
    """Half a level of rounding, and the taps beyond 4 σ; also where the window is cut (σ = 9)."""
    sigma = np.array([0.1, 0.3, 0.8, 1.5, 2, 9, 0], dtype=np.float32)
    images = torch.stack([photo(size, size, seed) for seed in range(len(sigma))])
    spec = ViewSpec(size=size)
    views = levels(dali.render(images, plain(len(sigma), size, sigma=sigma), spec))
    sharp = images.permute(0, 3, 1, 2).float() / 255
    expected = levels(torch.cat([blur(sharp[:-1], sigma[:-1], spec), sharp[-1:]]))
    assert np.abs(views - expected).max() <= 0.55
    assert np.abs(views[-1] - images[-1].numpy()).max() <= 1e-4


def test_small_views_are_not_blurred(dali):
    images = photo(19, 19)[None]
    views = dali.render(images, plain(1, 19, sigma=np.array([2.0], dtype=np.float32)), ViewSpec(size=19))
    assert np.abs(levels(views) - images.numpy()).max() <= 1e-4


# ------------------------------------------------------------------------------------- all together, and determinism

SPECS = [
    ViewSpec(size=33, solarize=0.3, invert=0.2),
    ViewSpec(size=33, interpolation="bilinear", sampler="tensorflow", additive_brightness=True),
    ViewSpec(size=64, scale=(0.05, 0.14), jitter=1.0, grayscale=0.0, blur=1.0, sampler="clip"),
]
SIZES = [(32, 32), (48, 40), (96, 97), (150, 100), (33, 33), (300, 240), (7, 90), (1, 1), (120, 200)]


@pytest.fixture(scope="module")
def ragged() -> list[torch.Tensor]:
    return [photo(h, w, seed) for seed, (h, w) in enumerate(SIZES)]


@pytest.mark.parametrize("spec", SPECS)
def test_a_view_depends_on_nothing_but_itself(dali, ragged, spec):
    """The same bits alone, in company, in another order, and from three threads."""
    params = drawn(spec, ragged)
    views = dali.render(ragged, params, spec, MEAN, STD)
    assert views.shape == (2 * len(ragged), 3, spec.size, spec.size)
    for row in range(len(params)):
        shown = np.array([row % len(ragged)])
        alone = dali.render(ragged, params.select([row]), spec, MEAN, STD, shown=shown)
        assert torch.equal(alone[0], views[row])
    rows = np.random.default_rng(0).permutation(len(params))[:7]
    some = dali.render(ragged, params.select(rows), spec, MEAN, STD, shown=rows % len(ragged))
    assert torch.equal(some, views[torch.from_numpy(rows)])
    threaded = DaliRenderer(threads=3)
    for _ in range(3):
        assert torch.equal(threaded.render(ragged, params, spec, MEAN, STD), views)
    threaded.close()


def test_without_colour_it_is_the_torch_renderer(dali, ragged):
    """Same boxes, mirrors, blur, solarize and invert: a mean distance of one level, whatever the borders do."""
    for spec in SPECS:
        params = drawn(spec, ragged)
        params = replace(params, jitter=np.zeros_like(params.jitter), gray=np.zeros_like(params.gray))
        distance = 255 * (dali.render(ragged, params, spec) - render(ragged, params, spec)).abs()
        assert distance.mean(dim=(1, 2, 3)).max() <= 1


def test_views_stay_when_others_are_drawn(dali):
    """The renderer gives its memory away."""
    spec = ViewSpec(size=SIZE)
    first = dali.render(photo(SIZE, SIZE)[None], plain(1), spec)
    before = first.clone()
    for seed in range(1, 6):
        dali.render(photo(SIZE, SIZE, seed)[None], plain(1), spec)
    assert torch.equal(first, before)


def test_no_views_and_images_that_are_not_contiguous(dali):
    spec = ViewSpec(size=SIZE)
    image = photo(SIZE, SIZE)
    assert dali.render([image], plain(0), spec).shape == (0, 3, SIZE, SIZE)
    strided = image.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(dali.render([strided], plain(1), spec), dali.render([image], plain(1), spec))


def test_arguments_are_those_of_the_graph():
    given = arguments(plain(3), ViewSpec())
    assert tuple(given) == ARGUMENTS
    assert all(len(rows) == 3 for rows in given.values())


# ---------------------------------------------------------------------------------------------------------- refusals


def test_what_is_refused(dali):
    spec, image = ViewSpec(size=SIZE), photo(SIZE, SIZE)
    with pytest.raises(UserError, match="blur-kind pil"):
        dali.render([image], plain(1), replace(spec, blur_kind="pil"))
    for wrong in (image.float(), image[:, :, :2], image[None]):
        with pytest.raises(ValueError, match="uint8"):
            dali.render([wrong], plain(1), spec)
    with pytest.raises(ValueError, match="multiple of 2 rows"):
        dali.render([image, image], plain(1), spec)
    for box in ((-1, 0, 5, 5), (0, 0, 41, 5), (36, 0, 5, 5), (0, 0, 0, 5), (0, 0, float("nan"), 5)):
        with pytest.raises(ValueError, match="inside its image"):
            dali.render([image], plain(1, box=np.array([box], dtype=np.float32)), spec)
    assert dali.render([image], plain(1), spec).isfinite().all()


def test_a_box_blur_without_probability_is_no_obstacle(dali):
    spec = ViewSpec(size=SIZE, blur=0.0, blur_kind="pil")
    assert dali.render([photo(SIZE, SIZE)], plain(1), spec).isfinite().all()


def test_box_blur_is_refused_before_training(class_folder):
    pil = Augmentation((ViewSpec(size=24), ViewSpec(size=24, blur_kind="pil")))
    with pytest.raises(UserError, match=r"--augment.views.1.blur-kind pil"):
        ViewLoader(open_source(class_folder), pil, batch_size=8, seed=0, renderer="dali")
    config = recipes.simclr()
    loader = replace(config.loader, renderer="dali")
    configuration.validate(replace(config, loader=loader))
    with pytest.raises(UserError, match=r"--augment.views.1.blur-kind pil"):
        configuration.validate(replace(config, loader=loader, augment=pil))


def test_without_dali_the_option_is_refused(monkeypatch):
    cpu = torch.device("cpu")
    assert reader.resolve_renderer("dali", cpu) == "dali"
    assert reader.resolve_renderer("auto", cpu) != "dali"
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UserError, match=r"--loader.renderer dali needs the package nvidia-dali"):
        reader.resolve_renderer("dali", cpu)


# ------------------------------------------------------------------------------------------------------------ loader

RECIPE = Augmentation((ViewSpec(size=24, count=2), ViewSpec(size=24, solarize=0.5), ViewSpec(size=17)), MEAN, STD)


def make(folder, **options) -> ViewLoader:
    keywords = {"batch_size": 8, "seed": 1, "threads": 2, "prefetch": 2, "renderer": "dali"} | options
    return ViewLoader(open_source(folder), RECIPE, **keywords)


def groups(batches) -> list[tuple[torch.Tensor, ...]]:
    return [batch.views.groups for batch in batches]


def same(a, b) -> bool:
    pairs = list(zip(a, b, strict=True))
    assert pairs
    return all(torch.equal(x, y) for one, other in pairs for x, y in zip(one, other, strict=True))


def test_epochs_repeat_and_resume(mixed_folder):
    loader = make(mixed_folder)
    whole = groups(loader.epoch(2))
    assert [tuple(g.shape for g in batch) for batch in whole] == [((24, 3, 24, 24), (8, 3, 17, 17))] * 3
    assert same(whole, groups(loader.epoch(2)))
    assert same(whole[1:], groups(loader.epoch(2, start_step=1)))
    assert not same(whole, groups(loader.epoch(3)))
    loader.close()
    for options in ({"threads": 1, "prefetch": 0}, {"decoder": "torchvision"}):
        other = make(mixed_folder, **options)
        assert same(whole, groups(other.epoch(2)))
        other.close()


def test_ranks_share_the_global_batch(mixed_folder):
    loaders = [make(mixed_folder), *(make(mixed_folder, rank=r, world=2) for r in range(2))]
    whole, *parts = (groups(loader.epoch(0)) for loader in loaders)
    for one, first, second in zip(whole, *parts, strict=True):
        for g, count in enumerate((3, 1)):
            halves = [part[g].unflatten(0, (count, -1)) for part in (first, second)]
            assert torch.equal(torch.cat(halves, dim=1).flatten(0, 1), one[g])
    for loader in loaders:
        loader.close()


def test_arrays_and_evaluation():
    """uint8 arrays pass the decoder by; the center crop is the torch renderer's."""
    images = np.stack([photo(32, 32, seed).numpy() for seed in range(20)])
    source = ArraySource(images, np.arange(20))
    crop = CenterCrop(size=24, interpolation="bilinear")
    views = {
        kind: torch.cat([v for v, _, _ in evaluation_batches(source, crop, batch_size=7, renderer=kind)])
        for kind in ("dali", "torch")
    }
    distance = 255 * (views["dali"] - views["torch"]).abs()
    assert len(distance) == 20
    assert distance[..., 1:-1, 1:-1].max() <= 3
    assert distance.max() <= 16


# --------------------------------------------------------------------------------------------------------- benchmark


def test_the_graph_of_the_benchmarks_draws_the_same_views(dali, make_jpeg):
    """From encoded bytes, all views in one pipeline, batches ahead of each other, epoch after epoch."""
    path = Path(__file__).parents[2] / "benchmarks" / "data" / "dali_graph.py"
    module = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("dali_benchmark", path))
    spec.loader.exec_module(module)
    files = [make_jpeg(h, w, seed) for seed, (h, w) in enumerate(SIZES[:-1])]
    images = [decode_one(data) for data in files]
    sizes = np.array([image.shape[:2] for image in images])
    graph = module.EncodedGraph(RECIPE, batch_size=2, threads=2)
    for epoch in range(2):
        fed = list(module.feeds(files, sizes, RECIPE, 2, seed=1, epoch=epoch))
        batches = list(graph.epoch(fed))
        assert len(batches) == len(fed) == 4
        for step, (views, (_, params)) in enumerate(zip(batches, fed, strict=True)):
            shown = images[2 * step : 2 * step + 2]
            groups = [RECIPE.views[g] for g in (0, 0, 1, 2)]
            for view, rows, group in zip(views, params, groups, strict=True):
                assert torch.equal(view, dali.render(shown, rows, group, MEAN, STD))
    with pytest.raises(UserError, match="blur-kind pil"):
        module.EncodedGraph(module.SWAV, batch_size=2)
    assert all(group.blur_kind == "gaussian" for group in module.gaussian(module.SWAV).views)
