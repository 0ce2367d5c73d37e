"""A run's own method, optimizer and step, on views of a loader or on synthetic ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..config import Config
from ..data import Batch
from ..data.order import steps_per_epoch
from ..data.views import Views
from ..engine.build import new_method
from ..engine.feed import Feed
from ..engine.finite import Guard
from ..engine.loss_scale import LossScale
from ..engine.precision import Precision, autocast, view_form
from ..engine.ranks import Parallel, Ranks
from ..engine.step import train_step
from ..methods import DataFacts, Losses, StepState
from ..methods.supervised import SupervisedConfig
from ..optim import OptimConfig, build_optimizer
from .memory import LiveBytes, bytes_of
from .timeline import BACKWARD, FORWARD, LOSS, OPTIMIZER, REST, TARGETS, VIEWS, Reading, Timeline, Watched

CLASSES = 1000
"""Of the supervised training that is the yardstick."""


class Training:
    """What steps of one configuration need, and ways to take them.

    The learning rate is 0, so that no batch size makes it diverge; every operation of a step is there all the same. The
    step's number is one from the middle of the run: warm-ups of prototypes and queues are over.

    Args:
        config: of the run; its batch does not matter here.
        facts: of its data.
        device, precision, ranks: as the run resolves them.
    """

    def __init__(
        self, config: Config, facts: DataFacts, device: torch.device, precision: Precision, ranks: Ranks
    ) -> None:
        self.config, self.device, self.precision, self.ranks = config, device, precision, ranks
        self._facts = facts
        self.method = new_method(config, facts, device).train()
        train = config.train
        self.parallel = Parallel(self.method, ranks, norm_ranks=train.norm_ranks, compress=train.compress_gradients)
        self.optimizer = build_optimizer(self.method, config.optim)
        self.guard = Guard(self.method, device, train.max_bad_steps, precision)
        self.loss_scale = LossScale(self.method, self.optimizer) if precision == "fp16" else None
        self.timeline = Timeline(device)
        self._watched: Watched | None = None

    def state(self, batch_size: int) -> StepState:
        """Of a step in the middle of a run with this global batch, which writes no metrics, as most do."""
        images, config = max(self._facts.images, batch_size), self.config
        steps = steps_per_epoch(images, batch_size, config.loader.last)
        total = config.train.max_steps or config.train.epochs * steps
        return StepState(total // 2, total, steps, config.train.seed, logged=False)

    def views(self, images: int) -> Views:
        """Synthetic views of `images` images on this rank, in the form that training reads."""
        groups, counts = [], self.config.augment.counts
        sizes = dict.fromkeys(spec.size for spec in self.config.augment.views)
        dtype, channels_last = view_form(self.device, self.precision, channels_last=self.config.train.channels_last)
        generator = torch.Generator(self.device).manual_seed(0)
        for size, count in zip(sizes, counts, strict=True):
            shape = (count * images, 3, size, size)
            group = torch.rand(shape, generator=generator, device=self.device).to(dtype)
            groups.append(group.contiguous(memory_format=torch.channels_last) if channels_last else group)
        ids = torch.arange(images, device=self.device)
        return Views(tuple(groups), counts, ids % max(1, self._facts.images), ids % max(1, self._facts.classes))

    def step(self, views: Views, *, micro_batch: int | None = None) -> Losses:
        """The engine's step."""
        return train_step(
            self.method,
            self.optimizer,
            views,
            self.state(views.batch_size * self.ranks.world),
            lr=0.0,
            precision=self.precision,
            parallel=self.parallel,
            micro_batch=micro_batch or self.config.train.micro_batch,
            guard=self.guard,
            loss_scale=self.loss_scale,
        )

    def watched(self, images: int) -> AbstractContextManager[Watched]:
        """Within it, steps of so many images on this rank leave marks."""
        micro = self.config.train.micro_batch
        within = micro is not None and micro < images
        self._watched = Watched(self.method, self.optimizer, self.guard, self.timeline, micro=within)
        return self._watched.marks()

    def timed(self, views: Views) -> Reading:
        """A step on views that are there, by parts."""
        self.timeline.enter(REST)
        self.step(views)
        self.timeline.enter(None)
        return self.timeline.read()[0]

    def timed_alone(self, batch_size: int) -> Reading:
        """The loss with its gradient, and the optimizer with what follows, by themselves, from the last step."""
        assert self._watched is not None
        assert self._watched.compared is not None
        embedded, targets, views = self._watched.compared
        state, timeline = self.state(batch_size), self.timeline
        direct = [p for p in self.method.parameters() if p.requires_grad]
        loss_of, after_step = type(self.method).loss_of, type(self.method).after_step
        rows = embedded.requires_grad_()
        timeline.enter(LOSS)
        with autocast(self.device, self.precision):
            losses = loss_of(self.method, rows, targets, views, state)
        torch.autograd.grad(losses.total, [rows, *direct], allow_unused=True)
        timeline.enter(OPTIMIZER)
        self.optimizer.step()
        after_step(self.method, state)
        timeline.enter(None)
        return self.timeline.read()[0]

    def forward_flops(self, images: int) -> dict[str, float]:
        """Operations of one step a multiply-add counting as two, by part: `FORWARD`, `TARGETS` and `BACKWARD`.

        The batch passes as a whole, so nothing is computed twice but what checkpointed activations recompute.
        """
        counter = FlopCounterMode(display=False)
        timeline = Timeline(self.device, lambda: float(counter.get_total_flops()))
        watched = Watched(self.method, self.optimizer, self.guard, timeline)
        with watched.marks(), counter:
            timeline.enter(REST)
            self.step(self.views(images), micro_batch=images)
            timeline.enter(None)
        found = timeline.read()[0]
        return {part: found.get(part, 0.0) for part in (FORWARD, TARGETS, BACKWARD)}

    def peak_bytes(self, views: Views) -> int:
        """The most that a step on `views` has at once, with weights, their gradients and the optimizer's state."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.step(views)
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        there = [*self.state_tensors(), *views.groups]
        with LiveBytes(there) as live:
            self.step(views)
        return bytes_of(there) + live.peak

    def fixed_bytes(self) -> int:
        """Of weights, buffers, the optimizer's state and gradients: what no batch changes."""
        gradients = sum(p.numel() * p.element_size() for p in self.method.parameters() if p.requires_grad)
        return bytes_of(self.state_tensors()) + gradients

    def state_tensors(self) -> list[torch.Tensor]:
        """Weights, buffers and the optimizer's state."""
        state = [value for entry in self.optimizer.state.values() for value in entry.values()]
        kept = [value for value in state if isinstance(value, torch.Tensor)]
        return [*self.method.parameters(), *self.method.buffers(), *kept]


def supervised(config: Config) -> Config:
    """The yardstick: plain training with labels of the same backbone, on one view of the first size."""
    augment = replace(config.augment, views=(replace(config.augment.views[0], count=1),))
    plain = replace(config.train, micro_batch=None, checkpoint_activations=False)
    optim = OptimConfig(name="sgd", lr=0.1, weight_decay=1e-4, exclude="none", warmup_epochs=0)
    return replace(config, method=SupervisedConfig(), augment=augment, train=plain, optim=optim)


def cost_multiple(method: dict[str, float], plain: dict[str, float]) -> float:
    """Cost of one image in forward and backward passes of supervised training, from `forward_flops` of equal images.

    What is trained costs as many backward as forward operations as in supervised training; targets go forward only.
    """
    back = plain[BACKWARD] / plain[FORWARD]
    return (method[FORWARD] * (1 + back) + method[TARGETS]) / (plain[FORWARD] * (1 + back))


class Supply:
    """The loader's batches as training meets them, some at a time, from ever new epochs.

    Made ahead by a thread, batches come from the end of an epoch, so that the thread rests when the last is taken.
    """

    def __init__(self, feed: Feed, steps_per_epoch: int) -> None:
        self._feed, self._steps, self._epoch = feed, steps_per_epoch, 0
        self.ahead = feed.prefetch
        self._endless = self._all()

    def _all(self) -> Iterator[Batch]:
        while True:
            self._epoch += 1
            yield from self._feed.epoch(self._epoch)

    def take(self, count: int) -> Iterator[Batch]:
        """The next `count` batches."""
        if not self.ahead:
            yield from islice(self._endless, count)
            return
        while count:
            part = count % self._steps or self._steps
            self._epoch += 1
            yield from self._feed.epoch(self._epoch, self._steps - part)
            count -= part

    def timed(self, count: int, training: Training) -> list[Reading]:
        """Seconds between `count` batches with nobody using them."""
        timeline, batches = training.timeline, self.take(count)
        for _ in range(count):
            timeline.enter(VIEWS)
            self._feed.views(next(batches))
            timeline.enter(None)
        return timeline.read()

    def timed_steps(self, count: int, training: Training) -> list[Reading]:
        """Steps on the loader's views, by parts."""
        timeline, batches = training.timeline, self.take(count)
        for _ in range(count):
            timeline.enter(VIEWS)
            views = self._feed.views(next(batches))
            timeline.enter(REST)
            training.step(views)
            del views
            timeline.enter(None)
        return timeline.read()
