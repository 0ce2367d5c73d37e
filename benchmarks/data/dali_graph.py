"""All of a recipe in one DALI pipeline, from encoded bytes to views: the baseline of the data benchmarks.

Decoding, then for each view the operators of `fastssl.data.dali_graph`, several batches ahead, on DALI's own threads.
It draws the same views as `--loader.renderer dali`, bit for bit. DALI has no box blur: `gaussian` puts a Gaussian of
the same σ in the place of SwAV's and MoCo v2's.

    python benchmarks/data/dali_graph.py FOLDER --views swav --threads 2

prints the images a second of some epochs over the JPEG files of a folder.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastssl.bench.backends import gaussian
from fastssl.data import Augmentation, ViewSpec
from fastssl.data.dali_graph import ARGUMENTS, arguments, check_view, draw
from fastssl.data.decode import decode_one
from fastssl.data.jpeg import inspect
from fastssl.data.params import ViewParams, group_params

Feed = tuple[Sequence[bytes], Sequence[ViewParams]]
"""B encoded images, and for each view of the recipe, in its order, B rows of parameters."""

SIMCLR = Augmentation((ViewSpec(count=2),))
SWAV = Augmentation(
    (
        ViewSpec(size=224, count=2, scale=(0.14, 1.0), interpolation="bilinear", blur_kind="pil"),
        ViewSpec(size=96, count=6, scale=(0.05, 0.14), interpolation="bilinear", blur_kind="pil"),
    ),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
RECIPES = {"simclr": SIMCLR, "swav": SWAV}


class EncodedGraph:
    """The pipeline of a recipe.

    Args:
        augmentation: without box blur.
        batch_size: most images a batch.
        threads: DALI's threads.
        device: "cpu", or a CUDA device, which then decodes and draws.
        ahead: batches in flight.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        *,
        batch_size: int,
        threads: int = 2,
        device: torch.device | str = "cpu",
        ahead: int = 2,
    ) -> None:
        import nvidia.dali

        pipeline_def: Any = nvidia.dali.pipeline_def
        specs = [spec for spec in augmentation.views for _ in range(spec.count)]
        for index, spec in enumerate(augmentation.views):
            check_view(spec, f"view group {index}")
        self._specs, self._device = specs, torch.device(device)
        self._feed: Iterator[Feed] = iter(())
        on_gpu, mean, std = self._device.type == "cuda", augmentation.mean, augmentation.std
        count = len(ARGUMENTS)

        @pipeline_def(enable_conditionals=True, exec_dynamic=True, prefetch_queue_depth=ahead)
        def graph() -> Any:
            fn: Any = nvidia.dali.fn
            inputs = fn.external_source(source=self._next, num_outputs=1 + count * len(specs))
            images = fn.decoders.image(inputs[0], device="mixed" if on_gpu else "cpu")
            views = []
            for v in range(len(specs)):
                given = {name: inputs[1 + count * v + k] for k, name in enumerate(ARGUMENTS)}
                views.append(draw(images, given, specs[v], mean, std))
            return tuple(views)

        self._pipeline = graph(
            batch_size=batch_size, num_threads=threads, device_id=(self._device.index or 0) if on_gpu else None
        )
        self._pipeline.build()

    def _next(self) -> list[Any]:
        encoded, params = next(self._feed)
        rows = [arguments(drawn, spec) for drawn, spec in zip(params, self._specs, strict=True)]
        return [[np.frombuffer(data, dtype=np.uint8) for data in encoded], *(a[k] for a in rows for k in ARGUMENTS)]

    def epoch(self, batches: Iterable[Feed]) -> Iterator[list[Tensor]]:
        """For each batch the views one by one, float32 `[B, 3, S, S]`. An epoch has to be taken to its end.

        On a GPU a view's memory is DALI's: finish what reads it before the view is dropped.
        """
        self._feed = iter(batches)
        while True:
            try:
                outputs = self._pipeline.run()
            except StopIteration:
                self._pipeline.reset()
                return
            yield [torch.from_dlpack(output.as_tensor()) for output in outputs]


def feeds(
    files: Sequence[bytes],
    sizes: np.ndarray,
    augmentation: Augmentation,
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
) -> Iterator[Feed]:
    """Batches of files, in their order, with the parameters that a loader would draw for them.

    Args:
        sizes: int `[N, 2]`, heights and widths after decoding.
    """
    for start in range(0, len(files) - batch_size + 1, batch_size):
        ids = np.arange(start, start + batch_size)
        params: list[ViewParams] = []
        for spec in augmentation.views:
            sides = {"heights": sizes[ids, 0], "widths": sizes[ids, 1]}
            drawn = group_params(spec, seed=seed, epoch=epoch, samples=ids, first=len(params), **sides)
            params += [drawn.select(slice(k, k + batch_size)) for k in range(0, len(drawn), batch_size)]
        yield [files[i] for i in ids], params


def sound_files(folder: Path) -> list[bytes]:
    """The JPEG files below a folder that any decoder must accept: DALI ends at others."""
    names = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    return [data for data in (path.read_bytes() for path in names) if inspect(data).sound]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--views", choices=sorted(RECIPES), default="simclr")
    parser.add_argument("--images", type=int, default=256, help="images an epoch")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    files = sound_files(options.folder)[: options.images]
    sizes = np.array([decode_one(data).shape[:2] for data in files])
    recipe = gaussian(RECIPES[options.views])
    graph = EncodedGraph(recipe, batch_size=options.batch_size, threads=options.threads, device=options.device)
    speeds = []
    for epoch in range(options.epochs + 1):
        begin, images = time.perf_counter(), 0
        for views in graph.epoch(feeds(files, sizes, recipe, options.batch_size, epoch=epoch)):
            images += len(views[0])
        speeds.append(images / (time.perf_counter() - begin))
    counts = " + ".join(f"{spec.count} x {spec.size}" for spec in recipe.views)
    timed = speeds[1:]  # the first epoch warms up
    print(
        f"{counts}, {images} images: median {statistics.median(timed):.1f} images/s, "
        f"{min(timed):.1f} to {max(timed):.1f} of {len(timed)} epochs, {options.threads} threads, {options.device}"
    )


if __name__ == "__main__":
    main()
