"""The list of unreadable images: named, counted, written down, and limited."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..errors import UserError

HANDFUL = 8
"""Unreadable images that are allowed however small the data set is."""


class Quarantine:
    """Unreadable images of one data set.

    Args:
        total: images in the data set.
        max_bad_fraction: share of them that may be unreadable; `HANDFUL` may be in any case.
        path: JSON file to keep the list in, or None. Entries that it holds already are kept.
    """

    def __init__(self, total: int, *, max_bad_fraction: float = 0.01, path: Path | None = None) -> None:
        if not 0 <= max_bad_fraction <= 1:
            raise UserError(f"max_bad_fraction must be in [0, 1], got {max_bad_fraction}")
        self.reasons: dict[int, str] = {}
        self._names: dict[int, str] = {}
        self._total, self._path = total, path
        self.limit = max(HANDFUL, int(max_bad_fraction * total))
        self._earlier: dict[str, str] = {}
        if path is not None and path.is_file():
            try:
                listed = json.loads(path.read_text(encoding="utf-8"))["unreadable"]
                self._earlier = {entry["name"]: entry["reason"] for entry in listed}
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"quarantine file {path} is damaged ({error}): remove it") from error

    def __contains__(self, index: int) -> bool:
        return index in self.reasons

    def __len__(self) -> int:
        return len(self.reasons)

    @property
    def known(self) -> int:
        """Unreadable images found by this process or listed in the file before it."""
        return len(self._earlier.keys() | self._names.copy().values())  # a thread may add to it meanwhile

    def add(self, found: dict[int, tuple[str, str]]) -> None:
        """Note (name, reason) of unreadable images by sample id, and write the file where one is new.

        Raises:
            UserError: more than the allowed number are unreadable.
        """
        new = {index: entry for index, entry in found.items() if index not in self.reasons}
        if not new:
            return
        for index, (name, reason) in new.items():
            self._names[index], self.reasons[index] = name, reason
        self._write()
        if len(self.reasons) > self.limit:
            listed = "; ".join(f"{self._names[i]} ({self.reasons[i]})" for i in sorted(self.reasons)[:20])
            where = f", all listed in {self._path}" if self._path else ""
            raise UserError(
                f"{len(self.reasons)} of {self._total} images cannot be decoded, more than the {self.limit} allowed"
                f"{where}: repair or remove them, or raise max_bad_fraction. They are {listed}"
            )

    def _write(self) -> None:
        if self._path is None:
            return
        entries = dict(self._earlier)
        entries.update({self._names[index]: self.reasons[index] for index in self.reasons})
        content = {
            "images": self._total,
            "unreadable": [{"name": name, "reason": reason} for name, reason in sorted(entries.items())],
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.partial")
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._path)
