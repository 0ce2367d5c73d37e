"""The ledger is what the compiler says today, and every shipped kernel keeps its limits."""

import json
import os
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
    check("--op", op, "--target", "sm_90", "--only", MAIN.get(op, ""))


def test_every_operation_that_ships_kernels_is_in_the_ledger():
    shipped = {path.parent.name for path in KERNELS.glob("fastssl_kernels/*/shipped.py")}
    assert {row["op"] for row in STORED["rows"]} == shipped


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
