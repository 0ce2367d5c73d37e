"""What the libraries in C share: how one is found, and how a job runs on several threads."""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from collections.abc import Callable

import torch


def load(module: str, function: str, expected: int) -> ctypes.CDLL | None:
    """The library that setup.py built as `module`; None where it did not. A copy of the folder works without.

    function: of the library, which returns where the last fields of its jobs lie; `expected` is what Python thinks.
    """
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        return None
    library = ctypes.CDLL(found.origin)
    if library[function]() != expected:
        raise RuntimeError(f"{found.origin} is not of this version of fastssl: install the package again")
    return library


def on_threads(run: Callable[[], int], threads: int) -> int:
    """Sum of what `run` returns, called without Python's lock on so many threads, torch's number at most."""
    results: list[int] = []

    def work() -> None:
        results.append(run())

    others = [threading.Thread(target=work) for _ in range(min(torch.get_num_threads(), threads) - 1)]
    for other in others:
        other.start()
    work()
    for other in others:
        other.join()
    return sum(results)
