"""Notices that training stands still, and says where."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time

STDERR = 2
"""Descriptor that stacks are written to: a dump needs no Python object, which could be locked by what hangs."""


class Watchdog:
    """A daemon thread that speaks up when no step has ended for `minutes`; 0 never. It ends nothing.

    The loop tells by `at` which part it enters. Each stall is told once on the standard error, with the stacks of all
    threads. A thread that hangs in native code without giving up Python's lock hangs this one too.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self._part, self._since = "loader", time.monotonic()
        self._told = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        if self._seconds:
            self.at("loader")
            self._thread = threading.Thread(target=self._watch, name="fastssl-watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def at(self, part: str) -> None:
        """The loop enters `part`, which has `minutes` of its own."""
        self._part, self._since, self._told = part, time.monotonic(), False

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._seconds / 4)):
            part, gone = self._part, time.monotonic() - self._since
            if gone < self._seconds or self._told:
                continue
            self._told = True
            print(
                f"fastssl: warning: no step has ended for {gone / 60:.3g} minutes, the {part} is being waited for "
                "(--train.stall-minutes); the run goes on, all its threads stand at:",
                file=sys.stderr,
                flush=True,
            )
            faulthandler.dump_traceback(STDERR, all_threads=True)
