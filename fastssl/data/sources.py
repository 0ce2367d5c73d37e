"""Where encoded images come from: folders, file lists, tar shards, arrays, or anything with `__len__` and `read`."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import UserError
from .file_list import FileList, is_list
from .files import entries, is_image, no_images, walk
from .labels import printable
from .tar import TarImages


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


class FlatFolder:
    """All images of one folder, sorted by name, without labels."""

    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] | None = None

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._names = [e.name for e in entries(self.root) if is_image(e.name) and e.is_file()]
        if not self._names:
            raise no_images(f"folder {self.root}")

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        with open(self.root / self._names[index], "rb", buffering=0) as file:
            return file.read()

    def name(self, index: int) -> str:
        return printable(self._names[index])


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
        for folder in (e for e in entries(self.root) if e.is_dir()):
            found = [path[self._prefix :] for path in walk(Path(folder.path))]
            if found:
                names += found
                labels += [len(classes)] * len(found)
                classes.append(printable(folder.name))
        if not names:
            raise no_images(f"folder {self.root}")
        self._names, self._base = names, str(self.root) + os.sep
        self.labels, self.classes = np.array(labels, dtype=np.int64), tuple(classes)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        with open(self._base + self._names[index], "rb", buffering=0) as file:
            return file.read()

    def name(self, index: int) -> str:
        return printable(self._names[index])


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
        return printable(str(named(index))) if callable(named) else f"sample {index}"


_SPLIT_FOLDERS = ("val", "test", "validation")


def open_source(data: Any) -> Source:
    """Open a folder (class folders, flat, or of tar shards), a file list, a tar file, or an object with `__len__` and
    `read`.

    Raises:
        UserError: nothing there, nothing readable, or no images in it.
    """
    if not isinstance(data, (str, os.PathLike)):
        plain = isinstance(data, Source) and (data.labels is None or isinstance(data.labels, np.ndarray))
        return data if plain else ObjectSource(data)
    path = Path(data).expanduser()
    if path.is_file():
        return FileList(path) if is_list(path) else TarImages([path])
    if not path.is_dir():
        raise UserError(f"data path {path} does not exist")
    found = entries(path)
    if not found:
        raise UserError(f"folder {path} is empty")
    loose = any(is_image(e.name) and e.is_file() for e in found)
    classes = any(e.is_dir() and _holds_images(Path(e.path)) for e in found)
    if loose and classes:
        raise UserError(f"folder {path} holds both images and folders of images: move the loose images into a folder")
    shards = [Path(e.path) for e in found if e.name.lower().endswith(".tar") and e.is_file()]
    if shards and (loose or classes):
        raise UserError(f"folder {path} holds both tar files and images: move one kind into a folder of its own")
    if shards:
        return TarImages(shards)
    return FlatFolder(path) if loose else ImageFolder(path)


def _holds_images(folder: Path) -> bool:
    return next(walk(folder), None) is not None


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
    others = (e for e in entries(root) if e.is_dir() and e.name != "train")
    if not (root / "train").is_dir() or (held_out is None and any(_holds_images(Path(e.path)) for e in others)):
        return open_source(root), None
    train = open_source(root / "train")
    if held_out is None:
        return train, None
    validation = open_source(held_out)
    number_alike(train, validation, f"{held_out}", f"{root / 'train'}")
    return train, validation


def number_alike(train: Source, validation: Source, validation_name: str, train_name: str) -> None:
    """Number the labels of `validation` by the classes of `train`, where both have class names.

    Raises:
        UserError: validation has classes that training has not.
    """
    if train.classes is None or validation.classes is None or train.classes == validation.classes:
        return
    unknown = sorted(set(validation.classes) - set(train.classes))
    if unknown:
        raise UserError(f"{validation_name} has classes that {train_name} has not: {', '.join(unknown[:8])}")
    number = np.array([train.classes.index(name) for name in validation.classes], dtype=np.int64)
    assert validation.labels is not None
    validation.labels, validation.classes = number[validation.labels], train.classes
