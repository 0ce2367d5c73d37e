"""The kernels that draw views against the torch renderer and float64, in any order of programs, and what they move."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from fastssl_kernels.augment import cost, launch, render_views_reference
from proof.interpreter import checked, same_in_any_order
from view_cases import MEAN, RAGGED, STD, case, pack, pictures

from fastssl.data.render import render
from fastssl.data.views import ViewSpec

# The law: 2/255 at most and 0.2/255 on average. In fact float32 rounding, of levels around 1 after nine operations.
# A crop's coordinates are rounded too, to 1e-5 pixels at 200.
FLOAT = 2e-5
SPECS = {
    "everything": ViewSpec(jitter=1.0, grayscale=0.3, blur=0.6, solarize=0.4, invert=0.3, hue=0.5),
    "byol": ViewSpec(
        color="tensorflow",
        additive_brightness=True,
        brightness=0.4,
        hue=0.1,
        blur=1.0,
        blur_sigma=(0.01, 100.0),
        solarize=0.5,
    ),
    "tensorflow": ViewSpec(color="tensorflow", jitter=1.0, saturation=3.0, blur=0.0),
    "swav": ViewSpec(interpolation="bilinear", scale=(0.05, 0.14), blur_kind="pil", blur=0.7, blur_sigma=(0.1, 9.0)),
    "moco": ViewSpec(grayscale_first=True, jitter=1.0, grayscale=0.5, blur=0.0),
    "no contrast": ViewSpec(contrast=0.0, jitter=1.0, blur=0.5, interpolation="bilinear"),
    "nothing": ViewSpec(jitter=0.0, blur=0.0, grayscale=0.5),
}


def run(images, packed, spec, dtype=torch.float32, channels_last=False, mean=MEAN, std=STD):
    options = (spec.size, spec.interpolation == "bicubic", spec.blur_kind == "pil", mean, std, dtype, channels_last)
    return launch.render(images, packed, *options)


def named(images):
    return {f"image{i}": image for i, image in enumerate(images)}


@pytest.mark.parametrize(("name", "size"), [(name, 24) for name in SPECS] + [("everything", 8), ("swav", 37)])
def test_ragged_images_are_drawn_as_torch_draws_them(name, size):
    spec = replace(SPECS[name], size=size)
    images, params, packed = case(spec, RAGGED)
    with checked(seed=size, **named(images)) as work:
        ours = run(images, packed, spec)
    theirs = render(images, params, spec, MEAN, STD)
    assert (ours - theirs).abs().max() <= FLOAT / min(STD)
    expected = cost.Work(packed, size, spec.interpolation == "bicubic", spec.blur_kind == "pil")
    assert (work.loaded, work.stored) == (expected.loaded_bytes(), expected.stored_bytes())
    assert (work.dot_flops, work.exponentials) == (expected.product_flops(), expected.exponentials())
    contrast = bool((packed[:, 9] < packed[:, 8]).any())
    blurred = bool((packed[:, 6] > 0).any()) and (size >= 20 or spec.blur_kind == "pil")
    assert work.launches == 1 + contrast + blurred * (3 if spec.blur_kind == "pil" else 1)


@pytest.mark.parametrize(("name", "size", "shape"), [("everything", 96, (375, 500)), ("byol", 224, (40, 33))])
def test_large_views(name, size, shape):
    spec = replace(SPECS[name], size=size)
    images, params, packed = case(spec, [shape], seed=3)
    with checked(**named(images)):
        ours = run(images, packed, spec)
    difference = (ours - render(images, params, spec, MEAN, STD)).abs() * min(STD)
    assert difference.max() <= FLOAT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", list(SPECS))
def test_16_bit_views(name, dtype):
    """Besides the rounding of the result to 16 bits (half a place: 0.5/255 of bfloat16 at 1) little is wrong."""
    spec = replace(SPECS[name], size=24)
    images, _, packed = case(spec, RAGGED)
    with checked(**named(images)) as work:
        ours = run(images, packed, spec, dtype, mean=(0, 0, 0), std=(1, 1, 1)).double()
    blur, interpolation = spec.blur_kind, spec.interpolation
    exact = render_views_reference(images, packed, 24, interpolation=interpolation, blur=blur)
    half_a_place = exact.clamp(min=2**-14).log2().floor().exp2() * torch.finfo(dtype).eps / 2
    beyond = ((ours - exact).abs() - half_a_place).clamp(min=0)
    assert beyond.max() <= 0.3 / 255
    assert beyond.mean() <= 0.01 / 255
    expected = cost.Work(packed, 24, interpolation == "bicubic", blur == "pil", dtype)
    assert (work.loaded, work.stored) == (expected.loaded_bytes(), expected.stored_bytes())


def test_all_orders_of_the_colour_operations():
    spec = ViewSpec(size=8, jitter=1.0, blur=0.0, grayscale=0.0, hue=0.5)
    images, params, _ = case(spec, [(9, 11)] * 24)
    for row, order in enumerate(permutations(range(4))):
        params.order[row] = order
    packed = pack(params, spec, 24)
    with checked(**named(images)):
        ours = run(images, packed, spec)
    assert (ours - render(images, params, spec, MEAN, STD)).abs().max() <= FLOAT / min(STD)


def test_no_result_depends_on_the_order_of_programs_or_on_company():
    spec = replace(SPECS["everything"], size=40)
    images, _, packed = case(spec, [(30, 20), (64, 48)], views=2)

    with checked(seed=0, **named(images)):
        views = run(images, packed, spec)
    with checked(seed=1, **named(images)):
        assert torch.equal(run(images, packed, spec), views)
    with checked(seed=2, **named(images)):
        alone = run(images, packed[3:], spec)
    assert views.isfinite().all()  # `checked` fills fresh memory with NaN
    assert torch.equal(alone, views[3:])


def test_images_in_one_tensor_and_channels_last():
    spec = replace(SPECS["everything"], size=24)
    images = pictures([(20, 31)] * 3)
    _, _, packed = case(spec, [(20, 31)] * 3, views=2)
    with checked(**named(images)):
        ragged = run(images, packed, spec)
    stack = torch.stack(images)
    stacked, work = same_in_any_order(lambda: run([stack], packed, spec, channels_last=True), orders=2)
    assert stacked.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(stacked, ragged)
    expected = cost.Work(packed, 24, table=False)
    assert (work.loaded, work.stored) == (expected.loaded_bytes(), expected.stored_bytes())


def test_views_beyond_the_work_memory_are_drawn_in_parts(monkeypatch):
    spec = replace(SPECS["everything"], size=24)
    images, _, packed = case(spec, RAGGED)
    with checked(**named(images)) as whole:
        views = run(images, packed, spec)
    monkeypatch.setattr(launch, "WORK_BYTES", 2 * 3 * 24 * 24 * 4)
    with checked(**named(images)) as work:
        assert torch.equal(run(images, packed, spec), views)
    assert work.launches == 3 * whole.launches


def test_extreme_images():
    """Constant images stay constant, with no NaN; the gray weights sum to 0.9999."""
    spec = replace(SPECS["everything"], size=24, brightness=0.0, invert=0.0, solarize=0.0, blur=1.0)
    for level in (0, 255):
        images, _, packed = case(spec, [(32, 20), (5, 7)])
        images = [torch.full_like(image, level) for image in images]
        with checked(**named(images)):
            views = run(images, packed, spec, mean=(0, 0, 0), std=(1, 1, 1))
        assert views.isfinite().all()
        assert (views - level / 255).abs().max() <= 3e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        (ViewSpec(size=16, jitter=1.0, hue=0.5), [(300, 200), (1, 800), (16, 16)]),
        (ViewSpec(size=20, interpolation="bilinear", blur_kind="pil", blur_sigma=(20, 60), blur=1.0), [(20, 16)]),
        (ViewSpec(size=33, jitter=0.0, blur=1.0, blur_sigma=(1e-40, 1e-3)), [(20, 16)]),
    ],
    ids=["reduced", "box wider than the view", "hardly blurred"],
)
def test_extreme_reductions_and_blurs(spec, sizes, dtype):
    """Down to a fiftieth, in one direction or both; σ from a denormal number to three times the view."""
    images, _, packed = case(spec, sizes)
    packed[0, :4] = torch.tensor([0.0, 0, *sizes[0]])
    packed[0, 6] = spec.blur_sigma[0]
    exact = render_views_reference(images, packed, spec.size, interpolation=spec.interpolation, blur=spec.blur_kind)
    with checked(**named(images)):
        views = run(images, packed, spec, dtype, mean=(0, 0, 0), std=(1, 1, 1))
    assert (views.double() - exact).abs().max() <= (FLOAT if dtype == torch.float32 else 0.3 / 255)
