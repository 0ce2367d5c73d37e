"""The environment record: complete, plain JSON, and silent about the person and the place."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import fastssl
from fastssl.report import environment as module
from fastssl.report.environment import commit, environment, parse_cpuinfo, quota_cores, usable_cores, version


def test_it_names_what_runs_here():
    record = environment()
    assert record["fastssl"] == fastssl.__version__
    assert record["python"] == platform.python_version()
    assert record["packages"]["torch"] == torch.__version__
    assert record["packages"]["numpy"] == metadata.version("numpy")
    assert record["cpu"]["threads"] == torch.get_num_threads()
    assert 1 <= record["cpu"]["usable_cores"] <= record["cpu"]["cores"]
    assert len(record["gpus"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert json.loads(json.dumps(record)) == record


def test_it_tells_nothing_about_person_or_place():
    text = json.dumps(environment())
    secrets = {socket.gethostname(), os.getcwd(), str(Path.home()), sys.prefix, str(Path(fastssl.__file__).parent)}
    for secret in secrets:
        assert len(secret) < 3 or secret not in text


def test_absent_packages_have_no_version(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    monkeypatch.setattr(metadata, "distributions", lambda: iter(()))
    assert version("torchvision") is None
    assert version("dali") is None
    assert set(environment()["packages"].values()) == {torch.__version__, None}


@pytest.mark.parametrize(
    ("name", "is_dali"),
    [
        ("nvidia-dali-cuda130", True),
        ("nvidia_dali_cuda120", True),
        ("nvidia-dali-nightly-cuda120", True),
        ("nvidia-dali-tf-plugin-cuda120", False),
        ("dali", False),
        (None, False),
    ],
)
def test_dali_has_many_names(name, is_dali):
    assert module._is_dali(name) is is_dali


def test_cpuinfo_of_intel_and_arm():
    intel = "processor : 0\nmodel name\t: Some CPU @ 2.0GHz\nflags\t\t: fpu avx avx2 fma avx512f amx_bf16 nonsense\n\n"
    assert parse_cpuinfo(intel * 2) == ("Some CPU @ 2.0GHz", ["avx", "fma", "avx2", "avx512f", "amx_bf16"])
    assert parse_cpuinfo("processor\t: 0\nFeatures\t: fp asimd sve bf16\n") == (None, ["asimd", "bf16", "sve"])
    assert parse_cpuinfo("") == (None, [])


def test_core_quotas():
    assert quota_cores("200000 100000\n") == 2
    assert quota_cores("150000 100000") == 2
    assert quota_cores("10000 100000") == 1
    for unlimited in ("max 100000", "", "5 0"):
        assert quota_cores(unlimited) is None


def test_usable_cores_follow_the_quota(monkeypatch):
    monkeypatch.setattr(module, "_read", lambda path: "100000 100000")
    assert usable_cores() == 1


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    package = tmp_path / "fastssl"
    package.mkdir()
    (package / "a.py").write_text("x = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "fastssl")
    git(tmp_path, "commit", "-q", "-m", "one")
    return package


def test_commit_of_a_checkout_and_its_changes(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    assert commit(checkout) == head[:12]
    (checkout / "new.txt").write_text("not tracked: changes nothing that ran\n")
    assert commit(checkout) == head[:12]
    (checkout / "a.py").write_text("x = 2\n")
    assert commit(checkout) == head[:12] + "+"


def test_an_environment_inside_another_repository_has_no_commit(checkout):
    installed = checkout.parent / "venv" / "site-packages" / "fastssl"
    installed.mkdir(parents=True)
    assert commit(installed) is None


def test_no_repository_or_no_git_is_no_commit(tmp_path, checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit(checkout) is None
    assert module.driver() is None


def test_a_hanging_or_failing_program_is_no_answer(monkeypatch):
    assert module._output("git", "no-such-command") is None

    def hang(*args, **kwargs):
        raise subprocess.TimeoutExpired("git", 10)

    monkeypatch.setattr(subprocess, "run", hang)
    assert module._output("git", "--version") is None
