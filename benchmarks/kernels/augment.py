"""Views of ragged images: `render_views` beside the torch renderer and torchvision's functions, one view after another.

python benchmarks/kernels/augment.py --device cuda --out samples.json
python benchmarks/kernels/augment.py --images 8 --rounds 5        on the CPU, where the native renderer is the fast one

All draw SimCLR's two views of the same images with the same parameters, and their values are compared. Images lie
decoded on the device; parameters come from the host, as in training.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from fastssl_kernels.augment import render_views, render_views_reference
from fastssl_kernels.augment.cost import Work
from interleaved import interleaved, report
from part import Call, Floor, Part
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from fastssl.data import native, render, triton_render
from fastssl.data.blur import blur_taps
from fastssl.data.params import ViewParams, sample_params
from fastssl.data.views import ViewSpec

VIEWS = 2
OPERATIONS = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


def drawn(images: list[Tensor], spec: ViewSpec) -> ViewParams:
    sizes = {"heights": [i.shape[0] for i in images], "widths": [i.shape[1] for i in images]}
    samples = np.arange(len(images))
    return ViewParams.concatenate(
        [sample_params(spec, seed=0, epoch=0, samples=samples, view=view, **sizes) for view in range(VIEWS)]
    )


def by_torchvision(images: list[Tensor], params: ViewParams, spec: ViewSpec) -> Tensor:
    views = []
    for row in range(len(params)):
        top, left, height, width = params.box[row].astype(int).tolist()
        image = images[row % len(images)].permute(2, 0, 1)[:, top : top + height, left : left + width].float() / 255
        mode = InterpolationMode(spec.interpolation)
        view = TF.resize(image, [spec.size, spec.size], mode, antialias=True).clamp(0, 1)
        view = view.flip(-1) if params.flip[row] else view
        if params.jitter[row]:
            for which in params.order[row].tolist():
                view = OPERATIONS[which](view, float(params.factors[row, which]))
        if params.gray[row]:
            view = TF.rgb_to_grayscale(view, 3)
        if params.sigma[row] > 0:
            view = TF.gaussian_blur(view, [blur_taps(spec.size)] * 2, [float(params.sigma[row])] * 2)
        views.append(view)
    return torch.stack(views)


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="of 300 to 500 pixels a side; two views each")
    parser.add_argument("--size", type=int, default=224, help="pixels of a view's side")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU")
    parser.add_argument("--rounds", type=int, default=30, help="calls of every implementation")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="write raw samples and environment to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def problem(options: argparse.Namespace) -> tuple[list[Tensor], ViewSpec, ViewParams, Tensor]:
    """Images, and the parameters of their views as the renderers take them."""
    rng = np.random.default_rng(0)
    sides = rng.integers(300, 501, (options.images, 2))
    images = [
        torch.from_numpy(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)).to(options.device) for h, w in sides.tolist()
    ]
    spec = ViewSpec(size=options.size)
    params = drawn(images, spec)
    return images, spec, params, triton_render.packed(params, spec, np.arange(len(params)) % len(images))


def subjects(options: argparse.Namespace) -> dict[str, Call]:
    images, spec, params, packed = problem(options)
    found: dict[str, Call] = {
        "render_views, float32": lambda: render_views(images, packed, spec.size),
        "render_views, bf16 channels-last": lambda: render_views(
            images, packed, spec.size, dtype=torch.bfloat16, channels_last=True
        ),
        "torch renderer": lambda: render.render(images, params, spec),
        "torchvision, view by view": lambda: by_torchvision(images, params, spec),
    }
    if options.device.type == "cpu" and native.available():
        found["native renderer"] = lambda: native.render(images, params, spec)
    return found


def largest_difference(options: argparse.Namespace) -> Callable[[object], float]:
    """Of a level in [0, 1]."""
    images, spec, _, packed = problem(options)
    exact = render_views_reference(images, packed, spec.size)

    def error(views: object) -> float:
        assert isinstance(views, Tensor)
        return float((views.cpu().double() - exact.cpu()).abs().max())

    return error


def floor(options: argparse.Namespace, itemsize: int) -> Floor:
    _, spec, _, packed = problem(options)
    dtype = torch.float32 if itemsize == 4 else torch.bfloat16
    return Floor(Work(packed, spec.size, dtype=dtype).floor_bytes())


OURS = "render_views, bf16 channels-last"
PART = Part(subjects, largest_difference, floor, OURS)


def main() -> None:
    options = command_line()
    calls, error = subjects(options), largest_difference(options)
    for name, call in calls.items():
        print(f"{name:34}differs from float64 by {error(call()):.1e} at most")
    _, spec, _, packed = problem(options)
    moved = {name: Work(packed, spec.size, dtype=dtype).device_bytes() for name, dtype in _kinds(calls).items()}
    known = moved if options.device.type == "cuda" else None  # of the kernels only
    report(interleaved(calls, options.rounds, options.device), OURS, options, known)


def _kinds(subjects: dict[str, Call]) -> dict[str, torch.dtype]:
    """Dtypes of the subjects whose bytes are known."""
    names = [name for name in subjects if name.startswith("render_views")]
    return dict(zip(names, (torch.float32, torch.bfloat16), strict=True))


if __name__ == "__main__":
    main()
