"""One law: (seed, epoch, sample, view) decides the pixels, and nothing else does."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pytest

from fastssl.data import Augmentation, Batch, Source, ViewLoader, ViewSpec, native, open_source

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

RECIPE = Augmentation(
    (
        ViewSpec(size=24, count=2, scale=(0.14, 1.0), blur=0.5, solarize=0.3, grayscale=0.3),
        ViewSpec(size=16, count=2, scale=(0.05, 0.14), interpolation="bilinear", blur=0.5, blur_kind="pil"),
    ),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
SEED, EPOCH = 5, 3
Pixels = dict[tuple[int, int], int]
"""Check sums of views by (sample, view)."""


def as_tar(folder: Path, path: Path) -> Path:
    """The folder's images in its own order, so that the sample ids are the same."""
    source = open_source(folder)
    with tarfile.open(path, "w") as tar:
        for i in range(len(source)):
            info, data = tarfile.TarInfo(source.name(i)), source.read(i)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pixels(batches: Iterable[Batch]) -> Pixels:
    found: Pixels = {}
    for batch in batches:
        for view, group in enumerate(batch.views.each()):
            for sample, image in zip(batch.ids.tolist(), group, strict=True):
                check = zlib.crc32(image.numpy().tobytes())
                assert found.setdefault((sample, view), check) == check, "one epoch, two sets of views"
    return found


def shown(
    source: Source, renderer: str, *, first: int = 0, end: int | None = None, worlds: int = 1, **options
) -> Pixels:
    """All views of the epoch's steps `first` … `end` - 1, over all ranks."""
    found: Pixels = {}
    for rank in range(worlds):
        keywords = {"batch_size": 12, "threads": 1, "prefetch": 0, "decoder": "torchvision"} | options
        loader = ViewLoader(source, RECIPE, seed=SEED, renderer=renderer, rank=rank, world=worlds, **keywords)
        steps = loader.steps_per_epoch if end is None else end
        found |= pixels(islice(loader.epoch(EPOCH, start_step=first), steps - first))
        loader.close()
    return found


@pytest.mark.parametrize("renderer", ["native", "torch"])
def test_pixels_depend_on_seed_epoch_sample_and_view_alone(mixed_folder, tmp_path, renderer):
    if renderer == "native" and not native.available():
        pytest.skip("the native renderer was not built")
    folder, tar = open_source(mixed_folder), open_source(as_tar(mixed_folder, tmp_path / "d.tar"))
    expected = shown(folder, renderer)
    assert set(expected) == {(sample, view) for sample in range(24) for view in range(4)}
    assert len(set(expected.values())) == len(expected), "all views differ"
    variants = [
        {"batch_size": 1},
        {"batch_size": 24, "threads": 3, "prefetch": 2},
        {"batch_size": 7, "last": "pad", "threads": 2},
        {"worlds": 2, "threads": 2},
        {"worlds": 3, "prefetch": 1},
        {"worlds": 4, "batch_size": 8, "threads": 3},
        {"worlds": 4, "batch_size": 20, "last": "pad"},
        {"decoder": "auto", "threads": 2, "worlds": 2},
    ]
    for source in (folder, tar):
        for options in variants:
            assert shown(source, renderer, **options) == expected, options
        for step, before, after in ((1, 1, 3), (2, 3, 2), (3, 2, 1)):  # stopped, and resumed on other ranks
            begun = shown(source, renderer, batch_size=6, end=step, worlds=before, prefetch=2)
            rest = shown(source, renderer, batch_size=6, first=step, worlds=after, threads=2)
            assert len(begun) == step * 6 * 4
            assert len(begun) + len(rest) == len(expected)
            assert begun | rest == expected
