"""A method's networks: their work an image, what they keep, and how large they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn

from ..config import Config
from ..data.views import Augmentation, Views
from ..methods import DataFacts, Method, MethodConfig, StepState, build_method
from ..methods.moco import MoCoV2Config
from ..models import BackboneConfig, build_backbone
from .chips import Precision
from .walk import IMAGES, Recorder, Saved, Work, saved, saved_bytes

NORMS = ("native_batch_norm",)
"""Operations that share statistics between ranks."""
TARGETS = ("target_", "key_")
"""Names of modules that follow trained ones."""


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
    """Walk through the networks of `config`, once a configuration.

    Args:
        images: of the training data, of which some methods remember each.
        classes: of supervised training.

    Raises:
        UserError: a backbone that cannot be built.
    """
    return _networks(config.method, config.backbone, config.augment, DataFacts(images, classes), precision)


@lru_cache(maxsize=64)
def _networks(
    config: MethodConfig, backbone: BackboneConfig, augment: Augmentation, data: DataFacts, precision: Precision
) -> Networks:
    grouped = isinstance(config, MoCoV2Config) and config.norm_groups > 1
    if isinstance(config, MoCoV2Config):
        # Groups of batch norm are the ranks' own: the work is the same in one.
        config = replace(config, norm_groups=1)
    sizes = tuple(dict.fromkeys(view.size for view in augment.views))
    method = _method(config, backbone, data, sizes)
    state = sum(tensor.numel() * tensor.itemsize for tensor in method.state_dict().values())
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    method.to(dtype)
    views = _views(augment, dtype)
    forward, backward, kept, peak = _with_gradients(method, views)
    targets, without = _targets(method, views)
    return Networks(
        forward,
        backward,
        targets,
        kept,
        max(peak, without),
        tuple(p.numel() for p in method.parameters() if p.requires_grad),
        tuple(p.numel() for name, p in method.named_parameters() if name.startswith(TARGETS)),
        state,
        sum(work.name in NORMS for work in forward),
        sum(work.name in NORMS for work in targets),
        sum(group.numel() * group.itemsize for group in views.groups) / IMAGES,
        method.shares_norm and not grouped,
    )


def backbone_flops(network: nn.Module, size: int) -> float:
    """FLOPs of a forward pass of one image of `size` pixels through a network on the meta device."""
    with Recorder() as recorder, torch.no_grad():
        network(torch.empty(IMAGES, 3, size, size, device="meta"))
    return sum(work.flops for work in recorder.work)


def _method(config: MethodConfig, backbone: BackboneConfig, data: DataFacts, sizes: tuple[int, ...]) -> Method:
    """The method on the meta device."""
    try:
        with torch.device("meta"):
            return build_method(config, backbone, data, sizes=sizes)
    except NotImplementedError:
        # Some networks read numbers back while they are built, which meta tensors do not have.
        network = build_backbone(backbone, sizes).to("meta")
        network.fresh = None  # type: ignore[assignment]
        with torch.device("meta"):
            return build_method(config, backbone, data, network=network, sizes=sizes)


def _views(augment: Augmentation, dtype: torch.dtype) -> Views:
    sizes = dict.fromkeys(view.size for view in augment.views)
    groups = (
        torch.empty(count * IMAGES, 3, size, size, device="meta", dtype=dtype).contiguous(
            memory_format=torch.channels_last
        )
        for size, count in zip(sizes, augment.counts, strict=True)
    )
    return Views(tuple(groups), augment.counts)


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
