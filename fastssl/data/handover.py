"""DALI's outputs as torch tensors that stay valid whatever DALI does next.

What DALI promises of its default (dynamic) executor: outputs are allocated anew for each batch and may be kept
indefinitely; the DLPack capsule holds a reference to the memory, which goes back to DALI's pool when the last one is
dropped (documentation of `Tensor.__dlpack__`, and NVIDIA/DALI pull requests 5684 and 5699).

* On the CPU that is enough. `torch.from_dlpack` keeps the capsule with the tensor's storage, and so does every view of
  it: the memory lives exactly as long as somebody can look at it. Only batches below 32 MiB of unlike, small images are
  copied, a piece at a time, into buffers that are used again. Their blocks are of another size each time; the C library
  does not map them but keeps them on the heap of whichever of DALI's threads asked, each of which then holds on to as
  much as a batch. Tensors of one block of our own are also made faster than DALI's. (A batch of a few large images is
  left in DALI's block, though the heap may keep some of those too: to copy it, or to part it, costs more.)
* On a GPU it is not. A tensor is dropped when its last kernel has been *launched*, and DALI gives its memory to the
  next batch at once, on streams of its own that know nothing of torch's: it could be overwritten before that kernel
  has read it. So the pixels are copied into memory of torch's allocator, which does know torch's streams. The copy
  runs on a stream of its own and is waited for before DALI's tensors are dropped; that waits for decoding and copying
  only, not for the training step, which is on another stream. It moves as many bytes as the images have, twice.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .buffers import Buffers

MAPPED = 32 << 20
"""Bytes from which glibc surely maps a block, and gives it back when it is freed (its `M_MMAP_THRESHOLD` at most)."""

PIECE = 4 << 20
"""Most bytes that DALI decodes at once of a batch that is copied: what each of its threads may keep of the heap."""

SMALL = PIECE // 32
"""Bytes of an image below which, in the mean, a batch is copied: a piece then has work for many threads."""


class HandOver:
    """Takes tensors over from DALI.

    Args:
        device: of DALI's outputs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._buffers = Buffers(dtype=torch.uint8, step=MAPPED)

    def block(self, size: int) -> Tensor:
        """Memory for `size` bytes of pixels below `MAPPED`, used again when nobody looks at them any more."""
        return self._buffers.empty(size)

    def copy(self, output: Any, block: Tensor) -> list[Tensor]:
        """DALI's batch of uint8 images on the CPU, copied to `block`, which has their size."""
        shapes = output.shape()
        sizes = [math.prod(shape) for shape in shapes]
        if sum(sizes) != len(block):
            raise RuntimeError(f"DALI decoded {sum(sizes)} bytes where the headers say {len(block)}")
        output.copy_to_external(ctypes.c_void_p(block.data_ptr()))
        return [pixels.view(shape) for pixels, shape in zip(block.split(sizes), shapes, strict=True)]

    def take_batch(self, output: Any) -> Tensor | list[Tensor]:
        """DALI's batch of images: one tensor where they are of one size, else one each."""
        if output.is_dense_tensor():
            return self.take([output.as_tensor()])[0]
        return self.take([output[i] for i in range(len(output))])

    def take(self, outputs: Sequence[Any]) -> list[Tensor]:
        """Torch tensors of DALI's tensors, to be used on the current stream of the calling thread."""
        if self._device.type != "cuda":
            return [torch.from_dlpack(output) for output in outputs]
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        with torch.cuda.stream(self._stream):
            # `from_dlpack` tells DALI the current stream, which is then made to wait for the decoder's work.
            theirs = [torch.from_dlpack(output) for output in outputs]
            ours = [tensor.clone() for tensor in theirs]
        self._stream.synchronize()
        del theirs  # not earlier
        user = torch.cuda.current_stream(self._device)
        for tensor in ours:
            tensor.record_stream(user)  # the allocator waits for what is launched there before it uses the memory again
        return ours
