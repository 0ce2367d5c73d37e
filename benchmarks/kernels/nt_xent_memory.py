"""Time and peak memory of NT-Xent, forward and backward, at a batch where a matrix of similarities cannot exist.

    python benchmarks/kernels/nt_xent_memory.py > nt_xent_65536.json

B = 65,536, D = 128, fp32, on the CPU. Memory is the process's high-water mark, before and after the call.
"""

from __future__ import annotations

import json
import resource
import time

import torch
from fastssl_kernels import nt_xent

BATCH, WIDTH, THREADS = 65_536, 128, 2


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    torch.set_num_threads(THREADS)
    z = torch.randn(2 * BATCH, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    nt_xent(torch.randn(64, WIDTH, requires_grad=True), temperature=0.1).backward()
    before, start = peak_mb(), time.perf_counter()
    loss = nt_xent(z, temperature=0.1)
    loss.backward()
    seconds = time.perf_counter() - start
    figures = {"batch": BATCH, "width": WIDTH, "dtype": "float32", "loss": loss.item(), "seconds": seconds}
    memory = {"peak_mb_before": before, "peak_mb": peak_mb(), "extra_mb": peak_mb() - before}
    print(json.dumps({**figures, **memory, "input_mb": z.numel() * 4 / 2**20}))


if __name__ == "__main__":
    main()
