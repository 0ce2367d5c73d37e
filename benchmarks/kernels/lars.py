"""One LARS step on the parameters of ResNet-50, channels-last, against the public implementations.

    python benchmarks/kernels/lars.py [--threads 2] [--rounds 30] [--device cpu] [--out samples.json]

lightly and timm are variant C; SGD is torch's fused one, which computes no norms and is no LARS, but shows what the
update alone costs. Interleaved; a ratio above 1 is slower than ours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision
from fastssl_kernels.ema import ema_update_
from fastssl_kernels.lars import LARS, cost, exclude_from_adaptation
from interleaved import arguments, interleaved, report
from torch import nn


def network(device: torch.device) -> nn.Module:
    """ResNet-50 with gradients, the same for every implementation."""
    torch.manual_seed(0)
    net = torchvision.models.resnet50().to(device, memory_format=torch.channels_last)
    for p in net.parameters():
        p.grad = torch.randn_like(p) * 1e-2
    return net


def subjects(device: torch.device) -> dict[str, Callable[[], object]]:
    def groups() -> list[dict]:
        return exclude_from_adaptation(network(device), weight_decay=1e-6)

    def plain() -> list[dict]:
        return [{k: v for k, v in group.items() if k != "adapt"} for group in groups()]

    found: dict[str, Callable[[], object]] = {}
    for variant in "ABC":
        found[f"fastssl {variant}"] = LARS(groups(), 0.1, variant=variant).step
    online = network(device)
    targets = [p.detach().clone() for p in online.parameters()]
    pair = (targets, list(online.parameters()))
    found["fastssl A with EMA, one sweep"] = LARS(exclude_from_adaptation(online), 0.1, ema=pair).step
    other = network(device)
    apart = LARS(exclude_from_adaptation(other), 0.1)
    theirs = [p.detach().clone() for p in other.parameters()]

    def in_turn() -> None:
        apart.step()
        ema_update_(theirs, other.parameters(), 0.99)

    found["fastssl A, then EMA"] = in_turn
    try:
        from lightly.utils.lars import LARS as Lightly

        found["lightly"] = Lightly(plain(), lr=0.1, momentum=0.9).step
    except ImportError:
        print("lightly is not installed")
    try:
        from timm.optim import Lars

        found["timm"] = Lars(plain(), lr=0.1, momentum=0.9).step
        found["timm, foreach"] = Lars(plain(), lr=0.1, momentum=0.9, foreach=True).step
    except ImportError:
        print("timm is not installed")
    found["torch SGD, fused (no LARS)"] = torch.optim.SGD(plain(), lr=0.1, momentum=0.9, fused=True).step
    return found


def main() -> None:
    options = arguments(__doc__)
    samples = interleaved(subjects(options.device), options.rounds, options.device)
    with torch.device("meta"):
        parameters = list(torchvision.models.resnet50().parameters())
    sizes, adapted = [p.numel() for p in parameters], [p.ndim > 1 for p in parameters]
    least = cost.parameter_bytes(sizes, measured=adapted)
    moved = {f"fastssl {variant}": least for variant in "ABC"}
    moved["fastssl A with EMA, one sweep"] = cost.parameter_bytes(sizes, measured=adapted, averaged=True)
    moved["torch SGD, fused (no LARS)"] = 20 * sum(sizes)
    report(samples, "fastssl C", options, moved)


if __name__ == "__main__":
    main()
