"""Which part of a training step takes how long: marks that the engine's own step passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..data.views import Views
from ..engine.finite import Guard
from ..methods import Losses, Method, StepState

VIEWS, FORWARD, TARGETS, LOSS = "views", "forward", "targets", "loss"
BACKWARD, CHECKS, OPTIMIZER = "backward", "checks", "optimizer"
PARTS = (VIEWS, FORWARD, TARGETS, LOSS, BACKWARD, CHECKS, OPTIMIZER)
"""In their order: waiting for views; `embed`; `targets`; `loss_of` and its gradient; the gradient of the networks; the
guard's look for what is not finite; the optimizer with `after_step` (moving averages, queues)."""
REST, WHOLE = "rest", "whole"

Reading = dict[str, float]


class Timeline:
    """Marks with the time of the device: on the CPU the wall's, on a GPU the time at which its stream gets there.

    On a GPU nothing waits for a mark, and what stands between "views" and the next mark is how long the GPU had nothing
    to do because there were no views.

    Args:
        device: what computes.
        clock: read at every mark instead of the time: counted operations, for example.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] | None = None) -> None:
        self._events = clock is None and device.type == "cuda"
        self._device, self._clock = device, clock or time.perf_counter
        self._marks: list[tuple[str | None, Any]] = []
        self.entered: Callable[[str | None], None] = lambda part: None
        """Called at every mark."""

    def enter(self, part: str | None) -> None:
        """From now on it is `part`; None ends a step."""
        now: Any
        if self._events:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = self._clock()
        self._marks.append((part, now))
        self.entered(part)

    def read(self) -> list[Reading]:
        """What each step since the last call took, by part, and under `WHOLE` from its first mark to its end."""
        if self._events:
            torch.cuda.synchronize(self._device)
        steps: list[Reading] = []
        step: Reading = {}
        for (part, begin), (following, end) in zip(self._marks, self._marks[1:], strict=False):
            if part is None:
                continue
            step[part] = step.get(part, 0.0) + self._between(begin, end)
            if following is None:
                steps.append({**step, WHOLE: sum(step.values())})
                step = {}
        self._marks.clear()
        return steps

    def _between(self, begin: Any, end: Any) -> float:
        return 1e-3 * begin.elapsed_time(end) if self._events else end - begin


class Watched:
    """Puts the marks of `PARTS` around what `engine.step.train_step` calls; the step itself stays the engine's.

    Args:
        method, optimizer, guard: those of the step.
        timeline: gets the marks; the one who calls the step enters `VIEWS` or `REST` before, and None after it.
        micro: whether the batch passes in micro-batches, where the gradient follows each pass of the networks.
    """

    def __init__(
        self, method: Method, optimizer: torch.optim.Optimizer, guard: Guard, timeline: Timeline, *, micro: bool = False
    ) -> None:
        self._method, self._optimizer, self._guard, self._micro = method, optimizer, guard, micro
        self.timeline = timeline
        self.compared: tuple[Tensor, Tensor | None, Views] | None = None
        """What the last loss compared: the embeddings, without their graph, the targets and the views."""

    @contextmanager
    def marks(self) -> Iterator[Watched]:
        """Within it the marks are there."""
        enter, method, guard = self.timeline.enter, self._method, self._guard
        embed, targets, loss_of, after_step = method.embed, method.targets, method.loss_of, method.after_step

        def marked(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def within(*args: Any) -> Any:
                enter(part)
                try:
                    return call(*args)
                finally:
                    enter(REST)

            return within

        def embed_(views: Views) -> Tensor:
            enter(FORWARD)
            rows = embed(views)
            enter(BACKWARD if self._micro and torch.is_grad_enabled() else REST)
            return rows

        def loss_of_(embedded: Tensor, known: Tensor | None, views: Views, step: StepState) -> Losses:
            self.compared = (embedded.detach(), known, views)
            if embedded.requires_grad and not self._micro:
                embedded.register_hook(lambda gradient: enter(BACKWARD))
            enter(LOSS)  # and its gradient, up to that of the embeddings
            return loss_of(embedded, known, views, step)

        def after_step_(step: StepState) -> None:
            after_step(step)
            enter(REST)

        around: dict[str, Any] = {"embed": embed_, "targets": marked(TARGETS, targets)}
        around |= {"loss_of": loss_of_, "after_step": after_step_}
        checks = {name: marked(CHECKS, getattr(guard, name)) for name in ("remember", "refuses")}
        handle = self._optimizer.register_step_pre_hook(lambda *_: enter(OPTIMIZER))
        try:
            for subject, calls in ((method, around), (guard, checks)):
                for name, call in calls.items():
                    setattr(subject, name, call)
            yield self
        finally:
            handle.remove()
            for subject, calls in ((method, around), (guard, checks)):
                for name in calls:
                    subject.__dict__.pop(name, None)
