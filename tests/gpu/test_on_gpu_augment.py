"""Views on a device: against the definition, without synchronisation, in a graph."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from fastssl_kernels.augment import render_views, render_views_reference
from on_device import DEVICE, ON_GPU, captured, large, needs_gpu, no_synchronisation
from view_cases import MEAN, RAGGED, STD, case, pictures

from fastssl.data.views import ViewSpec

pytestmark = pytest.mark.gpu

SIZES = [*RAGGED, (375, 500), (500, 200), *([(1200, 1600)] if ON_GPU else [])]
SPECS = {
    "simclr": ViewSpec(jitter=1.0, blur=0.7, solarize=0.3, invert=0.2, hue=0.5),
    "byol": ViewSpec(
        color="tensorflow", additive_brightness=True, brightness=0.4, hue=0.1, blur=1.0, solarize=0.5, sampler="clip"
    ),
    "tensorflow": ViewSpec(color="tensorflow", jitter=1.0, saturation=3.0, blur=0.0),
    "swav": ViewSpec(interpolation="bilinear", blur_kind="pil", blur=0.7, blur_sigma=(0.1, 9.0)),
    "moco": ViewSpec(grayscale_first=True, jitter=1.0, grayscale=0.5, blur=0.0),
}
# Coordinates of float32 up to 1600, and a device's own rounding of divisions and exponentials.
FLOAT = 1e-4


def drawn(images, packed, spec, **options) -> torch.Tensor:
    # The CPU's renderer reads its parameters, which lie beside it.
    with no_synchronisation() if ON_GPU else contextlib.nullcontext():
        return render_views(images, packed, spec.size, interpolation=spec.interpolation, blur=spec.blur_kind, **options)


def exact(images, packed, spec, **options) -> torch.Tensor:
    options |= {"interpolation": spec.interpolation, "blur": spec.blur_kind}
    return render_views_reference(images, packed, spec.size, **options)


@pytest.mark.parametrize("size", [8, 33, 96, pytest.param(224, marks=large)])
@pytest.mark.parametrize("name", list(SPECS))
def test_ragged_images(name, size):
    spec = replace(SPECS[name], size=size)
    images, _, packed = case(spec, SIZES, views=2)
    ours = drawn([image.to(DEVICE) for image in images], packed, spec, mean=MEAN, std=STD).cpu()
    difference = (ours - exact(images, packed, spec, mean=MEAN, std=STD)).abs() * min(STD)
    assert difference.max() <= FLOAT
    assert difference.mean() <= 1e-6


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", list(SPECS))
def test_16_bits(name, dtype, channels_last):
    spec = replace(SPECS[name], size=96)
    images, _, packed = case(spec, SIZES)
    ours = drawn([image.to(DEVICE) for image in images], packed, spec, dtype=dtype, channels_last=channels_last)
    assert ours.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    expected = exact(images, packed, spec)
    half_a_place = expected.clamp(min=2**-14).log2().floor().exp2() * torch.finfo(dtype).eps / 2
    beyond = ((ours.cpu().double() - expected).abs() - half_a_place).clamp(min=0)
    assert beyond.max() <= 0.5 / 255
    assert beyond.mean() <= 0.01 / 255


def test_in_a_graph():
    """Images and parameters on the device: other ones at every replay."""
    spec = replace(SPECS["simclr"], size=64)
    images = torch.stack(pictures([(90, 70)] * 4)).to(DEVICE)
    batches = [case(spec, [(90, 70)] * 4, views=2, seed=seed)[2].to(DEVICE) for seed in (1, 2)]
    held = batches[0].clone()
    plain = [drawn(images, batch, spec) for batch in batches]
    views, replay = captured(lambda: render_views(images, held, 64))
    for batch, expected in zip(batches, plain, strict=True):
        held.copy_(batch)
        replay()
        assert torch.equal(views, expected)


def test_bits_do_not_depend_on_the_company_of_a_view():
    spec = replace(SPECS["simclr"], size=96)
    images, _, packed = case(spec, SIZES, views=3)
    images = [image.to(DEVICE) for image in images]
    views = drawn(images, packed, spec)
    for part in (slice(0, 1), slice(5, 9), slice(3, None, 2)):
        assert torch.equal(drawn(images, packed[part].contiguous(), spec), views[part])
    assert torch.equal(drawn(images, packed, spec), views)


def test_compiles_whole():
    spec = replace(SPECS["simclr"], size=32)
    images, _, packed = case(spec, SIZES)
    images = [image.to(DEVICE) for image in images]

    def doubled(images, packed):
        return 2 * render_views(images, packed, 32, dtype=torch.bfloat16)

    assert torch.equal(torch.compile(doubled, fullgraph=True)(images, packed), doubled(images, packed))


@needs_gpu
def test_devices_that_do_not_fit():
    images, _, packed = case(replace(SPECS["simclr"], size=32), SIZES)
    with pytest.raises(ValueError, match="all images must be on cuda:0, got cpu at index 1"):
        render_views([images[0].to(DEVICE), *images[1:]], packed, 32)
    with pytest.raises(ValueError, match="parameters must be on the CPU or on cpu, got cuda:0"):
        render_views(images, packed.to(DEVICE), 32)
