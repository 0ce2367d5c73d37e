"""Images a second from JPEG files to updated weights: this engine and others, in turn, on the same cores.

    python benchmarks/training/compare.py FOLDER --images 1024 --rounds 5 --out samples.json

SimCLR on 32 × 32 images, ResNet-18 with a 3 × 3 stem and no max-pooling (the same module for everyone), 2-layer
projector of width 512, LARS, colour strength 0.5 and no blur. Every subject is a process of its own, as it is for its
users (what one does to the allocator must not help another), and waits while another has its turn. A turn is a whole
epoch of --images images, from a fresh iterator to the last update: no batch of a turn is made before it begins.
Subjects:

* fastssl: the engine's loader and step, in the precision that `--train.precision auto` chooses on this machine;
* fastssl fp32: the same in float32;
* lightly: its SimCLRTransform, SimCLRProjectionHead, NTXentLoss and LARS as its examples put them together: float32,
  contiguous, one pass a view, a DataLoader with as many worker processes as threads;
* lightly tuned: the same with channels-last, both views in one pass and bf16 where fastssl has chosen it, with
  `--threads` worker processes and with none;
* solo-learn style, torchvision v2: lightly's step, as tuned, behind the pipelines of `benchmarks/pipelines.py`.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from fastssl import recipes
from fastssl.bench.timeline import BACKWARD, FORWARD, LOSS, OPTIMIZER, TARGETS, VIEWS, WHOLE
from fastssl.bench.training import Supply, Training
from fastssl.config import Config
from fastssl.data import open_source
from fastssl.engine.allocator import keep_freed_memory
from fastssl.engine.build import data_facts
from fastssl.engine.feed import Feed
from fastssl.engine.precision import resolve_precision
from fastssl.engine.ranks import Ranks
from fastssl.models import build_backbone, feature_width
from fastssl.report.environment import environment

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipelines import PIPELINES, Pipeline
from pipelines import loader as data_loader

CPU = torch.device("cpu")
Epoch = Callable[[], None]


class Files:
    """Encoded images in memory: nobody waits for a disk. `names` of the files stay with the folder."""

    def __init__(self, folder: Path, images: int) -> None:
        names = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        self.data = [path.read_bytes() for path in names[:: max(1, len(names) // images)][:images]]

    def __len__(self) -> int:
        return len(self.data)

    def read(self, index: int) -> bytes:
        return self.data[index]


def recipe(batch_size: int, threads: int, precision: str) -> Config:
    """CIFAR-10's of SimCLR, with the pixel arithmetic of torchvision's transforms and the projector of lightly's."""
    config = recipes.simclr("cifar10")
    spec = replace(config.augment.views[0], sampler="attempts", interpolation="bilinear")
    augment = replace(config.augment, views=(spec,), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    train = replace(config.train, batch_size=batch_size, threads=threads, precision=precision)
    loader = replace(config.loader, threads=threads)
    method = replace(config.method, layers=2, hidden=512)
    return replace(config, method=method, augment=augment, train=train, loader=loader)


class Ours:
    """The engine's own feed and step."""

    def __init__(self, files: Files, folder: Path, config: Config) -> None:
        keep_freed_memory()
        precision, source, ranks = resolve_precision(config.train.precision, CPU), open_source(files), Ranks()
        self.training = Training(config, data_facts(source), CPU, precision, ranks)
        feed = Feed(config, source, None, CPU, precision, ranks)
        feed.open(folder)
        self._steps = len(files) // config.train.batch_size
        self._supply = Supply(feed, self._steps)
        self._images = config.train.batch_size
        self.parts: list[dict[str, float]] = []

    def epoch(self) -> None:
        with self.training.watched(self._images):
            self.parts += self._supply.timed_steps(self._steps, self.training)


class Lightly:
    """What lightly's own data set does with a file: open, convert, transform."""

    def __init__(self) -> None:
        from lightly.transforms import SimCLRTransform

        self.transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)

    def __call__(self, data: bytes) -> list[torch.Tensor]:
        return self.transform(Image.open(io.BytesIO(data)).convert("RGB"))


def their_epochs(files: Files, config: Config, pipeline: Pipeline, *, workers: int, tuned: bool, bf16: bool) -> Epoch:
    """lightly's projector, loss and optimizer behind a pipeline."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.utils.lars import LARS

    batch_size = config.train.batch_size
    loader: DataLoader = data_loader(files.data, pipeline, batch_size=batch_size, workers=workers, shuffle=True)
    backbone = build_backbone(config.backbone)
    model: nn.Module = nn.Sequential(backbone, SimCLRProjectionHead(feature_width(backbone), 512, 128))
    if tuned:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loss_of, optimizer = NTXentLoss(temperature=0.5), LARS(model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)

    def embedded(views: list[torch.Tensor]) -> list[torch.Tensor]:
        if not tuned:
            return [model(view) for view in views]
        both = torch.cat(views).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return list(model(both).float().chunk(2))

    def epoch() -> None:
        for views in loader:
            loss = loss_of(*embedded(views))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="images, for example CIFAR-10 as files")
    parser.add_argument("--images", type=int, default=1024, help="images of an epoch")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", nargs="*", default=[], help="subjects to leave out")
    parser.add_argument("--out", type=Path, help="JSON file for the raw samples")
    return parser.parse_args()


SUBJECTS = ("fastssl", "fastssl fp32", "lightly", "lightly tuned", "lightly tuned, no workers", *PIPELINES)


def subject(name: str, options: argparse.Namespace, turns: Connection) -> None:
    """A process: an epoch for each message that it gets, then its seconds and the parts of its steps, if known."""
    torch.set_num_threads(options.threads)
    files, bf16 = Files(options.folder, options.images), resolve_precision("auto", CPU) == "bf16"
    config = recipe(options.batch_size, options.threads, "fp32" if name in ("fastssl fp32", "lightly") else "auto")
    run = None
    if name.startswith("fastssl"):
        run = Ours(files, Path(tempfile.mkdtemp()), config)
        epoch = run.epoch
    else:
        workers = 0 if "no workers" in name else options.threads
        pipeline = PIPELINES[name](config.augment) if name in PIPELINES else Lightly()
        epoch = their_epochs(files, config, pipeline, workers=workers, tuned=name != "lightly", bf16=bf16)
    while turns.recv():
        begin = time.perf_counter()
        epoch()
        seconds = time.perf_counter() - begin
        turns.send((seconds, [] if run is None else list(run.parts)))
        if run is not None:
            run.parts.clear()


def main() -> None:
    options = arguments()
    images = len(Files(options.folder, options.images)) // options.batch_size * options.batch_size
    start, names = multiprocessing.get_context("spawn"), [name for name in SUBJECTS if name not in options.without]
    speeds: dict[str, list[float]] = {name: [] for name in names}
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    processes, ends = [], {}
    for name in names:
        ends[name], there = start.Pipe()
        processes.append(start.Process(target=subject, args=(name, options, there)))
        processes[-1].start()
        there.close()
    for number in range(options.rounds + 1):  # the first round warms up
        for name in names:
            ends[name].send(True)
            seconds, steps = ends[name].recv()
            if number:
                speeds[name].append(images / seconds)
                parts[name] += steps
    for name, process in zip(names, processes, strict=True):
        ends[name].send(False)
        process.join()
    report(options, images, speeds, {name: steps for name, steps in parts.items() if steps})


def share(steps: list[dict[str, float]], *parts: str) -> float:
    """Of the steps' time, that of these parts."""
    return sum(step.get(part, 0.0) for step in steps for part in parts) / sum(step[WHOLE] for step in steps)


def report(
    options: argparse.Namespace, images: int, speeds: dict[str, list[float]], parts: dict[str, list[dict[str, float]]]
) -> None:
    precision = resolve_precision("auto", CPU)
    print(
        f"{images} images, batch {options.batch_size}, {options.threads} threads, {options.rounds} rounds, {precision}"
    )
    print(f"{'':28}{'images/s':>10}{'least':>8}{'most':>8}{'fastssl is':>13}")
    own = statistics.median(next(iter(speeds.values())))
    for name, values in speeds.items():
        median = statistics.median(values)
        print(f"{name:28}{median:10.1f}{min(values):8.1f}{max(values):8.1f}{own / median:12.2f}x")
    for name, steps in parts.items():
        work = share(steps, VIEWS, FORWARD, TARGETS, LOSS, BACKWARD)
        print(f"{name}: {1 - work:.1%} of a step is neither views nor a pass forward or backward", end="")
        print(f", {share(steps, OPTIMIZER):.1%} is the optimizer")
    if options.out is not None:
        machine = {"torch": torch.__version__, "cpu": environment()["cpu"]["model"], "threads": options.threads}
        plain = {"images": images, "batch_size": options.batch_size, "precision": precision, "environment": machine}
        options.out.write_text(json.dumps({**plain, "images_per_second": speeds, "parts": parts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
