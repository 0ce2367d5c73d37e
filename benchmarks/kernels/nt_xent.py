"""NT-Xent and InfoNCE, forward and backward, against lightly's loss and against the definition in plain torch.

    python benchmarks/kernels/nt_xent.py nt-xent|queue [--batch 4096] [--width 128] [--queue 65536]
                                         [--threads 2] [--rounds 10] [--device cpu] [--out samples.json]

Interleaved; a ratio above 1 is slower than ours in fp32. Peers run as they come, and tuned: under bf16 autocast. Peak
memory is that of one call in a process of its own, beyond its inputs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from fastssl_kernels import info_nce, nt_xent
from fastssl_kernels.nt_xent import nt_xent_reference
from interleaved import interleaved, report
from torch import Tensor

OURS = "fastssl fp32"
Call = Callable[[], object]


def lightly_loss(z: Tensor) -> Tensor:
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=0.5)(*z.chunk(2))


def step(loss: Callable[..., Tensor], *inputs: Tensor, autocast: bool = False) -> None:
    """One forward and backward pass; gradients are dropped first."""
    for tensor in inputs:
        tensor.grad = None
    with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=autocast):
        value = loss(*inputs)
    value.backward()


def subjects(options: argparse.Namespace) -> dict[str, Call]:
    """NT-Xent on [2·batch, width]."""
    torch.manual_seed(0)
    z = torch.randn(2 * options.batch, options.width, device=options.device, requires_grad=True)
    half = z.detach().bfloat16().requires_grad_()
    ours = partial(nt_xent, temperature=0.5)
    return {
        OURS: lambda: step(ours, z),
        "fastssl fp32 with metrics": lambda: step(lambda z: nt_xent(z, temperature=0.5, return_metrics=True)[0], z),
        "fastssl bf16": lambda: step(ours, half),
        "lightly NTXentLoss fp32": lambda: step(lightly_loss, z),
        "lightly NTXentLoss autocast bf16": lambda: step(lightly_loss, z, autocast=True),
        "plain torch fp32": lambda: step(partial(nt_xent_reference, temperature=0.5), z),
    }


def queue_subjects(options: argparse.Namespace) -> dict[str, Call]:
    """InfoNCE of 256 queries against a queue."""
    from lightly.loss import NTXentLoss

    torch.manual_seed(0)
    query = torch.randn(256, options.width, device=options.device, requires_grad=True)
    key = torch.randn(256, options.width, device=options.device)
    queue = F.normalize(torch.randn(options.queue, options.width, device=options.device), dim=1)
    peer = NTXentLoss(temperature=0.1, memory_bank_size=(options.queue, options.width)).to(options.device)
    half = queue.bfloat16()
    return {
        OURS: lambda: step(lambda q: info_nce(q, key, queue=queue, temperature=0.1), query),
        "fastssl bf16 queue": lambda: step(lambda q: info_nce(q, key, queue=half, temperature=0.1), query),
        "lightly NTXentLoss with bank": lambda: step(lambda q: peer(q, key), query),
    }


def peak_memory(options: argparse.Namespace, name: str, make: Callable[[argparse.Namespace], dict[str, Call]]) -> float:
    """MB that one call needs beyond what is there before it, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure, (options, name, make))


def _measure(options: argparse.Namespace, name: str, make: Callable[[argparse.Namespace], dict[str, Call]]) -> float:
    torch.set_num_threads(options.threads)
    small = argparse.Namespace(**{**vars(options), "batch": 64, "queue": 512})
    make(small)[name]()
    call = make(options)[name]
    if options.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark
    before = _resident()
    call()
    return (_high_water() - before) / 1024


def _status(field: str) -> float | None:
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((float(line.split()[1]) for line in lines if line.startswith(field)), None)


def _high_water() -> float:
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _resident() -> float:
    return _status("VmRSS") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


PARTS = {"nt-xent": subjects, "queue": queue_subjects}


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
    make = PARTS[options.part]
    calls = make(options)
    report(interleaved(calls, options.rounds, options.device, warmup=1), OURS, options)
    print("peak MB: " + ", ".join(f"{name} {peak_memory(options, name, make):.0f}" for name in calls))


if __name__ == "__main__":
    main()
