"""Images in plain tar files, read in place at random: one archive or many shards, WebDataset's layout included.

A file is indexed once. The index is kept below `cache_root()`, never beside the data, and used again while the file has
the same size and times of change. It holds names and offsets, no code.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .cache import cache_root
from .files import is_image, no_images
from .labels import numbered, printable

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}
_VERSION = 2
_TEXT = ("utf-8", "surrogateescape")
"""Encoding of names in the index, as tarfile reads them: any bytes survive."""
_LONGEST_LABEL = 256
"""Bytes of a `.cls` member."""


@dataclass(frozen=True)
class TarIndex:
    """The images of one tar file, in its order."""

    names: tuple[str, ...]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: tuple[str, ...]
    """What the image's `.cls` member says, "" without one."""


def read_index(path: Path) -> TarIndex:
    """Scan a tar file.

    Raises:
        UserError: unreadable, compressed, cut off, damaged, or with a member that points outside, a link, or a sparse
            file.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(8)
        length = path.stat().st_size
    except OSError as error:
        raise UserError(f"tar file {path} cannot be read: {error.strerror}") from error
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise UserError(
                f"{path} is compressed ({kind}), which rules out random access: unpack it, or repack it as a plain .tar"
            )
    images: list[tuple[str, int, int]] = []
    labels: dict[str, str] = {}
    try:
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                name = _safe_name(path, member)
                if not member.isreg():
                    continue
                if member.issparse():
                    raise UserError(
                        f"{path} holds the sparse file {member.name!r}, whose bytes are not in a row: repack it "
                        "without --sparse"
                    )
                if is_image(PurePosixPath(name).name):
                    if member.offset_data + member.size > length:
                        raise UserError(f"{path} is cut off inside {member.name!r}: copy it again")
                    images.append((name, member.offset_data, member.size))
                elif name.endswith(".cls") and member.size <= _LONGEST_LABEL:
                    text = tar.extractfile(member)
                    labels[_key(name)] = text.read().decode("utf-8", "replace").strip() if text else ""
            next_header = tar.offset
        # tarfile takes a damaged header, and the end of the file, for the end of the archive.
        with open(path, "rb") as file:
            file.seek(next_header)
            end = file.read(tarfile.BLOCKSIZE)
        if end != tarfile.NUL * tarfile.BLOCKSIZE:
            raise UserError(f"{path} is cut off or damaged at byte {next_header}, where a member or its end should be")
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"{path} is not a readable tar file ({error})") from error
    if not images:
        raise no_images(f"tar file {path}")
    names, offsets, sizes = zip(*images, strict=True)
    said = tuple(labels.get(_key(name), "") for name in names)
    return TarIndex(names, np.array(offsets, dtype=np.int64), np.array(sizes, dtype=np.int64), said)


def _safe_name(path: Path, member: tarfile.TarInfo) -> str:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise UserError(
            f"{path} holds the member {member.name!r}, which points outside the archive: repack it with relative names"
        )
    if member.issym() or member.islnk():
        raise UserError(
            f"{path} holds the member {member.name!r}, a link to {member.linkname!r}: repack it with the files "
            "themselves (tar --dereference --hard-dereference)"
        )
    return str(name)


def _key(name: str) -> str:
    """WebDataset's: all members of a sample share what precedes the first dot of the file name."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0] or path.name))


# ---------------------------------------------------------------------------------------------------------- cache


def cached_index(path: Path) -> TarIndex:
    """`read_index`, from the cache where the file has not changed since; an unusable cache is no error."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"tar file {path} cannot be read: {error.strerror}") from error
    # The time of change of the inode tells of a file that was replaced by one with the same size and date.
    stamp = np.array([_VERSION, status.st_size, status.st_mtime_ns, status.st_ctime_ns], dtype=np.int64)
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    kept = cache_root() / "tar-index" / f"{digest}.npz"
    index = _load(kept, stamp)
    if index is None:
        index = read_index(path)
        _save(kept, stamp, index)
    return index


def _load(kept: Path, stamp: NDArray[np.int64]) -> TarIndex | None:
    try:
        with np.load(kept, allow_pickle=False) as file:
            if not np.array_equal(file["stamp"], stamp):
                return None
            offsets, sizes = file["offsets"].astype(np.int64), file["sizes"].astype(np.int64)
            names, labels = (bytes(file[key]).decode(*_TEXT).split("\0") for key in ("names", "labels"))
    except Exception:  # whatever NumPy, zipfile and zlib meet in a damaged file
        return None
    length = int(stamp[1])
    if not (len(names) == len(labels) == offsets.size == sizes.size > 0 and offsets.ndim == sizes.ndim == 1):
        return None
    # Each by itself before their sum, which may overflow.
    if min(offsets.min(), sizes.min()) < 0 or max(offsets.max(), sizes.max(), (offsets + sizes).max()) > length:
        return None
    return TarIndex(tuple(names), offsets, sizes, tuple(labels))


def _save(kept: Path, stamp: NDArray[np.int64], index: TarIndex) -> None:
    texts = {key: np.frombuffer("\0".join(getattr(index, key)).encode(*_TEXT), np.uint8) for key in ("names", "labels")}
    partial = kept.with_name(f".{os.getpid()}.{kept.name}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            np.savez(file, stamp=stamp, offsets=index.offsets, sizes=index.sizes, **texts)  # type: ignore[arg-type]
        os.replace(partial, kept)
    except OSError:
        partial.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------- source


class TarImages:
    """The images of plain tar files, in their order.

    Labels are the names of the folders that hold the images, where every image lies in one; else what the samples'
    `.cls` members say (WebDataset), where every image has one. Classes are sorted, numbers as numbers.

    Raises:
        UserError: see `read_index`.
    """

    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] | None = None

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        self.paths = [Path(path) for path in paths]
        indices = [cached_index(path) for path in self.paths]
        self._names = [name for index in indices for name in index.names]
        self._shard = np.repeat(np.arange(len(indices)), [len(index.names) for index in indices])
        self._offsets = np.concatenate([index.offsets for index in indices])
        self._sizes = np.concatenate([index.sizes for index in indices])
        folders = [PurePosixPath(name).parent.name for name in self._names]
        for said in (folders, [label for index in indices for label in index.labels]):
            if all(said) and len(set(said)) > 1:
                self.labels, self.classes = numbered(said)
                break

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        size = int(self._sizes[index])
        # Opened for each image, as a folder's files are: thousands of shards need no thousands of descriptors.
        with open(self.paths[self._shard[index]], "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, int(self._offsets[index]))
        if len(data) != size:
            raise OSError(errno.EIO, "the tar file is shorter than it was")
        return data

    def name(self, index: int) -> str:
        """The member's name, after its file's where there are several."""
        name = printable(self._names[index])
        return name if len(self.paths) == 1 else f"{printable(self.paths[self._shard[index]].name)}/{name}"
