"""Decoding: both back ends give the same pixels, and name exactly what they cannot read."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.data.decode import (
    UnreadableImage,
    decode_one,
    image_size,
    make_decoder,
)
from fastssl.errors import UserError

pytest.importorskip("nvidia.dali", reason="the decoders are compared with each other")
pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),  # what it thinks of damaged files
]
KINDS = ["dali", "torchvision"]


def encoded(pixels: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.fixture
def pixels() -> np.ndarray:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
    return np.array(small.resize((50, 60), Image.Resampling.BICUBIC))


@pytest.fixture(params=KINDS)
def decoder(request):
    made = make_decoder(request.param, threads=2)
    yield made
    made.close()


@pytest.mark.data
def test_back_ends_agree_on_real_photos(unpacked):
    files = [path.read_bytes() for path in sorted(unpacked("imagenet-sample.tar").rglob("*.JPEG"))][:48]
    assert len(files) == 48
    results = [make_decoder(kind).decode(files).images for kind in KINDS]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_formats(decoder, pixels):
    files = [
        encoded(pixels, "PNG"),
        encoded(pixels, "WEBP", lossless=True),
        encoded(pixels, "BMP"),
        encoded(pixels, "TIFF"),
        encoded(pixels, "PPM"),
        encoded(pixels, "JPEG", quality=95, subsampling=0),
        encoded(pixels, "GIF"),
    ]
    result = decoder.decode(files)
    assert not result.failures
    for image in result.images[:5]:
        assert np.array_equal(image, pixels)
    assert (result.images[5].float() - torch.from_numpy(pixels).float()).abs().mean() < 3


def test_gray_alpha_and_palette(decoder, pixels):
    gray = pixels[:, :, 0]
    alpha = np.dstack([pixels, np.full(gray.shape, 90, dtype=np.uint8)])
    buffer = io.BytesIO()
    Image.fromarray(pixels).quantize(16).save(buffer, format="PNG")
    result = decoder.decode([encoded(gray, "PNG"), encoded(alpha, "PNG"), buffer.getvalue()])
    assert not result.failures
    assert np.array_equal(result.images[0], np.repeat(gray[:, :, None], 3, 2))
    assert np.array_equal(result.images[1], pixels)
    assert np.array_equal(result.images[2], np.array(Image.fromarray(pixels).quantize(16).convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(decoder, pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}
    swapped = np.swapaxes(pixels, 0, 1)
    turned |= {5: swapped, 6: swapped[:, ::-1], 7: swapped[::-1, ::-1], 8: swapped[::-1]}
    image = decoder.decode([encoded(pixels, "JPEG", quality=100, subsampling=0, exif=exif)]).images[0]
    assert (image.float() - torch.from_numpy(turned[orientation].copy()).float()).abs().mean() < 3


def test_equal_sizes_come_as_one_tensor(decoder, pixels):
    same = decoder.decode([encoded(pixels, "PNG")] * 5).images
    assert isinstance(same, torch.Tensor)
    assert same.shape == (5, 60, 50, 3)
    assert same.is_contiguous()
    different = decoder.decode([encoded(pixels, "PNG"), encoded(pixels[:40], "PNG")]).images
    assert [tuple(image.shape) for image in different] == [(60, 50, 3), (40, 50, 3)]
    assert len(decoder.decode([]).images) == 0


def test_results_outlive_later_batches(decoder, pixels):
    """The tensors are handed over without a copy: the decoder must not write into them again."""
    kept = [decoder.decode([encoded(np.full((20, 20, 3), v, np.uint8), "PNG")] * 4).images for v in range(40)]
    ragged = [decoder.decode([encoded(np.full((20 + v % 3, 20, 3), v, np.uint8), "PNG")]).images[0] for v in range(40)]
    for v in range(40):
        assert (kept[v] == v).all()
        assert (ragged[v] == v).all()


@pytest.mark.parametrize("bad_at", [[0], [6], [2, 3], [0, 1, 2, 3, 4, 5, 6]])
def test_bad_images_are_named_and_the_others_survive(decoder, make_jpeg, bad_at):
    files = [make_jpeg(40, 40 + i, i, quality=95) for i in range(7)]
    expected = [decode_one(data) for data in files]
    for i in bad_at:
        files[i] = files[i][: len(files[i]) // 2]
    for _ in range(2):  # and again, with the rebuilt pipeline
        result = decoder.decode(files)
        assert sorted(result.failures) == bad_at
        for i in range(7):
            if i in bad_at:
                assert result.images[i] is None
            else:
                assert torch.equal(result.images[i], expected[i])


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    parts = [chunk, data, b"IEND"]
    body = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in parts)
    return b"\x89PNG\r\n\x1a\n" + body


def test_headers():
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        assert image_size(encoded(np.zeros((31, 17, 3), np.uint8), kind)) == (31, 17), kind
    progressive = encoded(np.zeros((31, 17, 3), np.uint8), "JPEG", progressive=True)
    assert image_size(progressive) == (31, 17)
    for data, reason in (
        (b"", "empty file"),
        (b"\xff\xd8", "truncated JPEG header"),
        (b"\xff\xd8hello, world", "damaged JPEG header"),
        (b"\xff\xd8\xff\xd9" + b"\0" * 20, "without a frame header"),
        (b"\x89PNG\r\n\x1a\n", "not an image"),
        (png_header(0, 5), "0 × 5"),
    ):
        with pytest.raises(UnreadableImage, match=reason):
            image_size(data)


def test_every_truncation_of_a_jpeg_is_either_read_or_refused(make_jpeg):
    """No length of a cut file may raise anything else, or hang."""
    data = make_jpeg(24, 24)
    for length in range(0, len(data), 7):
        with contextlib.suppress(UnreadableImage):
            assert decode_one(data[:length]).shape == (24, 24, 3)


def test_damaged_headers_never_raise_anything_else():
    """Nor end the process: torchvision's PNG decoder did, which is why PNG files go to PIL."""
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        whole = encoded(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), kind)
        for _ in range(60):
            data = bytearray(whole)
            for position in rng.integers(0, min(64, len(data)), 3):
                data[position] = rng.integers(0, 256)
            with contextlib.suppress(UnreadableImage):
                assert decode_one(bytes(data)).shape[2] == 3


def test_choice_of_decoder(monkeypatch):
    with pytest.raises(UserError, match="decoder must be auto, dali or torchvision, got 'pil'"):
        make_decoder("pil")
    monkeypatch.setitem(__import__("sys").modules, "nvidia.dali", None)
    with pytest.raises(UserError, match="decoder 'dali' needs the package nvidia-dali"):
        make_decoder("dali")
    assert type(make_decoder("auto")).__name__ == "CarefulDecoder"
