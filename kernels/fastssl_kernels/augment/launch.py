"""The launches that draw views: one upload, then at most three kernels (five with PIL's blur)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import target_of
from .kernel import resize_kernel
from .kernel_blur import blur_kernel
from .kernel_color import color_kernel
from .kernel_study import study_kernel
from .parameters import WORDS, column
from .reference import gaussian_taps

# Pixels of a plane that a program of the colour kernel does: 128-bit loads of 16-bit numbers by 128 threads.
COLOR_BLOCK, WARPS = 1024, 4
# The same of the study kernel: with 1024, four random words a pixel would take 128 registers a thread.
STUDY_BLOCK = 512
# Unfinished views are kept in at most so much memory; more views than fit are drawn a part at a time.
WORK_BYTES = 1 << 30


def block(size: int) -> int:
    """Side of the square of pixels that one program of the resizing and blurring kernels owns."""
    return 16 if size <= 16 else 32


def resize_chunk(dtype: torch.dtype) -> tuple[int, int]:
    """Rows and columns of the crop that a product takes at a time: as many as registers hold (read in the ledger)."""
    return (16, 16) if dtype == torch.float32 else (32, 32)


def blur_chunk(dtype: torch.dtype) -> tuple[int, int]:
    """The same of a blur. A block of 32 with 11 taps on each side, from aligned starts of rows, has 64 columns; with 64
    rows too the compiler spills for sm_100, and fp32 needs 32 columns for loads of 128 bits."""
    return (16, 32) if dtype == torch.float32 else (32, 64)


def product_constants(dtype: torch.dtype, target: str) -> dict[str, Any]:
    """Operands of products and unfinished views: fp32 (three TF32 products each) where the result is, else fp16."""
    if dtype != torch.float32:
        return {"OPERAND": tl.float16, "PRECISION": "ieee"}
    return {"OPERAND": tl.float32, "PRECISION": "ieee" if target == "gfx942" else "tf32x3"}


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float32 else torch.float16


def parts(size: int) -> int:
    """Blocks of a view: partial sums of each of its channels."""
    return triton.cdiv(size, block(size)) ** 2


def blurs(size: int, pil: bool) -> bool:
    """Whether views of this size can be blurred. Kernels are compiled for that, not for what a batch happens to hold:
    a view has the same bits in every company."""
    return pil or gaussian_taps(size) > 0


def render(
    images: Sequence[Tensor],
    parameters: Tensor,
    size: int,
    bicubic: bool,
    pil: bool,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
    study: Tensor | None = None,
) -> Tensor:
    """`[M, 3, S, S]`; see `op.py`. `images` are contiguous, or a single `[N, H, W, 3]`."""
    count, device = parameters.shape[0], images[0].device
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty((count, 3, size, size), dtype=dtype, device=device, memory_format=layout)
    if count == 0:
        return out
    contrast, blurred = _wanted(parameters, size, pil)
    rows, pixels = _upload(images, parameters)
    kept = work_dtype(dtype)
    most = max(1, WORK_BYTES // (3 * size * size * kept.itemsize))
    for begin in range(0, count, most):
        part = slice(begin, min(begin + most, count))
        if study is None:
            launches = _Launches(rows[part], pixels, images[0], out[part], size, bicubic, pil, (mean, std))
            launches.run(contrast=contrast, blurred=blurred)
        else:
            levels = torch.empty((part.stop - begin, 3, size, size), dtype=kept, device=device)
            plain = _Launches(rows[part], pixels, images[0], levels, size, bicubic, pil, ((0.0,) * 3, (1.0,) * 3))
            plain.run(contrast=contrast, blurred=blurred)
            launches = _Launches(rows[part], pixels, images[0], out[part], size, bicubic, pil, (mean, std))
            launches.finish(levels, study[part].to(device, non_blocking=True))
    return out


def _wanted(parameters: Tensor, size: int, pil: bool) -> tuple[bool, bool]:
    """Whether any view has contrast, and a blur: unknown, hence assumed, of parameters on the device."""
    if parameters.device.type != "cpu":
        return True, blurs(size, pil)
    contrast = parameters[:, column("contrast_at")] < parameters[:, column("count")]
    return bool(contrast.any()), blurs(size, pil) and bool((parameters[:, column("sigma")] > 0).any())


def _upload(images: Sequence[Tensor], parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Parameters on the device; and a table [N, 2] of address and width, or the images themselves if they are one."""
    device = images[0].device
    stacked = images[0].ndim == 4
    here = parameters.device.type == "cpu"
    if stacked and not here:
        return parameters.contiguous(), images[0]
    table = [] if stacked else [number for image in images for number in (image.data_ptr(), image.shape[1])]
    rows = parameters.numel() // 2 if here else 0  # in words of 64 bits
    words = torch.empty(rows + len(table), dtype=torch.int64, pin_memory=device.type == "cuda")
    if here:
        words[:rows].view(torch.float32).copy_(parameters.reshape(-1))
    words[rows:] = torch.tensor(table, dtype=torch.int64)
    sent = words.to(device, non_blocking=True)
    on_device = sent[:rows].view(torch.float32).view(-1, WORDS) if here else parameters.contiguous()
    return on_device, images[0] if stacked else sent[rows:]


class _Launches:
    """The kernels on some of the views."""

    def __init__(
        self,
        rows: Tensor,
        pixels: Tensor,
        image: Tensor,
        out: Tensor,
        size: int,
        bicubic: bool,
        pil: bool,
        normalise: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        self.rows, self.pixels, self.image, self.out = rows, pixels, image, out
        self.size, self.bicubic, self.pil, self.normalise = size, bicubic, pil, normalise

    def run(self, *, contrast: bool, blurred: bool) -> None:
        count, size = self.rows.shape[0], self.size
        shape = (count if contrast or blurred else 0, 3, size, size)
        work = torch.empty(shape, dtype=work_dtype(self.out.dtype), device=self.out.device)
        partial = torch.empty(3 * count * parts(size) if contrast else 0, dtype=torch.float32, device=self.out.device)
        with torch.cuda.device_of(self.out):
            self._resize(work, partial)
            if contrast:
                self._color(work, partial)
            if blurred and not self.pil:
                self._blur(work, work, last=True)
            elif blurred:
                other = torch.empty_like(work)
                self._blur(work, other, last=False)
                self._blur(other, work, last=False)
                self._blur(work, work, last=True)

    def finish(self, levels: Tensor, study: Tensor) -> None:
        """Rotation, noise, Sobel and cutout of the views `levels`, which the other launches have left in [0, 1]."""
        area = self.size * self.size
        pixels = min(STUDY_BLOCK, triton.next_power_of_2(area))
        with torch.cuda.device_of(self.out):
            study_kernel[(levels.shape[0] * triton.cdiv(area, pixels),)](
                study.contiguous(), levels, self.out, BLOCK=pixels, **self._common()
            )

    def _common(self) -> dict[str, Any]:
        """Arguments of every kernel."""
        mean, std = self.normalise
        numbers = {f"mean{i}": float(mean[i]) for i in range(3)} | {f"std{i}": 1.0 / std[i] for i in range(3)}
        last = not self.out.is_contiguous()
        return {**numbers, "S": self.size, "CHANNELS_LAST": last, "num_warps": WARPS, "enable_fp_fusion": True}

    def _products(self, chunk: tuple[int, int]) -> dict[str, Any]:
        constants = product_constants(self.out.dtype, target_of(self.out.device))
        return {"BLOCK": block(self.size), "ROWS": chunk[0], "K": chunk[1], **constants, "num_stages": 1}

    def _resize(self, work: Tensor, partial: Tensor) -> None:
        table = self.image.ndim == 3
        resize_kernel[(self.rows.shape[0] * parts(self.size),)](
            self.rows,
            self.pixels,
            0 if table else self.image[0].numel(),
            0 if table else self.image.shape[2],
            self.out,
            work,
            partial,
            SUPPORT=2 if self.bicubic else 1,
            TABLE=table,
            BLUR=blurs(self.size, self.pil),
            **self._products(resize_chunk(self.out.dtype)),
            **self._common(),
        )

    def _color(self, work: Tensor, partial: Tensor) -> None:
        area, count = self.size * self.size, parts(self.size)
        pixels = min(COLOR_BLOCK, triton.next_power_of_2(area))
        color_kernel[(self.rows.shape[0] * triton.cdiv(area, pixels),)](
            self.rows,
            partial,
            work,
            self.out,
            PARTS=count,
            PARTS_POWER=triton.next_power_of_2(count),
            BLOCK=pixels,
            BLUR=blurs(self.size, self.pil),
            **self._common(),
        )

    def _blur(self, source: Tensor, planes: Tensor, *, last: bool) -> None:
        blur_kernel[(self.rows.shape[0] * parts(self.size),)](
            self.rows,
            source,
            planes,
            self.out,
            HALF=gaussian_taps(self.size),
            PIL=self.pil,
            LAST=last,
            **self._products(blur_chunk(self.out.dtype)),
            **self._common(),
        )
