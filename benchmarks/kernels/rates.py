"""What this machine can do: bytes a second of a copy, FLOPs a second of a matrix product, measured here and now."""

from __future__ import annotations

from statistics import median

import torch
from interleaved import interleaved

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def rates(device: torch.device, rounds: int) -> dict[str, dict]:
    """`{"copy": {"per_second", "seconds", "work"}, "fp32": ..., "bf16": ...}`: the best of `rounds`, with all samples.

    The best, not the median: a floor is what nothing can pass.
    """
    cuda = device.type == "cuda"
    source = torch.ones((2**30 if cuda else 2**26) // 4 * 2, device=device)
    target = torch.empty_like(source)
    work = {"copy": 2 * 4 * source.numel()}
    calls = {"copy": lambda: target.copy_(source)}
    side = 8192 if cuda else 1536
    for name, dtype in DTYPES.items():
        left, right = torch.randn(2, side, side, device=device).to(dtype)
        work[name] = 2 * side**3
        calls[name] = lambda left=left, right=right: left @ right
    samples = interleaved(calls, rounds, device, warmup=2)
    return {
        name: {"per_second": work[name] / min(seconds), "work": work[name], "seconds": seconds}
        for name, seconds in samples.items()
    }


def least_seconds(bytes_moved: int, flops: int, dtype: str, measured: dict[str, dict]) -> float:
    """The time of the slower of both, if they overlap fully.

    What is stored in 16 bits may be multiplied as fp32, where the processor only emulates 16-bit products.
    """
    moved = bytes_moved / measured["copy"]["per_second"]
    rate = measured["fp32"]["per_second"]
    if dtype != "fp32":
        rate = max(rate, measured["bf16"]["per_second"])
    return max(moved, flops / rate)


def spread(measured: dict[str, dict]) -> dict[str, float]:
    """Median over best, a sign of how quiet the machine was."""
    return {name: median(rate["seconds"]) / min(rate["seconds"]) for name, rate in measured.items()}
