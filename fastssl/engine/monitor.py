"""What a run writes down and shows while it goes: metrics.jsonl, TensorBoard, a progress bar or plain lines."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Row = dict[str, Any]


class Metrics:
    """Appends rows to metrics.jsonl and to TensorBoard. A full disk delays rows, it loses none and ends no run.

    Without a run directory nothing is written.
    """

    def __init__(
        self, run_dir: Path | None, *, first_step: int, last_step: int, tensorboard: bool, warn: Callable[[str], None]
    ) -> None:
        self._warn = warn
        self._pending: list[str] = []
        self._failed = False
        self._board = None
        self._path = None
        if run_dir is None:
            return
        self._path = run_dir / "metrics.jsonl"
        drop_rows_after(self._path, first_step, final=first_step == last_step)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run_dir), purge_step=first_step or None)

    def write(self, row: Row) -> None:
        if self._path is None:
            return
        self._pending.append(json.dumps(row) + "\n")
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(self._pending))
            self._pending.clear()
            self._failed = False
        except OSError as error:
            if not self._failed:
                self._warn(f"metrics.jsonl cannot be written ({error}); the rows are kept and tried again")
            self._failed = True
        self._write_board(row)

    def _write_board(self, row: Row) -> None:
        if self._board is None:
            return
        try:
            for name, value in {**row, **row["timing"]}.items():
                if isinstance(value, int | float) and name not in ("step", "time"):
                    self._board.add_scalar(f"{row['kind']}/{name}", value, row["step"])
        except OSError as error:
            self._warn(f"TensorBoard events cannot be written ({error}); they stop here")
            self._board = None

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def drop_rows_after(path: Path, step: int, *, final: bool) -> None:
    """Keep the rows up to `step`: what a killed run wrote past its last checkpoint will be written again.

    The last checkpoint is older than the last evaluation, so where it is `final` that evaluation goes too.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # the torn last line of a killed process
        if row["step"] <= step and not (final and row["step"] == step and row["kind"] == "knn"):
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)


class Display:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, total_steps: int, first_step: int, *, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
        self._total = total_steps
        self._progress: Progress | None = None
        self._line_due = 0.0
        if self.console.is_terminal and not quiet:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}"),
                console=self.console,
                refresh_per_second=4,
            )
            self._task = self._progress.add_task("pre-training", total=total_steps, completed=first_step, status="")
            self._progress.start()

    def say(self, message: str) -> None:
        self.console.print(message, markup=False)

    def update(self, row: Row, seconds_left: float) -> None:
        timing = row["timing"]
        status = (
            f"loss {row['loss']:.4f}  lr {row['lr']:.2e}  {timing['images_per_second']:,.0f} images/s  "
            f"data {timing['data_wait']:.0%}"
        )
        if self._progress is not None:
            self._progress.update(self._task, completed=row["step"], status=status)
        elif time.monotonic() >= self._line_due or row["step"] == self._total:
            self._line_due = time.monotonic() + 5
            left = time.strftime("%H:%M:%S", time.gmtime(seconds_left))
            self.say(f"step {row['step']}/{self._total}  epoch {row['epoch']:.1f}  {status}  ETA {left}")

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


class Clock:
    """Wall-clock accounting of the loop: how long it ran and how long it waited for views."""

    def __init__(self, step: int) -> None:
        self._lap = self._window = time.perf_counter()
        self._wait = 0.0
        self._window_step = step

    def waited(self) -> None:
        self._wait += time.perf_counter() - self._lap

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """What happens inside, while views are asked for, is no waiting for them."""
        start = time.perf_counter()
        yield
        self._wait -= time.perf_counter() - start

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._lap = now - self._lap, now
        return seconds

    def window(self, batch_size: int, step: int) -> dict[str, float]:
        """Throughput and data-wait share since the last window."""
        seconds = max(self._lap - self._window, 1e-9)
        share = {
            "images_per_second": (step - self._window_step) * batch_size / seconds,
            "data_wait": min(1.0, self._wait / seconds),
        }
        self._window, self._wait, self._window_step = self._lap, 0.0, step
        return share

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count."""
        start = time.perf_counter()
        yield
        gone = time.perf_counter() - start
        self._lap += gone
        self._window += gone
