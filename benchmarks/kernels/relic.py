"""RELIC and RELICv2, forward and backward, against plain torch that keeps the logits of every pair of views.

    python benchmarks/kernels/relic.py relic|relic-v2 [--batch 2048] [--width 256] [--negatives 10]
                                       [--threads 2] [--rounds 10] [--device cpu] [--out samples.json]

relic: two crops, all other images. relic-v2: four large and two small crops, ten negatives drawn for the batch. No
package trains either method, so that the peer is what one would write: normalise, multiply, softmax, cross entropy and
`kl_div` of each pair. Interleaved; a ratio above 1 is slower than ours in fp32. Losses and gradients are compared
before anything is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fastssl_kernels import relic, sample_negatives
from fastssl_kernels.relic import cost, relic_reference
from interleaved import interleaved, report
from part import Call, Floor, Part, in_float64, relative, relative_to, step
from torch import Tensor

OURS = "fastssl fp32"
Loss = Callable[[Tensor, Tensor], Tensor]
TEMPERATURE, ALPHA = 0.2, 0.3


def plain_relic(online: Tensor, target: Tensor) -> Tensor:
    """Two crops; the counterpart of a prediction is the other one."""
    o_0, o_1 = F.normalize(online).chunk(2)
    t_0, t_1 = F.normalize(target).chunk(2)
    labels = torch.arange(len(o_0), device=online.device)
    logits = [o_0 @ t_1.T / TEMPERATURE, o_1 @ t_0.T / TEMPERATURE]
    p = [x.log_softmax(1) for x in logits]
    loss = online.new_zeros(())
    for own, other in (p, p[::-1]):
        divergence = F.kl_div(other.detach(), own, reduction="batchmean", log_target=True)
        loss = loss + F.nll_loss(own, labels) + ALPHA * divergence
    return loss / 2


def plain_relic_v2(online: Tensor, target: Tensor, negatives: Tensor, large: int = 4, small: int = 2) -> Tensor:
    """All pairs; candidate 0 is the image itself, the others are the drawn images."""
    o = F.normalize(online).view(large + small, -1, online.shape[1])
    t = F.normalize(target).view(large, -1, online.shape[1])
    batch = o.shape[1]
    own = torch.arange(batch, device=online.device)[:, None] == negatives
    own = torch.cat([own.new_zeros(batch, 1), own], 1)
    p = {}
    for i in range(large + small):
        for j in range(large):
            logits = torch.cat([(o[i] * t[j]).sum(1, keepdim=True), o[i] @ t[j, negatives].T], 1) / TEMPERATURE
            p[i, j] = logits.masked_fill(own, -1e4).log_softmax(1)
    loss = online.new_zeros(())
    for (i, j), mine in p.items():
        other = p[j, i] if i < large else p[j, j]
        divergence = F.kl_div(other.detach(), mine, reduction="batchmean", log_target=True) if i != j else 0.0
        loss = loss - mine[:, 0].mean() + ALPHA * divergence
    return loss / len(p)


def crops(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Online and target rows."""
    torch.manual_seed(0)
    large, small = (4, 2) if options.part == "relic-v2" else (2, 0)
    images = torch.randn(options.batch, options.width, device=options.device)
    online, target = (
        (images + torch.randn(n, *images.shape, device=options.device)).flatten(0, 1) for n in (large + small, large)
    )
    return online.requires_grad_(), target


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Of `relic` and its reference."""
    shared = {"temperature": TEMPERATURE, "alpha": ALPHA}
    if options.part != "relic-v2":
        return {"views": (2, 0), "self_pairs": False, **shared}
    negatives = sample_negatives(options.batch, options.negatives, seed=0, step=0, device=options.device)
    return {"views": (4, 2), "negatives": negatives, **shared}


def subjects(options: argparse.Namespace) -> dict[str, Call]:
    online, target = crops(options)
    chosen = settings(options)
    ours: Loss = partial(relic, **chosen)
    plain: Loss = plain_relic
    if options.part == "relic-v2":
        plain = partial(plain_relic_v2, negatives=chosen["negatives"])
    compiled = torch.compile(plain, dynamic=False)
    return {
        OURS: lambda: step(ours, online, target),
        "fastssl autocast bf16": lambda: step(ours, online, target, autocast=True),
        "plain torch fp32": lambda: step(plain, online, target),
        "plain torch autocast bf16": lambda: step(plain, online, target, autocast=True),
        "torch.compile of plain torch fp32": lambda: step(compiled, online, target),
    }


def exact(options: argparse.Namespace) -> list[Tensor]:
    return in_float64(partial(relic_reference, **settings(options)), *crops(options))


def floor(options: argparse.Namespace, itemsize: int) -> Floor:
    second = options.part == "relic-v2"
    negatives, pairs = (options.negatives, True) if second else (options.batch - 1, False)
    large, small = (4, 2) if second else (2, 0)
    both = cost.relic_floor(
        options.batch, options.width, negatives, large=large, small=small, self_pairs=pairs, itemsize=itemsize
    )
    return Floor(sum(c.bytes for c in both), sum(c.flops for c in both))


PART = Part(subjects, relative_to(exact), floor, OURS)


def draws(options: argparse.Namespace) -> dict[str, Call]:
    """Negatives of a step: a hash an image, and a permutation, which ranks would have to share."""
    drawn = {"seed": 0, "step": 0, "device": options.device}
    return {
        "fastssl": lambda: sample_negatives(options.batch, options.negatives, **drawn),
        "torch randperm": lambda: torch.randperm(options.batch, device=options.device)[: options.negatives],
    }


def repeated(options: argparse.Namespace) -> Callable[[object], float]:
    """The share of the draws that are no image or one drawn twice; the definition has no other law."""

    def error(drawn: object) -> float:
        assert isinstance(drawn, Tensor)
        fine = drawn[(drawn >= 0) & (drawn < options.batch)].unique()
        return 1 - len(fine) / options.negatives

    return error


DRAWS = Part(draws, repeated, lambda options, _: Floor(8 * options.batch), "fastssl")
"""A 64-bit number an image is written once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("relic", "relic-v2"), help="what to compare")
    parser.add_argument("--batch", type=int, default=2048, help="images")
    parser.add_argument("--width", type=int, default=256, help="of an embedding")
    parser.add_argument("--negatives", type=int, default=10, help="images drawn for a batch of relic-v2")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU")
    parser.add_argument("--rounds", type=int, default=10, help="calls of every implementation")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="write raw samples and environment to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    calls, error = subjects(options), exact(options)
    for name, call in calls.items():
        print(f"{name:34} differs from float64 by {relative(call(), error):.1e}")
    report(interleaved(calls, options.rounds, options.device, warmup=1), OURS, options)


if __name__ == "__main__":
    main()
