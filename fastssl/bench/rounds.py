"""The rounds of `fastssl bench METHOD`: all subjects in turn, as often as the time allows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..config import Config
from ..data.views import Views
from ..engine.ranks import Ranks
from .profile import PROFILED, profiled
from .result import Result, Settings
from .timeline import WHOLE
from .training import Supply, Training

LEAST_ROUNDS = 3
LATE, AT_LEAST = 2.0, 60.0
"""Rounds are given up beyond so many times --bench.seconds, or so many seconds: other work has slowed them down."""
AROUND = 4
"""Steps of a round, beside the batches made ahead, where a thread makes batches ahead."""

Say = Callable[[str], None]
Tell = Callable[[int], None]


@dataclass(frozen=True)
class Rounds:
    """Of a configuration whose batch is chosen; the samples go into `result`."""

    config: Config
    settings: Settings
    ranks: Ranks
    result: Result
    say: Say
    tell: Tell

    def run(self, supply: Supply, training: Training, yardstick: Training) -> None:
        result, settings, world = self.result, self.settings, self.ranks.world
        share = self.config.train.batch_size // world
        views, plain = training.views(share), yardstick.views(share * self.config.augment.counts[0])
        result.supervised_batch_size = plain.batch_size * world
        with training.watched(share), yardstick.watched(plain.batch_size):
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
                    result.notes.append(
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
