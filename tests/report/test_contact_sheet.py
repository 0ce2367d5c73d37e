"""Contact sheets show the very pixels of every view, named, and refuse what is not a view."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib import get_data_path
from PIL import Image, ImageFont

from fastssl.report import contact_sheet as module
from fastssl.report.contact_sheet import contact_sheet


def original(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def view(size=32, seed=0):
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))


def as_pixels(v: torch.Tensor) -> np.ndarray:
    return (v * 255 + 0.5).to(torch.uint8).permute(1, 2, 0).numpy()


def size(path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def contains(sheet: np.ndarray, block: np.ndarray) -> bool:
    """Whether the opaque pixels `block` stand somewhere in the RGBA `sheet`."""
    height, width = block.shape[:2]
    corners = np.argwhere((sheet[..., :3] == block[0, 0]).all(-1) & (sheet[..., 3] == 255))
    return any(np.array_equal(sheet[y : y + height, x : x + width, :3], block) for y, x in corners)


def test_small_views_are_enlarged_without_interpolation(tmp_path):
    views = [view(32, 1), view(32, 2)]
    path = contact_sheet([("cat", original(), views)], tmp_path / "views.png")
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[2] == 4
    for v in views:
        assert contains(sheet, as_pixels(v).repeat(5, 0).repeat(5, 1))


def test_views_of_several_sizes_keep_their_proportion(tmp_path):
    views = [view(224, 1), view(96, 2), view(96, 3)]
    sheet = np.asarray(Image.open(contact_sheet([("cat", original(300, 500), views)], tmp_path / "v.png")))
    for v in views:
        assert contains(sheet, as_pixels(v))


def test_huge_views_and_originals_are_reduced(tmp_path):
    path = contact_sheet([("cat", original(1200, 3000), [view(512, 1)])], tmp_path / "v.png")
    assert max(size(path)) < 700


def test_many_views_go_on_in_the_next_line(tmp_path):
    few = size(contact_sheet([("cat", original(), [view(32, s) for s in range(3)])], tmp_path / "a.png"))
    many = contact_sheet([("cat", original(), [view(32, s) for s in range(30)])], tmp_path / "b.png")
    sheet = np.asarray(Image.open(many))
    assert sheet.shape[1] <= module.SHEET
    assert sheet.shape[0] > 3 * few[1]
    for s in range(30):
        assert contains(sheet, as_pixels(view(32, s)).repeat(5, 0).repeat(5, 1))


def test_images_with_few_views_stand_side_by_side(tmp_path):
    rows = [(str(i), original(32, 32, i), [view(32, i)]) for i in range(5)]
    width, height = size(contact_sheet(rows, tmp_path / "a.png"))
    assert module.PAGE / 2 < width <= module.PAGE
    assert height < 3 * 220
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    for i in range(5):
        assert contains(sheet, as_pixels(view(32, i)).repeat(5, 0).repeat(5, 1))
        assert contains(sheet, original(32, 32, i).repeat(5, 0).repeat(5, 1))


@pytest.mark.parametrize("side", [1, 31, 60, 79, 159, 160, 161, 4000])
def test_originals_never_grow_beyond_their_column(tmp_path, side):
    path = contact_sheet([("cat", original(side, side), [view(32)])], tmp_path / "a.png")
    assert size(path)[0] == 2 * module.MARGIN + 160 + 2 * module.GAP + 160


def test_captions_add_ink_below_their_view(tmp_path):
    rows = [("cat", original(), [view()])]
    plain = np.asarray(Image.open(contact_sheet(rows, tmp_path / "a.png")))
    named = np.asarray(Image.open(contact_sheet([(*rows[0], ["flip gray σ 1.2"])], tmp_path / "b.png")))
    ink = [int((sheet[..., 3] > 0).sum()) for sheet in (plain, named)]
    assert ink[1] > ink[0] + 100


def test_rows_may_differ_and_types_may_be_mixed(tmp_path):
    rows = [
        ("a", original(10, 200), [view(32, 1).numpy()]),
        ("b", torch.from_numpy(original(200, 10)), [view(32, 2).bfloat16(), view(24, 3)], ["x", ""]),
        ("no views", original(1, 1), []),
    ]
    sheet = np.asarray(Image.open(contact_sheet(rows, tmp_path / "v.png")))
    assert contains(sheet, as_pixels(view(24, 3)).repeat(5, 0).repeat(5, 1))


@pytest.fixture(scope="module")
def font():
    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", module.FONT_SIZE)


def test_text_is_broken_to_its_width_and_keeps_its_words(font):
    text = "flip b×1.5 c×0.7 s×0.4 h+0.15 gray σ 1.6"
    lines = module._wrapped(text, font, 100, 9)
    assert len(lines) > 2
    assert all(font.getlength(line) <= 100 for line in lines)
    assert " ".join(lines).replace("\u00a0", " ") == text
    assert any("σ\u00a01.6" in line for line in lines)


def test_text_that_does_not_fit_is_cut_visibly(font):
    assert module._wrapped("", font, 100, 3) == []
    lines = module._wrapped("n01496331_electric_ray_" * 20, font, 100, 3)
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert all(font.getlength(line) <= 100 for line in lines)
    assert module._wrapped("word " * 3, font, 1, 2)[-1] == "…"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "rows is empty"),
        ([("cat", original().astype(np.float32), [view()])], "cat: the original must be uint8"),
        ([("cat", original()[..., 0], [view()])], "cat: the original must be uint8"),
        ([("cat", original(), [view().permute(1, 2, 0)])], "a view must be"),
        ([("cat", original(), [view() * 2 - 1])], "before normalisation"),
        ([("cat", original(), [view() * 255])], "before normalisation"),
        ([("cat", original(), [view() * float("nan")])], "before normalisation"),
        ([("cat", original(), [view()], ["a", "b"])], "2 captions for 1 views"),
    ],
)
def test_what_is_not_a_view_is_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        contact_sheet(rows, tmp_path / "v.png")
    assert not (tmp_path / "v.png").exists()
