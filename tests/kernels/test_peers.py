"""The ledger's part on public kernels is what `peers.json` says, and is counted as it claims."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
STORED = json.loads((KERNELS / "peers.json").read_text(encoding="utf-8"))
LEDGER = json.loads((KERNELS / "ledger.json").read_text(encoding="utf-8"))
PART = "## Public kernels, same compiler"

# In processes of their own: the compiler's side of `proof` wants no TRITON_INTERPRET, which other tests may have set.
DOCUMENT = """
import json, sys
from pathlib import Path
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
from proof import peers
content, ledger = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("peers.json", "ledger.json"))
sys.stdout.reconfigure(encoding="utf-8")
print(*peers.document(content, ledger["rows"]), sep="\\n")
"""

LOOPS = """
import sys
from collections import Counter
sys.path.insert(0, sys.argv[1])
from proof.sass import Loop, nested
loop = lambda start, stop: Loop(start, stop, Counter())
outer, inner, slow_path = loop(10, 100), loop(20, 60), loop(40, 120)
assert nested([outer, inner, slow_path]) == [outer, inner]
"""


def run(program, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)


def test_the_table_is_generated_from_the_figures():
    done = run(["-c", DOCUMENT], KERNELS)
    assert done.returncode == 0, done.stderr
    head, found, tail = (KERNELS / "LEDGER.md").read_text(encoding="utf-8").partition(PART)
    assert found
    assert (found + tail).strip() == done.stdout.strip()
    assert PART not in head + tail


def test_the_table_shows_both_packages_and_nt_xent():
    _, _, part = (KERNELS / "LEDGER.md").read_text(encoding="utf-8").partition(PART)
    lines = Counter(line.split("|")[1].strip() for line in part.splitlines() if line.startswith("| "))
    assert lines["inf-cl"] + lines["memeff"] == len(STORED["rows"])
    for package, version in STORED["packages"].items():
        assert f"{package} {version}" in " ".join(part.split())
    own = [r for r in LEDGER["rows"] if r["op"] == "nt_xent" and r["path"] == "backward" and "D=128" in r["config"]]
    shown = [line for line in part.splitlines() if line.startswith("| fastssl_kernels | backward |")]
    assert len(shown) == len([r for r in own if r["target"] != "gfx942" and r["dtype"] != "float16"])


def test_both_sides_come_from_one_compiler():
    assert STORED["compiler"] == LEDGER["compiler"], "run `python kernels/proof --peers FOLDER`: other compilers"


@pytest.mark.parametrize("row", STORED["rows"], ids=lambda r: f"{r['kernel']} {r['target']} {r['dtype']}")
def test_figures_are_those_of_the_tile(row):
    rows, columns = (int(n) for n in row["config"].split(", ")[1].split("×"))
    warps = int(row["config"].split(", ")[2].split()[0])
    logits = rows * columns / (32 * warps)
    assert row["instructions_per_logit"] == round(row["counted_instructions"] / logits, 2)
    # Every logit takes its exponential; more than twice as many would be an unrolled loop counted as one trip.
    assert 1 <= row["exponentials_per_logit"] <= 2.5
    assert row["tensor_instruction"]


def test_a_slow_path_is_no_loop():
    """sm_100 keeps barriers' slow paths behind the kernel; a jump back from there spans what is no loop."""
    done = run(["-c", LOOPS], KERNELS)
    assert done.returncode == 0, done.stderr


def test_a_missing_package_is_said_and_changes_nothing(tmp_path):
    before = [(KERNELS / name).read_bytes() for name in ("peers.json", "LEDGER.md")]
    done = run([KERNELS / "proof", "--peers", tmp_path])
    assert done.returncode == 0, done.stderr
    for package in STORED["packages"]:
        assert f"{package} is not in {tmp_path}" in done.stdout
    assert before == [(KERNELS / name).read_bytes() for name in ("peers.json", "LEDGER.md")]
