"""The doctor tells the truth about packages, devices and threads, and needs nothing but torch to do so."""

from __future__ import annotations

import builtins
import importlib
import importlib.machinery
import importlib.util
import io
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from fastssl import doctor
from fastssl.doctor import Row, c_compiler, dali_problem, diagnose, find_apex, print_report, verdict


def row(rows, name):
    return next(r for r in rows if r.name == name)


@pytest.fixture
def hidden(monkeypatch):
    """Make modules impossible to find or import."""

    def hide(*names):
        find, load = importlib.util.find_spec, builtins.__import__

        def is_hidden(name):
            return any(name == hidden or name.startswith(hidden + ".") for hidden in names)

        def find_spec(name, package=None):
            return None if is_hidden(name) else find(name, package)

        def import_module(name, *args, **kwargs):
            if is_hidden(name):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return load(name, *args, **kwargs)

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)
        monkeypatch.setattr(builtins, "__import__", import_module)

    return hide


@pytest.fixture
def record():
    """An environment with everything, to be spoiled."""
    return {
        "fastssl": "0.1.0",
        "commit": "abc",
        "python": "3.12.1",
        "platform": "Linux 6 x86_64",
        "packages": {"torch": "2.9", "torchvision": "0.24", "triton": "3.8", "dali": None, "numpy": "2.0"},
        "cpu": {
            "model": "X",
            "cores": 64,
            "usable_cores": 8,
            "instruction_sets": ["avx", "avx2"],
            "threads": 8,
            "memory_gib": 100.0,
        },
        "cuda": "13.0",
        "driver": "590.1",
        "gpus": [{"name": "NVIDIA H100", "memory_gib": 79.6, "capability": "9.0", "multiprocessors": 132}] * 2,
    }


# --------------------------------------------------------------------------------------------------------- this machine


def test_this_machine_can_train():
    rows = diagnose()
    assert not [r for r in rows if r.status == "error"]
    assert row(rows, "torch").value == torch.__version__
    assert verdict(rows).startswith("Ready to train on ")
    assert {r.section for r in rows} == {"software", "devices", "back ends", "resources"}


def test_advice_never_names_the_certificate_tool_or_the_machine():
    text = " ".join(f"{r.value} {r.advice}" for r in diagnose())
    assert "pip install fastssl" not in text
    assert str(Path.home()) not in text
    assert os.getcwd() not in text


@pytest.mark.skipif(importlib.util.find_spec("nvidia.dali") is None, reason="DALI is not installed")
def test_dali_decodes_where_it_is_installed():
    assert dali_problem("cpu") is None


# ------------------------------------------------------------------------------------------------------ absent packages


@pytest.mark.parametrize("module", [*doctor.TRAINING, "triton", "nvidia", "apex"])
def test_any_package_may_be_absent(hidden, module):
    hidden(module)
    rows = diagnose()
    if module in doctor.TRAINING:
        assert row(rows, "packages").status == "error"
        assert doctor.TRAINING[module] in row(rows, "packages").value
        assert "Not ready to train" in verdict(rows)
    out = io.StringIO()
    print_report(out)
    assert verdict(rows) in out.getvalue()


def test_all_packages_may_be_absent(hidden, monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: None)
    hidden(*doctor.TRAINING, "triton", "nvidia")
    out = io.StringIO()
    print_report(out)
    assert all(distribution in out.getvalue() for distribution in doctor.TRAINING.values())


def test_a_dali_that_cannot_be_imported_is_reported_with_its_reason(hidden):
    hidden("nvidia")
    found = doctor._decoder("2.4.0", gpu=False)
    assert found.status == "warn"
    assert "does not decode" in found.value
    assert "No module named 'nvidia" in found.advice
    assert "--loader.decoder torchvision" in found.advice


def test_without_dali_torchvision_decodes_and_dali_is_recommended(monkeypatch, hidden):
    monkeypatch.setattr(sys, "platform", "linux")
    found = doctor._decoder(None, gpu=False)
    assert (found.status, found.value.split()[0]) == ("warn", "torchvision")
    assert "nvidia-dali" in found.advice
    monkeypatch.setattr(sys, "platform", "darwin")
    assert doctor._decoder(None, gpu=False).status == "note"
    hidden("torchvision")
    assert doctor._decoder(None, gpu=False).status == "error"


# -------------------------------------------------------------------------------------------------------------- devices


def test_gpus_are_listed_and_counted(record):
    rows = list(doctor._devices(record))
    assert row(rows, "GPU 1").value == "NVIDIA H100, 80 GiB, capability 9.0"
    assert row(rows, "driver").value == "590.1, torch is built for CUDA 13.0"
    assert row(rows, "CPU").value == "X, 8 of 64 cores"
    assert verdict(rows) == "Ready to train on 2 GPUs (NVIDIA H100)."
    assert verdict(rows[:-2]) == "Ready to train on 1 GPU (NVIDIA H100)."


def test_an_old_gpu_gets_a_word_about_precision(record):
    record["gpus"] = [{"name": "Tesla V100", "memory_gib": 16, "capability": "7.0", "multiprocessors": 80}]
    rows = list(doctor._devices(record))
    assert row(rows, "GPU 0").status == "warn"
    assert "fp32" in row(rows, "GPU 0").advice
    assert verdict(rows) == "Ready to train on 1 GPU (Tesla V100), with 1 warning."


@pytest.mark.parametrize(
    ("cuda", "driver", "status", "words"),
    [
        (None, "590.1", "warn", "Install a torch built for CUDA"),
        ("13.0", "470.2", "warn", "Update the driver"),
        ("13.0", None, "note", ""),
        (None, None, "note", ""),
    ],
)
def test_why_no_gpu_is_visible(record, cuda, driver, status, words):
    found = row(list(doctor._devices({**record, "gpus": [], "cuda": cuda, "driver": driver})), "GPU")
    assert found.status == status
    assert words in found.advice
    assert bool(words) == bool(found.advice)


def test_triton_runs_on_gpus_only_and_needs_a_compiler_there(record, monkeypatch):
    assert row(list(doctor._back_ends(record)), "kernels").value == "Triton 3.8 on the GPU"
    monkeypatch.setattr(doctor, "c_compiler", lambda: None)
    assert row(list(doctor._back_ends(record)), "C compiler").status == "error"
    cpu = list(doctor._back_ends({**record, "gpus": []}))
    assert "torch operations on the CPU" in row(cpu, "kernels").value
    assert row(cpu, "C compiler").status == "note"
    record["packages"]["triton"] = None
    assert row(list(doctor._back_ends(record)), "kernels").status == "warn"


def test_the_compiler_is_the_one_that_would_be_called(tmp_path, monkeypatch):
    for name in ("mycc", "gcc", "cc"):
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\necho {name} 1.2\necho more\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert c_compiler() == "gcc 1.2"
    monkeypatch.setenv("CC", "mycc")
    assert c_compiler() == "mycc 1.2"
    (tmp_path / "mycc").write_text("#!/bin/sh\nexit 1\n")
    assert c_compiler() == "gcc 1.2"
    monkeypatch.setenv("PATH", "")
    assert c_compiler() is None


# ------------------------------------------------------------------------------------------------------------ resources


def test_more_threads_than_cores_is_a_warning(record):
    found = row(list(doctor._resources({**record, "cpu": {**record["cpu"], "threads": 64}})), "threads")
    assert found.status == "warn"
    assert "OMP_NUM_THREADS=8" in found.advice
    assert row(list(doctor._resources(record)), "threads").status == "ok"


def test_thread_variables_are_shown(record, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "OMP_NUM_THREADS=3" in row(list(doctor._resources(record)), "threads").value


@pytest.mark.parametrize(("free", "status"), [(4.9, "warn"), (5.1, "ok"), (0.0, "warn")])
def test_little_disk_is_a_warning(record, monkeypatch, free, status):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(free * 2**30)))
    assert row(list(doctor._resources(record)), "disk").status == status


# ----------------------------------------------------------------------------------------------------------------- apex


@pytest.fixture
def apex(tmp_path, monkeypatch):
    """Put files of a package called apex first on the path; importing any of them would raise."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "apex", raising=False)

    def install(*files):
        for name in files:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("raise RuntimeError('imported')\n")
        importlib.invalidate_caches()
        return find_apex()

    return install


NVIDIA = ("apex/__init__.py", "apex/multi_tensor_apply/__init__.py", "apex/optimizers/__init__.py")
EXTENSION = importlib.machinery.EXTENSION_SUFFIXES[0]


def test_nvidias_apex_is_known_by_its_folder(apex):
    assert apex(*NVIDIA) == ("nvidia", "present, without its compiled parts")


def test_compiled_parts_of_the_older_layout(apex):
    assert apex(*NVIDIA, f"amp_C{EXTENSION}") == ("nvidia", "present, with multi-tensor operations")
    assert apex(f"bnp{EXTENSION}") == ("nvidia", "present, with multi-tensor operations and NHWC batch norm")


@pytest.mark.parametrize("folder", ["apex/_extensions/", "apex/", ""])
def test_compiled_parts_of_the_newer_layout(apex, folder):
    shim = "apex/_extensions/bnp.py"  # a Python file alone is no compiled part
    assert apex(*NVIDIA, shim, f"{folder}_bnp.cpython-312.so") == ("nvidia", "present, with NHWC batch norm")


def test_a_python_module_called_like_a_compiled_part_is_not_one(apex):
    assert apex(*NVIDIA, "amp_C.py") == ("nvidia", "present, without its compiled parts")


def test_the_web_toolkit_is_recognised_and_named(apex, monkeypatch):
    kind, detail = apex("apex/__init__.py", "apex/lib/libapex.py", "apex/forms.py", "apex/models.py")
    assert kind == "web toolkit"
    assert "unrelated web toolkit" in detail
    monkeypatch.setattr(doctor, "version", lambda name: "0.9.8")
    assert "apex 0.9.8 is an unrelated" in find_apex()[1]
    assert "uninstall apex" in doctor._apex().advice
    assert doctor._apex().status == "note"


def test_other_things_called_apex(apex, hidden):
    assert apex("apex/readme.txt")[0] == "other"  # a folder, found as a namespace package
    assert apex("apex/__init__.py", "apex/core.py")[0] == "other"
    hidden("apex")
    assert find_apex() == ("absent", "absent, not needed")


def test_a_module_without_a_spec_is_absent(monkeypatch):
    broken = type(sys)("apex")
    broken.__spec__ = None
    monkeypatch.setitem(sys.modules, "apex", broken)
    assert find_apex()[0] == "absent"


# ------------------------------------------------------------------------------------------------------------- printing

ROWS = [
    Row("software", "torch", "2.9"),
    Row("devices", "GPU 0", "NVIDIA [bold] H100, 80 GiB"),
    Row("devices", "GPU", "x", "note"),
    Row("back ends", "decoder", "torchvision", "warn", "Install DALI."),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_text_has_every_row_the_verdict_and_the_advice(monkeypatch):
    monkeypatch.setattr(doctor, "diagnose", lambda: ROWS)
    out = io.StringIO()
    print_report(out)
    text = out.getvalue()
    for r in ROWS:
        assert any(
            line.split()[0] == r.status and r.name in line and r.value in line for line in text.splitlines() if line
        )
    assert text.endswith("Ready to train on 1 GPU (NVIDIA [bold] H100), with 1 warning.\n  - decoder: Install DALI.\n")
    text.encode("ascii")


def test_a_terminal_gets_a_table_with_the_same_words(monkeypatch):
    monkeypatch.setattr(doctor, "diagnose", lambda: ROWS)
    monkeypatch.setenv("COLUMNS", "120")
    out = Terminal()
    print_report(out)
    for words in ("NVIDIA [bold] H100, 80 GiB", "Ready to train on 1 GPU", "Install DALI.", "back ends"):
        assert words in out.getvalue()


def test_a_terminal_without_rich_gets_plain_text(monkeypatch, hidden):
    monkeypatch.setattr(doctor, "diagnose", lambda: ROWS)
    hidden("rich")
    out = Terminal()
    print_report(out)
    assert "  ok     torch" in out.getvalue()


def test_standard_output_is_the_default(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "diagnose", lambda: ROWS)
    print_report()
    assert "Ready to train" in capsys.readouterr().out
