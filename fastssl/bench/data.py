"""`fastssl bench data`: how fast a user's own files become the views of a recipe here, what bounds it, and why."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.decode import DecoderKind, make_decoder
from ..data.pack import PackSettings, pack
from ..data.quarantine import Quarantine
from ..data.reader import Reader
from ..data.sources import Source, open_source
from ..data.subset import subset
from ..data.views import Augmentation
from ..errors import UserError
from ..report.environment import environment, usable_cores
from .backends import SEED, WARM_STEPS, Epochs, backends, decoders, drawn_by
from .floor import Floor
from .stages import Stages

BATCH = 32
"""Images a batch, about: the batches of an epoch are of one size."""

Tell = Callable[[int], None]


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    images: int = 512
    threads: int | None = None
    rounds: int = 3
    decoder: DecoderKind = "auto"
    packed: bool = False

    def validate(self) -> None:
        for name in ("images", "threads", "rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} must be at least 1, got {value}")

    @property
    def thread_count(self) -> int:
        return self.threads or usable_cores()


@dataclass
class Result:
    """Raw samples, one a round, and what they were taken of; all plain, so that `Result(**json)` is it again."""

    environment: dict[str, Any]
    """Of this machine, from `fastssl.report.environment`."""
    views: list[dict[str, int]]
    """Size and count of each group of views."""
    threads: int
    usable_cores: int
    decoder: str
    """Which one the back ends used: "dali" or "torchvision"."""
    batch_size: int = 0
    images: dict[str, Any] = field(default_factory=dict)
    """measured, total, bytes, height, width, short_side (medians, in pixels), unreadable (names and reasons)."""
    backends: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name: unavailable (why, or None), note, device, images_per_second and cpu_ms (an image), one a round."""
    floor: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    """By decoder, of decode and floor: images_per_second and cpu_ms."""
    stages: dict[str, Any] = field(default_factory=dict)
    """backend, device, and rounds: milliseconds an image by stage, and of the whole."""
    packed: dict[str, Any] | None = None
    """short_side, pack_seconds, bytes, backend, and both kinds of file as in `backends`."""


def passes(settings: Settings, augmentation: Augmentation) -> int:
    """How often `measure` goes over the images: each time it calls `tell`."""
    available = sum(entry["unavailable"] is None for entry in backends(augmentation).values())
    return 1 + settings.rounds * (available + len(decoders(settings.decoder)) + 1 + 2 * settings.packed)


def measure(source: Source, augmentation: Augmentation, settings: Settings, tell: Tell = lambda done: None) -> Result:
    """Measure the data path on up to `settings.images` images, spread over `source`.

    Args:
        tell: called with the number of passes done, of `passes`.

    Raises:
        UserError: impossible settings, or none of the images can be decoded.
    """
    settings.validate()
    kinds, done = decoders(settings.decoder), 0
    crops = [{"size": spec.size, "count": spec.count} for spec in augmentation.views]
    result = Result(environment(), crops, settings.thread_count, usable_cores(), kinds[0])
    result.backends = backends(augmentation)

    def step() -> None:
        nonlocal done
        done += 1
        tell(done)

    with _torch_threads(settings.thread_count):
        source = _choose(source, settings, result)
        step()
        _measure_backends(source, augmentation, settings, kinds, result, step)
        speeds = {name: e["images_per_second"] for name, e in result.backends.items() if not e["unavailable"]}
        fastest = max(speeds, key=lambda name: float(np.median(speeds[name])))
        _measure_stages(source, augmentation, settings, fastest, result, step)
        if settings.packed:
            _measure_packed(source, augmentation, settings, fastest, result, step)
    return result


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _choose(source: Source, settings: Settings, result: Result) -> Source:
    """The readable ones of the images that are asked for, as many as fill batches of one size."""
    wanted = np.unique(np.linspace(0, len(source) - 1, min(settings.images, len(source))).round().astype(np.int64))
    quarantine = Quarantine(len(source), max_bad_fraction=1.0)
    reader = Reader(source, quarantine, settings.decoder, settings.thread_count, torch.device("cpu"), "torch")
    sides: dict[int, tuple[int, ...]] = {}
    try:
        for start in range(0, len(wanted), BATCH):
            ids = wanted[start : start + BATCH]
            for i, image in zip(ids.tolist(), reader.fetch(ids), strict=True):
                if image is not None:
                    sides[i] = tuple(image.shape[:2])
    finally:
        reader.close()
    unreadable = [{"name": source.name(i), "reason": quarantine.reasons[i]} for i in sorted(quarantine.reasons)]
    if not sides:
        first = unreadable[0]
        raise UserError(
            f"none of the {len(wanted)} images chosen can be decoded, the first, {first['name']}, for this reason: "
            f"{first['reason']}; `fastssl check-data` lists all"
        )
    good = len(sides)
    result.batch_size = good // -(-good // BATCH)
    chosen = np.array(list(sides))[: good // result.batch_size * result.batch_size]
    heights, widths = np.array([sides[i] for i in chosen.tolist()]).T
    middle = {"height": heights, "width": widths, "short_side": np.minimum(heights, widths)}
    result.images = {
        "measured": len(chosen),
        "total": len(source),
        "bytes": sum(len(source.read(i)) for i in chosen.tolist()),
        **{name: int(np.median(values)) for name, values in middle.items()},
        "unreadable": unreadable,
    }
    return subset(source, chosen)


def _measure_backends(
    source: Source,
    augmentation: Augmentation,
    settings: Settings,
    kinds: tuple[str, ...],
    result: Result,
    step: Callable[[], None],
) -> None:
    """Rounds in which each back end, and each decoder for the floor, goes over the images in turn."""
    size, names = result.batch_size, [name for name, e in result.backends.items() if e["unavailable"] is None]
    how: dict[str, Any] = {"decoder": settings.decoder, "threads": settings.thread_count}
    with ExitStack() as stack:
        epochs, floors = {}, {}
        for name in names:
            epochs[name] = Epochs(name, source, augmentation, batch_size=size, **how)
            stack.callback(epochs[name].close)
        for kind in kinds:
            decoder = make_decoder(kind, threads=settings.thread_count)  # type: ignore[arg-type]
            stack.callback(decoder.close)
            floors[kind] = Floor(decoder, augmentation, size)
            floors[kind].run(_encoded(source, size, WARM_STEPS))
            result.floor[kind] = {"decode": {"images_per_second": [], "cpu_ms": []}}
            result.floor[kind]["floor"] = {"images_per_second": [], "cpu_ms": []}
        for number in range(1, settings.rounds + 1):
            for name in names:
                epochs[name].run(number, result.backends[name])
                step()
            for kind, floor in floors.items():
                found = floor.run(_encoded(source, size))
                for part, seconds, cpu in (
                    ("decode", found.decode, found.decode_cpu),
                    ("floor", found.decode + found.copy, found.decode_cpu + found.copy_cpu),
                ):
                    result.floor[kind][part]["images_per_second"].append(found.images / seconds)
                    result.floor[kind][part]["cpu_ms"].append(1e3 * cpu / found.images)
                step()


def _encoded(source: Source, batch_size: int, steps: int | None = None) -> Iterator[list[bytes]]:
    for start in range(0, len(source), batch_size)[:steps]:
        yield [source.read(i) for i in range(start, min(start + batch_size, len(source)))]


def _measure_stages(
    source: Source,
    augmentation: Augmentation,
    settings: Settings,
    name: str,
    result: Result,
    step: Callable[[], None],
) -> None:
    device = torch.device(result.backends[name]["device"])
    stages = Stages(
        source,
        drawn_by(name, augmentation),
        batch_size=result.batch_size,
        seed=SEED,
        decoder=settings.decoder,
        threads=settings.thread_count,
        device=device,
        renderer=name,  # type: ignore[arg-type]
    )
    try:
        stages.run(0, steps=WARM_STEPS)
        result.stages = {"backend": name, "device": device.type, "rounds": []}
        for number in range(1, settings.rounds + 1):
            result.stages["rounds"].append(stages.run(number))
            step()
    finally:
        stages.close()


def _measure_packed(
    source: Source,
    augmentation: Augmentation,
    settings: Settings,
    name: str,
    result: Result,
    step: Callable[[], None],
) -> None:
    """Pack the images to a temporary folder, and measure one back end on them and on the originals in turn."""
    shape = PackSettings()
    how: dict[str, Any] = {"decoder": settings.decoder, "threads": settings.thread_count}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastssl-bench-")))
        begin = time.perf_counter()
        pack({"train": source}, folder, shape, threads=settings.thread_count)
        took = time.perf_counter() - begin
        small = open_source(folder / "train")
        kinds = {"original": source, "packed": small}
        result.packed = {
            "short_side": shape.short_side,
            "backend": name,
            "pack_seconds": took,
            "bytes": sum(len(small.read(i)) for i in range(len(small))),
            **{kind: {"images_per_second": [], "cpu_ms": []} for kind in kinds},
        }
        epochs = {}
        for kind, files in kinds.items():
            epochs[kind] = Epochs(name, files, augmentation, batch_size=result.batch_size, **how)
            stack.callback(epochs[kind].close)
        for number in range(1, settings.rounds + 1):
            for kind in kinds:
                epochs[kind].run(number, result.packed[kind])
                step()
