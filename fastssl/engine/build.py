"""What a run is built of, before its first step: facts of the data, shares of the batch, the untrained method."""

from __future__ import annotations

import torch
from torch import nn

from ..config import Config
from ..data import Source
from ..errors import UserError
from ..methods import DataFacts, Method, build_method
from ..models import checkpoint_activations
from .compiled import compile_networks


def data_facts(source: Source) -> DataFacts:
    """What a method may know of `source`; classes are 0 where an image has no label."""
    labels = source.labels
    known = labels is not None and len(labels) > 0 and labels.min() >= 0
    return DataFacts(len(source), int(labels.max()) + 1 if known and labels is not None else 0)


def shown_images(config: Config, facts: DataFacts) -> int:
    """Different images of an epoch: its last batch is left out or filled up."""
    batch_size = config.train.batch_size
    return facts.images if config.loader.last == "pad" else facts.images // batch_size * batch_size


def validate_share(config: Config, world: int) -> None:
    """Raise `UserError` where a batch cannot be shared by so many processes."""
    batch, micro = config.train.batch_size, config.train.micro_batch
    if batch % world:
        raise UserError(f"--train.batch-size {batch} must be a multiple of the {world} processes")
    config.method.validate_ranks(world)
    share = batch // world
    if micro is not None and share > micro and share % micro == 1:
        raise UserError(
            f"--train.micro-batch {micro} leaves a single image of the {share} of a process to the last one, which "
            "has no statistics for batch norm: choose another, best a divisor"
        )


def new_method(config: Config, facts: DataFacts, device: torch.device, backbone: nn.Module | None = None) -> Method:
    """The untrained method of a run, around `backbone` if that is given, where and in the layout that it trains in."""
    config.method.validate_data(facts, shown_images(config, facts))
    sizes = (*(view.size for view in config.augment.views), config.evaluate.size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        method = build_method(config.method, config.backbone, facts, network=backbone, sizes=sizes)
    if config.train.checkpoint_activations:
        checkpoint_activations(method.backbone)
    if config.train.compile:
        compile_networks(method, device)
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    return method.to(device).to(memory_format=layout)
