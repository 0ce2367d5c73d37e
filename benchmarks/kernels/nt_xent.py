"""NT-Xent and InfoNCE, forward and backward, against lightly's loss and against the definition in plain torch.

    python benchmarks/kernels/nt_xent.py nt-xent|queue [--batch 4096] [--width 128] [--queue 65536]
                                         [--threads 2] [--rounds 10] [--device cpu] [--out samples.json]

Interleaved; a ratio above 1 is slower than ours in fp32. Peers run as they come, and tuned: under bf16 autocast. Peak
memory is that of one call in a process of its own, beyond its inputs.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from fastssl_kernels import info_nce, nt_xent
from fastssl_kernels.nt_xent import cost, info_nce_reference, nt_xent_reference
from interleaved import interleaved, report
from memory import peak_bytes
from part import Call, Floor, Part, in_float64, installed, relative_to, step
from torch import Tensor

OURS = "fastssl fp32"


def lightly_loss(z: Tensor) -> Tensor:
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=0.5)(*z.chunk(2))


def embeddings(options: argparse.Namespace) -> Tensor:
    """[2·batch, width]"""
    torch.manual_seed(0)
    return torch.randn(2 * options.batch, options.width, device=options.device, requires_grad=True)


def subjects(options: argparse.Namespace) -> dict[str, Call]:
    """NT-Xent on [2·batch, width]."""
    z = embeddings(options)
    half = z.detach().bfloat16().requires_grad_()
    compiled = torch.compile(partial(nt_xent_reference, temperature=0.5), dynamic=False)
    ours = partial(nt_xent, temperature=0.5)
    found: dict[str, Call] = {
        OURS: lambda: step(ours, z),
        "fastssl fp32 with metrics": lambda: step(lambda z: nt_xent(z, temperature=0.5, return_metrics=True)[0], z),
        "fastssl bf16": lambda: step(ours, half),
        "plain torch fp32": lambda: step(partial(nt_xent_reference, temperature=0.5), z),
        "torch.compile of plain torch fp32": lambda: step(compiled, z),
    }
    if installed("lightly"):
        found["lightly NTXentLoss fp32"] = lambda: step(lightly_loss, z)
        found["lightly NTXentLoss autocast bf16"] = lambda: step(lightly_loss, z, autocast=True)
    return found


def exact(options: argparse.Namespace) -> list[Tensor]:
    return in_float64(partial(nt_xent_reference, temperature=0.5), embeddings(options))


def floor(options: argparse.Namespace, itemsize: int) -> Floor:
    forward, backward = cost.nt_xent_floor(options.batch, options.width, itemsize=itemsize)
    return Floor(forward.bytes + backward.bytes, forward.flops + backward.flops)


def queries(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys of 256 images, and a queue."""
    torch.manual_seed(0)
    query = torch.randn(256, options.width, device=options.device, requires_grad=True)
    key = torch.randn(256, options.width, device=options.device)
    return query, key, F.normalize(torch.randn(options.queue, options.width, device=options.device), dim=1)


def queue_subjects(options: argparse.Namespace) -> dict[str, Call]:
    """InfoNCE of 256 queries against a queue."""
    query, key, queue = queries(options)
    half = queue.bfloat16()
    plain = partial(info_nce_reference, key=key, queue=queue, temperature=0.1)
    compiled = torch.compile(plain, dynamic=False)
    found: dict[str, Call] = {
        OURS: lambda: step(lambda q: info_nce(q, key, queue=queue, temperature=0.1), query),
        "fastssl bf16 queue": lambda: step(lambda q: info_nce(q, key, queue=half, temperature=0.1), query),
        "plain torch fp32": lambda: step(plain, query),
        "torch.compile of plain torch fp32": lambda: step(compiled, query),
    }
    if installed("lightly"):
        from lightly.loss import NTXentLoss

        peer = NTXentLoss(temperature=0.1, memory_bank_size=(options.queue, options.width)).to(options.device)
        found["lightly NTXentLoss with bank"] = lambda: step(lambda q: peer(q, key), query)
    return found


def queue_exact(options: argparse.Namespace) -> list[Tensor]:
    query, key, queue = queries(options)
    return in_float64(partial(info_nce_reference, key=key.double(), queue=queue.double(), temperature=0.1), query)


def queue_floor(options: argparse.Namespace, itemsize: int) -> Floor:
    least = cost.info_nce_floor(256, options.queue, options.width, itemsize=itemsize)
    return Floor(least.bytes, least.flops)


def peak_memory(options: argparse.Namespace, name: str, make: Callable[[argparse.Namespace], dict[str, Call]]) -> float:
    """MB that one call needs beyond what is there before it, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure, (options, name, make))


def _measure(options: argparse.Namespace, name: str, make: Callable[[argparse.Namespace], dict[str, Call]]) -> float:
    torch.set_num_threads(options.threads)
    small = argparse.Namespace(**{**vars(options), "batch": 64, "queue": 512})
    make(small)[name]()
    return peak_bytes(make(options)[name], options.device) / 2**20


PARTS = {
    "nt-xent": Part(subjects, relative_to(exact), floor, OURS),
    "queue": Part(queue_subjects, relative_to(queue_exact), queue_floor, OURS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS, help="what to compare")
    parser.add_argument("--batch", type=int, default=4096, help="images, two views each")
    parser.add_argument("--width", type=int, default=128, help="of an embedding")
    parser.add_argument("--queue", type=int, default=65536, help="rows of the queue")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU")
    parser.add_argument("--rounds", type=int, default=10, help="calls of every implementation")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="write raw samples and environment to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    make = PARTS[options.part].subjects
    calls = make(options)
    report(interleaved(calls, options.rounds, options.device, warmup=1), OURS, options)
    print("peak MB: " + ", ".join(f"{name} {peak_memory(options, name, make):.0f}" for name in calls))


if __name__ == "__main__":
    main()
