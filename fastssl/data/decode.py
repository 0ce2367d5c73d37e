"""From encoded bytes to pixels, once an image.

Two back ends with one contract. `DaliDecoder` is the fast one, on the CPU or the GPU. It hands DALI only the JPEG files
that must decode (see `jpeg`): one unreadable image stops a DALI pipeline for good, and two in a batch may end the
process. All else goes to the careful decoders of `CarefulDecoder`, one image at a time, on threads: torchvision's for
JPEG, PIL's for other formats and for what torchvision refuses. On the CPU both give the same pixels. What an image
decodes to depends on its bytes alone, never on its neighbours in the batch (on a GPU only where one of its decoders
takes all, see `HW_DECODER_LOAD`).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from ..errors import UserError
from .handover import MAPPED, PIECE, SMALL, HandOver
from .jpeg import DamagedJpeg, JpegHeader, inspect
from .workers import worker_pool

MAX_PIXELS = 1 << 26
"""Most pixels an image may have, by its header (201 MB as RGB): more is taken for a decompression bomb."""

HW_DECODER_LOAD = 0.65
"""Share of a batch's JPEG data that the GPU's hardware decoder takes, where it has one; DALI's own default. Which
images those are depends on the batch, and the two decoders may round differently: 0 or 1 rules that out."""

DecoderKind = Literal["auto", "dali", "torchvision"]


class UnreadableImage(Exception):
    """The bytes are not an image that can be decoded; the message says why."""


@dataclass(frozen=True)
class Decoded:
    """Pixels of N encoded images, and what went wrong with the others."""

    images: torch.Tensor | list[torch.Tensor | None]
    """uint8 `[N, H, W, 3]` where all are readable and of one size, else N tensors `[H, W, 3]`, None for unreadable."""
    failures: dict[int, str]
    """Why, by position, for each unreadable image."""


class Decoder(Protocol):
    def decode(self, encoded: Sequence[bytes]) -> Decoded: ...

    def close(self) -> None: ...


# ---------------------------------------------------------------------------------------------------------- headers


def _pil_size(data: bytes) -> tuple[int, int]:
    from PIL import Image

    try:
        width, height = Image.open(io.BytesIO(data)).size
    except Image.DecompressionBombError as error:  # PIL has a limit of its own, the higher one
        raise UnreadableImage(f"image above the limit of {MAX_PIXELS} pixels") from error
    except Exception as error:  # any damaged header: PIL's plug-ins raise whatever they meet
        raise UnreadableImage(f"not an image of a known format ({type(error).__name__})") from error
    return height, width


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """By the first chunk, as RFC 9649 has it: PIL's decoder takes memory for the canvas before it tells its size."""
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:  # each side less 1, in 24 bits
        return int.from_bytes(data[27:30], "little") + 1, int.from_bytes(data[24:27], "little") + 1
    if kind == b"VP8L" and len(data) >= 25:  # each side less 1, in 14 bits
        bits = int.from_bytes(data[21:25], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 " and len(data) >= 30:
        return int.from_bytes(data[28:30], "little") & 0x3FFF, int.from_bytes(data[26:28], "little") & 0x3FFF
    return None


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise UnreadableImage(f"image of {width} × {height} pixels")
    if height * width > MAX_PIXELS:
        raise UnreadableImage(f"image of {width} × {height} pixels, above the limit of {MAX_PIXELS} pixels")


def _inspect(data: bytes) -> JpegHeader:
    try:
        header = inspect(data)
    except DamagedJpeg as error:
        raise UnreadableImage(str(error)) from error
    _check_size(header.height, header.width)
    return header


def image_size(data: bytes) -> tuple[int, int]:
    """Height and width by the file's header, before any EXIF rotation. The format is told by content, not by name.

    Raises:
        UnreadableImage: empty, unknown, damaged, or more than `MAX_PIXELS`.
    """
    if not data:
        raise UnreadableImage("empty file")
    if data[:2] == b"\xff\xd8":
        header = _inspect(data)
        return header.height, header.width
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and len(data) >= 24:
        height, width = int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    else:
        claimed = _webp_size(data) if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None
        if claimed is not None:
            _check_size(*claimed)
        height, width = _pil_size(data)
    _check_size(height, width)
    return height, width


# -------------------------------------------------------------------------------------------------- one at a time


def _decode_jpeg(data: bytes) -> torch.Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg

    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)  # torch warns of read-only memory
    image = decode_jpeg(buffer, mode=ImageReadMode.RGB, apply_exif_orientation=True)
    return image.permute(1, 2, 0).contiguous()


def _decode_pil(data: bytes) -> torch.Tensor:
    from PIL import Image, ImageOps

    stored = Image.open(io.BytesIO(data))
    _check_size(stored.height, stored.width)  # a second header may say something else than the first
    image = ImageOps.exif_transpose(stored)
    if image.mode.startswith("I"):  # 16-bit gray: PIL would clip instead of scale
        gray = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return torch.from_numpy(np.repeat(gray[:, :, None], 3, axis=2))
    return torch.from_numpy(np.array(image.convert("RGB")))


def decode_one(data: bytes) -> torch.Tensor:
    """Decode one image: JPEG with torchvision, all else (and what it refuses) with PIL; EXIF orientation is applied.

    torchvision's decoders of other formats are not used: damaged PNG files were seen to end the process there.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        UnreadableImage: with the decoder's own reason.
    """
    image_size(data)
    reason = ""
    if data[:2] == b"\xff\xd8":
        try:
            return _decode_jpeg(data)
        except (ImportError, RuntimeError) as error:
            reason = str(error).split(", ")[-1].strip()  # what precedes names the decoder's own source files
    try:
        return _decode_pil(data)
    except UnreadableImage:
        raise
    except Exception as error:  # PIL's plug-ins raise whatever they meet
        raise UnreadableImage(reason or f"{str(error) or type(error).__name__}") from error


def _stacked(images: list[torch.Tensor | None], failures: dict[int, str]) -> Decoded:
    if images and not failures and len({image.shape for image in images if image is not None}) == 1:
        return Decoded(torch.stack([image for image in images if image is not None]), failures)
    return Decoded(images, failures)


class CarefulDecoder:
    """torchvision's JPEG decoder and PIL's decoders, image by image, on a few threads. CPU."""

    def __init__(self, *, threads: int = 2) -> None:
        self._threads = max(1, threads)
        self._pool = worker_pool(self._threads, "fastssl-decode")

    def decode(self, encoded: Sequence[bytes]) -> Decoded:
        def run(positions: range) -> list[torch.Tensor | str]:
            results: list[torch.Tensor | str] = []
            for position in positions:
                try:
                    results.append(decode_one(encoded[position]))
                except UnreadableImage as error:
                    results.append(str(error))
            return results

        share = -(-len(encoded) // self._threads) or 1
        parts = [range(i, min(i + share, len(encoded))) for i in range(0, len(encoded), share)]
        results = [result for part in self._pool.map(run, parts) for result in part]
        failures = {i: result for i, result in enumerate(results) if isinstance(result, str)}
        return _stacked([None if isinstance(r, str) else r for r in results], failures)

    def close(self) -> None:
        self._pool.shutdown(wait=True)


# ------------------------------------------------------------------------------------------------------------- DALI


class DaliDecoder:
    """nvidia.dali on the CPU, or ("mixed") on a CUDA device, where nvJPEG and the hardware decoder do the work."""

    def __init__(
        self, *, device: torch.device | str = "cpu", threads: int = 2, hw_decoder_load: float = HW_DECODER_LOAD
    ) -> None:
        import nvidia.dali.fn as fn
        from nvidia.dali import Pipeline

        self._fn, self._pipeline_type = fn, Pipeline
        self._device = torch.device(device)
        self._threads = max(1, threads)
        self._hw_decoder_load = hw_decoder_load
        self._careful = CarefulDecoder(threads=self._threads)
        self._handover = HandOver(self._device)
        self._pipeline: Any = None
        self._batch: list[np.ndarray] = []
        self._capacity = 0

    def _build(self) -> None:
        on_gpu = self._device.type == "cuda"
        # The dynamic executor allocates each output anew and counts references to it (see `handover`).
        pipeline = self._pipeline_type(
            batch_size=self._capacity,
            num_threads=self._threads,
            device_id=(self._device.index or 0) if on_gpu else None,
            exec_dynamic=True,
            prefetch_queue_depth=1,
        )
        with pipeline:
            encoded = self._fn.external_source(source=lambda: self._batch, batch=True)
            mixed = {"device": "mixed", "hw_decoder_load": self._hw_decoder_load}
            pipeline.set_outputs(self._fn.decoders.image(encoded, **(mixed if on_gpu else {"device": "cpu"})))
        pipeline.build()
        self._pipeline = pipeline

    def _run(self, encoded: Sequence[bytes]) -> Any:
        if self._pipeline is None:
            self._build()
        self._batch = [np.frombuffer(data, dtype=np.uint8) for data in encoded]
        (output,) = self._pipeline.run()
        return output

    def _run_in_pieces(self, encoded: Sequence[bytes], sizes: Sequence[int]) -> list[torch.Tensor]:
        """Images of `sizes` bytes in one block of our own, for the sake of the C library's heap (see `handover`)."""
        block = self._handover.block(sum(sizes))
        images: list[torch.Tensor] = []
        start = used = 0
        while start < len(encoded):
            stop, length = start, 0
            while stop < len(encoded) and (stop == start or length + sizes[stop] <= PIECE):
                length += sizes[stop]
                stop += 1
            images += self._handover.copy(self._run(encoded[start:stop]), block[used : used + length])
            start, used = stop, used + length
        return images

    def _decode_sound(self, encoded: Sequence[bytes], headers: Sequence[JpegHeader]) -> Decoded:
        """Files that must decode. Should DALI still refuse one, all are decoded with care, and DALI starts anew."""
        images: torch.Tensor | list[torch.Tensor]
        sizes = [3 * header.height * header.width for header in headers]
        unlike = len({(header.height, header.width) for header in headers}) > 1
        small = sum(sizes) < min(MAPPED, SMALL * len(sizes))
        try:
            if self._device.type == "cpu" and unlike and small:
                images = self._run_in_pieces(encoded, sizes)
            else:
                images = self._handover.take_batch(self._run(encoded))
        except RuntimeError:
            self._pipeline = None  # it stays unusable
            return self._careful.decode(encoded)
        return Decoded(images if isinstance(images, torch.Tensor) else list(images), {})

    def decode(self, encoded: Sequence[bytes]) -> Decoded:
        if len(encoded) > self._capacity:  # of the whole batch: how many are sound changes, and a new pipeline is dear
            self._pipeline, self._capacity = None, len(encoded)
        failures: dict[int, str] = {}
        sound: dict[int, JpegHeader] = {}
        others: list[int] = []
        for i, data in enumerate(encoded):
            try:
                header = _inspect(data) if data[:2] == b"\xff\xd8" else None
            except UnreadableImage as error:
                failures[i] = str(error)
                continue
            if header is not None and header.sound:
                sound[i] = header
            else:
                others.append(i)
        images: list[torch.Tensor | None] = [None] * len(encoded)
        results: list[tuple[list[int], Decoded]] = []
        if sound:
            results.append((list(sound), self._decode_sound([encoded[i] for i in sound], list(sound.values()))))
        if others:
            results.append((others, self._careful.decode([encoded[i] for i in others])))
        for positions, result in results:
            if isinstance(result.images, torch.Tensor) and len(positions) == len(encoded):
                return Decoded(result.images.to(self._device), failures)
            for i, image in zip(positions, result.images, strict=True):
                images[i] = None if image is None else image.to(self._device)
            failures |= {positions[k]: reason for k, reason in result.failures.items()}
        return _stacked(images, failures)

    def close(self) -> None:
        self._pipeline = None
        self._careful.close()


def make_decoder(
    kind: DecoderKind = "auto",
    *,
    device: torch.device | str = "cpu",
    threads: int = 2,
    hw_decoder_load: float = HW_DECODER_LOAD,
) -> Decoder:
    """The decoder of that kind: "auto" is DALI where it can be imported, else torchvision (with PIL).

    Raises:
        UserError: unknown kind, "dali" without DALI, or a share outside [0, 1].
    """
    if not 0 <= hw_decoder_load <= 1:
        raise UserError(f"hw_decoder_load must be in [0, 1], got {hw_decoder_load}")
    if kind not in ("auto", "dali", "torchvision"):
        raise UserError(f"decoder must be auto, dali or torchvision, got {kind!r}")
    if kind != "torchvision":
        try:
            return DaliDecoder(device=device, threads=threads, hw_decoder_load=hw_decoder_load)
        except ImportError as error:
            if kind == "dali":
                raise UserError(
                    f"decoder 'dali' needs the package nvidia-dali, which cannot be imported ({error}): "
                    "install it or choose decoder 'torchvision'"
                ) from error
    return CarefulDecoder(threads=threads)
