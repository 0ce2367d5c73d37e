"""The hub's loader opens this folder as it is, where the package `kernels` is installed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
VARIANTS = sorted((KERNELS / "build").glob("torch-*"))

# The loader, on a copy that lies where nothing else of the project is, without a network.
PROGRAM = """
import sys
from pathlib import Path
from kernels import get_local_kernel
from kernels._rust import Build

folder = Path(sys.argv[1])
print(*sorted(str(backend) for backend in Build.open(folder).general.backends))
loaded = get_local_kernel(folder, backend="cpu")
assert Path(loaded.__file__).is_relative_to(folder), loaded.__file__
assert not [name for name in sys.modules if name.split(".")[0] == "fastssl_kernels"]

import torch
torch.set_num_threads(1)
z = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
loss = loaded.nt_xent(z, temperature=0.5)
loss.backward()
unit = torch.nn.functional.normalize(z.detach().double(), dim=1)
logits = (unit @ unit.T / 0.5).fill_diagonal_(-float("inf"))
expected = torch.nn.functional.cross_entropy(logits, torch.arange(8).roll(4))
assert abs(loss.item() - expected.item()) <= 1e-5 * expected.item(), (loss, expected)
assert z.grad.isfinite().all() and z.grad.norm() > 0
print(loaded.__name__)
"""


def metadata(variant):
    return json.loads((variant / "metadata.json").read_text(encoding="utf-8"))


def test_variants_say_what_the_manifest_says():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    general = tomllib.loads((KERNELS / "build.toml").read_text(encoding="utf-8"))["general"]
    assert {variant.name for variant in VARIANTS} == {f"torch-{backend}" for backend in general["backends"]}
    for variant in VARIANTS:
        stated = metadata(variant)
        assert [stated[k] for k in ("name", "version", "license")] == [
            general[k] for k in ("name", "version", "license")
        ]
        assert stated["backend"] == {"type": variant.name.removeprefix("torch-")}
        package = variant / general["name"].replace("-", "_")
        assert package.resolve() == (KERNELS / "fastssl_kernels").resolve()


def test_a_process_can_tell_the_variants_apart():
    ids = [metadata(variant)["id"] for variant in VARIANTS]
    assert len(ids) == len(set(ids)) == 3
    assert all(name.isidentifier() for name in ids)


def test_the_hubs_loader_opens_a_copy(tmp_path):
    try:
        importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package `kernels` is not installed")
    folder = tmp_path / "copy"
    shutil.copytree(KERNELS, folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    backends, name = done.stdout.splitlines()
    assert len(backends.split()) == 3
    assert name == metadata(KERNELS / "build" / "torch-cpu")["id"]
