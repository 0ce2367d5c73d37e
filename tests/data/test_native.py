"""The native renderer against the torch one, its threads, and what it refuses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastssl.data import native, reader, render
from fastssl.data.params import ViewParams, sample_params
from fastssl.data.views import ViewSpec
from fastssl.errors import UserError

pytestmark = pytest.mark.skipif(not native.available(), reason="the native renderer was not built: no C compiler")

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
# (height, width, size): no multiples of sixteen lanes, larger and smaller than the view, one pixel.
SHAPES = [(32, 32, 32), (31, 47, 24), (90, 70, 31), (375, 500, 224), (1, 1, 8), (200, 7, 33), (5, 3000, 17)]
SPECS = [
    ViewSpec(solarize=0.3, invert=0.2),
    ViewSpec(interpolation="bilinear", blur=1.0, blur_kind="pil", blur_sigma=(0.1, 9.0), additive_brightness=True),
    ViewSpec(jitter=1.0, brightness=0.0, hue=0.5, grayscale=0.5, sampler="tensorflow"),
    ViewSpec(jitter=1.0, color="tensorflow", saturation=3.0, grayscale=0.0),
    ViewSpec(jitter=0.0, scale=(0.01, 0.02), blur=1.0, blur_sigma=(0.01, 100.0)),
]


def case(height: int, width: int, spec: ViewSpec, images: int, views: int = 2) -> tuple[list[torch.Tensor], ViewParams]:
    rng = np.random.default_rng(height + width)
    pixels = [torch.from_numpy(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for _ in range(images)]
    sizes = {"heights": [height] * images, "widths": [width] * images}
    drawn = [
        sample_params(spec, seed=1, epoch=2, samples=np.arange(images), view=view, **sizes) for view in range(views)
    ]
    return pixels, ViewParams.concatenate(drawn)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("height", "width", "size"), SHAPES)
def test_equals_the_torch_renderer(height, width, size, spec):
    spec = replace(spec, size=size)
    images, params = case(height, width, spec, 9 if size < 100 else 3)
    ours = native.render(images, params, spec, MEAN, STD)
    theirs = render.render(images, params, spec, MEAN, STD)
    # Levels in [0, 1] after up to nine rounded operations, divided by the smallest std.
    assert (ours - theirs).abs().max() <= 5e-6 / min(STD)


def test_ragged_images_and_chosen_ones():
    spec = ViewSpec(size=20)
    pairs = [case(h, w, spec, 1, 1) for h, w in ((8, 9), (40, 21), (300, 200))]
    images = [image for pixels, _ in pairs for image in pixels]
    shown = np.array([2, 0, 1, 2])
    params = ViewParams.concatenate([pairs[i][1] for i in shown])
    ours = native.render(images, params, spec, shown=shown)
    torch.testing.assert_close(ours, render.render(images, params, spec, shown=shown), atol=5e-6, rtol=0)


def test_threads_change_no_bit():
    spec = ViewSpec(size=40)
    images, params = case(60, 50, spec, 33)
    alone = native.render(images, params, spec, MEAN, STD)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert torch.equal(native.render(images, params, spec, MEAN, STD, pool=pool, threads=4), alone)


@pytest.mark.parametrize("spec", SPECS)
def test_the_instruction_set_changes_no_bit(spec):
    for height, width, size in ((375, 500, 224), (90, 70, 31)):
        sized = replace(spec, size=size)
        images, params = case(height, width, sized, 4)
        plain, *others = (native.render(images, params, sized, MEAN, STD, version=name) for name in native.versions())
        for other in others:
            assert torch.equal(other, plain)


def test_memory_that_a_job_leaves_behind_changes_no_bit():
    jobs = []
    for number, (height, width, size) in enumerate(SHAPES):
        spec = replace(SPECS[number % len(SPECS)], size=size)
        images, params = case(height, width, spec, 3)
        jobs.append((images, params, spec))
    first = [native.render(*job, MEAN, STD) for job in jobs]
    for job, before in reversed(list(zip(jobs, first, strict=True))):
        assert torch.equal(native.render(*job, MEAN, STD), before)


def test_rows_that_are_not_contiguous():
    spec = ViewSpec(size=16)
    images, params = case(30, 20, spec, 2)
    strided = [image.transpose(0, 1).contiguous().transpose(0, 1) for image in images]
    assert torch.equal(native.render(strided, params, spec), native.render(images, params, spec))


def test_no_views():
    spec = ViewSpec(size=16)
    images, params = case(30, 20, spec, 2)
    assert native.render(images, params.select(slice(0, 0)), spec).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    "box", [(-1, 0, 5, 5), (0, 0, 31, 5), (26, 0, 5, 5), (0, 16, 5, 5), (0, 0, 0, 5), (0, 0, float("nan"), 5)]
)
def test_a_box_outside_its_image_is_refused(box):
    spec = ViewSpec(size=16)
    images, params = case(30, 20, spec, 1, 1)
    params = replace(params, box=np.array([box], dtype=np.float32))
    with pytest.raises(ValueError, match="inside its image"):
        native.render(images, params, spec)


def test_other_input_is_refused():
    spec = ViewSpec(size=16)
    images, params = case(30, 20, spec, 2)
    for wrong in (images[0].float(), images[0][:, :, :2], images[0][None]):
        with pytest.raises(ValueError, match="uint8"):
            native.render([wrong, images[1]], params, spec)
    with pytest.raises(ValueError, match="multiple of 2 rows"):
        native.render(images, params.select([0]), spec)
    wide = replace(params, sigma=np.full(4, 101, dtype=np.float32))
    with pytest.raises(ValueError, match="at most 100"):
        native.render(images, wide, replace(spec, blur_kind="pil"))
    with pytest.raises(ValueError, match="shown"):
        native.render(images, params, spec, shown=np.array([0, 1, 2, 0]))
    with pytest.raises(ValueError, match="at most 10000"):
        native.render(images, params, replace(spec, size=10_001))
    with pytest.raises(ValueError, match="version must be one of plain"):
        native.render(images, params, spec, version="mmx")
    with pytest.raises(ValueError, match="order"):
        native.render(images, replace(params, order=np.full((4, 4), 4, dtype=np.int8)), spec)


def test_which_renderer(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert reader.resolve_renderer("auto", cpu) == "native"
    assert reader.resolve_renderer("torch", cpu) == "torch"
    assert reader.resolve_renderer("torch", cuda) == "torch"
    with pytest.raises(UserError, match="on the CPU, not on cuda"):
        reader.resolve_renderer("native", cuda)
    monkeypatch.setattr(native, "_library", lambda: None)
    assert reader.resolve_renderer("auto", cpu) == "torch"
    with pytest.raises(UserError, match="C compiler"):
        reader.resolve_renderer("native", cpu)
