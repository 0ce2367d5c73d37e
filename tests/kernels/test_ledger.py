"""The ledger is what the compiler says today, and every shipped kernel keeps its limits."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"

STORED = json.loads((KERNELS / "ledger.json").read_text(encoding="utf-8"))
LIMITS = {"sm_80": 99, "sm_90": 227, "sm_100": 227, "gfx942": 64}  # KB of shared memory a program
TENSOR = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}


def name(row):
    return f"{row['op']} {row['path']} {row['target']} {row['dtype']} {row['config']}"


@pytest.mark.parametrize("row", STORED["rows"], ids=name)
def test_a_shipped_kernel_keeps_its_limits(row):
    assert row["spills_in_loop"] == 0
    assert row["repetition"] < 2.0  # from 2 on: every logit computed twice
    assert row["shared_bytes"] <= LIMITS[row["target"]] * 1024
    assert row["instructions_per_unit"] <= (row["budget"] or float("inf"))
    if row["needs_tensor_cores"]:
        assert row["tensor_instruction"].startswith(TENSOR[row["target"]])
    if row["target"] != "gfx942" and not row.get("unaligned"):
        assert row["widest_load"] == 128


def test_the_budgets_of_nt_xent_are_held_where_they_are_set():
    """The figures that stand in for a timing: instructions a logit on sm_90, bf16, D = 128."""
    rows = [r for r in STORED["rows"] if (r["op"], r["target"], r["dtype"]) == ("nt_xent", "sm_90", "bfloat16")]
    measured = {row["path"]: row["instructions_per_unit"] for row in rows if "D=128" in row["config"]}
    assert measured["forward-triangular"] <= 6.4
    assert measured["forward-rectangular"] <= 4.8
    assert measured["backward"] <= 7.4


def test_the_budget_of_the_nearest_neighbor_is_held_where_it_is_set():
    """Instructions a score of the scan on sm_90, 16 bit, D = 256."""
    rows = [
        row
        for row in STORED["rows"]
        if (row["op"], row["path"], row["target"]) == ("nearest_neighbor", "scan", "sm_90")
    ]
    (measured,) = (r for r in rows if r["dtype"] == "bfloat16" and "D=256" in r["config"])
    assert measured["budget"] == 4.2
    assert measured["instructions_per_unit"] <= 4.2


# A loop over 8 logits a thread, of 30 instructions, in a loop over tiles; behind it a loop over pieces and one around.
HOT_LOOPS = """
import sys
from collections import Counter
sys.path.insert(0, sys.argv[1])
from proof.hot_loop import hot_loop
from proof.ledger import faults
from proof.sass import Loop, Program
program = lambda *loops: Program(Loop(0, 500, Counter()), list(loops))
tiles = Loop(10, 60, Counter({"MUFU.EX2": 8, "HMMA.16816.F32": 4}))
once = program(tiles, Loop(20, 50, Counter({"MUFU.EX2": 8, "HMMA.16816.F32": 4})))
found = hot_loop(once, 8.0, ("MUFU.EX2",))
assert (found.instructions, found.each, found.repetition) == (30, 30 / 8, 1.0)
# The same instructions for half the units: two groups of warps compute the same rows.
found = hot_loop(once, 4.0, ("MUFU.EX2",))
assert (found.each, found.repetition) == (30 / 4, 2.0)
row = {"spills_in_loop": 0, "shared_bytes": 0, "needs_tensor_cores": False, "target": "sm_90", "widest_load": 128}
row |= {"budget": 0, "unit": "logit", "repetition": found.repetition}
assert faults(row) == ["every logit is computed 2.0 times: take fewer warps or more rows"]
# Two exponentials a logit are no repetition.
assert hot_loop(once, 4.0, ("MUFU.EX2",), 2.0).repetition == 1.0
# Four pieces of a product: the first stands before the loop over the others, and a second product of half a piece.
outer = Loop(100, 180, Counter({"MUFU.EX2": 8, "HMMA.16816.F32": 10}))
pieces = program(outer, Loop(120, 140, Counter({"HMMA.16816.F32": 4})))
found = hot_loop(pieces, 8.0, ("MUFU.EX2",), pieces=4.5)
assert (found.loop, found.instructions) == (outer, 80 + 2 * 20)
for wrong in (
    lambda: hot_loop(once, 16.0, ("MUFU.EX2",)),  # fewer exponentials than logits
    lambda: hot_loop(once, 8.0, ("MUFU.LG2",)),  # no such instruction
    lambda: hot_loop(pieces, 8.0, ("MUFU.EX2",), pieces=4.25),  # no whole number of trips
):
    try:
        wrong()
    except ValueError:
        continue
    raise AssertionError("counted")
"""


def test_instructions_are_counted_by_the_tile_and_repetition_is_a_fault():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", HOT_LOOPS, KERNELS], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def check(*options):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(KERNELS / "proof"), "--check", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if "nothing compared" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr


# Compiling every row takes minutes (`python kernels/proof --check --jobs 2`); a test run compiles these.
MAIN = {
    "nt_xent": "bfloat16 D=128, 128×128, 8 warps, 3 stages",
    "augment": "bicubic bfloat16",
    "relic": "bfloat16 D=128",
}


@pytest.mark.parametrize("op", sorted({row["op"] for row in STORED["rows"]}))
def test_the_main_rows_compile_to_what_the_ledger_says(op):
    check("--op", op, "--target", "sm_90", "--only", MAIN.get(op, ""), "--jobs", "2")


def test_every_operation_that_ships_kernels_is_in_the_ledger():
    shipped = {path.parent.name for path in KERNELS.glob("fastssl_kernels/*/shipped.py")}
    assert {row["op"] for row in STORED["rows"]} == shipped


SHIPPED = """
import json, sys
sys.path.insert(0, sys.argv[1])
from proof import ledger
names = ("path", "dtype", "config")
print(json.dumps([
    [op, target, *(getattr(shipped, name) for name in names), shipped.kernel.fn.__name__]
    for op in ledger.operations() for target in ledger.TARGETS for shipped in ledger._configurations(op, target)
]))
"""


def test_every_configuration_that_ships_has_its_row_and_no_row_is_left_over():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", SHIPPED, str(KERNELS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    stored = [[row[name] for name in ("op", "target", "path", "dtype", "config", "kernel")] for row in STORED["rows"]]
    assert sorted(json.loads(done.stdout)) == sorted(stored)


# Tables of tiles: operation, name of its function, kernels that it knows, numbers of columns that it asks for.
TILES = """
import importlib, itertools, json, sys
import torch
sys.path.insert(0, sys.argv[1])
from proof.ledger import TARGETS

TABLES = [
    ("nearest_neighbor", "tile_for", [()], [()]),
    ("nt_xent", "tile_for", [(k,) for k in ("triangle", "rectangle", "attraction", "gradient", "gradient-few")], [()]),
    ("relic", "tile_for", [("sums",), ("gradient",)], [(4096,), (16,)]),
    ("sinkhorn", "product_tile", [()], [()]),
    ("swapped_prediction", "tile_for", [("codes",), ("predict",), ("prototypes",)], [()]),
]

def left_out(op, function, kernels, columns, target):
    given = getattr(importlib.import_module(f"fastssl_kernels.{op}.tiles"), function)
    shipped, compiled = importlib.import_module(f"fastssl_kernels.{op}.shipped"), set()

    def observed(*arguments):
        kernel = arguments[:1] if isinstance(arguments[0], str) else ()
        dtype = next(a for a in arguments if isinstance(a, torch.dtype))
        compiled.add((kernel, dtype.itemsize, given(*arguments)))
        return given(*arguments)

    setattr(shipped, function, observed)
    shipped.configurations(target)
    for kernel, dtype, width, some in itertools.product(kernels, (torch.bfloat16, torch.float32), WIDTHS, columns):
        tile = given(*kernel, width, dtype, target, *some)
        if (kernel, dtype.itemsize, tile) not in compiled:
            yield [op, target, *kernel, str(dtype), width, *some, str(tile)]
    setattr(shipped, function, given)

WIDTHS = (128, 256, 512, 1024)
print(json.dumps([row for table in TABLES for target in TARGETS for row in left_out(*table, target)]))
"""


def test_every_tile_of_every_table_has_a_row():
    """A tile that nobody compiled hid a spill in the hot loop, and another one logits that were computed twice."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", TILES, str(KERNELS)], capture_output=True, text=True, check=True, env=environment
    )
    assert json.loads(done.stdout) == []
    with_tables = {path.parent.name for path in KERNELS.glob("fastssl_kernels/*/tiles.py")}
    assert with_tables == set(re.findall(r'^    \("(\w+)"', TILES, re.MULTILINE))


def test_the_table_shows_every_row():
    # The part on public kernels repeats some rows beside theirs: test_peers.py.
    table, _, _ = (KERNELS / "LEDGER.md").read_text(encoding="utf-8").partition("\n## Public kernels")
    lines = [line for line in table.splitlines() if line.startswith("| ") and "| target |" not in line]
    assert len(lines) == len(STORED["rows"])
    for row in STORED["rows"]:
        assert f"| {row['path']} | {row['target']} | {row['dtype']} | {row['config']} |" in table


def test_rows_are_distinct():
    keys = [name(row) for row in STORED["rows"]]
    assert len(keys) == len(set(keys))
