"""The kernel for rotation, noise, Sobel and cutout against the torch renderer and float64, and what it moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fastssl_kernels.augment import cost, launch, render_views_reference
from proof.interpreter import checked, same_in_any_order
from view_cases import MEAN, RAGGED, STD, case, pack_study

from fastssl.data.render import render
from fastssl.data.views import ViewSpec

# Float32 rounding of levels around 1. Noise has σ up to 0.5 and numbers up to 5.8.
FLOAT = 2e-5
QUIET = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
SPECS = {
    "rotation": ViewSpec(rotation=1.0, **QUIET),
    "noise": ViewSpec(noise=1.0, noise_sigma=(0.05, 0.5), **QUIET),
    "sobel": ViewSpec(sobel=1.0, **QUIET),
    "cutout": ViewSpec(cutout=1.0, cutout_fill=0.25, **QUIET),
    "everything": ViewSpec(
        rotation=0.7, noise=0.6, noise_sigma=(0.0, 0.3), sobel=0.4, cutout=0.6, solarize=0.3, invert=0.3
    ),
}


def run(images, packed, study, spec, dtype=torch.float32, channels_last=False, mean=MEAN, std=STD):
    options = (spec.size, spec.interpolation == "bicubic", spec.blur_kind == "pil", mean, std, dtype, channels_last)
    return launch.render(images, packed, *options, study)


@pytest.mark.parametrize(("name", "size"), [(name, 24) for name in SPECS] + [("everything", 8), ("everything", 37)])
def test_views_are_those_of_the_torch_renderer(name, size):
    spec = replace(SPECS[name], size=size)
    images, params, packed = case(spec, RAGGED, views=2)
    study = pack_study(params, spec)
    with checked(seed=size, **{f"image{i}": image for i, image in enumerate(images)}) as work:
        ours = run(images, packed, study, spec)
    theirs = render(images, params, spec, MEAN, STD)
    assert (ours - theirs).abs().max() <= FLOAT / min(STD)
    expected = cost.Work(packed, size, study=study)
    assert (work.loaded, work.stored) == (expected.loaded_bytes(), expected.stored_bytes())
    contrast = bool((packed[:, 9] < packed[:, 8]).any())
    assert work.launches == 2 + contrast + (bool((packed[:, 6] > 0).any()) and size >= 20)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["rotation", "noise", "cutout"])
def test_16_bit_views(name, dtype):
    """As without these operations; a gradient is not in the list, as near 0 it enlarges what the levels have lost."""
    spec = replace(SPECS[name], size=24)
    images, params, packed = case(spec, RAGGED)
    study = pack_study(params, spec)
    with checked(**{f"image{i}": image for i, image in enumerate(images)}):
        ours = run(images, packed, study, spec, dtype, mean=(0, 0, 0), std=(1, 1, 1)).double()
    exact = render_views_reference(images, packed, 24, study=study)
    half_a_place = exact.clamp(min=2**-14).log2().floor().exp2() * torch.finfo(dtype).eps / 2
    beyond = ((ours - exact).abs() - half_a_place).clamp(min=0)
    assert beyond.max() <= 0.3 / 255
    assert beyond.mean() <= 0.05 / 255


def test_a_gradient_of_16_bit_views():
    spec = replace(SPECS["sobel"], size=24)
    images, params, packed = case(spec, RAGGED)
    study = pack_study(params, spec)
    with checked(**{f"image{i}": image for i, image in enumerate(images)}):
        ours = run(images, packed, study, spec, torch.bfloat16, mean=(0, 0, 0), std=(1, 1, 1)).double()
    difference = (ours - render_views_reference(images, packed, 24, study=study)).abs()
    assert difference.max() <= 2 / 255
    assert difference.mean() <= 0.2 / 255


def test_layout_order_of_programs_and_company_change_no_bit(monkeypatch):
    spec = replace(SPECS["everything"], size=24)
    images, params, packed = case(spec, [(30, 20)] * 2, views=2)
    study, stack = pack_study(params, spec), torch.stack(images)
    views, _ = same_in_any_order(lambda: run([stack], packed, study, spec), orders=2)
    assert views.isfinite().all()  # `checked` fills fresh memory with NaN
    with checked(images=stack):
        last = run([stack], packed, study, spec, channels_last=True)
        alone = run([stack], packed[3:], study[3:], spec)
        monkeypatch.setattr(launch, "WORK_BYTES", 2 * 3 * 24 * 24 * 4)
        parts = run([stack], packed, study, spec)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, views)
    assert torch.equal(parts, views)
    assert torch.equal(alone, views[3:])
