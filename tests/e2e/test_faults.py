"""A run that is hurt in every way and started again equals one left alone, bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).parents[2] / "benchmarks" / "faults" / "campaign.py"


def campaign(tmp_path, kills: int, steps: int) -> dict:
    """Run it as a process: it forks, which a test process with threads must not."""
    work = tmp_path / "campaign"
    words = ["--kills", str(kills), "--steps", str(steps), "--work", str(work)]
    done = subprocess.run([sys.executable, str(CAMPAIGN), *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((work / "faults.json").read_text())


def check(result: dict) -> None:
    assert result["verdict"] == "bit-identical"
    for attempt in result["attempts"]:
        fault, code = attempt["fault"], attempt["code"]
        expected = {"none": 0, "SIGTERM": 143, "SIGUSR1": 138, "disk full": 143}.get(fault, -9)
        assert code == expected, attempt
        if fault.startswith("SIG"):
            assert attempt["lost"] == 0, attempt


def test_a_hurt_run_equals_one_left_alone(tmp_path):
    check(campaign(tmp_path, kills=3, steps=60))


@pytest.mark.slow
def test_twenty_kills_and_every_other_fault(tmp_path):
    check(campaign(tmp_path, kills=20, steps=120))
