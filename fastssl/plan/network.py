"""A method's networks: their work an image, what they keep, and how large they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from ..config import Config
from ..data.views import Views
from ..methods import DataFacts, Method, StepState, build_method
from ..methods.moco import MoCoV2Config
from .chips import Precision
from .walk import IMAGES, Recorder, Saved, Work, saved, saved_bytes

NORMS = ("native_batch_norm",)
"""Operations that share statistics between ranks."""


@dataclass(frozen=True)
class Networks:
    """What the passes of one step take. Works are in order; images are source images with all their views."""

    forward: tuple[Work, ...]
    backward: tuple[Work, ...]
    targets: tuple[Work, ...]
    """Passes without gradients: keys, target networks."""
    saved: Saved
    """What autograd keeps between the passes."""
    peak: float
    """Bytes of an image that live at the same time, its views aside."""
    trained: tuple[int, ...]
    """Elements of each trained parameter."""
    averaged: tuple[int, ...]
    """Elements of each parameter of target networks."""
    state: int
    """Bytes of the method's state dictionary: parameters, buffers, queues, memories."""
    norms: int
    """Batch norms that are passed with gradients, as often as they are passed."""
    target_norms: int
    input: float
    """Bytes of an image's views."""
    shares_norm: bool

    @property
    def flops(self) -> float:
        """FLOPs of an image in a whole step."""
        return sum(work.flops for work in (*self.forward, *self.backward, *self.targets))


def networks(config: Config, *, images: int, classes: int = 1000, precision: Precision = "bf16") -> Networks:
    """Walk through the networks of `config`.

    Args:
        images: of the training data, of which some methods remember each.
        classes: of supervised training.

    Raises:
        UserError: a backbone that cannot be built.
    """
    method_config = config.method
    if isinstance(method_config, MoCoV2Config):
        # Groups of batch norm are the ranks' own: the work is the same in one.
        method_config = replace(method_config, norm_groups=1)
    views = _views(config, torch.float32)
    sizes = tuple(group.shape[-1] for group in views.groups)
    with torch.device("meta"):
        method = build_method(method_config, config.backbone, DataFacts(images, classes), sizes=sizes)
    state = sum(tensor.numel() * tensor.itemsize for tensor in method.state_dict().values())
    trained = tuple(p.numel() for p in method.parameters() if p.requires_grad)
    averaged = tuple(p.numel() for p in method.parameters() if not p.requires_grad)
    shares = method.shares_norm and not isinstance(config.method, MoCoV2Config)
    shares = shares or (isinstance(config.method, MoCoV2Config) and config.method.norm_groups == 1)
    if precision == "bf16":
        method.to(torch.bfloat16)
        views = _views(config, torch.bfloat16)
    forward, backward, kept, peak = _with_gradients(method, views)
    targets, without = _targets(method, views)
    return Networks(
        forward,
        backward,
        targets,
        kept,
        max(peak, without),
        trained,
        averaged,
        state,
        sum(work.name in NORMS for work in forward),
        sum(work.name in NORMS for work in targets),
        sum(group.numel() * group.itemsize for group in views.groups) / IMAGES,
        shares,
    )


def backbone_flops(network: nn.Module, size: int) -> float:
    """FLOPs of a forward pass of one image of `size` pixels through a network on the meta device."""
    with Recorder() as recorder, torch.no_grad():
        network(torch.empty(IMAGES, 3, size, size, device="meta"))
    return sum(work.flops for work in recorder.work)


def _views(config: Config, dtype: torch.dtype) -> Views:
    counts = config.augment.counts
    sizes = dict.fromkeys(view.size for view in config.augment.views)
    groups = (
        torch.empty(count * IMAGES, 3, size, size, device="meta", dtype=dtype).contiguous(
            memory_format=torch.channels_last
        )
        for size, count in zip(sizes, counts, strict=True)
    )
    return Views(tuple(groups), counts)


def _with_gradients(method: Method, views: Views) -> tuple[tuple[Work, ...], tuple[Work, ...], Saved, float]:
    with Recorder() as recorder:
        with saved(method) as kept:
            embedded = method.embed(views)
        # Whoever holds a tensor keeps it alive, also from the count of the living.
        kept_bytes = saved_bytes(kept)
        kept.clear()
        forward = tuple(recorder.work)
        recorder.work.clear()
        embedded.backward(torch.empty_like(embedded))
    return forward, tuple(recorder.work), kept_bytes, recorder.peak


def _targets(method: Method, views: Views) -> tuple[tuple[Work, ...], float]:
    with Recorder() as recorder, torch.no_grad():
        method.targets(views, StepState(0, 1, 1), IMAGES)
    return tuple(recorder.work), recorder.peak
