"""Sinkhorn's codes and SwAV's loss, against lightly's and against the definition in plain torch.

    python benchmarks/kernels/sinkhorn.py codes|queue|loss [--batch 4096] [--prototypes 3000] [--width 128]
                                          [--threads 2] [--rounds 10] [--device cpu] [--out samples.json]

Interleaved; a ratio above 1 is slower than ours. Three iterations, ε = 0.05, as published; the results are compared
before anything is timed. `loss` is forward and backward of 2 + 6 crops, on batch / 16 images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from fastssl_kernels import sinkhorn, sinkhorn_from_features, swapped_prediction
from fastssl_kernels.adapters import SwaVLoss
from fastssl_kernels.sinkhorn import cost, sinkhorn_reference
from interleaved import interleaved, report
from torch import Tensor

QUEUE = 3840
Call = Callable[[], object]


def unit(*shape: int, device: torch.device) -> Tensor:
    return F.normalize(torch.randn(*shape, device=device), dim=-1)


def codes(options: argparse.Namespace) -> dict[str, Call]:
    """Codes of one crop."""
    from lightly.loss.swav_loss import sinkhorn as lightly

    z = unit(options.batch, options.width, device=options.device)
    prototypes = unit(options.prototypes, options.width, device=options.device)
    scores = z @ prototypes.T
    return {
        "fastssl": partial(sinkhorn, scores),
        "lightly": partial(lightly, scores),
        "plain torch, logarithms": partial(sinkhorn_reference, scores),
        "fastssl from features": partial(sinkhorn_from_features, z, prototypes),
        "lightly with product": lambda: lightly(z @ prototypes.T),
    }


def queue(options: argparse.Namespace) -> dict[str, Call]:
    """Codes of one crop beside SwAV's queue."""
    from lightly.loss.swav_loss import sinkhorn as lightly

    prototypes = unit(options.prototypes, options.width, device=options.device)
    scores = unit(options.batch, options.width, device=options.device) @ prototypes.T
    queued = unit(QUEUE, options.width, device=options.device) @ prototypes.T
    return {
        "fastssl": partial(sinkhorn, scores, queue=queued),
        "lightly": lambda: lightly(torch.cat((scores, queued)))[: len(scores)],
    }


def loss(options: argparse.Namespace) -> dict[str, Call]:
    """The loss of 2 + 6 crops and its gradients by features and prototypes, from features."""
    from lightly.loss import SwaVLoss as LightlyLoss

    batch = options.batch // 16
    z = unit(8 * batch, options.width, device=options.device).requires_grad_()
    prototypes = unit(options.prototypes, options.width, device=options.device).requires_grad_()

    def step(function: Callable[[], Tensor]) -> Tensor:
        z.grad = prototypes.grad = None
        value = function().squeeze()
        value.backward()
        return torch.cat([value.detach()[None], z.grad.flatten(), prototypes.grad.flatten()])

    def ours() -> Tensor:
        targets = sinkhorn_from_features(z.view(8, batch, -1)[:2], prototypes)
        return swapped_prediction(z, prototypes, targets, temperature=0.1)

    def of_scores(module: torch.nn.Module) -> Tensor:
        crops = list((z @ prototypes.T).chunk(8))
        return module(crops[:2], crops[2:])

    return {
        "fastssl": lambda: step(ours),
        "fastssl SwaVLoss, from scores": lambda: step(lambda: of_scores(SwaVLoss())),
        "lightly": lambda: step(lambda: of_scores(LightlyLoss())),
    }


PARTS = {"codes": codes, "queue": queue, "loss": loss}


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
    torch.manual_seed(0)
    calls = PARTS[options.part](options)
    results = {name: call() for name, call in calls.items()}
    own = results["fastssl"]
    assert isinstance(own, Tensor)
    for name, result in results.items():
        assert isinstance(result, Tensor)
        print(f"{name:34} differs from fastssl by {((result - own).norm() / own.norm()).item():.1e}")
    del results, own, result
    moved = None
    if options.part != "loss":
        queued = QUEUE if options.part == "queue" else 0
        moved = {"fastssl": cost.floor_bytes(options.batch, queued, options.prototypes, 3, 4)}
    report(interleaved(calls, options.rounds, options.device), "fastssl", options, moved)


if __name__ == "__main__":
    main()
