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
from pathlib import Path

import torch
import torch.nn.functional as F
from fastssl_kernels import relic, sample_negatives
from interleaved import interleaved, report
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


def step(loss: Loss, online: Tensor, target: Tensor, autocast: bool = False) -> Tensor:
    """One forward and backward pass."""
    online.grad = None
    with torch.autocast(online.device.type, torch.bfloat16, enabled=autocast):
        value = loss(online, target)
    value.backward()
    return value


def subjects(options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    large, small = (4, 2) if options.part == "relic-v2" else (2, 0)
    images = torch.randn(options.batch, options.width, device=options.device)
    online, target = (
        (images + torch.randn(n, *images.shape, device=options.device)).flatten(0, 1) for n in (large + small, large)
    )
    online.requires_grad_()
    shared = {"temperature": TEMPERATURE, "alpha": ALPHA}
    if options.part == "relic-v2":
        negatives = sample_negatives(options.batch, options.negatives, seed=0, step=0, device=options.device)
        ours: Loss = lambda o, t: relic(o, t, views=(large, small), negatives=negatives, **shared)  # noqa: E731
        plain: Loss = lambda o, t: plain_relic_v2(o, t, negatives)  # noqa: E731
    else:
        ours = lambda o, t: relic(o, t, views=(2, 0), self_pairs=False, **shared)  # noqa: E731
        plain = plain_relic
    values = [(step(loss, online, target).item(), online.grad) for loss in (ours, plain)]
    (loss, gradient), (plain_loss, plain_gradient) = values
    error = ((gradient - plain_gradient).norm() / plain_gradient.norm()).item()
    print(f"loss {loss:.6f} and {plain_loss:.6f}, relative difference of gradients {error:.1e}")
    return {
        OURS: lambda: step(ours, online, target),
        "fastssl autocast bf16": lambda: step(ours, online, target, autocast=True),
        "plain torch fp32": lambda: step(plain, online, target),
        "plain torch autocast bf16": lambda: step(plain, online, target, autocast=True),
    }


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
    report(interleaved(subjects(options), options.rounds, options.device, warmup=1), OURS, options)


if __name__ == "__main__":
    main()
