"""Views on the CPU: the definition against the torch renderer, packing, what is refused, and the floor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fastssl_kernels.augment import (
    render_views,
    render_views_reference,
    study_parameters,
    view_parameters,
)
from view_cases import MEAN, RAGGED, STD, case, draw, pack, pack_study, pictures

from fastssl.data.render import render
from fastssl.data.views import ViewSpec

SPECS = {
    "simclr": ViewSpec(sampler="tensorflow"),
    "byol": ViewSpec(
        color="tensorflow", additive_brightness=True, brightness=0.4, hue=0.1, blur=1.0, solarize=0.5, sampler="clip"
    ),
    "tensorflow": ViewSpec(color="tensorflow", jitter=1.0, saturation=3.0, grayscale_first=True, blur=0.0),
    "swav": ViewSpec(interpolation="bilinear", blur_kind="pil", blur=0.7, blur_sigma=(0.1, 9.0), invert=0.3),
    "moco": ViewSpec(grayscale_first=True, jitter=1.0, grayscale=0.5, blur=0.0),
    "no contrast": ViewSpec(contrast=0.0, jitter=1.0, hue=0.5, grayscale=0.5),
}


def arguments(spec: ViewSpec) -> dict:
    return {"interpolation": spec.interpolation, "blur": spec.blur_kind, "mean": MEAN, "std": STD}


@pytest.mark.parametrize("size", [8, 33, 96])
@pytest.mark.parametrize("name", list(SPECS))
def test_views_are_those_of_the_torch_renderer(name, size):
    spec = replace(SPECS[name], size=size)
    images, params, packed = case(spec, [*RAGGED, (375, 500)], views=2)
    views = render_views(images, packed, size, **arguments(spec))
    exact = render_views_reference(images, packed, size, **arguments(spec))
    assert exact.dtype == torch.float64
    # Levels in [0, 1] after up to nine rounded operations, of pixels at rounded coordinates up to 500.
    for rounded in (views, render(images, params, spec, MEAN, STD)):
        assert (rounded - exact).abs().max() <= 2e-5 / min(STD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_dtype_and_layout(dtype, channels_last):
    spec = replace(SPECS["simclr"], size=24)
    images, _, packed = case(spec, [(20, 31)] * 4)
    views = render_views(torch.stack(images), packed, 24, dtype=dtype, channels_last=channels_last)
    assert views.dtype == dtype
    assert views.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert torch.equal(views, render_views(images, packed, 24).to(dtype))


def test_one_image_may_have_any_number_of_views():
    spec = replace(SPECS["simclr"], size=16)
    images, _, packed = case(spec, RAGGED)
    packed[:, 4] = 3
    packed[:, :4] = torch.tensor([5.0, 6, 40, 30])
    views = render_views(images, packed, 16)
    assert torch.equal(views, render_views([images[3]], packed * (torch.arange(16) != 4), 16))
    assert render_views(images, packed[:0], 16).shape == (0, 3, 16, 16)


def test_images_that_are_not_contiguous():
    spec = replace(SPECS["simclr"], size=16)
    images, _, packed = case(spec, RAGGED)
    strided = [image.transpose(0, 1).contiguous().transpose(0, 1) for image in images]
    assert torch.equal(render_views(strided, packed, 16), render_views(images, packed, 16))


# ------------------------------------------------------------------------------------------------------------ packing


def plain(rows: int = 1, **changes) -> dict:
    no = torch.zeros(rows, dtype=torch.bool)
    values = {
        "image": torch.zeros(rows, dtype=torch.int64),
        "box": torch.tensor([[0.0, 0, 8, 8]]).repeat(rows, 1),
        "flip": no,
        "order": torch.full((rows, 4), -1),
        "factors": torch.tensor([[1.0, 1, 1, 0]]).repeat(rows, 1),
        "gray": no,
        "sigma": torch.zeros(rows),
        "solarize": no,
        "invert": no,
    }
    return values | changes


def test_operations_that_are_left_out_close_up():
    order = torch.tensor([[-1, 3, -1, 1], [2, 1, 0, 3], [-1, -1, -1, -1], [0, 2, -1, 3]])
    packed = view_parameters(**plain(4, order=order))
    assert packed.shape == (4, 16)
    assert packed[:, 8].tolist() == [2, 4, 0, 3]  # how many
    assert packed[:, 9].tolist() == [1, 1, 0, 3]  # how many before contrast
    assert packed[:, 7].tolist() == [3 + 4 * 1, 2 + 4 * 1 + 0 + 64 * 3, 0, 0 + 4 * 2 + 16 * 3]


def test_order_matters_and_each_operation_is_its_own():
    images = pictures([(40, 40)])
    factors = torch.tensor([[1.5, 0.6, 1.7, -0.15]]).repeat(4, 1)
    order = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [1, -1, -1, -1], [-1, 1, -1, -1]])
    packed = view_parameters(**plain(4, order=order, factors=factors))
    views = render_views(images, packed, 8)
    assert not torch.equal(views[0], views[1])
    assert torch.equal(views[2], views[3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box": torch.tensor([[0.0, 0, 0, 5]])}, "box must hold whole numbers"),
        ({"box": torch.tensor([[0.5, 0, 5, 5]])}, "box must hold whole numbers"),
        ({"box": torch.tensor([[0.0, -1, 5, 5]])}, "box must hold whole numbers"),
        ({"box": torch.tensor([[0.0, float("nan"), 5, 5]])}, "box must hold whole numbers"),
        ({"box": torch.zeros(1, 3)}, r"box must be \[1, 4\]"),
        ({"flip": torch.zeros(2, dtype=torch.bool)}, r"flip must be \[1\]"),
        ({"order": torch.tensor([[0, 1, 2, 4]])}, "order must hold the numbers -1 to 3"),
        ({"order": torch.tensor([[0, 1, 0, 3]])}, "operation 0 at most once"),
        ({"factors": torch.tensor([[1.0, float("inf"), 1, 0]])}, "factors must be finite"),
        ({"factors": torch.tensor([[1.0, 1, 1, 0.6]])}, "hue shifts in"),
        ({"sigma": torch.tensor([-1.0])}, "sigma must be finite and >= 0"),
        ({"sigma": torch.tensor([float("nan")])}, "sigma must be finite and >= 0"),
        ({"image": torch.tensor([-1])}, "image must hold numbers in"),
    ],
)
def test_parameters_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        view_parameters(**plain(**changes))


# ---------------------------------------------------------------------------------------------------------- refusals


IMAGE = torch.zeros(8, 8, 3, dtype=torch.uint8)
ONE = view_parameters(**plain())


@pytest.mark.parametrize(
    ("images", "parameters", "options", "message"),
    [
        ([], ONE, {}, "images must hold at least one image"),
        (torch.zeros(0, 8, 8, 3, dtype=torch.uint8), ONE, {}, "images must hold at least one image"),
        ([IMAGE[:, :, :2]], ONE, {}, r"images\[0\] must be \[H, W, 3\]"),
        ([IMAGE, IMAGE[:0]], ONE, {}, r"images\[1\] must be \[H, W, 3\]"),
        (IMAGE, ONE, {}, r"images must be \[N, H, W, 3\]"),
        ([IMAGE, IMAGE.to("meta")], ONE, {}, "all images must be on cpu"),
        ([IMAGE], ONE[:, :15], {}, r"parameters must be \[M, 16\]"),
        ([IMAGE], ONE.to("meta"), {}, "parameters must be on the CPU or on cpu"),
        ([IMAGE], ONE, {"size": 7}, "size must be an integer of at least 8, got 7"),
        ([IMAGE], ONE, {"interpolation": "nearest"}, "interpolation must be"),
        ([IMAGE], ONE, {"blur": "box"}, "blur must be"),
        ([IMAGE], ONE, {"mean": (0, 0)}, "mean must be three finite numbers"),
        ([IMAGE], ONE, {"std": (1, 0, 1)}, "std must not be 0"),
        ([IMAGE], ONE, {"std": (1, float("nan"), 1)}, "std must be three finite numbers"),
        ([IMAGE], view_parameters(**plain(image=torch.tensor([1]))), {}, "must name one of 1 images"),
        ([IMAGE[:7]], ONE, {}, "the crop of view 0"),
    ],
)
def test_input_that_cannot_be_drawn(images, parameters, options, message):
    with pytest.raises(ValueError, match=message):
        render_views(images, parameters, **{"size": 8, **options})


@pytest.mark.parametrize(
    ("images", "parameters", "dtype", "message"),
    [
        ([IMAGE.float()], ONE, torch.float32, "must be uint8"),
        ([IMAGE], ONE.double(), torch.float32, "parameters must be float32"),
        ([IMAGE], ONE, torch.float64, "dtype must be float32, float16 or bfloat16"),
    ],
)
def test_dtypes_that_cannot_be(images, parameters, dtype, message):
    with pytest.raises(TypeError, match=message):
        render_views(images, parameters, 8, dtype=dtype)


# ----------------------------------------------------------------------------------------------------------- operator


def test_operator():
    spec = replace(SPECS["simclr"], size=16)
    images, _, packed = case(spec, RAGGED)
    op = torch.ops.fastssl.render_views.default
    for listed, last in ((images, False), ([torch.stack(images[1:2] * 5)], True)):
        if last:
            packed[:, :4] = torch.tensor([1.0, 2, 20, 20])
        result = torch.library.opcheck(
            op, (listed, packed, 16, True, False, list(MEAN), list(STD), torch.bfloat16, last)
        )
        assert set(result.values()) == {"SUCCESS"}


def test_operator_with_the_operations_of_the_study():
    spec = replace(SPECS["simclr"], size=16, rotation=1.0, noise=1.0, sobel=0.5, cutout=0.5)
    images, params, packed = case(spec, RAGGED)
    study = pack_study(params, spec)
    arguments = (images, packed, 16, True, False, list(MEAN), list(STD), torch.bfloat16, False, study)
    result = torch.library.opcheck(torch.ops.fastssl.render_views.default, arguments)
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turns": torch.tensor([4])}, r"turns must hold numbers in \[0, 4\), got 4 to 4"),
        ({"noise": torch.tensor([-1.0])}, "noise must be finite and >= 0"),
        ({"noise": torch.tensor([float("nan")])}, "noise must be finite and >= 0"),
        ({"key": torch.tensor([[0, 0, 0, 0, 1 << 32]])}, "key must hold numbers"),
        ({"key": torch.zeros(1, 4)}, r"key must be \[1, 5\]"),
        ({"cutout": torch.tensor([[-1, 0, 1]])}, "cutout must hold numbers"),
        ({"fill": float("inf")}, "fill must be finite"),
    ],
)
def test_impossible_parameters_of_the_study_are_refused(changes, message):
    none = {"turns": torch.zeros(1), "noise": torch.zeros(1), "sobel": torch.zeros(1)}
    none |= {"key": torch.zeros(1, 5), "cutout": torch.zeros(1, 3)}
    images, _, packed = case(replace(SPECS["simclr"], size=16), [(9, 9)])
    assert render_views(images, packed, 16, study=study_parameters(**none)).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match=message):
        study_parameters(**(none | changes))
    for wrong in (torch.zeros(2, 16, dtype=torch.int32), torch.zeros(1, 16)):
        with pytest.raises(ValueError, match=r"study must be int32 \[1, 16\]"):
            render_views(images, packed, 16, study=wrong)
    outside = study_parameters(**(none | {"cutout": torch.tensor([[3, 0, 14]])}))
    with pytest.raises(ValueError, match="squares inside views of 16 pixels, got one up to 17"):
        render_views(images, packed, 16, study=outside)


def test_compiles_whole():
    spec = replace(SPECS["simclr"], size=16)
    images, _, packed = case(spec, RAGGED)

    def views(images, packed):
        return 2 * render_views(images, packed, 16, dtype=torch.bfloat16, channels_last=True)

    compiled = torch.compile(views, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images, packed), views(images, packed))


# --------------------------------------------------------------------------------------------------------------- cost


def test_bytes_of_a_recipe_against_the_floor():
    """SimCLR's two views of 224 pixels, of images of 375 × 500, in bfloat16: what the documentation says."""
    cost = pytest.importorskip("fastssl_kernels.augment.cost", reason="needs triton")
    spec = ViewSpec()
    images = [torch.zeros(375, 500, 3, dtype=torch.uint8)] * 100
    packed = pack(draw(images, spec, views=2), spec, 100)
    work = cost.Work(packed, 224, dtype=torch.bfloat16)
    exchanged = work.device_bytes() / work.floor_bytes()
    asked = (work.loaded_bytes() + work.stored_bytes()) / work.floor_bytes()
    print(exchanged, asked)
    assert 2.4 <= exchanged <= 2.5
    assert asked <= 4


def test_products_use_tensor_cores():
    ledger = Path(__file__).parents[2] / "kernels" / "ledger.json"
    rows = [row for row in json.loads(ledger.read_text(encoding="utf-8"))["rows"] if row["op"] == "augment"]
    assert {row["path"].split("-")[0] for row in rows} == {"resize", "color", "blur", "study"}
    for row in rows:
        assert bool(row["tensor_instruction"]) == (row["path"].split("-")[0] in ("resize", "blur")), row["path"]
