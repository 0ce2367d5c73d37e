"""Signals that ask a run to end."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator


class Interruption:
    """The first Ctrl-C, SIGTERM or SIGUSR1 ends the loop after the current step, a Ctrl-C after it at once.

    Schedulers send several (a warning, then the end): what follows the first must not stop its checkpoint.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.signal = 0
        """Number of the signal that this process got, or another process of the run; 0 for none."""
        self.agreed = 0
        """The same where all processes know of it."""
        self._say = say

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Take the place of the signals' handlers, and give it back."""
        try:
            numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
            previous = {number: signal.signal(number, self._handle) for number in numbers}
        except ValueError:  # not in the main thread: signals belong to somebody else
            yield
            return
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.signal:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signal = number
        self._say("interrupted: saving after this step")
