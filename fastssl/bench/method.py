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
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..config import Config
from ..data import Source
from ..data.masks import Masks
from ..data.order import steps_per_epoch
from ..data.views import Views
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
from .profile import PROFILED, profiled
from .timeline import WHOLE, Reading
from .training import CLASSES, Supply, Training, cost_multiple, supervised

LEAST_ROUNDS = 3
ROUNDS_WANTED = 6
"""A batch that is chosen here is small enough for so many rounds in the time."""

LATE, AT_LEAST = 2.0, 60.0
"""Rounds are given up beyond so many times --bench.seconds, or so many seconds: other work has slowed them down."""
PROBES = 4
"""Tries to find the batch that fits the time: in a small one, what every step does once weighs too much."""
AROUND = 4
"""Steps of a round, beside the batches made ahead, where a thread makes batches ahead."""

Say = Callable[[str], None]
Tell = Callable[[int], None]


@dataclass(frozen=True)
class Settings:
    """How long is measured, and what the command line fixed."""

    steps: int = 30
    seconds: float = 75.0
    fixed_batch: bool = False
    fixed_precision: bool = False
    profile: Path | None = None

    def validate(self) -> None:
        if self.steps < 1:
            raise UserError(f"--bench.steps must be at least 1, got {self.steps}")
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"--bench.seconds must be > 0, got {self.seconds}")


@dataclass
class Result:
    """Raw samples and what they were taken of; all plain, so that `Result(**json)` is it again."""

    environment: dict[str, Any]
    """Of this machine, from `fastssl.report.environment`."""
    setting: dict[str, Any]
    """method, recipe, backbone, device, precision, batch_size (global), recipe_batch_size, micro_batch, processes,
    processes_here (on this machine), images, epochs, threads, usable_cores, loader_threads, prefetch, renderer,
    channels_last, checkpoint_activations, norm_ranks, prepares_epochs, memory_bytes (free), views ([count, size])."""
    notes: list[str] = field(default_factory=list)
    """What is measured otherwise than the recipe says, in sentences."""
    full: list[Reading] = field(default_factory=list)
    """Seconds of steps on the loader's views, by part."""
    synthetic: list[Reading] = field(default_factory=list)
    """Seconds of steps on synthetic views, by part."""
    synthetic_cpu: list[float] = field(default_factory=list)
    """CPU seconds of the same, of all threads."""
    views: list[float] = field(default_factory=list)
    """Seconds of a batch of views alone."""
    views_cpu: list[float] = field(default_factory=list)
    """CPU seconds of the same, of all threads."""
    alone: list[Reading] = field(default_factory=list)
    """Seconds of loss and optimizer by themselves."""
    supervised: list[float] = field(default_factory=list)
    """Seconds of a step of the yardstick on synthetic views."""
    supervised_batch_size: int = 0
    one_rank: list[float] = field(default_factory=list)
    """Seconds of a step on synthetic views, of this rank's share of the batch without any communication."""
    multiple: float = 0.0
    """Cost of an image in forward and backward passes of supervised training."""
    peak_bytes: int = 0
    """The most that a step has at once, on one rank."""
    process_peak_bytes: int | None = None
    """The most of the process in main memory, ever."""
    first: bool = True
    """Whether this is the first rank's, which is the one to show."""
    operations: list[dict[str, Any]] = field(default_factory=list)
    """With a profile: name, calls, milliseconds and share of the operations that took most."""


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

    # -- before the rounds --------------------------------------------------------------------------------------------

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
        self._rounds(training, yardstick)
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

    # -- the rounds ---------------------------------------------------------------------------------------------------

    def _rounds(self, training: Training, yardstick: Training) -> None:
        result, settings, world = self.result, self.settings, self.ranks.world
        share = self.config.train.batch_size // world
        views, plain = training.views(share), yardstick.views(share * self.config.augment.counts[0])
        result.supervised_batch_size = plain.batch_size * world
        with self._supply() as supply, training.watched(share), yardstick.watched(plain.batch_size):
            training.timed(views)
            yardstick.timed(plain)
            begin = time.perf_counter()
            self._round(Result({}, {}), supply, training, views, yardstick, plain)  # a first one for nothing
            first = time.perf_counter() - begin
            rounds = self.ranks.once(lambda: min(settings.steps, max(LEAST_ROUNDS, int(settings.seconds / first) - 1)))
            self.say(f"batch {self.config.train.batch_size}: {rounds} rounds of about {first:.1f} s")
            begin = time.perf_counter()
            for done in range(1, rounds + 1):
                self._round(result, supply, training, views, yardstick, plain)
                self.tell(100 * done // rounds)
                late = time.perf_counter() - begin > max(AT_LEAST, LATE * settings.seconds)
                if done < rounds and self.ranks.once(lambda late=late: late):  # type: ignore[misc]
                    self.notes.append(
                        f"Only {done} of {rounds} rounds were measured: they took {LATE:g} times as long as "
                        f"--bench.seconds {settings.seconds:g} allows, and more."
                    )
                    break
            result.peak_bytes = training.peak_bytes(views)
            if settings.profile is not None:
                self._profile(settings.profile, supply, training)

    def _round(
        self,
        result: Result,
        supply: Supply,
        training: Training,
        views: Views,
        yardstick: Training,
        plain: Views,
    ) -> None:
        """All subjects in turn. Where batches are made ahead, those steps count in which that is in full swing."""
        ahead = supply.ahead
        count = ahead + AROUND if ahead else 1
        steps = supply.timed_steps(count, training)
        result.full += steps[1 : count - ahead] if ahead else steps
        for _ in range(AROUND - 1 if ahead else 1):
            cpu = time.process_time()
            result.synthetic.append(training.timed(views))
            result.synthetic_cpu.append(time.process_time() - cpu)
            result.alone.append(training.timed_alone(self.config.train.batch_size))
        cpu = time.process_time()
        made = [reading[WHOLE] for reading in supply.timed(count, training)]
        result.views_cpu.append((time.process_time() - cpu) / count)
        result.views += made
        result.supervised.append(yardstick.timed(plain)[WHOLE])

    def _profile(self, folder: Path, supply: Supply, training: Training) -> None:
        """A trace of a few steps by this rank; on the others the same steps."""
        if self.ranks.first:
            self.say("profiling")
            self.result.operations = profiled(folder, supply, training)
        else:
            supply.timed_steps(PROFILED, training)

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
