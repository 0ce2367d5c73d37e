"""The renderer in C: `render` of `fastssl.data.render`, one fused pass a view, in threads without the GIL.

The library is built by setup.py where there is a C compiler; `available` says whether it is there.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..blur import blur_taps
from ..params import ViewParams
from ..views import ViewSpec

MOST_PIL_RADIUS = 100.0
"""Largest radius of PIL's blur: the library's kernel has a fixed size."""

MOST_SIZE = 10_000
"""Largest side of a view in pixels, for the same reason."""

_POINTER = ctypes.c_void_p
_INT = ctypes.c_int32


class _Job(ctypes.Structure):
    """`Job` of render.c, field for field."""

    _fields_ = (
        *((name, _POINTER) for name in ("pixels", "widths", "shown", "box", "flip", "jitter", "factors", "order")),
        *((name, _POINTER) for name in ("gray", "sigma", "solarize", "invert", "out")),
        *((name, _POINTER) for name in ("turns", "noise", "key", "sobel", "cutout")),
        *((name, _INT) for name in ("count", "size", "bicubic", "pil_blur", "additive_brightness")),
        *((name, _INT) for name in ("tensorflow_color", "grayscale_first", "blur_taps")),
        *((name, _INT) for name in ("longest_height", "longest_width")),
        ("enabled", _INT * 4),
        ("mean", ctypes.c_float * 3),
        ("std", ctypes.c_float * 3),
        ("cutout_fill", ctypes.c_float),
        ("next", _INT),
    )


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    found = importlib.util.find_spec("fastssl.data.native._render")
    if found is None or found.origin is None:
        return None
    library = ctypes.CDLL(found.origin)
    if library.fastssl_job_size() != _Job.next.offset:
        raise RuntimeError(f"{found.origin} is not of this version of fastssl: install the package again")
    return library


def available() -> bool:
    """Whether the library was built."""
    return _library() is not None


def versions() -> dict[str, int]:
    """The instruction sets that the library has code for and this machine runs, slowest first; empty without it."""
    library = _library()
    have = 0 if library is None else library.fastssl_versions()
    return {name: 1 << bit for bit, name in enumerate(("plain", "avx2", "avx512")) if have >> bit & 1}


def render(
    images: Tensor | Sequence[Tensor],
    params: ViewParams,
    spec: ViewSpec,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    std: tuple[float, float, float] = (1.0, 1.0, 1.0),
    *,
    shown: NDArray[np.int64] | None = None,
    pool: ThreadPoolExecutor | None = None,
    threads: int = 1,
    out: Tensor | None = None,
    version: str | None = None,
) -> Tensor:
    """Render views of images, one a row of parameters, on `threads` threads of `pool`.

    Args:
        images: uint8 `[N, H, W, 3]`, or N tensors `[H, W, 3]` of any sizes, on the CPU.
        params: M rows.
        spec, mean, std, shown, out: as in `fastssl.data.render.render`.
        version: one of `versions()`; None for the best.

    Returns:
        float32 `[M, 3, S, S]`; equal to the torch renderer's to fp32 rounding, the same bits with each version.

    Raises:
        ValueError: without `shown`, M is no multiple of N; images of another type; a box outside its image; a blur
            beyond `MOST_PIL_RADIUS`; a view beyond `MOST_SIZE`; another `out`; a version this machine does not run.
        RuntimeError: the library was not built.
        MemoryError: no memory for a thread's buffers.
    """
    library = _library()
    if library is None:
        raise RuntimeError("the native renderer was not built: install fastssl where a C compiler is found")
    n, count = len(images), len(params)
    if shown is None:
        if n == 0 or count % n:
            raise ValueError(f"params must have a multiple of {n} rows (one a view of each image), got {count}")
        shown = np.arange(count) % n
    images = [image.contiguous() for image in images]
    if spec.size > MOST_SIZE:
        raise ValueError(f"size must be at most {MOST_SIZE} for the native renderer, got {spec.size}")
    shape = (count, 3, spec.size, spec.size)
    out = torch.empty(shape) if out is None else out
    if out.shape != shape or out.dtype != torch.float32 or not out.is_contiguous() or not out.is_cpu:
        raise ValueError(f"out must be contiguous float32 {shape} on the CPU, got {out.dtype} {tuple(out.shape)}")
    arrays = _arrays(images, params, shown)
    _check(arrays, params, spec, images)
    job = _Job(**{name: array.ctypes.data for name, array in arrays.items()}, out=out.data_ptr(), count=count)
    job.size, job.blur_taps = spec.size, blur_taps(spec.size)
    job.bicubic, job.pil_blur = spec.interpolation == "bicubic", spec.blur_kind == "pil"
    job.additive_brightness, job.grayscale_first = spec.additive_brightness, spec.grayscale_first
    job.tensorflow_color = spec.color == "tensorflow"
    job.longest_height, job.longest_width = (int(side) for side in params.box[:, 2:].max(axis=0, initial=1))
    job.enabled[:] = [int(x > 0) for x in (spec.brightness, spec.contrast, spec.saturation, spec.hue)]
    job.mean[:], job.std[:], job.cutout_fill = mean, std, spec.cutout_fill

    have = versions()
    if version is not None and version not in have:
        raise ValueError(f"version must be one of {', '.join(have)} on this machine, got {version!r}")
    chosen = have[version] if version else sum(have.values())

    def run(_: int) -> int:
        return int(library.fastssl_render(ctypes.byref(job), chosen))

    failed = list(pool.map(run, range(threads))) if pool is not None and threads > 1 else [run(0)]
    if any(failed):
        raise MemoryError(f"the native renderer found no memory for views of {spec.size} pixels")
    return out


def _arrays(images: Sequence[Tensor], params: ViewParams, shown: NDArray[np.int64]) -> dict[str, NDArray]:
    """What the job points to, each array contiguous and of the library's type."""
    floats, bytes_ = ("box", "factors", "sigma"), ("flip", "jitter", "gray", "solarize", "invert")
    types = dict.fromkeys(floats, np.float32) | dict.fromkeys(bytes_, np.uint8) | {"order": np.int8}
    arrays = {name: np.ascontiguousarray(getattr(params, name), dtype=dtype) for name, dtype in types.items()}
    if params.study is not None:
        others = {"turns": np.int8, "noise": np.float32, "key": np.uint32, "sobel": np.uint8, "cutout": np.int32}
        arrays |= {name: np.ascontiguousarray(getattr(params.study, name), dtype=t) for name, t in others.items()}
    arrays["pixels"] = np.array([image.data_ptr() for image in images], dtype=np.uint64)
    arrays["widths"] = np.array([image.shape[1] for image in images], dtype=np.int32)
    arrays["shown"] = np.ascontiguousarray(shown, dtype=np.int64)
    return arrays


def _check(arrays: dict[str, NDArray], params: ViewParams, spec: ViewSpec, images: Sequence[Tensor]) -> None:
    """The library trusts its input."""
    for image in images:
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.is_cpu:
            raise ValueError(f"images must be uint8 [H, W, 3] on the CPU, got {image.dtype} {tuple(image.shape)}")
    shown, order = arrays["shown"], arrays["order"]
    if shown.shape != (len(params),) or (shown < 0).any() or (shown >= len(images)).any():
        raise ValueError(f"shown must name one of {len(images)} images for each of {len(params)} views")
    if (order < 0).any() or (order > 3).any():
        raise ValueError("params.order must hold the numbers 0 to 3")
    sides = np.array([image.shape[:2] for image in images], dtype=np.float32).reshape(-1, 2)[shown]
    start, length = params.box[:, :2], params.box[:, 2:]
    inside = (start >= 0) & (length >= 1) & (start + length <= sides)
    if not inside.all():
        row = int(np.flatnonzero(~inside.all(axis=1))[0])
        raise ValueError(f"params.box row {row}, {params.box[row].tolist()}, must lie inside its image")
    if params.study is not None:
        top, left, side = arrays["cutout"].T
        if (arrays["cutout"] < 0).any() or (np.maximum(top, left) + side > spec.size).any():
            raise ValueError(f"params.study.cutout must lie inside views of {spec.size} pixels")
    if spec.blur_kind == "pil" and params.sigma.max(initial=0) > MOST_PIL_RADIUS:
        raise ValueError(f"blur_sigma must be at most {MOST_PIL_RADIUS} for PIL's blur, got {params.sigma.max()}")
