"""Bytes, FLOPs and exponentials of drawing views: the floor, what reaches device memory, and what programs ask for.

`parameters` is the tensor of `view_parameters`, on the CPU.

Three figures of bytes, each at least the one before:

    floor_bytes     every pixel of each crop read once, every view written once
    device_bytes    what the launches exchange: unfinished views are written and read again; windows of neighbouring
                    programs overlap, but lie in a cache
    loaded_bytes + stored_bytes    every access of every program, as the interpreter counts them
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .launch import COLOR_BLOCK, STUDY_BLOCK, block, blur_chunk, blurs, resize_chunk, work_dtype
from .parameters import FLIP, column
from .reference import box_widths, gaussian_taps
from .study import study_column


@dataclass(frozen=True)
class Work:
    """Drawing some views. dtype: of the result. table: images are a list, hence found by a table of addresses. study:
    of `study_parameters`, which costs a launch of its own."""

    parameters: Tensor
    size: int
    bicubic: bool = True
    pil: bool = False
    dtype: torch.dtype = torch.float32
    table: bool = True
    study: Tensor | None = None

    # ---------------------------------------------------------------------------------------------- who needs what

    def _column(self, name: str) -> Tensor:
        return self.parameters[:, column(name)]

    @property
    def _contrast(self) -> Tensor:
        return self._column("contrast_at") < self._column("count")

    @property
    def _blurred(self) -> Tensor:
        return (self._column("sigma") > 0) & blurs(self.size, self.pil)

    @property
    def _kept(self) -> int:
        """Bytes of an unfinished view."""
        return 3 * self.size**2 * work_dtype(self.dtype).itemsize

    @property
    def _side(self) -> int:
        return math.ceil(self.size / block(self.size))

    @property
    def _color_blocks(self) -> int:
        return math.ceil(self.size**2 / min(COLOR_BLOCK, 1 << (self.size**2 - 1).bit_length()))

    # ------------------------------------------------------------------------------------------------------- bytes

    def floor_bytes(self) -> int:
        """Each pixel of the crops is read once and each view is written once."""
        crops = 3 * (self._column("height") * self._column("width")).double().sum()
        return int(crops) + len(self.parameters) * 3 * self.size**2 * self.dtype.itemsize

    def device_bytes(self) -> int:
        """The floor, and unfinished views: written, read and written again by each launch that changes them."""
        contrast, blurred = self._contrast, self._blurred
        exchanged = int(contrast.sum()) + int(blurred.sum())
        extra = 4 * int(blurred.sum()) if self.pil else 0
        extra += 0 if self.study is None else 2 * len(self.parameters)
        return self.floor_bytes() + (2 * exchanged + extra) * self._kept

    def stored_bytes(self) -> int:
        contrast, blurred = self._contrast, self._blurred
        unfinished = int((contrast | blurred).sum()) + int((contrast & blurred).sum())
        unfinished += 2 * int(blurred.sum()) if self.pil else 0
        unfinished += 0 if self.study is None else len(self.parameters)
        finished = len(self.parameters) * 3 * self.size**2 * self.dtype.itemsize
        return finished + unfinished * self._kept + 12 * self._side**2 * int(contrast.sum())

    def loaded_bytes(self) -> int:
        views, parts = len(self.parameters), self._side**2
        contrast, blurred = int(self._contrast.sum()), int(self._blurred.sum())
        sigma = int(blurs(self.size, self.pil))
        # Words of the row of parameters that a program reads, and two of the table of images.
        total = views * parts * (4 * (13 + sigma) + 16 * self.table) + self._source_bytes()
        if contrast:
            blocks = self._color_blocks
            total += views * blocks * 8 + contrast * (blocks * 4 * (7 + sigma + 3 * parts) + self._kept)
        if blurred:
            launches = 3 if self.pil else 1
            total += launches * views * parts * 4 + blurred * parts * 4 + launches * self._blur_bytes()
        return total + self._study_bytes()

    def _study_bytes(self) -> int:
        """Loaded by the last launch: with Sobel each pixel and its eight neighbours, each with noise of its own."""
        if self.study is None:
            return 0
        read = 1 + 8 * (self.study[:, study_column("sobel")] != 0).long()
        drawn = (self.study[:, study_column("sigma")] != 0).long()
        words = 7 * len(self.study) + 5 * int((read * drawn).sum())
        blocks = math.ceil(self.size**2 / min(STUDY_BLOCK, 1 << (self.size**2 - 1).bit_length()))
        return 4 * words * blocks + int(read.sum()) * self._kept

    def _source_bytes(self) -> int:
        rows, columns = self._windows("height"), self._windows("width")
        return int(3 * (rows.sum(1) * columns.sum(1)).sum())

    def _blur_bytes(self) -> int:
        """Of one launch."""
        (first_y, stop), (first, _), chunk = self._blur_windows(1), self._blur_windows(16), blur_chunk(self.dtype)[1]
        rows = (stop - first_y).sum(1)
        # Rows are read in whole chunks.
        columns = (first + (stop - first + chunk - 1) // chunk * chunk).clamp(max=self.size) - first
        return int((rows * columns.sum(1) * self._blurred).sum()) * self._kept // self.size**2

    # ---------------------------------------------------------------------------------------------------- products

    def product_flops(self) -> int:
        """2 FLOPs a multiply-add, zeros of the bands included; three channels."""
        rows, columns = self._windows("height"), self._windows("width")
        resized = self._multiply_adds(rows, columns, resize_chunk(self.dtype)).sum()
        blurred = self._multiply_adds(*self._blur_extents(), blur_chunk(self.dtype)) * self._blurred
        return 6 * int(resized + (3 if self.pil else 1) * blurred.sum())

    def exponentials(self) -> int:
        """Three a weight of a Gaussian: the pixel and its two reflections."""
        if self.pil:
            return 0
        chunk, width = blur_chunk(self.dtype), block(self.size)
        rows, columns = _chunks(self._blur_extents(), chunk)
        weights = rows * columns * chunk[1] * width + rows * self._side * chunk[0] * width
        return 3 * int((weights * self._blurred).sum())

    def _multiply_adds(self, rows: Tensor, columns: Tensor, chunk: tuple[int, int]) -> Tensor:
        """`[M]` of one channel, for windows `[M, blocks]` along both axes."""
        width = block(self.size)
        down, across = _chunks((rows, columns), chunk)
        return down * across * chunk[0] * chunk[1] * width + down * self._side * chunk[0] * width * width

    def _blur_extents(self) -> tuple[Tensor, Tensor]:
        (first_y, stop), (first_x, _) = self._blur_windows(1), self._blur_windows(16)
        return stop - first_y, stop - first_x

    # ----------------------------------------------------------------------------------------------------- windows

    def _blocks(self) -> tuple[Tensor, Tensor]:
        """First and last pixel of each block along one axis."""
        low = torch.arange(0, self.size, block(self.size))
        return low, (low + block(self.size)).clamp(max=self.size) - 1

    def _windows(self, axis: str) -> Tensor:
        """`[M, blocks]`: pixels of the crop that each block sees along "height" or "width"."""
        low, high = (edge.expand(len(self.parameters), -1) for edge in self._blocks())
        if axis == "width":
            flipped = (self._column("flags").long() & FLIP)[:, None] != 0
            last = self.size - 1
            low, high = torch.where(flipped, last - high, low), torch.where(flipped, last - low, high)
        length = self._column(axis)[:, None]
        scale = length / self.size
        reach = (2 if self.bicubic else 1) * scale.clamp(min=1)
        first = ((low + 0.5) * scale - reach + 0.5).floor().clamp(min=0)
        stop = torch.minimum(((high + 0.5) * scale + reach + 0.5).floor(), length)
        return (stop - first).long()

    def _blur_windows(self, aligned: int) -> tuple[Tensor, Tensor]:
        """`[M, blocks]`: first and one past the last pixel that a blurred block reads along one axis."""
        sigma = self._column("sigma")
        if self.pil:
            reach = torch.tensor([box_widths(s)[0] + 1 for s in sigma.tolist()], dtype=torch.int64)
        else:
            reach = torch.minimum(sigma * 7.5, torch.tensor(float(gaussian_taps(self.size)))).long()
        low = self._blocks()[0]
        first = (low - reach[:, None]).clamp(min=0) // aligned * aligned
        # The last block reaches beyond the view by whole pixels of its own.
        stop = (low + block(self.size) + reach[:, None]).clamp(max=self.size)
        return first, stop


def _chunks(windows: tuple[Tensor, Tensor], chunk: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """`[M]`: chunks along each axis, of all blocks together."""
    down, across = (((window + size - 1) // size).sum(1) for window, size in zip(windows, chunk, strict=True))
    return down, across
