"""The grid: every operation at several sizes, as the scripts beside this file make it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field

import augment
import byol
import ema
import lars
import nearest_neighbor
import nt_xent
import relic
import sinkhorn
import torch
import torchvision
from fastssl_kernels.ema import cost as ema_cost
from fastssl_kernels.ema import ema_reference, ema_update_
from part import Call, Floor, Part, relative

from fastssl.data import native


@dataclass(frozen=True)
class Case:
    """sizes: of the part's options. without: baselines that are not there for a reason, by name."""

    op: str
    part: Part
    sizes: dict[str, int | str]
    without: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return ", ".join(f"{k} {v}" if isinstance(v, str) else f"{k} {v:,}" for k, v in self.sizes.items())

    def options(self, device: torch.device) -> Namespace:
        return Namespace(**self.sizes, part=self.op, device=device)


def averages(options: Namespace) -> dict[str, Call]:
    """`ema.py`'s, and its loop compiled."""
    net = torchvision.models.resnet50().to(options.device, memory_format=torch.channels_last)
    online = [p.detach() for p in net.parameters()]
    targets = [torch.zeros_like(p) for p in online]

    @torch.compile(dynamic=False)
    def loop(targets: list[torch.Tensor], online: list[torch.Tensor]) -> None:
        for target, p in zip(targets, online, strict=True):
            target.lerp_(p, 0.01)

    return {**ema.subjects(options.device), "torch.compile of a loop of lerp_": lambda: loop(targets, online)}


def error_of_an_average(options: Namespace) -> Callable[[object], float]:
    """Of `ema_update_` on ResNet-50, the whole network as one vector; a subject's own targets are out of reach."""
    torch.manual_seed(0)
    online = [p.detach().to(options.device) for p in torchvision.models.resnet50().parameters()]
    targets = [torch.randn_like(p) for p in online]
    exact = lars.flat(ema_reference(t.double(), p.double(), 0.99) for t, p in zip(targets, online, strict=True))
    ema_update_(targets, online, 0.99)
    found = relative([lars.flat(targets)], [exact])
    return lambda _: found


def floor_of_an_average(options: Namespace, itemsize: int) -> Floor:
    with torch.device("meta"):
        sizes = [p.numel() for p in torchvision.models.resnet50().parameters()]
    return Floor(ema_cost.parameter_bytes(sizes, itemsize, itemsize))


def error_of_lars(options: Namespace) -> Callable[[object], float]:
    found = lars.error(options.device, options.model)
    return lambda _: found


EMA = Part(averages, error_of_an_average, floor_of_an_average, "fastssl", only_ours=True)


def steps(options: Namespace) -> dict[str, Call]:
    return lars.subjects(options.device, options.model)


def floor_of_lars(options: Namespace, itemsize: int) -> Floor:
    return lars.floor(options.model)


LARS = Part(steps, error_of_lars, floor_of_lars, "fastssl C", only_ours=True)
BRANCHES = "its definition branches on a norm, so that a graph would end at every tensor"


def views(device: torch.device) -> Part:
    """On a CPU the engine's renderer is the fast one, where it was built."""
    host = device.type == "cpu" and native.available()
    return augment.PART._replace(ours="native renderer" if host else augment.OURS)


def grid(device: torch.device, sizes: str) -> list[Case]:
    """sizes: "full", or "tiny" to try the command in seconds."""
    full = sizes == "full"

    def over(op: str, part: Part, *choices: dict, small: dict) -> list[Case]:
        return [Case(op, part, choice) for choice in (choices if full else (small,))]

    codes, queue, loss = (sinkhorn.PARTS[name] for name in ("codes", "queue", "loss"))
    rows, few = {"width": 256}, {"batch": 32, "width": 16}
    swav, small_swav = {"prototypes": 3000, "width": 128}, {"batch": 32, "prototypes": 30, "width": 16}
    large_queue = [{"batch": 64, "queue": 16384, **rows}, {"batch": 512, "queue": 98304, **rows}]
    small_queue = {**few, "queue": 512}
    return [
        *over("nt_xent", nt_xent.PARTS["nt-xent"], *({"batch": b, "width": 128} for b in (256, 1024, 4096)), small=few),
        *over(
            "info_nce", nt_xent.PARTS["queue"], *({"queue": q, "width": 128} for q in (4096, 65536)), small=small_queue
        ),
        *over("relic", relic.PART, *({"batch": b, **rows} for b in (512, 2048)), small=few),
        *over("relic-v2", relic.PART, {"batch": 2048, "negatives": 10, **rows}, small={**few, "negatives": 5}),
        *over("sinkhorn", codes, *({"batch": b, **swav} for b in (512, 4096)), small=small_swav),
        *over("sinkhorn, queue of 3,840", queue, {"batch": 4096, **swav}, small=small_swav),
        *over("swapped_prediction", loss, *({"batch": b, **swav} for b in (512, 4096)), small=small_swav),
        *over("nearest_neighbor", nearest_neighbor.PART, *large_queue, small=small_queue),
        *over("Queue.enqueue", nearest_neighbor.QUEUE, large_queue[1], small=small_queue),
        *over("sample_negatives", relic.DRAWS, {"batch": 4096, "negatives": 10}, small={"batch": 32, "negatives": 5}),
        *over("byol_loss", byol.PART, *({"batch": b, **rows} for b in (256, 4096)), small=few),
        Case("ema_update_", EMA, {"model": "resnet50"}),
        Case("LARS", LARS, {"model": "resnet50" if full else "mobilenet_v3_small"},
             {"torch.compile of plain torch": BRANCHES}),
        *over("render_views", views(device), {"images": 8, "size": 224}, {"images": 16, "size": 96},
              small={"images": 1, "size": 16}),
    ]  # fmt: skip
