"""From a recipe and a machine to what its run takes."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import Config
from ..data.order import steps_per_epoch
from ..errors import UserError
from .chips import HOP
from .communication import Communication, Network, communication
from .losses import loss_work, update_bytes
from .memory import Memory, checkpoint_bytes, memory
from .network import Networks, networks
from .roofline import Machine, seconds

DECODE_RATE = 390.0
"""Images/s that a core decodes, full-resolution ImageNet JPEGs on AMD Zen 3: 791 on two, in
benchmarks/records/2026-11-25_2core-amd-epyc_data-views. Views are then drawn on the GPU."""
IMAGE_BYTES = 110e3
"""Of a JPEG file of ImageNet, on average."""
DISK = 1.0
"""GB/s at which a checkpoint is written where `--disk` does not say, assumed."""


@dataclass(frozen=True)
class Site:
    """Where the run is to take place."""

    machine: Machine
    intra: float
    """GB/s a GPU inside a machine, one direction."""
    inter: float
    """GB/s a machine to others."""
    a_machine: int = 8
    """GPUs."""
    cores: float | None = None
    """CPU cores a GPU that decode; None for as many as it takes."""
    decode_rate: float = DECODE_RATE
    """Images/s a core."""
    disk: float | None = None
    """GB/s a machine reads, and the first one writes; None for as fast as it takes."""
    image_bytes: float = IMAGE_BYTES
    """Bytes of an encoded image."""
    hop: float = HOP
    """Seconds of a hop inside a machine."""

    def network(self, gpus: int) -> Network:
        return Network(gpus, self.intra, self.inter, self.a_machine, self.hop)

    def machines(self, gpus: int) -> int:
        return -(-gpus // self.a_machine)


@dataclass(frozen=True)
class Prediction:
    """A run on `gpus` GPUs; seconds are those of a step, everything is predicted."""

    gpus: int
    images: int
    """Images a GPU and step."""
    micro_batch: int | None
    """Images that pass together where the whole share does not fit."""
    forward: float
    """With the passes of micro-batches that keep nothing."""
    backward: float
    targets: float
    loss: float
    update: float
    communication: Communication
    memory: float
    """Bytes a GPU."""
    largest: int
    """Images a GPU that fit."""
    images_per_second: float
    bound: str
    """What sets them: "GPUs", "cores" or "disk"."""
    hours: float
    cores: float
    """CPU cores a GPU that decoding takes."""

    @property
    def step(self) -> float:
        """Seconds of a step that does not wait for data."""
        return self.forward + self.backward + self.targets + self.loss + self.update + self.communication.waited

    @property
    def together(self) -> int:
        """Images that pass through the networks together."""
        return self.micro_batch or self.images

    @property
    def passes(self) -> int:
        return self.images // self.together

    @property
    def communication_share(self) -> float:
        """Share of the step that waits for other GPUs."""
        return self.communication.waited / self.step


@dataclass(frozen=True)
class Impossible:
    """A number of GPUs that this run cannot have, and why."""

    gpus: int
    reason: str


class Plan:
    """What all numbers of GPUs share. `images`: of the data set. Raises `UserError` for a run that cannot be."""

    def __init__(self, config: Config, site: Site, *, images: int) -> None:
        if images < config.train.batch_size:
            raise UserError(
                f"--images {images} is less than a batch of {config.train.batch_size}: choose a smaller --batch-size"
            )
        self.config, self.site, self.images = config, site, images
        self.networks: Networks = networks(config, images=images, precision=site.machine.precision)
        self.memory: Memory = memory(config, self.networks, site.machine.precision)
        self.largest = self.memory.largest(site.machine.chip)
        self.steps = steps_per_epoch(images, config.train.batch_size, config.loader.last)
        self.total_steps = config.train.max_steps or config.train.epochs * self.steps

    @property
    def checkpoint(self) -> float:
        """Bytes."""
        return checkpoint_bytes(self.config, self.networks)

    @property
    def checkpoint_seconds(self) -> float:
        return self.checkpoint / (1e9 * (self.site.disk or DISK))

    def on(self, gpus: int) -> Prediction | Impossible:
        """The run on so many GPUs."""
        share = self._share(gpus)
        if isinstance(share, str):
            return Impossible(gpus, share)
        together = self._together(share)
        if together is None:
            reason = f"{share} images a GPU do not fit, at most {self.largest} pass together: lower --batch-size"
            return Impossible(gpus, reason)
        config, n, machine, network = self.config, self.networks, self.site.machine, self.site.network(gpus)
        passes = share // together
        forward, backward, targets = (
            passes * seconds(work, together, machine) for work in (n.forward, n.backward, n.targets)
        )
        loss = seconds([loss_work(config, gpus)], 1, machine)
        update = update_bytes(config, n, machine.precision) / (1e9 * machine.chip.bandwidth * machine.efficiency)
        sent = communication(config, n, network, backward, passes)
        forward *= 2 if passes > 1 else 1
        step = forward + backward + targets + loss + update + sent.waited
        rate, bound = self._fed(config.train.batch_size / step, gpus)
        return Prediction(
            gpus,
            share,
            together if passes > 1 else None,
            forward,
            backward,
            targets,
            loss,
            update,
            sent,
            self.memory.bytes(together),
            self.largest,
            rate,
            bound,
            self.total_steps * config.train.batch_size / rate / 3600,
            rate / gpus / self.site.decode_rate,
        )

    def _share(self, gpus: int) -> int | str:
        """Images a GPU, or why not."""
        batch = self.config.train.batch_size
        if gpus > batch:
            return f"more GPUs than the {batch} images of a batch: raise --batch-size"
        if batch % gpus:
            return f"the batch of {batch} is no multiple of {gpus}: choose another --batch-size"
        try:
            self.config.method.validate_ranks(gpus)
        except UserError as error:
            return str(error)
        norm_ranks = self.config.train.norm_ranks
        if norm_ranks and gpus % norm_ranks and norm_ranks < gpus:
            return f"--norm-ranks {norm_ranks} must divide {gpus} GPUs, or be 0 for all"
        apart = norm_ranks == 1 or not self.networks.shares_norm
        if batch // gpus < 2 and gpus > 1 and apart:
            return "one image a GPU has no statistics for batch norm: raise --batch-size or share them, --norm-ranks 0"
        return batch // gpus

    def _together(self, share: int) -> int | None:
        """Images that pass through the networks together: all, or the largest divisor that fits."""
        batch = self.config.train.batch_size
        if self.memory.fits(share, self.site.machine.chip):
            return share
        for images in range(min(share - 1, self.largest), 1, -1):
            if share % images == 0:
                try:
                    self.config.method.validate_micro_batch(images, batch)
                except UserError:
                    continue
                return images
        return None

    def _fed(self, rate: float, gpus: int) -> tuple[float, str]:
        """The slowest of GPUs, decoding and disks, in images/s."""
        site = self.site
        rates = {"GPUs": rate}
        if site.cores is not None:
            rates["cores"] = site.cores * gpus * site.decode_rate
        if site.disk is not None:
            rates["disk"] = site.disk * 1e9 * site.machines(gpus) / site.image_bytes
        bound = min(rates, key=lambda name: rates[name])
        return rates[bound], bound
