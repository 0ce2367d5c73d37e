"""Soundness of a JPEG file by its markers: what is called sound must decode, and no damaged table may pass."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.data.decode import DaliDecoder, decode_one
from fastssl.data.jpeg import DamagedJpeg, inspect

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


def encode(mode: str = "RGB", size: tuple[int, int] = (40, 33), **options) -> bytes:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(size).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", **options)
    return buffer.getvalue()


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112], tags[0x010E] = 6, "description"
    return tags


PLAIN = [
    {"quality": 90},
    {"quality": 75, "subsampling": 2, "exif": exif()},
    {"quality": 95, "subsampling": 0, "optimize": True},
    {"quality": 50, "comment": b"hello", "restart_marker_blocks": 1},
    {"quality": 85, "subsampling": 1, "icc_profile": b"\xff\xd9" * 100},
    {"mode": "L"},
]


def segment(data: bytes, marker: int, number: int = 0) -> int:
    """Offset of the marker, found by walking the segments."""
    at = 2
    while True:
        if data[at + 1] == marker:
            if number == 0:
                return at
            number -= 1
        at += 2 + (data[at + 2] << 8 | data[at + 3])


@pytest.mark.parametrize("options", PLAIN, ids=lambda options: "-".join(options))
def test_plain_files_are_sound(options):
    header = inspect(encode(**options))
    assert (header.height, header.width, header.sound) == (33, 40, True)
    assert inspect(encode(**options) + b"tail" * 100).sound


@pytest.mark.parametrize("options", [{"progressive": True}, {"mode": "CMYK"}])
def test_unusual_files_are_not_called_sound_but_have_a_size(options):
    header = inspect(encode(**options))
    assert (header.height, header.width, header.sound) == (33, 40, False)
    assert decode_one(encode(**options)).shape == (33, 40, 3)


def test_every_truncation_is_noticed():
    data = encode(quality=90)
    for length in range(2, len(data)):
        with contextlib.suppress(DamagedJpeg):
            assert not inspect(data[:length]).sound, length


def changed(data: bytes, at: int, *values: int) -> bytes:
    copy = bytearray(data)
    copy[at : at + len(values)] = values
    return bytes(copy)


def test_damaged_tables_are_noticed():
    data = encode(quality=90, subsampling=0)
    frame, scan = segment(data, 0xC0), segment(data, 0xDA)
    quantization, huffman = segment(data, 0xDB), segment(data, 0xC4)
    assert inspect(data).sound
    damaged = {
        "quantization precision": changed(data, quantization + 4, 0x20),
        "quantization number": changed(data, quantization + 4, 0x04),
        "quantization table missing": changed(data, quantization + 4, 0x03),
        "quantization length": changed(data, quantization + 2, 0, 66),
        "huffman class": changed(data, huffman + 4, 0x20),
        "huffman number": changed(data, huffman + 4, 0x05),
        "huffman table missing": changed(data, huffman + 4, 0x03),
        "huffman code overflows": changed(data, huffman + 5, 3),
        "huffman symbols missing": changed(data, huffman + 5 + 15, 200),
        "huffman DC symbol": changed(data, huffman + 5 + 16, 12),
        "precision": changed(data, frame + 4, 12),
        "components": changed(data, frame + 9, 2),
        "sampling 0": changed(data, frame + 11, 0x01),
        "sampling 5": changed(data, frame + 11, 0x51),
        "fractional sampling": changed(changed(data, frame + 11, 0x31), frame + 14, 0x21),
        "sampling too large": changed(data, frame + 11, 0x44),
        "component twice": changed(data, frame + 13, data[frame + 10]),
        "scan components": changed(data, scan + 4, 2),
        "scan selector": changed(data, scan + 5, 77),
        "scan table": changed(data, scan + 6, 0x22),
        "scan spectrum": changed(data, scan + 11, 1),
        "marker in scan": changed(data, len(data) - 40, 0xFF, 0xC8),
        "no end": changed(data, len(data) - 2, 0, 0),
        "segment length 0": changed(data, huffman + 2, 0, 0),
    }
    for name, file in damaged.items():
        with contextlib.suppress(DamagedJpeg):
            assert not inspect(file).sound, name


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xd8", "truncated"),
        (b"\xff\xd8\xff\xc0\x00\x05\x08", "truncated"),
        (b"\xff\xd8hello, world", "damaged"),
        (b"\xff\xd8\xff\xd9" + b"\0" * 20, "without a frame"),
        (b"\xff\xd8\xff\xda" + b"\0" * 20, "without a frame"),
        (b"\xff\xd8\xff\xc3" + b"\0" * 20, "lossless"),
        (b"\xff\xd8\xff\xc9" + b"\0" * 20, "arithmetic"),
    ],
)
def test_no_header(data, reason):
    with pytest.raises(DamagedJpeg, match=reason):
        inspect(data)


def test_padding_before_markers():
    data = encode()
    at = segment(data, 0xDB)
    assert inspect(data[:at] + b"\xff\xff" + data[at:]).sound


def test_sound_files_decode_whatever_their_damage():
    """A thousand files with a few bytes changed: those called sound decode, alike by DALI and with care."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    bases = [encode(**options) for options in PLAIN]
    rng = np.random.default_rng(0)
    sound = []
    for i in range(1000):
        data = bytearray(bases[i % len(bases)])
        reach = len(data) if i % 2 else 700
        for at in rng.integers(2, min(reach, len(data)), rng.integers(1, 4)):
            data[at] ^= 1 << rng.integers(0, 8)
        try:
            if inspect(bytes(data)).sound and inspect(bytes(data)).height < 500:
                sound.append(bytes(data))
        except DamagedJpeg:
            continue
    assert len(sound) > 400
    decoder = DaliDecoder(threads=2)
    for start in range(0, len(sound), 100):
        part = sound[start : start + 100]
        pipeline = decoder._pipeline
        result = decoder.decode(part)
        assert not result.failures
        assert start == 0 or decoder._pipeline is pipeline, "DALI refused a sound file"
        for data, image in zip(part, result.images, strict=True):
            # The decoders may differ over what a damaged EXIF block says of the orientation.
            assert b"description" in data or torch.equal(image, decode_one(data))
    decoder.close()


def test_many_bad_images_in_a_batch_do_not_end_the_process():
    """DALI 2.4 does so when two images of a batch of more than twelve fail."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    data = encode(size=(32, 32))
    decoder = DaliDecoder(threads=2)
    for length in (100, 250, 300, 500, 800):
        for _ in range(10):
            files = [data[:length]] * 20 + [data] * 20
            result = decoder.decode(files)
            assert sorted(result.failures) == list(range(20))
            assert all(image is not None for image in result.images[20:])
    decoder.close()
