"""BYOL's regression loss, forward and backward, against lightly's cosine loss and the definition in plain torch.

    python benchmarks/kernels/byol.py [--threads 2] [--rounds 30] [--device cpu] [--out samples.json]

4,096 rows of 256. Interleaved; a ratio above 1 is slower than ours in fp32.
"""

from __future__ import annotations

import argparse

import torch
from fastssl_kernels import byol_loss
from fastssl_kernels.byol import byol_reference, cost
from interleaved import arguments, interleaved, report
from part import Call, Floor, Part, in_float64, installed, relative, relative_to, step
from torch import Tensor

OURS = "fastssl fp32"


def rows(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    prediction, target = torch.randn(2, options.batch, options.width, device=options.device)
    return prediction.requires_grad_(), target


def plain(prediction: Tensor, target: Tensor) -> Tensor:
    return byol_reference(prediction, target).mean()


def subjects(options: argparse.Namespace) -> dict[str, Call]:
    p, z = rows(options)
    half = p.detach().bfloat16().requires_grad_(), z.bfloat16()
    compiled = torch.compile(plain, dynamic=False)
    found: dict[str, Call] = {
        OURS: lambda: step(byol_loss, p, z),
        "fastssl bf16": lambda: step(byol_loss, *half),
        "plain torch fp32": lambda: step(plain, p, z),
        "torch.compile of plain torch fp32": lambda: step(compiled, p, z),
    }
    if installed("lightly"):
        from lightly.loss import NegativeCosineSimilarity

        peer = NegativeCosineSimilarity()
        found["lightly NegativeCosineSimilarity fp32"] = lambda: step(lambda p, z: 2 + 2 * peer(p, z), p, z)
    return found


def exact(options: argparse.Namespace) -> list[Tensor]:
    return in_float64(plain, *rows(options))


def floor(options: argparse.Namespace, itemsize: int) -> Floor:
    shape = (options.batch, options.width, itemsize)
    return Floor(cost.forward_bytes(*shape) + cost.backward_bytes(*shape))


PART = Part(subjects, relative_to(exact), floor, OURS)


def main() -> None:
    options = arguments(__doc__)
    options.batch, options.width = 4096, 256
    calls, best = subjects(options), exact(options)
    for name, call in calls.items():
        print(f"{name:38} differs from float64 by {relative(call(), best):.1e}")
    report(interleaved(calls, options.rounds, options.device), OURS, options)


if __name__ == "__main__":
    main()
