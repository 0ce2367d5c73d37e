"""Transcode a data set once, to small JPEG files in tar shards: smaller files decode faster, and a disk reads in rows.

    OUT/pack.json             settings, and what is finished
    OUT/train/000000.tar …    `<class>/<number>-<name>.jpg`, a fixed number of images a shard
    OUT/val/000000.tar …      the held-out images, where the data have them

A shard has its name only when it is complete; the same command, run again, goes on with the first one that is missing.
Shards are functions of the images and the settings alone: an interrupted pack ends with the same bytes.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from .decode import UnreadableImage, decode_one
from .jpeg import DamagedJpeg, inspect
from .sources import Source


@dataclass(frozen=True)
class PackSettings:
    """What decides the bytes of the shards."""

    short_side: int = 256
    """Larger images are reduced to this many pixels on their shorter side; smaller ones keep their size."""
    quality: int = 90
    """JPEG quality."""
    images_a_shard: int = 5000
    """Images that a shard holds, before unreadable ones are left out."""

    def validate(self) -> None:
        if not 8 <= self.short_side <= 8192:
            raise UserError(f"--short-side must be from 8 to 8192 pixels, got {self.short_side}")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality must be from 1 to 100, got {self.quality}")
        if self.images_a_shard < 1:
            raise UserError(f"--images-a-shard must be at least 1, got {self.images_a_shard}")


def transcode(data: bytes, short_side: int, quality: int) -> bytes:
    """An encoded image as JPEG, its shorter side at most `short_side`; a small JPEG file stays as it is.

    Raises:
        UnreadableImage: with the decoder's reason.
    """
    pixels = decode_one(data)
    height, width = pixels.shape[:2]
    if min(height, width) <= short_side and _keeps(data):
        return data
    image = Image.fromarray(pixels.numpy())
    if min(height, width) > short_side:
        scale = short_side / min(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def _keeps(data: bytes) -> bool:
    try:
        return data[:2] == b"\xff\xd8" and inspect(data).sound
    except DamagedJpeg:
        return False


def pack(
    splits: dict[str, Source],
    out: Path,
    settings: PackSettings,
    *,
    threads: int = 2,
    progress: Callable[[str, int, int], None] = lambda split, done, total: None,
) -> dict[str, Any]:
    """Write the shards of every split, as far as they are not there.

    Args:
        splits: sources by name, "train" and perhaps "val".
        out: folder; created.
        settings: a folder that was begun with others is refused.
        threads: images transcoded at once.
        progress: called with the split, the images done and their number.

    Returns:
        what pack.json holds.

    Raises:
        UserError: impossible settings, a folder that holds something else, a disk that cannot be written.
    """
    settings.validate()
    if threads < 1:
        raise UserError(f"--threads must be at least 1, got {threads}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        state = _begin(out, splits, settings)
        with ThreadPoolExecutor(threads, thread_name_prefix="fastssl-pack") as pool:
            for split, source in splits.items():
                (out / split).mkdir(exist_ok=True)
                for shard in range(-(-len(source) // settings.images_a_shard)):
                    first = shard * settings.images_a_shard
                    ids = range(first, min(first + settings.images_a_shard, len(source)))
                    name = f"{split}/{shard:06d}.tar"
                    if not _finished(out, state, name):
                        tell = partial(_tell, progress, split, first, len(source))
                        bad = _write_shard(out / name, source, ids, settings, pool, threads, tell)
                        state["shards"][name] = {"bytes": (out / name).stat().st_size, "unreadable": bad}
                        _save(out, state)
                    progress(split, ids.stop, len(source))
    except OSError as error:
        raise UserError(
            f"--out {out} cannot be written: {error.strerror or error}; finished shards stay, and the same command "
            "goes on after them"
        ) from error
    return state


def _tell(progress: Callable[[str, int, int], None], split: str, first: int, total: int, done: int) -> None:
    progress(split, first + done, total)


def _begin(out: Path, splits: dict[str, Source], settings: PackSettings) -> dict[str, Any]:
    """The state of a pack that was begun, or a new one."""
    made_from = {**asdict(settings), "images": {split: len(source) for split, source in splits.items()}}
    path = out / "pack.json"
    if not path.exists():
        if any(out.iterdir()):
            raise UserError(f"--out {out} holds something else: choose an empty folder")
        state: dict[str, Any] = {"made_from": made_from, "shards": {}}
        _save(out, state)
        return state
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        same = state["made_from"] == made_from
        state["shards"].keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}): choose another --out") from None
    if not same:
        raise UserError(f"--out {out} was begun with other settings or other data: choose another folder")
    return state


def _finished(out: Path, state: dict[str, Any], name: str) -> bool:
    entry, path = state["shards"].get(name), out / name
    return entry is not None and path.is_file() and path.stat().st_size == entry["bytes"]


def _save(out: Path, state: dict[str, Any]) -> None:
    unfinished = out / ".pack.json"
    with open(unfinished, "w", encoding="utf-8") as file:
        json.dump(state, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, out / "pack.json")


def _write_shard(
    path: Path,
    source: Source,
    ids: range,
    settings: PackSettings,
    pool: ThreadPoolExecutor,
    threads: int,
    tell: Callable[[int], None],
) -> list[dict[str, str]]:
    """Write one shard; what could not be read."""
    bad: list[dict[str, str]] = []
    unfinished = path.with_name(f".{path.name}.partial")
    with open(unfinished, "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for done, (index, result) in enumerate(_transcoded(source, ids, settings, pool, threads), start=1):
                if isinstance(result, str):
                    bad.append({"name": source.name(index), "reason": result})
                else:
                    info = tarfile.TarInfo(_member_name(source, index))
                    info.size, info.mode = len(result), 0o644
                    tar.addfile(info, io.BytesIO(result))
                tell(done)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    return bad


def _transcoded(
    source: Source, ids: range, settings: PackSettings, pool: ThreadPoolExecutor, threads: int
) -> Iterator[tuple[int, bytes | str]]:
    """(id, JPEG bytes or why there are none), in order; a few images a thread are under way."""

    def run(index: int) -> bytes | str:
        try:
            return transcode(source.read(index), settings.short_side, settings.quality)
        except UnreadableImage as error:
            return str(error)
        except OSError as error:
            return f"cannot be read ({error.strerror})"

    window = 8 * threads
    for start in range(ids.start, ids.stop, window):
        part = range(start, min(start + window, ids.stop))
        yield from zip(part, pool.map(run, part), strict=True)


def _member_name(source: Source, index: int) -> str:
    """Unique, in order, with the class as its folder and what is left of the old name."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", PurePosixPath(source.name(index)).stem)[:80]
    name = f"{index:08d}-{stem}.jpg"
    if source.labels is None:
        return name
    label = int(np.asarray(source.labels)[index])
    folder = source.classes[label] if source.classes else f"{label:06d}"
    if folder in ("", ".", "..") or "/" in folder or "\0" in folder:
        raise UserError(f"class {folder!r} cannot be a folder's name: rename it")
    return f"{folder}/{name}"
