"""One LARS step on the parameters of ResNet-50, channels-last, against the public implementations.

    python benchmarks/kernels/lars.py [--threads 2] [--rounds 30] [--device cpu] [--out samples.json]

lightly and timm are variant C; SGD is torch's fused one, which computes no norms and is no LARS, but shows what the
update alone costs. Interleaved; a ratio above 1 is slower than ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torchvision
from fastssl_kernels.ema import ema_update_
from fastssl_kernels.lars import LARS, cost, exclude_from_adaptation, lars_reference
from interleaved import arguments, interleaved, report
from part import Floor, relative
from torch import Tensor, nn

MODEL = "resnet50"


def network(device: torch.device, model: str = MODEL) -> nn.Module:
    """A network with gradients, the same for every implementation."""
    torch.manual_seed(0)
    net = getattr(torchvision.models, model)().to(device, memory_format=torch.channels_last)
    for p in net.parameters():
        p.grad = torch.randn_like(p) * 1e-2
    return net


def subjects(device: torch.device, model: str = MODEL) -> dict[str, Callable[[], object]]:
    def groups() -> list[dict]:
        return exclude_from_adaptation(network(device, model), weight_decay=1e-6)

    def plain() -> list[dict]:
        return [{k: v for k, v in group.items() if k != "adapt"} for group in groups()]

    found: dict[str, Callable[[], object]] = {}
    for variant in "ABC":
        found[f"fastssl {variant}"] = LARS(groups(), 0.1, variant=variant).step
    online = network(device, model)
    targets = [p.detach().clone() for p in online.parameters()]
    pair = (targets, list(online.parameters()))
    found["fastssl A with EMA, one call"] = LARS(exclude_from_adaptation(online), 0.1, ema=pair).step
    other = network(device, model)
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
    found["plain torch, lars_reference"] = by_definition(network(device, model))
    found["torch SGD, fused (no LARS)"] = torch.optim.SGD(plain(), lr=0.1, momentum=0.9, fused=True).step
    return found


def by_definition(net: nn.Module) -> Callable[[], object]:
    """Variant C by `lars_reference`, a parameter after the other."""
    parameters = [p.detach() for p in net.parameters()]
    grads, buffers = [p.grad for p in net.parameters()], [torch.zeros_like(p) for p in parameters]

    def step() -> None:
        for p, g, v in zip(parameters, grads, buffers, strict=True):
            adapt = p.ndim > 1
            options = {"lr": 0.1, "weight_decay": 1e-6 if adapt else 0.0, "variant": "C", "adapt": adapt}
            weight, buffer = lars_reference(p, g, v, **options)
            p.copy_(weight)
            v.copy_(buffer)

    return step


def error(device: torch.device, model: str = MODEL, variant: str = "C") -> float:
    """Of one step of ours, the whole network as one vector, against float64."""
    net = network(device, model)
    before = [(p.detach().double(), p.grad.double()) for p in net.parameters() if p.grad is not None]
    LARS(exclude_from_adaptation(net, weight_decay=1e-6), 0.1, variant=variant).step()
    exact = [
        lars_reference(
            *(w, g, torch.zeros_like(w)),
            lr=0.1,
            weight_decay=1e-6 * (w.ndim > 1),
            variant=variant,
            adapt=w.ndim > 1,
        )[0]
        for w, g in before
    ]
    return relative([flat(net.parameters())], [flat(exact)])


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def floor(model: str = MODEL) -> Floor:
    """Bytes of a step in float32; only what is adapted needs norms."""
    with torch.device("meta"):
        parameters = list(getattr(torchvision.models, model)().parameters())
    return Floor(cost.parameter_bytes([p.numel() for p in parameters], measured=[p.ndim > 1 for p in parameters]))


def main() -> None:
    options = arguments(__doc__)
    samples = interleaved(subjects(options.device), options.rounds, options.device)
    with torch.device("meta"):
        parameters = list(torchvision.models.resnet50().parameters())
    sizes, adapted = [p.numel() for p in parameters], [p.ndim > 1 for p in parameters]
    least = floor().bytes
    moved = {f"fastssl {variant}": least for variant in "ABC"}
    moved["fastssl A with EMA, one call"] = cost.parameter_bytes(sizes, measured=adapted, averaged=True)
    moved["torch SGD, fused (no LARS)"] = 20 * sum(sizes)
    report(samples, "fastssl C", options, moved)


if __name__ == "__main__":
    main()
