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
from fastssl_kernels import Queue, nearest_neighbor
from fastssl_kernels.nearest_neighbor import cost
from interleaved import interleaved, report
from nt_xent import peak_memory
from part import Call, Floor, Part, installed, relative
from torch import Tensor

OURS = "fastssl bf16 queue"


def rows(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Embeddings and a queue."""
    torch.manual_seed(0)
    z = torch.randn(options.batch, options.width, device=options.device)
    return z, F.normalize(torch.randn(options.queue, options.width, device=options.device), dim=1)


def subjects(options: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """Every call returns the neighbours [batch, width]."""
    z, queue = rows(options)
    half = queue.bfloat16()

    def plain() -> Tensor:
        return queue[(F.normalize(z, dim=1) @ queue.T).argmax(1)]

    found: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: nearest_neighbor(z, half).rows,
        "fastssl bf16 queue, k = 5": lambda: nearest_neighbor(z, half, 5).rows[:, 0],
        "fastssl fp32 queue": lambda: nearest_neighbor(z, queue).rows,
        "plain torch fp32": plain,
        "torch.compile of plain torch fp32": torch.compile(plain, dynamic=False),
    }
    if installed("lightly"):
        from lightly.models.modules import NNMemoryBankModule

        peer = NNMemoryBankModule(size=(options.queue, options.width)).to(options.device)
        peer.bank = queue

        def tuned() -> Tensor:
            with torch.autocast(options.device.type, torch.bfloat16):
                return peer(z)

        found["lightly NNMemoryBankModule"] = lambda: peer(z)
        found["lightly, autocast bf16"] = tuned
    return found


def short_of_the_best(options: argparse.Namespace) -> Callable[[object], float]:
    """How much nearer the nearest row is than the one that was found, in cosines, at most."""
    z, queue = (x.double() for x in rows(options))
    unit = F.normalize(z, dim=1)
    best = (unit @ queue.T).amax(1)

    def error(found: object) -> float:
        assert isinstance(found, Tensor)
        return float((best - (unit * F.normalize(found.double(), dim=1)).sum(1)).max())

    return error


def floor(options: argparse.Namespace, itemsize: int) -> Floor:
    return Floor(*cost.floor(options.batch, options.queue, options.width, itemsize=itemsize))


PART = Part(subjects, short_of_the_best, floor, OURS)


def enqueued(options: argparse.Namespace) -> dict[str, Call]:
    """A batch replaces the oldest rows; calls return the newest rows, the newest first."""
    z, queue = rows(options)
    ours, half = (Queue(*queue.shape, dtype=d, device=options.device) for d in (torch.float32, torch.bfloat16))

    def enqueue(into: Queue) -> Tensor:
        into.enqueue(z)
        return into.newest(len(z))

    found: dict[str, Call] = {
        "fastssl fp32 queue": lambda: enqueue(ours),
        "fastssl bf16 queue": lambda: enqueue(half),
    }
    if installed("lightly"):
        from lightly.models.modules.memory_bank import MemoryBankModule

        peer = MemoryBankModule(size=(options.queue, options.width)).to(options.device)

        def bank() -> Tensor:
            peer._dequeue_and_enqueue(F.normalize(z, dim=1))
            end = int(peer.bank_ptr) or options.queue
            return peer.bank[end - len(z) : end].flip(0)

        found["lightly MemoryBankModule"] = bank
    return found


def unlike(options: argparse.Namespace) -> Callable[[object], float]:
    exact = F.normalize(rows(options)[0].double(), dim=1).flip(0)
    return lambda newest: relative(newest, [exact])


def enqueued_floor(options: argparse.Namespace, itemsize: int) -> Floor:
    """The batch is read, and written."""
    return Floor(options.batch * options.width * (4 + itemsize))


QUEUE = Part(enqueued, unlike, enqueued_floor, "fastssl fp32 queue")


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
