"""Sinkhorn's codes and SwAV's loss, against lightly's and against the definition in plain torch.

    python benchmarks/kernels/sinkhorn.py codes|queue|loss [--batch 4096] [--prototypes 3000] [--width 128]
                                          [--threads 2] [--rounds 10] [--device cpu] [--out samples.json]

Interleaved; a ratio above 1 is slower than ours. Three iterations, ε = 0.05, as published; the results are compared
before anything is timed. `loss` is forward and backward of 2 + 6 crops, on batch / 16 images.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from fastssl_kernels import sinkhorn, sinkhorn_from_features, swapped_prediction
from fastssl_kernels.adapters import SwaVLoss
from fastssl_kernels.sinkhorn import cost, sinkhorn_reference
from fastssl_kernels.swapped_prediction import cost as loss_cost
from fastssl_kernels.swapped_prediction import swapped_prediction_reference
from interleaved import interleaved, report
from part import Call, Floor, Part, in_float64, installed, relative_to, step
from torch import Tensor

QUEUE = 3840


def unit(*shape: int, device: torch.device) -> Tensor:
    return F.normalize(torch.randn(*shape, device=device), dim=-1)


def features(options: argparse.Namespace, rows: int) -> tuple[Tensor, Tensor]:
    """Features [rows, width] and prototypes."""
    torch.manual_seed(0)
    z = unit(rows, options.width, device=options.device)
    return z, unit(options.prototypes, options.width, device=options.device)


def codes(options: argparse.Namespace) -> dict[str, Call]:
    """Codes of one crop."""
    z, prototypes = features(options, options.batch)
    scores = z @ prototypes.T
    compiled = torch.compile(sinkhorn_reference, dynamic=False)
    found: dict[str, Call] = {
        "fastssl": partial(sinkhorn, scores),
        "plain torch, logarithms": partial(sinkhorn_reference, scores),
        "fastssl from features": partial(sinkhorn_from_features, z, prototypes),
        "torch.compile of plain torch": partial(compiled, scores),
    }
    if installed("lightly"):
        from lightly.loss.swav_loss import sinkhorn as lightly

        found["lightly"] = partial(lightly, scores)
        found["lightly with product"] = lambda: lightly(z @ prototypes.T)
    return found


def exact_codes(options: argparse.Namespace) -> list[Tensor]:
    z, prototypes = features(options, options.batch)
    return [sinkhorn_reference((z @ prototypes.T).double())]


def codes_floor(options: argparse.Namespace, itemsize: int) -> Floor:
    return Floor(cost.floor_bytes(options.batch, 0, options.prototypes, 3, itemsize))


def queue(options: argparse.Namespace) -> dict[str, Call]:
    """Codes of one crop beside SwAV's queue."""
    scores, queued = queued_scores(options)
    compiled = torch.compile(sinkhorn_reference, dynamic=False)
    found: dict[str, Call] = {
        "fastssl": partial(sinkhorn, scores, queue=queued),
        "plain torch, logarithms": partial(sinkhorn_reference, scores, queue=queued),
        "torch.compile of plain torch": partial(compiled, scores, queue=queued),
    }
    if installed("lightly"):
        from lightly.loss.swav_loss import sinkhorn as lightly

        found["lightly"] = lambda: lightly(torch.cat((scores, queued)))[: len(scores)]
    return found


def queued_scores(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    z, prototypes = features(options, options.batch + QUEUE)
    scores = z @ prototypes.T
    return scores[: options.batch], scores[options.batch :]


def exact_queue(options: argparse.Namespace) -> list[Tensor]:
    scores, queued = queued_scores(options)
    return [sinkhorn_reference(scores.double(), queue=queued.double())]


def queue_floor(options: argparse.Namespace, itemsize: int) -> Floor:
    return Floor(cost.floor_bytes(options.batch, QUEUE, options.prototypes, 3, itemsize))


def loss(options: argparse.Namespace) -> dict[str, Call]:
    """The loss of 2 + 6 crops and its gradients by features and prototypes, from features."""
    batch = options.batch // 16
    z, prototypes = (x.requires_grad_() for x in features(options, 8 * batch))

    def ours(z: Tensor, prototypes: Tensor) -> Tensor:
        targets = sinkhorn_from_features(z.view(8, batch, -1)[:2], prototypes)
        return swapped_prediction(z, prototypes, targets, temperature=0.1)

    def of_scores(module: torch.nn.Module, z: Tensor, prototypes: Tensor) -> Tensor:
        crops = list((z @ prototypes.T).chunk(8))
        return module(crops[:2], crops[2:]).squeeze()

    compiled = torch.compile(plain_loss, dynamic=False)
    found: dict[str, Call] = {
        "fastssl": lambda: step(ours, z, prototypes),
        "fastssl SwaVLoss, from scores": lambda: step(partial(of_scores, SwaVLoss()), z, prototypes),
        "plain torch": lambda: step(plain_loss, z, prototypes),
        "torch.compile of plain torch": lambda: step(compiled, z, prototypes),
    }
    if installed("lightly"):
        from lightly.loss import SwaVLoss as LightlyLoss

        found["lightly"] = lambda: step(partial(of_scores, LightlyLoss()), z, prototypes)
    return found


def plain_loss(z: Tensor, prototypes: Tensor) -> Tensor:
    scores = (z @ prototypes.T).view(8, -1, len(prototypes))
    return swapped_prediction_reference(scores, sinkhorn_reference(scores[:2].detach()), temperature=0.1)


def exact_loss(options: argparse.Namespace) -> list[Tensor]:
    return in_float64(plain_loss, *(x.requires_grad_() for x in features(options, options.batch // 2)))


def loss_floor(options: argparse.Namespace, itemsize: int) -> Floor:
    """Of the loss and its gradients, and N + 1 products for the codes."""
    batch, shape = options.batch // 16, (options.prototypes, options.width)
    read = loss_cost.code_bytes(2, batch, options.prototypes, prototype_gradient=True)
    codes = 2 * cost.product_floor_flops(batch, 0, *shape, 3)
    return Floor(read, loss_cost.floor_flops(batch, 8, *shape) + codes)


PARTS = {
    "codes": Part(codes, relative_to(exact_codes), codes_floor, "fastssl"),
    "queue": Part(queue, relative_to(exact_queue), queue_floor, "fastssl"),
    "loss": Part(loss, relative_to(exact_loss), loss_floor, "fastssl"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS, help="what to compare")
    parser.add_argument("--batch", type=int, default=4096, help="rows that get codes")
    parser.add_argument("--prototypes", type=int, default=3000)
    parser.add_argument("--width", type=int, default=128, help="of a feature")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU")
    parser.add_argument("--rounds", type=int, default=10, help="calls of every implementation")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="write raw samples and environment to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    calls, error = PARTS[options.part].subjects(options), PARTS[options.part].error(options)
    for name, call in calls.items():
        print(f"{name:34} differs from float64 by {error(call()):.1e}")
    moved = None
    if options.part != "loss":
        queued = QUEUE if options.part == "queue" else 0
        moved = {"fastssl": cost.floor_bytes(options.batch, queued, options.prototypes, 3, 4)}
    report(interleaved(calls, options.rounds, options.device), "fastssl", options, moved)


if __name__ == "__main__":
    main()
