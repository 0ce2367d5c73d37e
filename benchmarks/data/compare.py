"""Images a second from JPEG files to float32 views: this loader and others' pipelines, in turn, on the same cores.

    python benchmarks/data/compare.py FOLDER --views swav --threads 2 --out samples.json

Each round every subject makes one epoch of the images. The floor is what no renderer can beat with this decoder: DALI's
decoding of the same files, alone, and one write and one read of every float of the views (memcpy), shared among the
threads, as in `fastssl bench data`. lightly 1.6 runs in a DataLoader with as many worker processes as threads; its
transforms are its own defaults for the recipe (SwaVTransform, SimCLRTransform), on PIL images. The pipelines of
`benchmarks/pipelines.py`, solo-learn's arrangement and torchvision's, run in the same DataLoader with our constants.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from dali_graph import RECIPES, EncodedGraph, feeds
from PIL import Image
from torch.utils.data import DataLoader

from fastssl.bench.backends import gaussian
from fastssl.bench.floor import Floor
from fastssl.data import Augmentation, ViewLoader, open_source
from fastssl.data.decode import DaliDecoder, decode_one
from fastssl.data.jpeg import inspect
from fastssl.report.environment import environment

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipelines import PIPELINES, Pipeline
from pipelines import loader as data_loader

BATCH = 32


class Files:
    """Encoded images in memory: no subject waits for a disk."""

    def __init__(self, folder: Path, limit: int) -> None:
        names = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        sound = [data for data in (path.read_bytes() for path in names) if inspect(data).sound]
        self.data = sound[: min(limit, len(sound)) // BATCH * BATCH]

    def __len__(self) -> int:
        return len(self.data)

    def read(self, index: int) -> bytes:
        return self.data[index]


class Lightly:
    """What lightly's own data set does with a file: open, convert, transform."""

    def __init__(self, views: str) -> None:
        from lightly.transforms import SimCLRTransform, SwaVTransform

        self.transform = SwaVTransform() if views == "swav" else SimCLRTransform(input_size=224)

    def __call__(self, data: bytes) -> list[torch.Tensor]:
        return self.transform(Image.open(io.BytesIO(data)).convert("RGB"))


def their_epochs(files: Files, pipeline: Pipeline, threads: int) -> Callable[[int], int]:
    batches: DataLoader = data_loader(files.data, pipeline, batch_size=BATCH, workers=threads, shuffle=False)

    def epoch(_: int) -> int:
        return sum(len(batch[0]) for batch in batches)

    return epoch


def our_epochs(files: Files, recipe: Augmentation, threads: int, renderer: str) -> Callable[[int], int]:
    source, options = open_source(files), {"threads": threads, "renderer": renderer, "prefetch": 1}
    loader = ViewLoader(source, recipe, batch_size=BATCH, seed=0, **options)

    def epoch(number: int) -> int:
        return sum(batch.views.batch_size for batch in loader.epoch(number))

    return epoch


def graph_epochs(files: Files, recipe: Augmentation, threads: int) -> Callable[[int], int]:
    plain = gaussian(recipe)
    sizes = np.array([decode_one(data).shape[:2] for data in files.data])
    graph = EncodedGraph(plain, batch_size=BATCH, threads=threads)

    def epoch(number: int) -> int:
        return sum(len(views[0]) for views in graph.epoch(feeds(files.data, sizes, plain, BATCH, epoch=number)))

    return epoch


def floor_epochs(files: Files, recipe: Augmentation, threads: int) -> Callable[[int], int]:
    """Decode, and move the floats of the views once."""
    floor = Floor(DaliDecoder(threads=threads), recipe, BATCH)

    def epoch(_: int) -> int:
        return floor.run(files.data[start : start + BATCH] for start in range(0, len(files), BATCH)).images

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--views", choices=sorted(RECIPES), default="swav")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", nargs="*", default=[], help="subjects to leave out")
    parser.add_argument("--out", type=Path, help="JSON file for the raw samples")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    files, recipe, threads = Files(options.folder, options.images), RECIPES[options.views], options.threads
    makers: dict[str, Callable[[], Callable[[int], int]]] = {
        "native": lambda: our_epochs(files, recipe, threads, "native"),
        "torch": lambda: our_epochs(files, recipe, threads, "torch"),
        "dali graph": lambda: graph_epochs(files, recipe, threads),
        "lightly": lambda: their_epochs(files, Lightly(options.views), threads),
        **{name: partial(their_epochs, files, make(recipe), threads) for name, make in PIPELINES.items()},
        "floor": lambda: floor_epochs(files, recipe, threads),
    }
    subjects = {name: make() for name, make in makers.items() if name not in options.without}
    speeds: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(options.rounds + 1):  # the first round warms up
        for name, epoch in subjects.items():
            begin = time.perf_counter()
            images = epoch(number)
            if number:
                speeds[name].append(images / (time.perf_counter() - begin))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    print(f"{options.views}, {len(files)} images, {threads} threads, {options.rounds} rounds")
    print(f"{'':18}{'images/s':>10}{'native is':>12}")
    for name, median in medians.items():
        print(f"{name:18}{median:10.1f}{medians['native'] / median:11.2f}x")
    if options.out is not None:
        machine = {"torch": torch.__version__, "cpu": environment()["cpu"]["model"], "threads": threads}
        plain = {"views": options.views, "images": len(files), "environment": machine, "images_per_second": speeds}
        options.out.write_text(json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    main()
