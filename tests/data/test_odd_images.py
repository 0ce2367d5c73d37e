"""Each odd file is decoded as stated, or refused as stated: made here, and the real ones where they are."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import torch
from odd_images import HEIGHT, WIDTH, Outcome, encode, odd_images, photo, refused
from PIL import Image

from fastssl.data.decode import MAX_PIXELS, make_decoder

pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),  # what it thinks of damaged files
]

REAL: dict[str, Outcome] = {
    "00_good.jpg": (534, 400),
    "01_cmyk.jpg": (534, 400),
    "02_gray.jpg": (534, 400),
    "03_progressive.jpg": (534, 400),
    "04_exif6.jpg": (400, 534),
    "05_png_named_jpeg.jpg": (150, 200),
    "06_webp.webp": (534, 400),
    "07_png_rgba.png": (534, 400),
    "08_png_16bit_gray.png": (64, 64),
    "09_truncated_50pct.jpg": "truncated",
    "10_truncated_header.jpg": "truncated JPEG header",
    "11_empty.jpg": "empty file",
    "12_text.jpg": "not an image of a known format",
    "13_bitflips.jpg": (534, 400),
    "14_gif.gif": (534, 400),
    "15_tiny_1x1.jpg": (1, 1),
    "16_exif_garbage_tail.jpg": (534, 400),
    "17_arith_or_lossless.jpg": "lossless, hierarchical or arithmetic JPEG",
}


@pytest.fixture(params=["dali", "torchvision"])
def decoder(request):
    if request.param == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    made = make_decoder(request.param, threads=2)
    yield made
    made.close()


def check(decoder, files: dict[str, bytes], outcomes: dict[str, Outcome], together: bool) -> dict[str, torch.Tensor]:
    names, images = list(files), {}
    for batch in [names] if together else [[name] for name in names]:
        result = decoder.decode([files[name] for name in batch])
        for i, name in enumerate(batch):
            expected = outcomes[name]
            if isinstance(expected, str):
                assert expected in result.failures[i], name
                assert result.images[i] is None, name
            else:
                assert i not in result.failures, (name, result.failures[i])
                images[name] = result.images[i]
                assert images[name].dtype == torch.uint8
                assert tuple(images[name].shape) == (*expected, 3), name
    return images


@pytest.mark.parametrize("together", [True, False])
def test_every_kind_made_here(decoder, together):
    made = odd_images()
    outcomes = {name: outcome for name, (_, outcome) in made.items()}
    images = check(decoder, {name: data for name, (data, _) in made.items()}, outcomes, together)
    assert refused(outcomes) == set(outcomes) - set(images)
    assert len(refused(outcomes)) == 5
    pixels = torch.from_numpy(photo())
    for name in ("05_png_named_jpeg.jpg", "06_webp.webp", "07_png_rgba.png"):  # transparency is dropped, not blended
        assert torch.equal(images[name], pixels), name
    assert torch.equal(images["16_garbage_tail.jpg"], images["00_good.jpg"])
    # Quality 95 and full colour: 2 levels on average. CMYK is coded in four channels; GIF has 64 colours.
    for name, tolerance in (("00_good.jpg", 2), ("01_cmyk.jpg", 2), ("03_progressive.jpg", 2), ("14_gif.gif", 8)):
        assert (images[name].float() - pixels).abs().mean() < tolerance, name
    assert (images["04_exif6.jpg"].float() - torch.rot90(pixels, -1, (0, 1))).abs().mean() < 2
    gray = (pixels.double() @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))[..., None]
    assert (images["02_gray.jpg"] - gray).abs().mean() < 2
    assert images["02_gray.jpg"].float().std(dim=2).max() == 0
    wedge = np.linspace(0, 65535, 64, dtype=np.uint16) >> 8
    assert np.array_equal(images["08_png_16bit_gray.png"][5, :, 1].numpy(), wedge)
    flipped = images["13_bitflips.jpg"]
    assert not torch.equal(flipped, images["00_good.jpg"]), "the bits that were flipped matter to the pixels"


@pytest.mark.data
@pytest.mark.parametrize("together", [True, False])
def test_every_real_file(decoder, unpacked, together):
    folder = unpacked("odd-images.tar") / "odd"
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    assert set(files) == set(REAL)
    images = check(decoder, files, REAL, together)
    # The same photo in several formats: nothing is rotated, inverted, clipped or shifted.
    good = images["00_good.jpg"].float()
    for name in ("01_cmyk.jpg", "03_progressive.jpg", "06_webp.webp", "07_png_rgba.png", "16_exif_garbage_tail.jpg"):
        assert (images[name].float() - good).abs().mean() < 6, name
    turned = images["04_exif6.jpg"].float()
    assert min((turned - torch.rot90(good, k, (0, 1))).abs().mean() for k in (1, 3)) < 3
    assert images["02_gray.jpg"].float().std(dim=2).max() == 0
    assert 120 < images["08_png_16bit_gray.png"].float().mean() < 135


# ------------------------------------------------------------------------------------------------ absurd dimensions


def png(*chunks: bytes) -> bytes:
    """A PNG file of chunks (kind and body)."""
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (*chunks, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def ihdr(width: int, height: int) -> bytes:
    return b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


def webp(kind: bytes, body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBP" + kind + struct.pack("<I", len(body)) + body


def bombs() -> dict[str, bytes]:
    """Small files whose headers claim more than `MAX_PIXELS`."""
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    jpeg = bytearray(encode(Image.new("RGB", (16, 16)), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    gif = bytearray(encode(Image.new("P", (4, 4)), "GIF"))
    screen, frame = bytearray(gif), bytearray(gif)
    screen[6:10] = b"\xff\xff\xff\xff"
    at = frame.index(b"\x2c")
    frame[at + 5 : at + 9] = b"\xff\xff\xff\xff"  # the frame, on a screen of 4 × 4
    # A first chunk of 13 bytes that is no header, but has small numbers where one has its sides.
    disguised = png(b"teSt" + struct.pack(">II5x", 8, 8), ihdr(9000, 9000), data)
    side = 16383  # 14 bits
    return {
        "JPEG": bytes(jpeg),
        "PNG": png(ihdr(100_000, 100_000), data),
        "PNG of the greatest size": png(ihdr(2**31 - 1, 2**31 - 1), data),
        "PNG in disguise": disguised,
        "GIF screen": bytes(screen),
        "GIF frame": bytes(frame),
        "WebP lossy": webp(b"VP8 ", b"\x10\x00\x00\x9d\x01\x2a" + struct.pack("<HH", side, side) + b"\0" * 30),
        "WebP lossless": webp(b"VP8L", b"\x2f" + struct.pack("<I", side | side << 14) + b"\0" * 30),
        "WebP extended": webp(b"VP8X", b"\0" * 4 + b"\xff\xff\xff\xff\x0f\0" + b"\0" * 30),
    }


def test_absurd_dimensions_are_refused_by_their_header(decoder):
    made = bombs()
    result = decoder.decode([*made.values(), encode(Image.new("RGB", (16, 16)), "JPEG")])
    for i, name in enumerate(made):
        assert f"above the limit of {MAX_PIXELS} pixels" in result.failures[i], name
    assert result.images[len(made)].shape == (16, 16, 3)


def test_the_greatest_allowed_size_by_its_header_is_not_refused_for_it():
    """2²⁶ pixels: the file is then refused for what it lacks."""
    files = [png(ihdr(8192, 8192), b"IDAT" + zlib.compress(b"\0" * 100))]
    failures = make_decoder("torchvision").decode(files).failures
    assert "above the limit" not in failures[0]


def test_the_photo_has_no_symmetry():
    """Otherwise a wrong rotation would pass."""
    pixels = photo().astype(int)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    for other in (pixels[::-1], pixels[:, ::-1], pixels[::-1, ::-1]):
        assert np.abs(pixels - other).mean() > 20
