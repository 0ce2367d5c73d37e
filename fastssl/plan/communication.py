"""What GPUs send each other in a step, and how much of that the step waits for.

A ring sends each byte 2(n − 1)/n times to add it up everywhere and (n − 1)/n times to gather it (Patarasuk and Yuan,
2009), over the slowest link that it crosses: within a machine a GPU's own, between machines a machine's, on whose ports
the rings of its GPUs are spread. The way through all GPUs takes ⌈log₂ n⌉ hops, as a tree does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config import Config
from ..methods.deepclusterv2 import DeepClusterV2Config
from ..methods.moco import MoCoV2Config
from ..methods.nnclr import NNCLRConfig
from ..methods.relic import RELICv2Config
from ..methods.simclr import SimCLRConfig
from ..methods.swav import SwAVConfig
from .chips import HOP
from .network import Networks

BUCKET = 25 * 2**20
"""Bytes of gradients that are sent together: the default of torch's DistributedDataParallel."""


@dataclass(frozen=True)
class Network:
    """n GPUs in machines of `a_machine`; links in GB/s, one direction."""

    gpus: int
    intra: float
    """A GPU to others of its machine."""
    inter: float
    """A machine to others."""
    a_machine: int = 8
    hop: float = HOP
    """Seconds of a hop inside a machine; twice that between machines."""

    @property
    def link(self) -> float:
        """Bytes/s of the slowest link of a ring through all GPUs."""
        return 1e9 * (self.intra if self.gpus <= self.a_machine else min(self.intra, self.inter))

    def part(self, gpus: int) -> Network:
        """The same links between fewer GPUs."""
        return Network(min(gpus, self.gpus), self.intra, self.inter, self.a_machine, self.hop)

    def latency(self) -> float:
        """Seconds of the way through all GPUs."""
        inside = min(self.gpus, self.a_machine)
        return self.hop * (_levels(inside) + 2 * _levels(math.ceil(self.gpus / inside)))

    def all_reduce(self, size: float) -> float:
        """Seconds to add up `size` bytes over all GPUs."""
        return 0.0 if self.gpus == 1 else 2 * self.gather_share * size / self.link + 2 * self.latency()

    def all_gather(self, size: float) -> float:
        """Seconds to bring together `size` bytes, of which each GPU has its part."""
        return 0.0 if self.gpus == 1 else self.gather_share * size / self.link + self.latency()

    @property
    def gather_share(self) -> float:
        return (self.gpus - 1) / self.gpus


@dataclass(frozen=True)
class Communication:
    """Seconds of a step."""

    gradients: float
    """Of the whole exchange of gradients."""
    exposed: float
    """Of that, after the backward pass."""
    norms: float
    gathered: float
    """Embeddings, keys, statistics of codes."""

    @property
    def waited(self) -> float:
        return self.exposed + self.norms + self.gathered


def communication(config: Config, networks: Networks, network: Network, backward: float, passes: int) -> Communication:
    """Of one step whose backward pass takes `backward` seconds on a GPU; passes: micro-batches."""
    size, buckets = gradient_bytes(config, networks)
    gradients = network.all_reduce(size) + (buckets - 1) * network.all_reduce(0)
    # The last bucket is complete when the backward pass ends; with micro-batches only the last pass sends.
    exposed = max(gradients / buckets, gradients - backward / passes)
    shared = network.part(config.train.norm_ranks) if config.train.norm_ranks else network
    norms = 0.0
    if networks.shares_norm:
        way = shared.all_gather(0)
        # Forward statistics are gathered; backward sums are added up. Without gradients only the first. A micro-batch
        # passes forward twice, with gradients once.
        repeated = 2 if passes > 1 else 1
        norms = passes * way * ((repeated + 2) * networks.norms + networks.target_norms)
    rows, sums = gathered(config, networks)
    return Communication(gradients, exposed, norms, network.all_gather(rows) + sums * network.all_reduce(0))


def gradient_bytes(config: Config, networks: Networks) -> tuple[float, int]:
    """Bytes of all gradients, and in how many buckets they are sent."""
    size = float((2 if config.train.compress_gradients else 4) * sum(networks.trained))
    return size, max(1, math.ceil(size / BUCKET))


def gathered(config: Config, networks: Networks) -> tuple[float, int]:
    """Bytes that all GPUs end up with of a whole batch, beside gradients; and small sums over all GPUs."""
    method, batch, counts = config.method, config.train.batch_size, config.augment.counts
    views, large = sum(counts), counts[0]
    if isinstance(method, SimCLRConfig):
        return batch * views * (2.0 * method.out + 4), 1
    if isinstance(method, MoCoV2Config):
        keys = batch * 4.0 * method.out
        if method.norm_groups == 1:
            return keys, 1
        # Shuffling batch norm: a view of every image, keys, and the keys that enter the queue.
        pixels = sum(view.count * view.size**2 for view in config.augment.views)
        return batch * networks.input * config.augment.views[0].size ** 2 / pixels + 2 * keys, 2
    if isinstance(method, NNCLRConfig):
        return batch * (large * (views - 1) * 2.0 * 2 + 4) * method.out, large * (views - 1)
    if isinstance(method, RELICv2Config):
        return batch * large * 2.0 * method.out, 1
    if isinstance(method, SwAVConfig):
        queue = batch * 4.0 * method.out * method.assign if method.queue else 0.0
        return queue, method.iterations + 1
    if isinstance(method, DeepClusterV2Config):
        return batch * (4.0 * method.out * method.assign + 8), 1
    return 0.0, 0


def _levels(number: int) -> int:
    return math.ceil(math.log2(number))
