"""Images that a text file lists: one path a line, and after a tab, if the images have labels, a label."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .labels import numbered, printable

LIST_EXTENSIONS = (".txt", ".tsv", ".lst", ".list")
"""File names that count as lists (in any case); any other file is taken for a tar."""


def is_list(path: Path) -> bool:
    return path.suffix.lower() in LIST_EXTENSIONS


class FileList:
    """The images of a list, in its order.

    A line is `path` or `path<TAB>label`; all lines have a label, or none has. Paths are relative to the list's own
    folder, or absolute. Empty lines are passed over. Classes are sorted, whole numbers as numbers. The files are first
    looked at when they are read: one that is missing is an unreadable image like any other.

    Raises:
        UserError: not a text file in UTF-8, no line with a path, a line with an empty field or of another form.
    """

    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] | None = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            text = self.path.read_bytes()
        except OSError as error:
            raise UserError(f"file list {self.path} cannot be read: {error.strerror}") from error
        try:
            # Byte order mark and line ends as editors leave them; `splitlines` would split at other characters too.
            lines = text.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"file list {self.path} is not a text file in UTF-8 ({error.reason})") from error
        self._names: list[str] = []
        said: list[str] = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            name, tab, label = line.partition("\t")
            where = f"file list {self.path}, line {number}"
            if "\t" in label or "\0" in line or not name.strip() or (tab and not label.strip()):
                raise UserError(f"{where} must be a path, or a path, a tab and a label, got {line[:100]!r}")
            if len(said) != (len(self._names) if tab else 0):
                has = "has a label" if tab else "has no label"
                raise UserError(f"{where} {has}, unlike the lines above: label all of them or none")
            self._names.append(name)
            if tab:
                said.append(label.strip())
        if not self._names:
            raise UserError(f"file list {self.path} holds no paths")
        if said:
            self.labels, self.classes = numbered(said)
        self._folder = str(self.path.parent)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        with open(os.path.join(self._folder, self._names[index]), "rb", buffering=0) as file:
            return file.read()

    def name(self, index: int) -> str:
        """The path as the list has it."""
        return printable(self._names[index])
