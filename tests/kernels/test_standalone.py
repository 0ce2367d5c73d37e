"""The folder `fastssl_kernels` works where nothing else of the project is: copied, renamed, or laid out for the hub."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
SOURCE = KERNELS / "fastssl_kernels"
ALLOWED = {"torch", "triton"}

# Loaded by path under a name of its own, as the hub's loader does; the project itself cannot be found.
PROGRAM = """
import importlib.util
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("fastssl", "fastssl_kernels"):
            raise ImportError(f"{name} is not part of the folder")

sys.meta_path.insert(0, Refuse())
folder, name = sys.argv[1:]
spec = importlib.util.spec_from_file_location(name, f"{folder}/__init__.py", submodule_search_locations=[folder])
kernels = importlib.util.module_from_spec(spec)
sys.modules[name] = kernels
spec.loader.exec_module(kernels)

import pkgutil
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
for module in pkgutil.walk_packages(kernels.__path__, name + "."):
    if not module.name.endswith(("._scan", "._average")):  # plain libraries, loaded with ctypes
        __import__(module.name)

z = torch.randn(8, 4, requires_grad=True)
kernels.nt_xent(z, temperature=0.5).backward()
kernels.byol_loss(z, z.detach().flip(0)).backward()
kernels.relic(z, z.detach(), views=(2, 0), temperature=0.2, alpha=1.0).backward()
layer, average = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
optimizer = kernels.LARS(layer.parameters(), lr=0.1)
layer(z).sum().backward()
optimizer.step()
kernels.ema_update_(list(average.parameters()), list(layer.parameters()), 0.9)
queue, rows = kernels.Queue(100, 32), torch.randn(8, 32)
queue.enqueue(rows)
assert torch.equal(kernels.nearest_neighbor(rows, queue).indices, torch.arange(8))
assert z.grad.isfinite().all() and z.grad.norm() > 0
assert all(kernels.__dict__[public] is not None for public in kernels.__all__)
assert {m.split(".")[0] for m in sys.modules if m.startswith("fastssl")} <= {name}
print("works")
"""


@pytest.mark.parametrize(
    ("name", "left_behind"), [("fastssl_kernels_4f2a91", "*.so"), ("vendored_kernels", "*.[ch]"), ("copied", "*.pyc")]
)
def test_a_copy_of_the_folder_works_alone(name, left_behind, tmp_path):
    """Without its library in C, without that library's source, and whole."""
    folder = tmp_path / name
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__", left_behind))
    command = [sys.executable, "-c", PROGRAM, str(folder), name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=_bare_environment())
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "works"


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda f: str(f.relative_to(SOURCE)))
def test_imports_are_relative_or_of_torch_and_triton(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= len(file.relative_to(SOURCE).parts), f"{file.name} reaches outside the folder"
        for name in names:
            top = name.split(".")[0]
            assert top in ALLOWED or top in sys.stdlib_module_names, f"{file.name} imports {name}"


def test_the_layout_is_the_hubs():
    """A noarch build copies `torch-ext/<name as a module>` and nothing beside it, files of the stated endings only."""
    tomllib = pytest.importorskip("tomllib")
    manifest = tomllib.loads((KERNELS / "build.toml").read_text(encoding="utf-8"))
    assert set(manifest) == {"general", "torch-noarch"}
    general = manifest["general"]
    assert re.fullmatch(r"[a-z][-a-z0-9]*[a-z0-9]", general["name"])
    assert isinstance(general["version"], int)
    assert general["edition"] == 5
    assert general["license"] == "Apache-2.0"
    assert set(general["backends"]) <= {"cpu", "cuda", "metal", "neuron", "rocm", "tpu", "xpu"}
    package = KERNELS / "torch-ext" / general["name"].replace("-", "_")
    assert (package / "__init__.py").is_file()
    assert package.resolve() == SOURCE.resolve()
    endings = {f".{ending}" for ending in manifest["torch-noarch"]["pyext"]}
    needed = {f.suffix for f in SOURCE.rglob("*") if f.is_file() and "__pycache__" not in f.parts}
    # py.typed is for type checkers of an installed package, and a library in C is faster where it is but never needed.
    assert needed - {"", ".typed", ".c", ".h", ".so"} <= endings


def _bare_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TRITON_INTERPRET")}
