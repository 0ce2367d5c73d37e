"""Where encoded images come from: folders, tar files, arrays, or anything with `__len__` and `read`."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import UserError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
"""File names that count as images (in any case); what a file really holds is told by its content."""


@runtime_checkable
class Source(Protocol):
    """N encoded images with random access from several threads."""

    labels: NDArray[np.int64] | None
    """`[N]` class numbers, or None."""
    classes: tuple[str, ...] | None
    """Class names, or None."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The encoded bytes of image `index`."""
        ...

    def name(self, index: int) -> str:
        """What to call image `index` in a message."""
        ...


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_EXTENSIONS)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as scan:
            return sorted((e for e in scan if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise UserError(f"data folder {folder} cannot be read: {error.strerror}") from error


def _walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[str]:
    """Image files below a folder, sorted, links followed; a link to a folder above is not followed again."""
    real = folder.resolve()
    if real in above:
        return
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _walk(Path(entry.path), (*above, real))
        elif _is_image(entry.name) and entry.is_file():
            yield entry.path


def _no_images(where: str) -> UserError:
    return UserError(f"{where} holds no images (looked for {', '.join(IMAGE_EXTENSIONS)})")


class FlatFolder:
    """All images of one folder, sorted by name, without labels."""

    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] | None = None

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._names = [e.name for e in _entries(self.root) if _is_image(e.name) and e.is_file()]
        if not self._names:
            raise _no_images(f"folder {self.root}")

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        with open(self.root / self._names[index], "rb", buffering=0) as file:
            return file.read()

    def name(self, index: int) -> str:
        return self._names[index]


class ImageFolder:
    """One sub-folder a class; classes sorted by name, images sorted by path. Links are followed."""

    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._prefix = len(str(self.root)) + 1
        names: list[str] = []
        labels: list[int] = []
        classes: list[str] = []
        for folder in (e for e in _entries(self.root) if e.is_dir()):
            found = [path[self._prefix :] for path in _walk(Path(folder.path))]
            if found:
                names += found
                labels += [len(classes)] * len(found)
                classes.append(folder.name)
        if not names:
            raise _no_images(f"folder {self.root}")
        self._names, self._base = names, str(self.root) + os.sep
        self.labels, self.classes = np.array(labels, dtype=np.int64), tuple(classes)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        with open(self._base + self._names[index], "rb", buffering=0) as file:
            return file.read()

    def name(self, index: int) -> str:
        return self._names[index]


_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}


class TarImages:
    """The images of one uncompressed tar file, in its order, read in place.

    The file is indexed once, to offsets. Labels are the names of the folders that hold the images, where every image
    lies in one; classes are sorted by name.
    """

    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] | None = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 - stays open for random access
        except OSError as error:
            raise UserError(f"tar file {self.path} cannot be read: {error.strerror}") from error
        start = self._file.read(8)
        for magic, kind in _COMPRESSED.items():
            if start.startswith(magic):
                raise UserError(
                    f"{self.path} is compressed ({kind}), which rules out random access: "
                    "unpack it, or repack it as a plain .tar"
                )
        self._names: list[str] = []
        self._offsets: list[int] = []
        self._sizes: list[int] = []
        self._index()
        folders = [PurePosixPath(name).parent.name for name in self._names]
        if all(folders) and len(set(folders)) > 1:
            self.classes = tuple(sorted(set(folders)))
            number = {name: i for i, name in enumerate(self.classes)}
            self.labels = np.array([number[name] for name in folders], dtype=np.int64)

    def _index(self) -> None:
        length = os.fstat(self._file.fileno()).st_size
        try:
            with tarfile.open(self.path, mode="r:") as tar:
                for member in tar:
                    path = PurePosixPath(member.name)
                    if path.is_absolute() or ".." in path.parts:
                        raise UserError(
                            f"{self.path} holds the member {member.name!r}, which points outside the archive: "
                            "repack it with relative names"
                        )
                    if member.isreg() and _is_image(path.name):
                        if member.offset_data + member.size > length:
                            raise UserError(f"{self.path} is cut off inside {member.name!r}: copy it again")
                        self._names.append(str(path))
                        self._offsets.append(member.offset_data)
                        self._sizes.append(member.size)
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise UserError(f"{self.path} is not a readable tar file ({error})") from error
        if not self._names:
            raise _no_images(f"tar file {self.path}")

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        return os.pread(self._file.fileno(), self._sizes[index], self._offsets[index])

    def name(self, index: int) -> str:
        return self._names[index]

    def close(self) -> None:
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


class ArraySource:
    """Images that are decoded already, as in CIFAR's own files; they go past the decoder.

    Args:
        images: uint8 `[N, H, W, 3]`.
        labels: whole numbers `[N]`, or None.
        classes: class names, or None.

    Raises:
        UserError: wrong shape or dtype.
    """

    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None

    def __init__(
        self, images: ArrayLike, labels: ArrayLike | None = None, classes: Sequence[str] | None = None
    ) -> None:
        self.images = np.asarray(images)
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] != 3 or not self.images.size:
            raise UserError(
                f"images must be a uint8 array [N, H, W, 3], got {self.images.dtype} {list(self.images.shape)}"
            )
        self.labels = None if labels is None else np.asarray(labels).astype(np.int64)
        if self.labels is not None and self.labels.shape != (len(self.images),):
            raise UserError(f"labels must have shape [{len(self.images)}], got {list(self.labels.shape)}")
        self.classes = None if classes is None else tuple(classes)

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> NDArray[np.uint8]:
        """uint8 `[H, W, 3]`."""
        return self.images[index]

    def gather(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """uint8 `[len(indices), H, W, 3]`."""
        return torch.from_numpy(self.images[indices])

    def read(self, index: int) -> bytes:
        """The image as a PNG file, for whoever wants bytes."""
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(self.images[index]).save(buffer, format="PNG")
        return buffer.getvalue()

    def name(self, index: int) -> str:
        return f"image {index}"


class ObjectSource:
    """Any object with `__len__` and `read(i) -> bytes`; its `name`, `labels` and `classes` are used if it has them."""

    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None

    def __init__(self, wrapped: Any) -> None:
        if not (hasattr(wrapped, "__len__") and callable(getattr(wrapped, "read", None))):
            raise UserError(f"data must be a path or an object with __len__ and read, got {type(wrapped).__name__}")
        if len(wrapped) == 0:
            raise UserError(f"data source {type(wrapped).__name__} is empty")
        self._wrapped = wrapped
        labels = getattr(wrapped, "labels", None)
        classes = getattr(wrapped, "classes", None)
        self.labels = None if labels is None else np.asarray(labels).astype(np.int64)
        self.classes = None if classes is None else tuple(classes)
        if self.labels is not None and self.labels.shape != (len(wrapped),):
            raise UserError(f"labels must have shape [{len(wrapped)}], got {list(self.labels.shape)}")

    def __len__(self) -> int:
        return len(self._wrapped)

    def read(self, index: int) -> bytes:
        data = self._wrapped.read(index)
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise UserError(
                f"{type(self._wrapped).__name__}.read({index}) must return the bytes of an image file, "
                f"got {type(data).__name__}"
            )
        return bytes(data)

    def name(self, index: int) -> str:
        named = getattr(self._wrapped, "name", None)
        return str(named(index)) if callable(named) else f"sample {index}"


_SPLIT_FOLDERS = ("val", "test", "validation")


def open_source(data: Any) -> Source:
    """Open a folder (class folders or flat), a tar file, or an object with `__len__` and `read`.

    Raises:
        UserError: nothing there, nothing readable, or no images in it.
    """
    if not isinstance(data, (str, os.PathLike)):
        plain = isinstance(data, Source) and (data.labels is None or isinstance(data.labels, np.ndarray))
        return data if plain else ObjectSource(data)
    path = Path(data).expanduser()
    if path.is_file():
        return TarImages(path)
    if not path.is_dir():
        raise UserError(f"data path {path} does not exist")
    entries = _entries(path)
    if not entries:
        raise UserError(f"folder {path} is empty")
    loose = any(_is_image(e.name) and e.is_file() for e in entries)
    classes = any(e.is_dir() and _holds_images(Path(e.path)) for e in entries)
    if loose and classes:
        raise UserError(f"folder {path} holds both images and folders of images: move the loose images into a folder")
    return FlatFolder(path) if loose else ImageFolder(path)


def _holds_images(folder: Path) -> bool:
    return next(_walk(folder), None) is not None


def open_splits(data: Any) -> tuple[Source, Source | None]:
    """Training and validation images.

    A folder with `train/` has them in it and in the first of `val/`, `test/`, `validation/`; anything else is all
    training. (A folder called `train` among other class folders, and no validation folder, is a class.) Labels of both
    splits are numbered by the classes of the training images.

    Raises:
        UserError: as `open_source`, or validation has classes that training has not.
    """
    if not isinstance(data, (str, os.PathLike)) or not (root := Path(data).expanduser()).is_dir():
        return open_source(data), None
    held_out = next((root / name for name in _SPLIT_FOLDERS if (root / name).is_dir()), None)
    others = (e for e in _entries(root) if e.is_dir() and e.name != "train")
    if not (root / "train").is_dir() or (held_out is None and any(_holds_images(Path(e.path)) for e in others)):
        return open_source(root), None
    train = open_source(root / "train")
    if held_out is None:
        return train, None
    validation = open_source(held_out)
    if train.classes is not None and validation.classes is not None and train.classes != validation.classes:
        unknown = sorted(set(validation.classes) - set(train.classes))
        if unknown:
            raise UserError(f"{held_out} has classes that {root / 'train'} has not: {', '.join(unknown[:8])}")
        number = np.array([train.classes.index(name) for name in validation.classes], dtype=np.int64)
        assert validation.labels is not None
        validation.labels, validation.classes = number[validation.labels], train.classes
    return train, validation
