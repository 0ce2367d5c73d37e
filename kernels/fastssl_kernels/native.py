"""What the libraries in C share: how one is found, and how torch's own threads run a job of it."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from typing import Any

import torch


@cache
def _team() -> Any:
    """`GOMP_parallel` of the OpenMP that torch has loaded (LLVM's and Intel's have it too); None where it has none.

    Threads of our own would share the cores with torch's, which spin for a while after every operation.
    """
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


def load(module: str, **jobs: type[ctypes.Structure]) -> ctypes.CDLL | None:
    """The library that setup.py built as `module`; None where it did not, or torch has no threads to run it on.

    jobs: of each function that runs a job, the layout; the library tells its size by `<function>_job`.

    Raises:
        RuntimeError: a library that does not load, or whose layouts are others.
    """
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None or _team() is None:
        return None
    again = "install the package again"
    try:
        library = ctypes.CDLL(found.origin)
    except OSError as error:
        raise RuntimeError(f"{found.origin} does not load ({error}): {again}") from error
    for function, job in jobs.items():
        size = getattr(library, f"{function}_job", None)
        if size is None or size() != ctypes.sizeof(job):
            raise RuntimeError(f"{found.origin} is not of this version of fastssl: {again}")
    return library


def run(function: Any, job: ctypes.Structure, *, alone: bool) -> None:
    """Have a job done by torch's threads, which take parts of it in turn, or by this one alone; without Python's lock.

    Never by some of them: the others would be ended, and started again by torch's next operation.
    """
    if alone or torch.get_num_threads() == 1:
        function(ctypes.byref(job))
    else:
        _team()(function, ctypes.byref(job), torch.get_num_threads(), 0)
