"""One run from its first step to its last: views in, steps out, everything written down."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import Config
from ..data import Batch, Source
from ..data.masks import Masks
from ..data.order import steps_per_epoch
from ..data.views import Views
from ..errors import UserError
from ..methods import Losses, StepState
from ..optim import build_optimizer
from ..report.environment import environment
from . import report, rundir
from .allocator import keep_freed_memory
from .build import data_facts, new_method, validate_share
from .evaluation import Evaluator, Features
from .feed import Feed
from .finite import FILE, Guard, NotFinite, stop
from .interrupt import Interruption
from .loss_scale import LEAST, LossScale
from .measure import Measurements
from .monitor import Clock, Display, Metrics, Row
from .notices import Unreadable, introduce
from .precision import autocast, resolve_device, resolve_precision, set_threads
from .ranks import Parallel, Ranks
from .saving import Saving
from .step import seed_generators, train_step
from .watchdog import Watchdog


@dataclass(frozen=True)
class Result:
    """What a run left behind; `signal` interrupted it (0: none); `saved` is False if the last checkpoint failed."""

    run_dir: Path
    summary: dict[str, Any]
    finished: bool
    saved: bool
    signal: int = 0


class Run:
    """All that lives as long as one run."""

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        state: dict[str, Any] | None,
        source: Source | None,
        backbone: nn.Module | None,
        *,
        new: bool,
        quiet: bool,
    ) -> None:
        self.config, self.ranks = config, ranks
        self.device = ranks.device(resolve_device(config.train.device))
        self.precision = resolve_precision(config.train.precision, self.device)
        threads = set_threads(config.train, ranks.local_world)
        if self.device.type == "cpu":
            keep_freed_memory()
        validate_share(config, ranks.world)
        self.train_source, self.val_source = rundir.open_data(config, source)
        self.masks = None if config.masks is None else Masks(config.masks, self.train_source)
        self.feed = Feed(config, self.train_source, self.masks, self.device, self.precision, ranks)
        if len(self.train_source) < config.train.batch_size:
            raise UserError(
                f"--train.batch-size {config.train.batch_size} is larger than the {len(self.train_source)} images of "
                f"--data {config.data}: choose at most {len(self.train_source)}"
            )
        self.steps_per_epoch = steps_per_epoch(len(self.train_source), config.train.batch_size, config.loader.last)
        self.total_steps = config.train.max_steps or config.train.epochs * self.steps_per_epoch
        knn_epochs = config.monitor.knn_epochs
        self.knn_steps = max(1, round(knn_epochs * self.steps_per_epoch)) if knn_epochs else 0
        self.method = new_method(config, data_facts(self.train_source), self.device, backbone)
        self.parallel = Parallel(
            self.method, ranks, norm_ranks=config.train.norm_ranks, compress=config.train.compress_gradients
        )
        self.optimizer = build_optimizer(self.method, config.optim)
        self.loss_scale = LossScale(self.method, self.optimizer) if self.precision == "fp16" else None
        if new:
            chosen = {"threads": threads, "precision": self.precision, "renderer": self.feed.renderer}
            chosen |= {"processes": ranks.world}
            self.run_dir = ranks.once(lambda: rundir.claim(config, {**chosen, **environment()}))
        else:
            self.run_dir = Path(config.run_dir or "")
        self.saving = Saving(config, ranks, self.method, self.optimizer, self.loss_scale, state)
        self.progress, self.results = self.saving.progress, self.saving.progress.results
        self.display = Display(self.total_steps, self.step, quiet=quiet or not ranks.first)
        self.metrics = Metrics(
            self.run_dir if ranks.first else None,
            first_step=self.step,
            last_step=self.total_steps,
            tensorboard=config.monitor.tensorboard,
            warn=self.display.say,
        )
        self.unreadable = Unreadable(self.train_source, self.masks, self.results, self.display.say)
        evaluator = None
        monitor = config.monitor
        wanted = monitor.knn_epochs or monitor.baselines or monitor.linear
        if wanted and Evaluator.possible(self.train_source, self.val_source):
            evaluator = Evaluator(self.train_source, self.val_source, config, self.device, self.precision, ranks)
        self.measurements = Measurements(
            config,
            self.train_source,
            evaluator,
            self.method.backbone,
            ranks,
            self.run_dir,
            self.display,
            self.results,
        )
        self.interruption = Interruption(self.display.say)
        self.guard = Guard(self.method, self.device, config.train.max_bad_steps, self.precision)
        self.watchdog = Watchdog(config.train.stall_minutes)
        self.torn = False  # between a step's begin and its end the state is neither the old nor the new one
        self.saving.open(self.run_dir, self.display.say)

    @property
    def step(self) -> int:
        """Optimizer steps made."""
        return self.progress.step

    # -- the loop -----------------------------------------------------------------------------------------------------

    def train(self) -> Result:
        self._introduce()
        try:
            if self.step == 0:
                self.measurements.untrained(self.masks)
            with self.interruption.heard():
                try:
                    self._loop()
                except NotFinite:
                    raise  # the checkpoints from before it are worth more
                except BaseException:
                    if self.step > 0 and not self.torn:
                        self.saving.save_now()
                    raise
                finally:
                    self.saving.wait()
                saved = self.saving.save_now()
            finished = self.step == self.total_steps
            if finished:
                self._finish()
            else:
                self.display.say(
                    f"interrupted after step {self.step}: continue with `fastssl pretrain --resume {self.run_dir}`"
                )
        finally:
            self.saving.wait()
            self.display.close()
            self.metrics.close()
        return Result(self.run_dir, self.results, finished, saved, self.interruption.signal)

    def _loop(self) -> None:
        config = self.config
        self.feed.open(self.run_dir)
        self.method.train()
        clock = Clock(self.step)
        with contextlib.closing(self.feed), self.watchdog:
            for batch in self._batches(clock):
                clock.waited()
                self.watchdog.at("step")
                row = self._step(batch, clock)
                del batch
                self.watchdog.at("evaluation or checkpoint")
                if row is not None:
                    self.metrics.write(row)
                    self.display.update(row, self.progress.seconds / self.step * (self.total_steps - self.step))
                with clock.paused():
                    self.unreadable.tell(self.feed.quarantine)
                    self._after_step()
                if self._told_to_stop() or self.step == self.total_steps:
                    break
                self.watchdog.at("loader")
        self.results["images_per_second"] = self.step * config.train.batch_size / max(self.progress.seconds, 1e-9)

    def _batches(self, clock: Clock) -> Iterator[Batch]:
        """From the current step to the end, epoch after epoch."""
        while self.step < self.total_steps:
            epoch, start = divmod(self.step, self.steps_per_epoch)
            if start == 0:
                self.watchdog.at("preparation of an epoch")
                seed_generators(self.config.train.seed, self.step, self.ranks.rank)
                with clock.working(), torch.no_grad(), autocast(self.device, self.precision):
                    self.method.before_epoch(self._state(), self._epoch_views)
            self.watchdog.at("loader")
            yield from self.feed.epoch(epoch, start)

    def _epoch_views(self) -> Iterator[Views]:
        batches = self.feed.epoch(self.step // self.steps_per_epoch)
        while True:
            with torch.autocast(self.device.type, enabled=False):  # views are not drawn in bf16
                batch = next(batches, None)
            if batch is None:
                return
            self.watchdog.at("preparation of an epoch")
            yield self.feed.views(batch)

    def _state(self) -> StepState:
        return StepState(
            self.step, self.total_steps, self.steps_per_epoch, self.config.train.seed, self._logged(self.step + 1)
        )

    def _logged(self, made: int) -> bool:
        """Whether metrics are read after so many steps."""
        return made % self.config.monitor.log_steps == 0 or made == self.total_steps

    def _step(self, batch: Batch, clock: Clock) -> Row | None:
        config = self.config
        views = self.feed.views(batch)
        lr = config.optim.lr_at(
            self.step,
            batch_size=config.train.batch_size,
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.total_steps,
        )
        state = self._state()
        seed_generators(config.train.seed, self.step, self.ranks.rank)
        self.torn = True
        losses = train_step(
            self.method,
            self.optimizer,
            views,
            state,
            lr=lr,
            precision=self.precision,
            parallel=self.parallel,
            micro_batch=config.train.micro_batch,
            guard=self.guard,
            loss_scale=self.loss_scale,
        )
        self.progress.step += 1
        self.torn = False
        if self.guard.refused is not None:
            self._skip(batch, losses, lr, clock)
            return None
        if not state.logged:
            self.progress.seconds += clock.lap()
            return None
        if self.loss_scale is not None:
            losses.metrics.update(self.loss_scale.metrics())
        loss, metrics = self._read(losses)  # the only host synchronisation, every `log_steps`
        if self.loss_scale is not None:
            self.results["skipped_steps"] = int(metrics["skipped_steps"])
            if metrics["loss_scale"] < LEAST:
                raise self._diverged("gradient at any loss scale", batch, losses, lr)
            if not math.isfinite(loss):  # of a step that changed nothing
                self.progress.seconds += clock.lap()
                self.display.say(f"step {self.step} is skipped, its loss is not finite")
                return None
        if not math.isfinite(loss):
            raise self._diverged("loss", batch, losses, lr)
        self.progress.seconds += clock.lap()
        timing = clock.window(config.train.batch_size, self.step)
        row = {"kind": "train", "step": self.step, "epoch": self.step / self.steps_per_epoch, "loss": loss, "lr": lr}
        return {**row, **metrics, "timing": {"time": self.progress.seconds, "wall": self.progress.wall(), **timing}}

    def _told_to_stop(self) -> bool:
        """By a signal; several processes must all know of it, so they ask each other where metrics are read."""
        return bool(self.interruption.signal if self.ranks.world == 1 else self.interruption.agreed)

    def _read(self, losses: Losses) -> tuple[float, dict[str, float]]:
        """Loss and metrics, as means over the ranks; a signal that one of them got stops them all here."""
        interruption = self.interruption
        values = [losses.total.detach(), *losses.metrics.values()]
        row = torch.stack([value.detach().float() for value in values])
        loss, *metrics, signal_number = self.ranks.mean(
            torch.cat([row, row.new_tensor([interruption.signal])])
        ).tolist()
        if signal_number > 0 and not interruption.signal:
            interruption.signal = signal.SIGTERM
        interruption.agreed = interruption.signal
        return loss, dict(zip(losses.metrics, metrics, strict=True))

    def _skip(self, batch: Batch, losses: Losses, lr: float, clock: Clock) -> None:
        """Count a step that was not finite and changed nothing; too many in a row end the run."""
        what = self.guard.refused or ""
        if self.guard.in_a_row >= self.config.train.max_bad_steps:
            raise self._diverged(what, batch, losses, lr)
        self.progress.seconds += clock.lap()
        self.results["skipped_steps"] = skipped = self.results.get("skipped_steps", 0) + 1
        self.display.say(f"step {self.step} is skipped, its {what} is not finite")
        row: Row = {"kind": "skipped", "step": self.step, "epoch": self.step / self.steps_per_epoch, "lr": lr}
        timing = {"time": self.progress.seconds}
        self.metrics.write({**row, "not_finite": what, "skipped_steps": skipped, "timing": timing})

    def _diverged(self, what: str, batch: Batch, losses: Losses, lr: float) -> NotFinite:
        self.saving.wait()
        ids = batch.ids.tolist()
        where = {"epoch": self.step / self.steps_per_epoch, "ids": ids, "images": [*map(self.train_source.name, ids)]}
        row, saved = max(1, self.guard.in_a_row), self.saving.saved_step
        path = self.run_dir / self.ranks.file(FILE)
        return stop(path, what, losses, step=self.step, lr=lr, in_a_row=row, saved_step=saved, **where)

    def _after_step(self) -> None:
        """Evaluation and checkpoints that are due after the step just made."""
        every = self.knn_steps
        if self.measurements.possible and every and self.step % every == 0 and self.step < self.total_steps:
            self._write_knn(self.measurements.features())
            self.method.train()
        if self.step < self.total_steps and self.saving.due():
            self.saving.save()

    def _introduce(self) -> None:
        lines = introduce(
            self.config, self.method, self.train_source, self.device, self.precision, self.total_steps, self.run_dir
        )
        if self.step:
            lines.append(f"continuing after step {self.step}")
        if not self.measurements.possible and self.config.monitor.knn_epochs:
            lines.append("no labelled images to evaluate on: kNN and linear probe are left out")
        for line in lines:
            self.display.say(line)

    def _write_knn(self, features: Features) -> None:
        if not self.ranks.first:
            return
        row, best = self.measurements.knn(features, self.step, self.step / self.steps_per_epoch)
        self.metrics.write({**row, "timing": {"time": self.progress.seconds, "wall": self.progress.wall()}})
        if best:
            self.saving.save(best=True)

    def _finish(self) -> None:
        features = self.measurements.features() if self.measurements.possible else None
        if not self.ranks.first:
            return
        if features:
            if self.config.monitor.knn_epochs:
                self._write_knn(features)
            self.measurements.trained(features)
        self.results.update(steps=self.step, training_seconds=self.progress.seconds, wall_seconds=self.progress.wall())
        report.finish(self.run_dir, self.results, say=self.display.say)
