"""Nearest neighbours in a queue, against lightly's memory bank and against plain torch.

    python benchmarks/kernels/nearest_neighbor.py [--batch 512] [--width 256] [--queue 98304]
                                                  [--threads 2] [--rounds 10] [--device cpu] [--out samples.json]

Interleaved; a ratio above 1 is slower than ours with a bf16 queue. Peers run as they come, and tuned: under bf16
autocast. Peak memory is that of one call in a process of its own, beyond its inputs. At the end the answers of all are
compared with the float32 arg-max.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from fastssl_kernels import nearest_neighbor
from interleaved import interleaved, report
from nt_xent import peak_memory
from torch import Tensor

OURS = "fastssl bf16 queue"


def subjects(options: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """Every call returns the neighbours [batch, width]."""
    from lightly.models.modules import NNMemoryBankModule

    torch.manual_seed(0)
    z = torch.randn(options.batch, options.width, device=options.device)
    queue = F.normalize(torch.randn(options.queue, options.width, device=options.device), dim=1)
    half = queue.bfloat16()
    peer = NNMemoryBankModule(size=(options.queue, options.width)).to(options.device)
    peer.bank = queue

    def tuned() -> Tensor:
        with torch.autocast(options.device.type, torch.bfloat16):
            return peer(z)

    return {
        OURS: lambda: nearest_neighbor(z, half).rows,
        "fastssl bf16 queue, k = 5": lambda: nearest_neighbor(z, half, 5).rows[:, 0],
        "fastssl fp32 queue": lambda: nearest_neighbor(z, queue).rows,
        "lightly NNMemoryBankModule": lambda: peer(z),
        "lightly, autocast bf16": tuned,
        "plain torch fp32": lambda: queue[(F.normalize(z, dim=1) @ queue.T).argmax(1)],
    }


def compare(calls: dict[str, Callable[[], Tensor]], options: argparse.Namespace) -> None:
    """How often the neighbour is the float32 arg-max, and how much nearer the latter is at most."""
    torch.manual_seed(0)
    z = F.normalize(torch.randn(options.batch, options.width, device=options.device), dim=1)
    exact = calls["plain torch fp32"]()
    best = (z * exact).sum(1)
    for name, call in calls.items():
        rows = call().float()
        # A neighbour stored in bf16 is the same one.
        same = (rows - exact).abs().amax(1) < 0.01 * exact.abs().amax(1)
        short = (best - (z * rows).sum(1)).max()
        print(f"{name:34}same neighbour {same.float().mean():7.2%}, short of the best by {short:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=512, help="rows that look for a neighbour")
    parser.add_argument("--width", type=int, default=256, help="of an embedding")
    parser.add_argument("--queue", type=int, default=98304, help="rows of the queue")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU")
    parser.add_argument("--rounds", type=int, default=10, help="calls of every implementation")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="write raw samples and environment to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    calls = subjects(options)
    report(interleaved(calls, options.rounds, options.device, warmup=1), OURS, options)
    print("peak MB: " + ", ".join(f"{name} {peak_memory(options, name, subjects):.0f}" for name in calls))
    compare(calls, options)


if __name__ == "__main__":
    main()
