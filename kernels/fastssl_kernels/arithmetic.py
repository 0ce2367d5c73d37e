"""The precision of matrix products: which dtype the operands take, and how the CPU keeps to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def product_dtype(*tensors: Tensor) -> torch.dtype:
    """bf16 or fp16 if autocast or any tensor says so, else fp32."""
    device = tensors[0].device.type
    dtypes = [t.dtype for t in tensors]
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtypes.insert(0, torch.get_autocast_dtype(device))
    return next((d for d in dtypes if d in (torch.bfloat16, torch.float16)), torch.float32)


def capabilities() -> Mapping[str, Any]:
    """What torch says of the processor, by name; empty for a torch that does not."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


def weight_dtype(products: torch.dtype) -> torch.dtype:
    """Of the operands of Σ weight · row on the CPU.

    A logit must not be rounded to bf16, a weighted sum of many rows may be: that of a block is, by 2⁻⁸ of itself, and
    blocks are added up in fp32. Where AVX-512 multiplies bf16, fp32 operands that oneDNN rounds gain little, and bf16
    ones gain more than their conversion costs. With AMX its rounding is cheap, and without instructions for bf16 such
    products are emulated: there fp32 operands stay.
    """
    have = capabilities()
    by_vectors = have.get("avx512_bf16") and not have.get("amx_bf16")
    return torch.bfloat16 if products == torch.bfloat16 and by_vectors else torch.float32


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b in fp32, for fp32 or bf16 operands of one dtype."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += torch.mm(a, b)


_precision_lock = threading.RLock()


@contextmanager
def plain_arithmetic(products: torch.dtype) -> Iterator[None]:
    """No graph, no autocast, and products of fp32 tensors on the CPU with operands of the stated dtype.

    For bf16, oneDNN rounds fp32 operands on the way in and sums in fp32: `torch.mm` on bf16 tensors would round the
    logits too (1 % of exp(l) at τ = 0.1), and where the processor has no such instructions it is slow besides. "bf16"
    allows the rounding and does not ask for it: torch takes it only if `torch.ops.mkldnn._is_mkldnn_bf16_supported()`,
    oneDNN only where it is faster. Elsewhere, and where torch has no such switch, the products are exact and cost what
    fp32 costs. The switch is process-wide, hence the lock.
    """
    matmul = _switch()
    with torch.no_grad(), torch.autocast("cpu", enabled=False), _precision_lock:
        if matmul is None:
            yield
            return
        before = matmul.fp32_precision
        matmul.fp32_precision = "bf16" if products == torch.bfloat16 else "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = before


def _switch() -> Any:
    """What holds the precision of fp32 products on the CPU; None in a torch without it."""
    return getattr(torch.backends.mkldnn, "matmul", None)
