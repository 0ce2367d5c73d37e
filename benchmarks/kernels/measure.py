"""One case: errors and memory of every subject, then rounds of all in turn until the case's time is spent."""

from __future__ import annotations

import time
from typing import Any

import torch
from cases import Case
from interleaved import interleaved
from memory import peak_bytes
from part import COMPILED, Call, back_end_of, dtype_of
from rates import least_seconds

ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2}
MOST_ROUNDS = 200
COMPILE_SECONDS = 15.0
"""First guess of what compiling a baseline takes; afterwards the longest one seen."""


class Measurer:
    def __init__(self, device: torch.device, rates: dict[str, dict]) -> None:
        self.device, self.rates = device, rates
        self.compiling = COMPILE_SECONDS

    def measure(self, case: Case, seconds: float) -> dict[str, Any]:
        """The case's entry in the record; it takes about `seconds`, and at least three calls of each subject."""
        start = time.monotonic()
        options = case.options(self.device)
        calls, error = case.part.subjects(options), case.part.error(options)
        left_out = dict(case.without)
        subjects: dict[str, dict[str, Any]] = {}
        for name in sorted(calls, key=lambda name: name.startswith(COMPILED)):
            if reason := self._too_long(name, seconds - (time.monotonic() - start)):
                left_out[name] = reason
                continue
            try:
                subjects[name] = self._once(name, calls[name], error if case.part.has_error(name) else None)
            except Exception as failure:
                if not name.startswith(COMPILED):
                    raise
                left_out[name] = f"torch.compile failed: {str(failure).strip().splitlines()[0][:120]}"
        kept = {name: calls[name] for name in subjects}
        each = sum(subject.pop("about") for subject in subjects.values())
        rounds = max(1, min(MOST_ROUNDS, int((seconds - (time.monotonic() - start)) / each)))
        for name, samples in interleaved(kept, rounds, self.device, warmup=0).items():
            subjects[name]["seconds"] = [float(f"{s:.5g}") for s in samples]
        for name, subject in subjects.items():
            subject |= self._floor(case, name)
        took = round(time.monotonic() - start, 2)
        entry = {"op": case.op, "size": case.name, "sizes": case.sizes, "ours": case.part.ours, "rounds": rounds}
        return {**entry, "took_seconds": took, "subjects": subjects, "left_out": left_out}

    def _too_long(self, name: str, left: float) -> str | None:
        if not name.startswith(COMPILED) or left > self.compiling:
            return None
        return f"{max(left, 0):.0f} s of the case's time were left, and compiling takes up to {self.compiling:.0f} s"

    def _once(self, name: str, call: Call, error: Any) -> dict[str, Any]:
        """A first call, which compiles and loads code; a second for its memory, and to know what a round takes."""
        start = time.monotonic()
        results = call()
        apart = None if error is None else error(results)
        del results
        if name.startswith(COMPILED):
            self.compiling = max(self.compiling if self.compiling != COMPILE_SECONDS else 0, time.monotonic() - start)
        start = time.monotonic()
        peak = peak_bytes(call, self.device)
        about = time.monotonic() - start
        kind = {"back_end": back_end_of(name), "dtype": dtype_of(name)}
        return {**kind, "error": apart, "peak_bytes": peak, "about": about}

    def _floor(self, case: Case, name: str) -> dict[str, Any]:
        dtype = dtype_of(name)
        least = case.part.floor(case.options(self.device), ITEMSIZE[dtype])
        seconds = least_seconds(least.bytes, least.flops, dtype, self.rates)
        return {"floor": {"bytes": least.bytes, "flops": least.flops, "seconds": float(f"{seconds:.5g}")}}
