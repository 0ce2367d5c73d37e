"""The engine's face of the GPU renderer; the operator's CPU path stands in for the kernels, which are tested apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastssl.data import ArraySource, Augmentation, ViewLoader, reader, triton_render
from fastssl.data.params import ViewParams, sample_params
from fastssl.data.render import render
from fastssl.data.views import ViewSpec
from fastssl.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
SPECS = [
    ViewSpec(solarize=0.3, invert=0.2, size=24),
    ViewSpec(interpolation="bilinear", blur=1.0, blur_kind="pil", blur_sigma=(0.1, 9.0), size=17),
    ViewSpec(jitter=1.0, brightness=0.0, hue=0.5, grayscale=0.5, grayscale_first=True, size=32),
    ViewSpec(jitter=1.0, color="tensorflow", saturation=3.0, grayscale=0.0, size=28),
    ViewSpec(additive_brightness=True, contrast=0.0, saturation=0.0, size=20),
]


def case(spec: ViewSpec) -> tuple[list[torch.Tensor], ViewParams]:
    rng = np.random.default_rng(0)
    heights, widths = [32, 7, 60, 1], [32, 90, 45, 1]
    pixels = [
        torch.from_numpy(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in zip(heights, widths, strict=True)
    ]
    sizes = {"heights": heights, "widths": widths}
    drawn = [sample_params(spec, seed=1, epoch=2, samples=np.arange(4), view=view, **sizes) for view in range(3)]
    return pixels, ViewParams.concatenate(drawn)


@pytest.mark.parametrize("spec", SPECS)
def test_equals_the_torch_renderer(spec):
    images, params = case(spec)
    ours = triton_render.render(images, params, spec, MEAN, STD)
    assert (ours - render(images, params, spec, MEAN, STD)).abs().max() <= 1e-5 / min(STD)


def test_chosen_images_dtype_and_layout():
    images, params = case(SPECS[0])
    shown = np.array([2, 0, 1, 2])
    some = params.select([2, 0, 1, 6])
    ours = triton_render.render(images, some, SPECS[0], shown=shown, dtype=torch.bfloat16, channels_last=True)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    expected = render(images, some, SPECS[0], shown=shown)
    torch.testing.assert_close(ours.float(), expected, atol=1e-4, rtol=2**-8)


def test_rows_must_match_the_images():
    images, params = case(SPECS[0])
    with pytest.raises(ValueError, match="multiple of 4 rows"):
        triton_render.render(images, params.select([0]), SPECS[0])
    wrong = replace(params, box=np.tile(np.array([0, 0, 33, 1], dtype=np.float32), (12, 1)))
    with pytest.raises(ValueError, match="must lie inside its image"):
        triton_render.render(images, wrong, SPECS[0])


def test_which_renderer(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(triton_render, "available", lambda: True)
    assert reader.resolve_renderer("auto", cuda) == "triton"
    assert reader.resolve_renderer("triton", cuda) == "triton"
    assert reader.resolve_renderer("torch", cuda) == "torch"
    assert reader.resolve_renderer("auto", torch.device("cpu")) != "triton"
    with pytest.raises(UserError, match="on a GPU, not on cpu: use auto"):
        reader.resolve_renderer("triton", torch.device("cpu"))
    monkeypatch.setattr(triton_render, "available", lambda: False)
    assert reader.resolve_renderer("auto", cuda) == "torch"
    with pytest.raises(UserError, match="needs the package triton"):
        reader.resolve_renderer("triton", cuda)


def test_a_loader_gives_views_as_they_are_asked_for():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    recipe = Augmentation((ViewSpec(size=16, count=2), ViewSpec(size=16)))

    def first(**form) -> torch.Tensor:
        loader = ViewLoader(ArraySource(pixels), recipe, batch_size=8, seed=0, prefetch=0, **form)
        try:
            return loader.batch(0, 0).views.groups[0]
        finally:
            loader.close()

    views, plain = first(dtype=torch.bfloat16, channels_last=True), first()
    assert views.dtype == torch.bfloat16
    assert views.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(views, plain.bfloat16())
