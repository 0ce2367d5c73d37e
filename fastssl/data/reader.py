"""Samples by id: read, decode, put the unreadable ones into quarantine; and rendering on the same threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import UserError
from . import dali_graph, native, triton_render
from .buffers import Buffers
from .decode import HW_DECODER_LOAD, DecoderKind, make_decoder
from .params import ViewParams
from .quarantine import Quarantine
from .render import render
from .sources import ArraySource, Source
from .views import ViewSpec
from .workers import worker_pool

RendererKind = Literal["auto", "native", "triton", "torch", "dali"]


def resolve_renderer(kind: RendererKind, device: torch.device) -> Literal["native", "triton", "torch", "dali"]:
    """auto: native for views on the CPU, where it was built; triton on a GPU, where it is installed.

    Raises:
        UserError: a native renderer that is not there, or is asked for on a GPU; DALI or Triton where it is not
            installed; Triton on the CPU.
    """
    if kind == "dali":
        dali_graph.require("--loader.renderer")
        return "dali"
    if kind == "native" and device.type != "cpu":
        raise UserError(f"--loader.renderer native makes views on the CPU, not on {device.type}: use auto or torch")
    if kind == "native" and not native.available():
        raise UserError(
            "--loader.renderer native was not built with this installation: install fastssl again where a C compiler "
            "is found, or use --loader.renderer torch"
        )
    if kind == "triton" and device.type != "cuda":
        raise UserError(f"--loader.renderer triton makes views on a GPU, not on {device.type}: use auto")
    if kind == "triton" and not triton_render.available():
        raise UserError("--loader.renderer triton needs the package triton: install it, or use --loader.renderer torch")
    if kind == "torch":
        return "torch"
    if device.type == "cpu":
        return "native" if native.available() else "torch"
    return "triton" if device.type == "cuda" and triton_render.available() else "torch"


def image_sizes(images: torch.Tensor | list[torch.Tensor]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Heights and widths."""
    if isinstance(images, torch.Tensor):
        n, height, width = images.shape[:3]
        return np.full(n, height), np.full(n, width)
    return np.array([i.shape[0] for i in images]), np.array([i.shape[1] for i in images])


class Reader:
    """Reads and decodes samples by id, and notes the unreadable ones."""

    def __init__(
        self,
        source: Source,
        quarantine: Quarantine,
        decoder: DecoderKind,
        threads: int,
        device: torch.device,
        renderer: RendererKind = "auto",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        hw_decoder_load: float = HW_DECODER_LOAD,
        pin: bool = False,
    ) -> None:
        self.renderer = resolve_renderer(renderer, device)
        self._buffers = Buffers(pin=pin)
        self.source, self.quarantine, self.device = source, quarantine, device
        self.threads = threads
        self.dtype, self.channels_last = dtype, channels_last
        self.pool = worker_pool(threads, "fastssl-data")
        # Threads of their own: a batch is read while the others render the one before.
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="fastssl-read")
        self._fetching = threading.Lock()
        self._dali = dali_graph.DaliRenderer(device=device, threads=threads) if self.renderer == "dali" else None
        self._decoder = (
            None
            if isinstance(source, ArraySource)
            else make_decoder(decoder, device=device, threads=threads, hw_decoder_load=hw_decoder_load)
        )

    def _read(self, ids: NDArray[np.int64]) -> list[bytes | str]:
        """The bytes of each sample, or why they cannot be read."""

        def run(part: NDArray[np.int64]) -> list[bytes | str]:
            results: list[bytes | str] = []
            for i in part.tolist():
                try:
                    results.append(self.source.read(i))
                except OSError as error:
                    results.append(f"cannot be read ({error.strerror})")
            return results

        return [data for part in self._readers.map(run, np.array_split(ids, self.threads)) for data in part]

    def fetch(self, ids: NDArray[np.int64]) -> torch.Tensor | list[torch.Tensor | None]:
        """uint8 `[N, H, W, 3]`, or N tensors `[H, W, 3]` and None for the unreadable ones, which go into quarantine.

        Any thread may ask; one at a time is served.

        Raises:
            UserError: too many are unreadable.
        """
        with self._fetching:
            return self._fetch(ids)

    def _fetch(self, ids: NDArray[np.int64]) -> torch.Tensor | list[torch.Tensor | None]:
        if isinstance(self.source, ArraySource):
            return self.source.gather(ids).to(self.device)
        assert self._decoder is not None
        # What is known to be unreadable is not tried again.
        wanted = [i for i, sample in enumerate(ids.tolist()) if sample not in self.quarantine]
        data = self._read(ids[wanted])
        failures = {i: read for i, read in zip(wanted, data, strict=True) if isinstance(read, str)}
        encoded = [(i, read) for i, read in zip(wanted, data, strict=True) if not isinstance(read, str)]
        decoded = self._decoder.decode([read for _, read in encoded])
        failures |= {encoded[position][0]: reason for position, reason in decoded.failures.items()}
        self.quarantine.add({int(ids[i]): (self.source.name(int(ids[i])), why) for i, why in failures.items()})
        if isinstance(decoded.images, torch.Tensor) and len(decoded.images) == len(ids):
            return decoded.images.to(self.device)
        images: list[torch.Tensor | None] = [None] * len(ids)
        for (i, _), image in zip(encoded, decoded.images, strict=True):
            images[i] = None if image is None else image.to(self.device)
        return images

    def render(
        self,
        images: torch.Tensor | list[torch.Tensor],
        params: ViewParams,
        spec: ViewSpec,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        shown: NDArray[np.int64] | None = None,
    ) -> torch.Tensor:
        """The views, in the reader's dtype and memory order. shown: the image of each row, by default r mod N."""
        if shown is None:
            shown = np.arange(len(params)) % len(images)
        if self.renderer == "triton":
            return triton_render.render(
                images, params, spec, mean, std, shown=shown, dtype=self.dtype, channels_last=self.channels_last
            )
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return self._draw(images, params, spec, mean, std, shown).to(self.dtype, memory_format=layout)

    def _draw(
        self,
        images: torch.Tensor | list[torch.Tensor],
        params: ViewParams,
        spec: ViewSpec,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        shown: NDArray[np.int64],
    ) -> torch.Tensor:
        """float32, shared among the threads where they are on the CPU."""
        if self._dali is not None:
            return self._dali.render(images, params, spec, mean, std, shown=shown)
        if self.renderer == "native":
            out = self._buffers.empty(len(params), 3, spec.size, spec.size)
            return native.render(
                images, params, spec, mean, std, shown=shown, pool=self.pool, threads=self.threads, out=out
            )
        count, size = len(params), spec.size
        if self.device.type != "cpu" or count < 2 or self.threads < 2:
            return render(images, params, spec, mean, std, shown=shown)
        out = torch.empty(count, 3, size, size)

        def run(rows: NDArray[np.intp]) -> None:
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            render(images, params.select(part), spec, mean, std, shown=shown[rows], out=out[part])

        list(self.pool.map(run, np.array_split(np.arange(count), min(count, self.threads))))
        return out

    def close(self) -> None:
        self.pool.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        if self._decoder is not None:
            self._decoder.close()
        if self._dali is not None:
            self._dali.close()
