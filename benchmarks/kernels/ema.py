"""One parameter average of ResNet-50 against torch's foreach interpolation and public modules.

    python benchmarks/kernels/ema.py [--threads 2] [--rounds 30] [--device cpu] [--out samples.json]

`_foreach_lerp_` moves the same 12 bytes a parameter and is the honest baseline. Interleaved; a ratio above 1 is slower
than ours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision
from fastssl_kernels.ema import cost, ema_update_
from interleaved import arguments, interleaved, report


def subjects(device: torch.device) -> dict[str, Callable[[], object]]:
    net = torchvision.models.resnet50().to(device, memory_format=torch.channels_last)
    online = [p.detach() for p in net.parameters()]

    targets = [torch.zeros_like(p) for p in online]  # the same for all: where a list lies is worth 3 %

    def one_by_one() -> None:
        for target, p in zip(targets, online, strict=True):
            target.mul_(0.99).add_(p, alpha=0.01)

    found: dict[str, Callable[[], object]] = {
        "fastssl": lambda: ema_update_(targets, online, 0.99),
        "torch _foreach_lerp_": lambda: torch._foreach_lerp_(targets, online, 0.01),
        "loop of mul_ and add_": one_by_one,
    }
    try:
        from timm.utils import ModelEmaV3

        average = ModelEmaV3(net, decay=0.99)
        found["timm ModelEmaV3 (buffers too)"] = lambda: average.update(net)
    except ImportError:
        print("timm is not installed")
    return found


def main() -> None:
    options = arguments(__doc__)
    samples = interleaved(subjects(options.device), options.rounds, options.device)
    with torch.device("meta"):
        sizes = [p.numel() for p in torchvision.models.resnet50().parameters()]
    moved = dict.fromkeys(("fastssl", "torch _foreach_lerp_"), cost.parameter_bytes(sizes))
    report(samples, "fastssl", options, moved)


if __name__ == "__main__":
    main()
