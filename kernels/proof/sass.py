"""Loops in the output of `nvdisasm -c` or of LLVM's AMD assembler, and how many instructions they hold."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_NVIDIA = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")
_NVIDIA_LABEL = re.compile(r"^(\.L_x?_?\w+):")
_AMD = re.compile(r"^\s+([a-z]+_[a-z0-9_]+)\s*(.*)$")
_AMD_LABEL = re.compile(r"^(\.LBB\w+):")


@dataclass(frozen=True, eq=False)
class Loop:
    """Instructions start..stop of the program, the backward branch included."""

    start: int
    stop: int
    opcodes: Counter[str]

    @property
    def instructions(self) -> int:
        return self.stop - self.start

    def count(self, *prefixes: str) -> int:
        return sum(n for opcode, n in self.opcodes.items() if opcode.startswith(prefixes))

    def contains(self, other: Loop) -> bool:
        return self is not other and self.start <= other.start and other.stop <= self.stop


@dataclass(frozen=True)
class Program:
    """Every instruction of a kernel by opcode, and its loops in program order."""

    whole: Loop
    loops: list[Loop]

    def innermost(self) -> list[Loop]:
        return [loop for loop in self.loops if not any(loop.contains(other) for other in self.loops)]


def parse(text: str) -> Program:
    """Read a disassembly; NVIDIA's if it looks like it, else AMD's."""
    nvidia = _NVIDIA.search(text) is not None
    instruction, label = (_NVIDIA, _NVIDIA_LABEL) if nvidia else (_AMD, _AMD_LABEL)
    labels: dict[str, int] = {}
    code: list[tuple[str, str]] = []
    for line in text.splitlines():
        if found := label.match(line.strip()):
            labels[found.group(1)] = len(code)
        elif (found := instruction.search(line)) and not found.group(1).startswith("NOP"):
            code.append((found.group(1), found.group(2)))
    loops = []
    for i, (opcode, operands) in enumerate(code):
        target = (
            re.search(r"(\.L(?:_x?_?|BB)\w+)", operands)
            if opcode.startswith(("BRA", "s_cbranch", "s_branch"))
            else None
        )
        start = labels.get(target.group(1)) if target else None
        if start is not None and start <= i:
            loops.append(_loop(code, start, i + 1))
    # A conditional `continue` shows as a second branch to the same head: keep the longest body.
    longest = {loop.start: loop for loop in sorted(loops, key=lambda loop: loop.stop)}
    return Program(_loop(code, 0, len(code)), nested(sorted(longest.values(), key=lambda loop: loop.start)))


def nested(loops: list[Loop]) -> list[Loop]:
    """Loops without those that start in another and end behind it: a barrier's slow path, which jumps back into it."""
    return [loop for loop in loops if not any(o.start < loop.start < o.stop < loop.stop for o in loops)]


def _loop(code: list[tuple[str, str]], start: int, stop: int) -> Loop:
    return Loop(start, stop, Counter(opcode for opcode, _ in code[start:stop]))
