"""Imports point one way: cli → commands → engine → methods → {models, optim, data} → fastssl_kernels."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ALLOWED = {
    "errors": set(),
    "data": {"data", "errors", "fastssl_kernels"},
    "models": {"models", "errors"},
    "optim": {"optim", "errors", "fastssl_kernels"},
    "methods": {"methods", "models", "optim", "data.views", "data.order", "errors", "fastssl_kernels"},
    "evaluate": {"evaluate", "errors"},
    "report": {"report", "errors"},
    "config": {"data", "methods", "models", "optim", "errors"},  # the data room checks its own views
    "recipes": {"recipes", "config", "data.views", "methods", "models", "optim", "errors"},
    "doctor": {"report", "data", "errors"},
    "bench": {"bench", "engine", "config", "data", "methods", "models", "optim", "report", "errors"},
    "plan": {
        *("plan", "recipes", "config", "data.views", "data.order", "methods", "models", "report", "errors"),
        "fastssl_kernels",
    },
    "saliency": {"saliency", "data", "models", "report", "errors"},
    "engine": {"engine", "config", "data", "methods", "models", "optim", "evaluate", "report", "errors"},
    "commands": {"commands", "engine", "saliency", "recipes", "config", "data", "doctor", "bench", "plan", "errors"},
    "cli": {"commands", "errors", "__version__"},
}


def imported(path: Path, package: tuple[str, ...]) -> set[str]:
    """Absolute names of the modules that a file imports, wherever the statement stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module} if node.module else {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", sorted((ROOT / "fastssl").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_of_the_engine(path):
    relative = path.relative_to(ROOT / "fastssl")
    room = relative.parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    for name in imported(path, ("fastssl", *relative.parts[:-1])):
        parts = name.split(".")
        if parts[0] == "fastssl_kernels":
            assert "fastssl_kernels" in ALLOWED[room], f"{relative} imports {name}"
        elif parts[0] == "fastssl" and len(parts) > 1:
            allowed = ALLOWED[room]
            assert parts[1] in allowed or ".".join(parts[1:3]) in allowed, f"{relative} imports {name}"


def test_the_kernel_library_stands_alone():
    known = {"torch", "triton", "fastssl_kernels", *sys.stdlib_module_names}
    root = ROOT / "kernels" / "fastssl_kernels"
    for path in sorted(root.rglob("*.py")):
        package = ("fastssl_kernels", *path.relative_to(root).parts[:-1])
        for name in imported(path, package):
            assert name.split(".")[0] in known, f"{path.name} imports {name}"
        absolute = [
            node.module
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and not node.level and node.module.startswith("fastssl")
        ]
        assert not absolute, f"{path.name} must import its own package relatively, so that a copy works: {absolute}"


def test_setup_installs_no_module_called_kernels():
    from setuptools import find_packages

    assert "fastssl_kernels" in find_packages(str(ROOT / "kernels"), include=["fastssl_kernels*"])
    assert not (ROOT / "kernels" / "__init__.py").exists()
