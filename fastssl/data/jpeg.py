"""What a JPEG file's markers say, without decoding it (ITU-T T.81, annex B).

The decoder of `nvidia.dali` ends the *process* when two images of one batch fail (2.4: worker tasks outlive the frame
they refer to). So it is only given files that cannot fail: `inspect` reads every marker, and calls a file sound when
its tables are consistent and complete, it has one sequential scan, and nothing but the end follows that scan. Damage
inside the entropy-coded data of such a file changes pixels, but stops no decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_SOI, _EOI, _SOS, _DQT, _DHT, _DRI = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xDD
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)


class DamagedJpeg(Exception):
    """The file has no usable header; the message says why."""


@dataclass(frozen=True)
class JpegHeader:
    height: int
    width: int
    sound: bool
    """Whether any conforming decoder must accept the file."""


@lru_cache(maxsize=4096)
def _quantization_tables(body: bytes) -> frozenset[int] | None:
    """Numbers of the tables that a DQT segment defines, None if it is damaged. Few different ones exist."""
    numbers, at = set(), 0
    while at < len(body):
        precision, number = body[at] >> 4, body[at] & 15
        length = 65 + 64 * precision
        if precision > 1 or number > 3 or at + length > len(body):
            return None
        numbers.add(number)
        at += length
    return frozenset(numbers)


@lru_cache(maxsize=4096)
def _huffman_tables(body: bytes) -> frozenset[int] | None:
    """Class and number (16 · class + number) of the tables that a DHT segment defines, None if it is damaged."""
    numbers, at = set(), 0
    while at < len(body):
        if at + 17 > len(body) or body[at] >> 4 > 1 or body[at] & 15 > 3:
            return None
        counts = body[at + 1 : at + 17]
        code = 0
        for length, count in enumerate(counts, start=1):
            code = (code << 1) + count
            if code >= 1 << length:  # the code of all ones is not to be used, and longer ones would not fit
                return None
        symbols = body[at + 17 : at + 17 + sum(counts)]
        if len(symbols) < sum(counts) or sum(counts) > 256:
            return None
        if body[at] >> 4 == 0 and any(symbol > 11 for symbol in symbols):  # bits of a difference of DC values
            return None
        numbers.add(body[at])
        at += 17 + sum(counts)
    return frozenset(numbers)


def _frame_is_plain(body: bytes) -> bool:
    """8 bits a sample; one component, or three whose sampling factors divide the greatest and fit into one scan."""
    if len(body) < 6 or body[0] != 8 or body[5] not in (1, 3) or len(body) != 6 + 3 * body[5]:
        return False
    across = [body[i] >> 4 for i in range(7, len(body), 3)]
    down = [body[i] & 15 for i in range(7, len(body), 3)]
    if not all(1 <= factor <= 4 for factor in across + down) or len(set(body[6::3])) < body[5]:
        return False
    if any(max(across) % factor for factor in across) or any(max(down) % factor for factor in down):
        return False
    return sum(h * v for h, v in zip(across, down, strict=True)) <= 10  # B.2.3: data units of an interleaved scan


def _scan_is_plain(body: bytes, frame: bytes, quantization: set[int], huffman: set[int]) -> bool:
    """All components of the frame in one sequential scan, with tables that exist."""
    count = frame[5]
    if len(body) != 4 + 2 * count or body[0] != count or body[-3:] != b"\x00\x3f\x00":
        return False
    for i in range(count):
        selector, tables = body[1 + 2 * i], body[2 + 2 * i]
        if selector != frame[6 + 3 * i] or frame[8 + 3 * i] not in quantization:
            return False
        if tables >> 4 not in huffman or 16 + (tables & 15) not in huffman:
            return False
    return True


_ENDS_SCAN = np.ones(256, dtype=np.bool_)
_ENDS_SCAN[[0x00, 0xFF, *range(0xD0, 0xD8)]] = False


def _marker_after_scan(data: bytes, start: int) -> int | None:
    """The marker that ends the scan: in its data 0xFF precedes 0 (a byte of data) or makes a restart marker."""
    scan = np.frombuffer(data, dtype=np.uint8)[start:]
    after = scan[1:][np.flatnonzero(scan[:-1] == 0xFF)]
    ends = _ENDS_SCAN[after]
    return int(after[ends.argmax()]) if ends.any() else None


def inspect(data: bytes) -> JpegHeader:
    """Read the markers of a file that begins with 0xFFD8.

    Raises:
        DamagedJpeg: there is no frame header, or one of a process that is not supported.
    """
    at, end = 2, len(data)
    frame, sequential, clean = b"", False, True
    quantization: set[int] = set()
    huffman: set[int] = set()
    while at + 4 <= end:
        if data[at] != 0xFF:
            if frame:
                break
            raise DamagedJpeg("damaged JPEG header")
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        length = (data[at + 2] << 8) | data[at + 3]
        body = data[at + 4 : at + 2 + length]
        if marker in _OTHER_FRAMES:
            raise DamagedJpeg("lossless, hierarchical or arithmetic JPEG")
        if marker in _HUFFMAN_FRAMES:
            if len(body) < 6:
                raise DamagedJpeg("truncated JPEG header")
            clean &= not frame
            frame, sequential = body, marker != 0xC2
        elif marker == _DQT:
            found = _quantization_tables(body)
            quantization |= found or set()
            clean &= found is not None
        elif marker == _DHT:
            found = _huffman_tables(body)
            huffman |= found or set()
            clean &= found is not None
        elif marker == _SOS:
            if not frame:
                raise DamagedJpeg("JPEG without a frame header")
            clean &= len(body) == length - 2 and _frame_is_plain(frame) and sequential
            clean = clean and _scan_is_plain(body, frame, quantization, huffman)
            sound = clean and _marker_after_scan(data, at + 2 + length) == _EOI
            return JpegHeader((frame[1] << 8) | frame[2], (frame[3] << 8) | frame[4], sound)
        elif not (0xE0 <= marker <= 0xEF or marker in (0xFE, _DRI)):
            if not frame and marker in (_SOI, _EOI):
                raise DamagedJpeg("JPEG without a frame header")
            clean = False
        clean &= length >= 2 and len(body) == length - 2
        at += 2 + max(length, 2)
    if not frame:
        raise DamagedJpeg("truncated JPEG header")
    return JpegHeader((frame[1] << 8) | frame[2], (frame[3] << 8) | frame[4], False)
