"""Tables and counts of what is printed."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns aligned: the first to the left, all others to the right; a row of two cells is not cut."""
    full = [row for row in rows if len(row) != 2]
    widths = [max(len(row[i]) for row in full) for i in range(len(full[0]))] if full else [0]
    widths[0] = max(len(row[0]) for row in rows)
    lines = []
    for first, *rest in rows:
        cells = rest if len(rest) == 1 else [cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(["", first.ljust(widths[0]), *cells]).rstrip())
    return lines


def speed(rate: float) -> str:
    """Images a second with three digits at least."""
    return f"{rate:,.{1 if rate >= 10 else 2 if rate >= 1 else 3}f}"


def count(number: int, what: str) -> str:
    """The number with its noun, in the plural unless it is one."""
    return f"{number:,} {what}" + "s" * (number != 1)
