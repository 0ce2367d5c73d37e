"""Views drawn by a plain graph of DALI's own operators: a back end to choose, and the baseline to beat.

slice → resize → colour twist → Gaussian blur → solarize → invert → crop-mirror-normalize, on uint8 pixels up to the
last step. It is fed the same `ViewParams` as every other renderer: boxes, mirrors, strengths and σ are the same
function of (seed, epoch, sample, view). Where DALI's operators differ from the reference (`render`), the pixels do:

* resize repeats the crop's outermost pixels where its filter reaches past them; the reference leaves those taps out;
* the colour operations have one order (saturation, hue, contrast, brightness) and clip once, after the last of them
  (with additive brightness, also before it);
* contrast pivots on level 128, not on the image's mean; saturation is the distance from the gray level, in recipes of
  `color="tensorflow"` too; hue turns the chroma of YIQ, not the wheel of HSV;
* grayscale is a saturation of 0, so it comes before contrast and brightness; its red weight is .299, not .2989;
* each step rounds to 8 bits; the blur leaves out taps beyond 4 σ, which weigh 6e-5 together.

An operation that not every view gets stands under a condition of DALI's: the other views pass it by, untouched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from .blur import blur_taps
from .handover import HandOver
from .params import ViewParams
from .views import ViewSpec

ARGUMENTS = (
    *("start", "shape", "mirror", "recolor", "brightness", "contrast", "saturation", "hue"),
    *("blur", "sigma", "taps", "solarize", "invert"),
)
"""What the graph's operators take for each view, by name."""

_Key = tuple[ViewSpec, tuple[float, float, float], tuple[float, float, float]]


def require(option: str) -> None:
    """Raise `UserError`, naming the option that asks for DALI, where it cannot be imported."""
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{option} dali needs the package nvidia-dali, which cannot be imported ({error}): install it, or use "
            f"{option} auto"
        ) from error


def _dali() -> tuple[Any, Any, Any, Any]:
    """fn, math, types and pipeline_def: imported late, and without the type hints, which name only part of them."""
    from nvidia.dali import fn, math, pipeline_def, types

    return fn, math, types, pipeline_def


def check_view(spec: ViewSpec, name: str) -> None:
    """Raise `UserError` for a view that DALI's operators cannot draw; `name` says which view it is."""
    if spec.blur > 0 and spec.blur_kind == "pil":
        raise UserError(
            f"{name}.blur-kind pil cannot be drawn by --loader.renderer dali, which has no box blur: choose gaussian "
            "there, or --loader.renderer auto"
        )
    for key in ("rotation", "noise", "sobel", "cutout"):
        if getattr(spec, key) > 0:
            raise UserError(
                f"{name}.{key} {getattr(spec, key)} cannot be drawn by --loader.renderer dali, which has no such "
                "operation: set it to 0, or use --loader.renderer auto"
            )


def arguments(params: ViewParams, spec: ViewSpec) -> dict[str, NDArray[Any]]:
    """`ARGUMENTS`, one row a view."""
    neutral = np.array([0 if spec.additive_brightness else 1, 1, 1, 0], dtype=np.float32)
    strength = np.array([spec.brightness, spec.contrast, spec.saturation, spec.hue])
    factors = np.where(params.jitter[:, None] & (strength > 0), params.factors, neutral)
    sigma = np.where(params.sigma > 0, params.sigma, np.float32(1))
    taps = np.minimum(2 * np.ceil(4 * sigma) + 1, blur_taps(spec.size))
    return {
        "start": params.box[:, :2].astype(np.int32),
        "shape": params.box[:, 2:].astype(np.int32),
        "mirror": params.flip.astype(np.int32),
        "recolor": params.jitter | params.gray,
        "brightness": factors[:, 0].copy(),
        "contrast": factors[:, 1].copy(),
        "saturation": np.where(params.gray, np.float32(0), factors[:, 2]),
        "hue": 360 * factors[:, 3],  # degrees
        "blur": (params.sigma > 0) & (blur_taps(spec.size) > 1),
        "sigma": sigma[:, None],
        "taps": taps.astype(np.int32)[:, None],
        "solarize": params.solarize,
        "invert": params.invert,
    }


def draw(images: Any, given: Mapping[str, Any], spec: ViewSpec, mean: Sequence[float], std: Sequence[float]) -> Any:
    """The operators of one view group, inside a pipeline with conditionals: DALI rewrites this function's `if`s.

    Args:
        images: node of uint8 `[H, W, 3]` samples.
        given: nodes on the CPU, one for each of `arguments`.

    Returns:
        Node of float32 `[3, S, S]` samples.
    """
    fn, math, types, _ = _dali()
    filter_type = types.INTERP_CUBIC if spec.interpolation == "bicubic" else types.INTERP_LINEAR
    crop = fn.slice(images, start=given["start"], shape=given["shape"], axes=[0, 1])
    x = fn.resize(crop, size=[spec.size, spec.size], interp_type=filter_type, antialias=True)
    if given["recolor"]:
        if spec.additive_brightness:
            x = fn.color_twist(x, contrast=given["contrast"], saturation=given["saturation"], hue=given["hue"])
            x = fn.brightness(x, brightness_shift=given["brightness"])
        else:
            x = fn.color_twist(
                x,
                brightness=given["brightness"],
                contrast=given["contrast"],
                saturation=given["saturation"],
                hue=given["hue"],
            )
    if given["blur"]:
        x = fn.gaussian_blur(x, sigma=given["sigma"], window_size=given["taps"])
    if given["solarize"]:
        x = math.min(x, x ^ types.Constant(255).uint8())
    if given["invert"]:
        x = x ^ types.Constant(255).uint8()
    return fn.crop_mirror_normalize(
        x,
        mirror=given["mirror"],
        mean=[255 * value for value in mean],
        std=[255 * value for value in std],
        dtype=types.FLOAT,
        output_layout="CHW",
    )


class DaliRenderer:
    """`render` of `fastssl.data.render`, by DALI: one pipeline a view group, built when the group is first seen."""

    def __init__(self, *, device: torch.device | str = "cpu", threads: int = 2) -> None:
        require("--loader.renderer")
        self._device, self._threads = torch.device(device), max(1, threads)
        self._graphs: dict[_Key, _Graph] = {}

    def render(
        self,
        images: Tensor | Sequence[Tensor],
        params: ViewParams,
        spec: ViewSpec,
        mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
        std: tuple[float, float, float] = (1.0, 1.0, 1.0),
        *,
        shown: NDArray[np.int64] | None = None,
    ) -> Tensor:
        """Render views of images.

        Args:
            images: uint8 `[N, H, W, 3]`, or N tensors `[H, W, 3]` of any sizes, on this renderer's device.
            params: M rows.
            spec, mean, std, shown: as in `fastssl.data.render.render`.

        Returns:
            float32 `[M, 3, S, S]`, on the device of the images.

        Raises:
            UserError: a view that DALI's operators cannot draw.
            ValueError: without `shown`, M is no multiple of N; images of another type; a box outside its image.
        """
        check_view(spec, "view")
        n, count = len(images), len(params)
        if shown is None:
            if n == 0 or count % n:
                raise ValueError(f"params must have a multiple of {n} rows (one a view of each image), got {count}")
            shown = np.arange(count) % n
        if not count:
            return torch.empty(0, 3, spec.size, spec.size, device=self._device)
        whole = [image.contiguous() for image in images]
        _check_images(whole, params, shown)
        graph = self._graphs.get((spec, mean, std))
        if graph is None or graph.capacity < count:
            graph = _Graph(spec, mean, std, count, self._device, self._threads)
            self._graphs[spec, mean, std] = graph
        try:
            return graph.run([whole[i] for i in shown.tolist()], arguments(params, spec))
        except RuntimeError:
            del self._graphs[spec, mean, std]  # it stays unusable
            raise

    def close(self) -> None:
        self._graphs.clear()


def _check_images(images: Sequence[Tensor], params: ViewParams, shown: NDArray[np.int64]) -> None:
    """What DALI would refuse, it would refuse for good."""
    for image in images:
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"images must be uint8 [H, W, 3], got {image.dtype} {tuple(image.shape)}")
    sides = np.array([image.shape[:2] for image in images], dtype=np.float32)[shown]
    start, length = params.box[:, :2], params.box[:, 2:]
    inside = ((start >= 0) & (length >= 1) & (start + length <= sides)).all(axis=1)
    if not inside.all():
        row = int(np.flatnonzero(~inside)[0])
        raise ValueError(f"params.box row {row}, {params.box[row].tolist()}, must lie inside its image")


class _Graph:
    """The pipeline of one view group, for up to `capacity` views at a time."""

    def __init__(
        self,
        spec: ViewSpec,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        capacity: int,
        device: torch.device,
        threads: int,
    ) -> None:
        fn, _, _, pipeline_def = _dali()
        self.capacity, self._device = capacity, device
        self._images: list[Any] = []
        self._given: dict[str, NDArray[Any]] = {}
        on_gpu = device.type == "cuda"

        # The dynamic executor allocates each output anew and counts references to it (see `handover`).
        @pipeline_def(enable_conditionals=True, exec_dynamic=True, prefetch_queue_depth=1)
        def graph() -> Any:
            # On the CPU, DALI reads the images where they are: `run` returns when it is done with them.
            images = fn.external_source(
                source=lambda: self._images, layout="HWC", device="gpu" if on_gpu else "cpu", no_copy=not on_gpu
            )
            values = fn.external_source(source=lambda: [self._given[k] for k in ARGUMENTS], num_outputs=len(ARGUMENTS))
            given = {name: values[i] for i, name in enumerate(ARGUMENTS)}
            return draw(images, given, spec, mean, std)

        self._pipeline = graph(
            batch_size=capacity, num_threads=threads, device_id=(device.index or 0) if on_gpu else None
        )
        self._pipeline.build()
        self._handover = HandOver(device)

    def run(self, images: list[Tensor], given: dict[str, NDArray[Any]]) -> Tensor:
        # As arrays, where it can be: DALI asks for torch's CUDA stream when it meets a tensor.
        self._images = [image.numpy() for image in images] if self._device.type == "cpu" else images
        self._given = given
        (output,) = self._pipeline.run()
        self._images, self._given = [], {}
        return self._handover.take([output.as_tensor()])[0]
