"""Class numbers from what is said of each image: a folder's name, a line of a list, a member of a shard."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def printable(name: str) -> str:
    """A file's name as text that any terminal and any JSON file takes: bytes that are not UTF-8 appear as `\\udcXX`."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def numbered(said: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class numbers int64 `[N]` and class names, sorted; where all names are whole numbers, sorted as numbers."""
    numbers = all(name.isdecimal() for name in said)
    classes = sorted(set(said), key=(lambda x: (int(x), x)) if numbers else None)
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[name] for name in said], dtype=np.int64), tuple(printable(name) for name in classes)
