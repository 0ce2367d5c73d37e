"""The table of defects names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_defect_names_a_test_that_exists():
    named = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", (ROOT / "docs" / "defects.md").read_text())
    assert len(named) >= 13
    for file, test in named:
        functions = [n.name for n in ast.parse((ROOT / file).read_text()).body if isinstance(n, ast.FunctionDef)]
        assert test in functions, f"{file}::{test}"
