"""The ledger: what the compiler made of every shipped configuration, checked in and compared by a test.

`ledger.json` holds the rows, `LEDGER.md` the same as tables. Figures depend on the compiler, so that the header names
its version and another version compares nothing.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastssl_kernels
import triton
from fastssl_kernels.configuration import Configuration

from . import peers
from .hot_loop import REPEATED, HotLoop, hot_loop

if TYPE_CHECKING:
    from .compiler import Compiled

FOLDER = Path(__file__).parents[1]
JSON, TABLE = FOLDER / "ledger.json", FOLDER / "LEDGER.md"
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# Shared memory that a program can have, in bytes. What is compiled for sm_80 also runs on its successors with 99 KB.
SHARED_LIMIT = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
# A clock of one multiprocessor: tensor FLOPs with 16-bit and with fp32 (TF32) operands, bytes of device memory. From
# the makers' dense peaks (312, 989, 2250 TFLOP/s at 1.41, 1.83, 1.85 GHz on 108, 132, 148 of them) and copy rates
# (1.75 and 3.0 TB/s measured, 7.2 TB/s assumed).
RATES = {"sm_80": (2048, 1024, 11.5), "sm_90": (4096, 2048, 12.4), "sm_100": (8192, 4096, 26.3)}
EXPONENTIALS, LANES = 16, 128
Row = dict[str, Any]


def operations() -> list[str]:
    """Operations that state what they ship."""
    names = [m.name for m in pkgutil.iter_modules(fastssl_kernels.__path__) if m.ispkg]
    return sorted(n for n in names if (Path(fastssl_kernels.__path__[0]) / n / "shipped.py").exists())


def compiler() -> dict[str, str]:
    from .compiler import TOOLS

    banner = subprocess.run([TOOLS / "ptxas", "--version"], capture_output=True, text=True, check=True).stdout
    return {"triton": triton.__version__, "ptxas": banner.split("release ")[1].split(",")[0]}


def regenerate(ops: list[str], targets: list[str], jobs: int = 1, only: str = "") -> list[Row]:
    """Compile and measure; `only` keeps configurations whose description contains it."""
    tasks = [(op, target, i) for op in ops for target in targets for i in _chosen(op, target, only)]
    if jobs == 1:
        return [_row(*task) for task in tasks]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(_row, *zip(*tasks, strict=True)))


def key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in ("op", "path", "target", "dtype", "config"))


def load() -> dict[str, Any]:
    if not JSON.exists():
        return {"compiler": compiler(), "rows": []}
    return json.loads(JSON.read_text(encoding="utf-8"))


def save(rows: list[Row], replacing: tuple[list[str], list[str]]) -> None:
    """Write both files; rows of other operations and targets than `replacing` stay as they are."""
    ops, targets = replacing
    kept = [row for row in load()["rows"] if row["op"] not in ops or row["target"] not in targets]
    order = {target: i for i, target in enumerate(TARGETS)}
    merged = sorted(
        kept + rows, key=lambda row: (row["op"], order[row["target"]], row["path"], row["dtype"], row["config"])
    )
    lines = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in merged)
    header = json.dumps(compiler())
    JSON.write_text(f'{{\n  "compiler": {header},\n  "rows": [\n{lines}\n  ]\n}}\n', encoding="utf-8")
    write_table(merged)


def write_table(rows: list[Row]) -> None:
    """Write `LEDGER.md`: rows of the ledger, then what `peers.json` holds."""
    TABLE.write_text("\n".join([*_document(rows), *peers.document(peers.load(), rows)]) + "\n", encoding="utf-8")


def faults(row: Row) -> list[str]:
    """What a shipped kernel must not do."""
    found = []
    if row["spills_in_loop"]:
        found.append(f"{row['spills_in_loop']} spill instructions in the hot loop")
    if row["shared_bytes"] > SHARED_LIMIT[row["target"]]:
        found.append(f"{row['shared_bytes']} bytes of shared memory")
    if row["needs_tensor_cores"] and not row["tensor_instruction"]:
        found.append("no tensor instruction")
    if row["target"].startswith("sm_") and row["widest_load"] < 128 and not row.get("unaligned"):
        found.append(f"global loads of at most {row['widest_load']} bits")
    if row["repetition"] >= REPEATED:
        found.append(f"every {row['unit']} is computed {row['repetition']} times: take fewer warps or more rows")
    if row["budget"] and row["instructions_per_unit"] > row["budget"]:
        found.append(f"{row['instructions_per_unit']} instructions a {row['unit']}, budget {row['budget']}")
    return found


def _configurations(op: str, target: str) -> list[Configuration]:
    return importlib.import_module(f"fastssl_kernels.{op}.shipped").configurations(target)


def _chosen(op: str, target: str, only: str) -> Iterator[int]:
    for i, shipped in enumerate(_configurations(op, target)):
        if only in f"{shipped.path} {shipped.dtype} {shipped.config}":
            yield i


def _row(op: str, target: str, index: int) -> Row:
    from .compiler import compile_for, spills_inside

    shipped = _configurations(op, target)[index]
    compiled = compile_for(target, shipped.kernel, dict(shipped.arguments), **shipped.options)
    hot = _hot_loop(shipped, compiled)
    cycles = _cycles(shipped, target, hot.each)
    bound = max(cycles, key=lambda name: cycles[name]) if cycles else ""
    floor = max(cycles.get("tensor cores", 0.0), cycles.get("memory", 0.0))
    return {
        "op": op,
        "kernel": shipped.kernel.fn.__name__,
        "path": shipped.path,
        "target": target,
        "dtype": shipped.dtype,
        "config": shipped.config,
        "registers": compiled.registers,
        "stack": compiled.stack,
        "spills_in_loop": spills_inside(hot.loop),
        "shared_bytes": compiled.shared,
        "tensor_instruction": compiled.tensor_instruction or "",
        "needs_tensor_cores": shipped.flops > 0,
        "widest_load": compiled.widest_load,
        **({"unaligned": True} if shipped.unaligned else {}),
        "loop_instructions": hot.instructions,
        "unit": shipped.unit,
        "instructions_per_unit": round(hot.each, 2),
        "repetition": round(hot.repetition, 2),
        "budget": shipped.budget.get(target, 0),
        "cycles_per_unit": {name: round(value, 4) for name, value in cycles.items()},
        "bound": bound,
        "predicted_share": [round(floor / sum(cycles.values()), 2), round(floor / cycles[bound], 2)] if cycles else [],
    }


def _hot_loop(shipped: Configuration, compiled: Compiled) -> HotLoop:
    units = (shipped.units_per_program or shipped.units_per_trip) / compiled.threads
    try:
        return hot_loop(
            compiled.program,
            units,
            shipped.anchor,
            shipped.anchors_per_unit,
            pieces=shipped.pieces,
            whole=shipped.units_per_program > 0,
        )
    except ValueError as error:
        raise ValueError(f"{shipped.path} {shipped.dtype} {shipped.config} for {compiled.target}: {error}") from None


def _cycles(shipped: Configuration, target: str, instructions: float) -> dict[str, float]:
    """Clocks that one unit keeps each part of a multiprocessor busy."""
    if target not in RATES:
        return {}
    half, single, memory = RATES[target]
    cycles = {
        "tensor cores": shipped.flops / (single if shipped.dtype == "float32" else half),
        "exp unit": shipped.exponentials / EXPONENTIALS,
        "issue slots": instructions / LANES,
        "memory": shipped.bytes / memory,
    }
    return {name: value for name, value in cycles.items() if value}


_PREAMBLE = """Written by `python kernels/proof` with {versions}. No GPU took part and nothing here is a timing.

Instructions are a thread's share of one unit (a logit, an element) in the hot loop. Units are those of the tile, owned
rows times streamed columns, so that a logit which two groups of warps both compute costs twice; no row does that, it is
a fault. A kernel that takes wide rows in pieces counts a trip of all pieces, for each piece of the result.

The bound is what one unit keeps busy longest on a multiprocessor, in clocks: tensor cores, exponentials ({exponentials}
a clock), issue slots ({lanes} a clock) or device memory; the rates are in `proof/ledger.py`. The predicted share of the
peak, tensor cores or memory, is their clocks over the sum of all clocks, if nothing overlaps, and over the bound, if
everything does."""


def _document(rows: list[Row]) -> Iterator[str]:
    yield "# What the compiler made of the kernels"
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in compiler().items())
    yield _PREAMBLE.format(versions=versions, exponentials=EXPONENTIALS, lanes=LANES)
    for op in sorted({row["op"] for row in rows}):
        yield from ("", f"## {op}", "")
        heads = ["path", "target", "dtype", "config", "registers", "shared KB", "tensor instruction"]
        heads += ["instructions", "bound", "predicted share"]
        yield f"| {' | '.join(heads)} |"
        yield "|---" * len(heads) + "|"
        for row in (row for row in rows if row["op"] == op):
            spills = f", {row['spills_in_loop']} spills" if row["spills_in_loop"] else ""
            bound = f"{row['bound']}, {row['cycles_per_unit'][row['bound']]}" if row["bound"] else "–"
            share = "–".join(f"{share:.0%}" for share in row["predicted_share"])
            yield (
                f"| {row['path']} | {row['target']} | {row['dtype']} | {row['config']} | {row['registers']}{spills} "
                f"| {row['shared_bytes'] / 1024:.0f} | {row['tensor_instruction'] or '–'} "
                f"| {row['instructions_per_unit']} a {row['unit']} | {bound} | {share} |"
            )
