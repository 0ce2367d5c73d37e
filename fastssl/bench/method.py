"""`fastssl bench METHOD`: how fast a configuration trains here, what a step is made of, and what bounds it.

The engine's own step runs on the loader's views. Its parts are known twice over:

* in the step: marks at the boundaries of the parts divide real steps (`timeline`);
* alone: views with nobody using them; the networks in steps on synthetic views, where nothing is loaded; the loss, and
  the optimizer with what follows, by themselves.

Where views and networks take turns (no batch is made ahead: the CPU's default), both columns should sum to the step,
and what is left is printed. Where views are made ahead, a step takes as long as the slower of the two, and only the
first column should. All subjects take turns, step by step, so that a machine whose speed changes changes all of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..config import Config
from ..data import Source
from ..data.masks import Masks
from ..data.order import steps_per_epoch
from ..engine import rundir
from ..engine.allocator import keep_freed_memory
from ..engine.build import data_facts
from ..engine.feed import Feed
from ..engine.precision import Precision, resolve_device, resolve_precision, set_threads
from ..engine.ranks import Ranks, joined
from ..errors import UserError
from ..methods import METHODS, DataFacts, Method
from ..report.environment import environment, usable_cores
from . import batch as batches
from .memory import free_bytes, process_peak_bytes
from .result import Result, Settings
from .rounds import AROUND, Rounds, Say, Tell
from .timeline import WHOLE
from .training import CLASSES, Supply, Training, cost_multiple, supervised

ROUNDS_WANTED = 6
"""A batch that is chosen here is small enough for so many rounds in the time."""

PROBES = 4
"""Tries to find the batch that fits the time: in a small one, what every step does once weighs too much."""


def measure(
    config: Config,
    settings: Settings,
    *,
    source: Source | None = None,
    say: Say = lambda line: None,
    tell: Tell = lambda percent: None,
) -> Result:
    """Measure a configuration, on every rank that torchrun started; only the first one's result has figures of all.

    Args:
        source: the images, instead of those that `config.data` names.
        say: gets a line about what goes on now.
        tell: gets the percentage of the rounds that is done.

    Raises:
        UserError: anything that the user can mend.
    """
    settings.validate()
    device = resolve_device(config.train.device)
    with joined(device) as ranks:
        bench = _Bench(config, settings, ranks, source, *((say, tell) if ranks.first else (_silent, _silent)))
        try:
            bench.run()
        except torch.OutOfMemoryError:
            raise UserError(
                f"--train.batch-size {bench.config.train.batch_size} does not fit the GPU's memory: lower it, or give "
                "--train.micro-batch"
            ) from None
    if ranks.world > 1 and not torch.distributed.is_initialized():
        bench.run_without_communication()
    return bench.result


@dataclass(frozen=True)
class Probe:
    """What a small batch tells: seconds of a round for each image of a batch, bytes of memory on a rank that do not
    depend on the batch, and bytes for each of its images."""

    seconds: float
    fixed_bytes: int
    image_bytes: float


def _least(timed: Callable[[], float]) -> float:
    """The least of several times, of which the first, for nothing, does not count."""
    timed()
    times = [timed()]
    while len(times) < 5 and sum(times) < 1.0:
        times.append(timed())
    return min(times)


def _silent(*_: object) -> None:
    """Ranks behind the first say nothing."""


class _Bench:
    def __init__(
        self, config: Config, settings: Settings, ranks: Ranks, source: Source | None, say: Say, tell: Tell
    ) -> None:
        self.settings, self.ranks, self.say, self.tell = settings, ranks, say, tell
        self.device = ranks.device(resolve_device(config.train.device))
        self.notes: list[str] = []
        self.recipe_batch = config.train.batch_size
        self.config, self.precision = self._precise(config)
        self.threads = set_threads(config.train, ranks.local_world)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.source, _ = rundir.open_data(config, source)
        self.masks = None if config.masks is None else Masks(config.masks, self.source)
        self.facts = data_facts(self.source)
        if settings.fixed_batch:
            batches.check(self.config, self.facts, ranks.world)
            if len(self.source) < self.recipe_batch:
                raise UserError(
                    f"--train.batch-size {self.recipe_batch} is larger than the {len(self.source)} images of --data "
                    f"{config.data}: choose at most {len(self.source)}"
                )
        self.result = Result({}, {})

    def _precise(self, config: Config) -> tuple[Config, Precision]:
        """The configuration as this machine should train it, unless the command line says otherwise."""
        precision = resolve_precision(config.train.precision, self.device)
        best = resolve_precision("auto", self.device)
        if precision == "bf16" and best == "fp32" and not self.settings.fixed_precision:
            precision = best
            self.notes.append(
                f"The recipe computes in bf16, which this {'GPU' if self.device.type == 'cuda' else 'CPU'} only "
                "emulates, many times slower: fp32 is measured. Train with --train.precision fp32, too."
            )
        return replace(config, train=replace(config.train, precision=precision)), precision

    def run(self) -> None:
        config, world = self.config, self.ranks.world
        first = self.ranks.once(lambda: batches.smallest(config, self.facts, world))
        self.config = batches.with_batch(config, first)
        self.say(f"a first step of {first} images, to see how many fit the time")
        training = self._training(self.config)
        flops = training.forward_flops(first // world)
        for _ in range(PROBES):
            probe, probed = self._probe(training), self.config.train.batch_size
            chosen = self.ranks.once(lambda probe=probe: self._choose(config, probe))  # type: ignore[misc]
            self.config = batches.with_batch(config, chosen)
            if chosen <= 2 * probed or self.settings.fixed_batch:
                break
        if chosen < self.recipe_batch:
            self.notes.append(
                f"The recipe's batch of {self.recipe_batch:,} images was lowered to {chosen}, which fits the time "
                f"(--bench.seconds {self.settings.seconds:g}), the memory and the data; --train.batch-size chooses."
            )
        plain = supervised(self.config)
        yardstick = Training(plain, DataFacts(len(self.source), CLASSES), self.device, self.precision, self.ranks)
        self.result = Result(environment(), self._setting(), self.notes, first=self.ranks.first)
        images = max(2, first // world)
        self.result.multiple = cost_multiple(flops, yardstick.forward_flops(images)) * images / (first // world)
        with self._supply() as supply:
            rounds = Rounds(self.config, self.settings, self.ranks, self.result, self.say, self.tell)
            rounds.run(supply, training, yardstick)
        self.result.process_peak_bytes = process_peak_bytes()

    def _training(self, config: Config) -> Training:
        return Training(config, self.facts, self.device, self.precision, self.ranks)

    def _probe(self, training: Training) -> Probe:
        batch_size = self.config.train.batch_size
        views = training.views(batch_size // self.ranks.world)
        with training.watched(views.batch_size):
            step = _least(lambda: training.timed(views)[WHOLE])
        fixed, peak = training.fixed_bytes(), training.peak_bytes(views)
        with self._supply() as supply:
            made = _least(lambda: supply.timed(1, training)[0][WHOLE])
            times = supply.ahead + AROUND if supply.ahead else 1
        # A step on the loader's views, one on synthetic ones, one of the yardstick, and the loss; views twice.
        seconds = times * (3.2 * step + 2 * made) / batch_size
        at_once = min(views.batch_size, training.config.train.micro_batch or views.batch_size)
        return Probe(seconds, fixed, max(0, peak - fixed) / at_once)

    def _choose(self, config: Config, probe: Probe) -> int:
        """The global batch that is measured."""
        wanted, world, micro = self.recipe_batch, self.ranks.world, config.train.micro_batch
        free = free_bytes(self.device)
        if free is not None and self.device.type == "cpu":
            free //= self.ranks.local_world
        if self.settings.fixed_batch:
            needed = probe.fixed_bytes + probe.image_bytes * (micro or wanted // world)
            if free is not None and needed > free:
                raise UserError(
                    f"--train.batch-size {wanted} needs about {needed / 1e9:,.0f} GB of memory a process, of which "
                    f"{free / 1e9:,.0f} GB are free: lower it, or give --train.micro-batch"
                )
            return wanted
        return batches.choose(
            config,
            self.facts,
            world,
            seconds=probe.seconds,
            most=self.settings.seconds / ROUNDS_WANTED,
            image_bytes=0.0 if micro else probe.image_bytes,
            free=None if free is None else free - probe.fixed_bytes,
        )

    @contextmanager
    def _supply(self) -> Iterator[Supply]:
        """The loader of the configuration as it is now."""
        feed = Feed(self.config, self.source, self.masks, self.device, self.precision, self.ranks)
        with tempfile.TemporaryDirectory(prefix="fastssl-bench-") as folder, ExitStack() as stack:
            feed.open(Path(folder))
            stack.callback(feed.close)
            train = self.config.train
            yield Supply(feed, steps_per_epoch(len(self.source), train.batch_size, self.config.loader.last))

    def _setting(self) -> dict[str, Any]:
        config, train, loader = self.config, self.config.train, self.config.loader
        feed = Feed(config, self.source, self.masks, self.device, self.precision, self.ranks)
        return {
            "method": config.method_name,
            "recipe": config.recipe,
            "backbone": f"{config.backbone.name} × {config.backbone.width:g}",
            "views": [[spec.count, spec.size] for spec in config.augment.views],
            "device": self.device.type,
            "precision": self.precision,
            "channels_last": train.channels_last,
            "checkpoint_activations": train.checkpoint_activations,
            "batch_size": train.batch_size,
            "recipe_batch_size": self.recipe_batch,
            "micro_batch": train.micro_batch,
            "processes": self.ranks.world,
            "images": len(self.source),
            "epochs": train.epochs,
            "threads": self.threads,
            "usable_cores": usable_cores(),
            "processes_here": self.ranks.local_world,
            "loader_threads": loader.threads,
            "prefetch": feed.prefetch,
            "norm_ranks": train.norm_ranks,
            "renderer": feed.renderer,
            "prepares_epochs": METHODS[config.method_name][1].before_epoch is not Method.before_epoch,
            "memory_bytes": free_bytes(self.device),
        }

    def run_without_communication(self) -> None:
        """This rank's share of the batch by itself, while the others do the same: after the group has ended."""
        config, world = self.config, self.ranks.world
        share = config.train.batch_size // world
        groups = getattr(config.method, "norm_groups", 1)
        method = replace(config.method, norm_groups=groups // world) if groups > 1 else config.method  # type: ignore
        alone = replace(batches.with_batch(config, share), method=method)
        training = Training(alone, self.facts, self.device, self.precision, Ranks())
        views = training.views(share)
        with training.watched(share):
            for _ in range(2):
                training.timed(views)
            self.result.one_rank = [training.timed(views)[WHOLE] for _ in self.result.synthetic]
