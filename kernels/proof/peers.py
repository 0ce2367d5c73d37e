"""Public contrastive kernels, compiled by the same compiler and counted like the kernels of the ledger.

The packages lie in a folder that the user names (`pip install --no-deps --target FOLDER inf-cl==1.2.1 memeff==0.3.1`).
Their own host functions say what is launched: they run on tensors without storage, and what reaches a kernel is
recorded instead of run. `peers.json` keeps the figures; `LEDGER.md` shows them beside NT-Xent's.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import math
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from .hot_loop import hot_loop

JSON = Path(__file__).parents[1] / "peers.json"
HEADING = "Public kernels, same compiler"
TARGETS = ("sm_80", "sm_90", "sm_100")
DTYPES = (torch.bfloat16, torch.float32)
BATCH, WIDTH, TEMPERATURE = 4096, 128, 0.1
# NT-Xent's kernels that do the same work, shown for comparison.
OWN_PATHS = ("forward-triangular", "forward-rectangular", "backward")
# Exponentials a logit: more than one is an online softmax's or, up to twice as many, the same rows in two groups of
# warps, work that is done twice. Beyond that a trip would be several tiles.
_UNROLLED = 2.5
Row = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """One kernel of a package and how to make the package launch it.

    path: what it computes. kernel: its name in `module`. call: given the imported module, features [B, D] and a vector
        [B] of fp32, calls the host function.
    tile: the names of the two constants whose product is the logits of one tile. one_tile: a program computes one tile
        and has no loop over tiles.
    """

    package: str
    path: str
    module: str
    kernel: str
    call: Callable[[Any, torch.Tensor, torch.Tensor], object]
    tile: tuple[str, str]
    one_tile: bool = False


def _heads(z: torch.Tensor) -> torch.Tensor:
    return z.view(BATCH, 1, WIDTH)


_INF_CL, _MEMEFF = "inf_cl.flash", "memeff.clip_loss"
_SCALE = 1 / TEMPERATURE
_INF_TILE, _MEMEFF_TILE = ("BLOCK_M", "BLOCK_N"), ("BLOCK_SIZE_I", "BLOCK_SIZE_J")
PEERS = (
    Peer(
        "inf-cl",
        "forward",
        _INF_CL,
        "_prob_fwd_kernel",
        lambda m, z, v: m._flash_prob_forward(_heads(z), _heads(z)),
        _INF_TILE,
    ),
    Peer(
        "inf-cl",
        "backward, rows",
        _INF_CL,
        "_dq_prob_bwd_kernel",
        lambda m, z, v: m._flash_prob_backward(_heads(z), _heads(z), v, v),
        _INF_TILE,
    ),
    Peer(
        "inf-cl",
        "backward, columns",
        _INF_CL,
        "_dk_prob_bwd_kernel",
        lambda m, z, v: m._flash_prob_backward(_heads(z), _heads(z), v, v),
        _INF_TILE,
    ),
    Peer(
        "memeff",
        "forward, both directions",
        "memeff.distributed_clip_loss",
        "clip_denom_kernel",
        lambda m, z, v: m._launch_denom(z, z, v, v, _SCALE * math.log2(math.e)),
        _MEMEFF_TILE,
        one_tile=True,
    ),
    Peer(
        "memeff",
        "backward, one tower",
        _MEMEFF,
        "clip_fa_grad_kernel",
        lambda m, z, v: m.fa_backward_one(z, z, v, v, _SCALE * math.log2(math.e), _SCALE / BATCH, bidir=True),
        _MEMEFF_TILE,
    ),
)
PACKAGES = tuple(sorted({peer.package for peer in PEERS}))


@dataclass(frozen=True)
class Launch:
    """What a host function gave to a kernel: arguments by name, a torch.dtype for a tensor, and launch options."""

    arguments: dict[str, Any]
    options: dict[str, Any]


def version_in(folder: Path, package: str) -> str | None:
    """The version of a package in a `pip install --target` folder, None if it is not there."""
    found = importlib.metadata.distributions(name=package, path=[str(folder)])
    return next((distribution.version for distribution in found), None)


def regenerate(folder: Path, stored: dict[str, Any], compiler: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Compile what is in `folder`.

    Returns the new content of `peers.json` and what was left out, in sentences. Rows of a package that is missing stay
    if this compiler wrote them.
    """
    kept = stored if stored.get("compiler") == compiler else {"packages": {}, "rows": []}
    versions = {name: version_in(folder, name) for name in PACKAGES}
    here = {name for name, version in versions.items() if version}
    skipped = [
        f"{name} is not in {folder}: its rows stay as they are; install it with `pip install --no-deps --target`."
        for name in versions
        if name not in here
    ]
    rows = [row for row in kept["rows"] if row["package"] not in here]
    sys.path.insert(0, str(folder))
    try:
        for peer in PEERS:
            if peer.package in here:
                rows += [_row(peer, target, dtype) for target in TARGETS for dtype in DTYPES]
    finally:
        sys.path.remove(str(folder))
    packages = {**kept["packages"], **{name: versions[name] for name in here}}
    return {
        "compiler": compiler,
        "packages": dict(sorted(packages.items())),
        "rows": sorted(rows, key=_order),
    }, skipped


def load() -> dict[str, Any]:
    if not JSON.exists():
        return {}
    return json.loads(JSON.read_text(encoding="utf-8"))


def save(content: dict[str, Any]) -> None:
    """Write `peers.json`, a row a line."""
    parts = [f'  "{name}": {json.dumps(content[name])}' for name in ("compiler", "packages")]
    lines = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in content["rows"])
    parts.append(f'  "rows": [\n{lines}\n  ]')
    JSON.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def recorded(peer: Peer, target: str, dtype: torch.dtype) -> Launch:
    """Run the package's host function for a device that is not there, and keep what it launches."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    module = importlib.import_module(peer.module)
    names = [n for n, value in vars(module).items() if hasattr(value, "warmup") and hasattr(value, "arg_names")]
    recorders = {name: _Recorder(getattr(module, name).arg_names) for name in names}
    capability = divmod(int(target[3:]), 10)
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        stack.enter_context(mock.patch("torch.cuda.get_device_capability", return_value=capability))
        for name, recorder in recorders.items():
            stack.enter_context(mock.patch.object(module, name, recorder))
        peer.call(module, torch.empty(BATCH, WIDTH, dtype=dtype, device="cuda"), torch.empty(BATCH, device="cuda"))
    (launch,) = recorders[peer.kernel].launches
    return launch


class _Recorder:
    """Stands where a kernel stood."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.launches = names, list[Launch]()

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self._record

    def _record(self, *positional: Any, **named: Any) -> None:
        given = dict(zip(self.names, positional, strict=False)) | named
        arguments = {n: v.dtype if isinstance(v, torch.Tensor) else v for n, v in given.items() if n in self.names}
        options = {n: v for n, v in given.items() if n not in self.names}
        self.launches.append(Launch(arguments, options))


def _row(peer: Peer, target: str, dtype: torch.dtype) -> Row:
    from .compiler import compile_for, spills_inside

    launch = recorded(peer, target, dtype)
    kernel = getattr(importlib.import_module(peer.module), peer.kernel)
    compiled = compile_for(target, kernel, launch.arguments, **launch.options)
    rows, columns = (launch.arguments[name] for name in peer.tile)
    logits = rows * columns / compiled.threads
    hot = hot_loop(
        compiled.program,
        logits,
        ("MUFU.EX2",),
        # A kernel of one tile has a loop over pieces of the features.
        pieces=launch.arguments["D_MODEL"] / launch.arguments["BLOCK_SIZE_D"] if peer.one_tile else 0.0,
        products=True,
        whole=peer.one_tile,
    )
    if hot.repetition > _UNROLLED:
        raise ValueError(f"{hot.repetition} exponentials a logit: the compiler unrolled the loop")
    stages = launch.options.get("num_stages", 3)
    return {
        "package": peer.package,
        "path": peer.path,
        "kernel": peer.kernel,
        "target": target,
        "dtype": str(dtype).removeprefix("torch."),
        "config": f"D={WIDTH}, {rows}×{columns}, {compiled.threads // 32} warps, {stages} stages",
        "registers": compiled.registers,
        "stack": compiled.stack,
        "spills_in_loop": spills_inside(hot.loop),
        "shared_bytes": compiled.shared,
        "tensor_instruction": compiled.tensor_instruction or "",
        "counted": "whole kernel" if peer.one_tile else "loop",
        "counted_instructions": hot.instructions,
        "exponentials_per_logit": round(hot.repetition, 2),
        "instructions_per_logit": round(hot.each, 2),
    }


_INTRODUCTION = """Written by `python kernels/proof --peers FOLDER` with {versions}: the kernels of {packages}, as their
own host functions launch them for B = {batch}, D = {width}, beside NT-Xent's rows above. Same compiler, same count;
nothing here is a timing."""
_NOTES = """
* They compute CLIP's loss, whose matrix of logits is not symmetric. Both packages' backward kernels run once for each
  side; NT-Xent's runs once, and a logit of its triangle serves two entries. memeff's forward pass serves a row and a
  column, by atomic additions; inf-cl's serves a row.
* In float32 their products are single TF32 products, NT-Xent's are three, to keep fp32's accuracy: these rows do not
  compare like with like.
* inf-cl's public function converts its operands to float32, whatever they are: its bfloat16 rows are the kernel's, not
  what a user runs.
* "Whole" marks a kernel that has one tile a program and no loop over tiles: all its instructions are counted."""


def document(content: dict[str, Any], own: list[Row]) -> Iterator[str]:
    """Lines of LEDGER.md's part on public kernels; own: rows of the ledger. Nothing if there are no figures."""
    if not content:
        return
    yield from ("", f"## {HEADING}", "")
    versions = ", ".join(f"{name} {version}" for name, version in content["compiler"].items())
    packages = " and ".join(f"{name} {version}" for name, version in content["packages"].items())
    introduction = _INTRODUCTION.format(versions=versions, packages=packages, batch=BATCH, width=WIDTH)
    yield from textwrap.wrap(introduction, 120)
    yield from _NOTES.splitlines()
    heads = ["package", "path", "target", "dtype", "config", "registers", "stack", "shared KB", "tensor instruction"]
    heads += ["instructions a logit"]
    yield from ("", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|")
    yield from map(_line, sorted([*content["rows"], *_comparable(own)], key=_order))


def _comparable(own: list[Row]) -> Iterator[Row]:
    dtypes = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    for row in own:
        wanted = (row["op"], row["path"] in OWN_PATHS, row["target"] in TARGETS, row["dtype"] in dtypes)
        if wanted == ("nt_xent", True, True, True) and row["config"].startswith(f"D={WIDTH},"):
            yield {
                **row,
                "package": "fastssl_kernels",
                "counted": "loop",
                "instructions_per_logit": row["instructions_per_unit"],
            }


def _order(row: Row) -> tuple[Any, ...]:
    return (
        TARGETS.index(row["target"]),
        row["dtype"],
        row["path"].startswith("backward"),
        row["package"],
        row["path"],
    )


def _line(row: Row) -> str:
    spills = f", {row['spills_in_loop']} spills" if row["spills_in_loop"] else ""
    whole = ", whole" if row["counted"] == "whole kernel" else ""
    return (
        f"| {row['package']} | {row['path']} | {row['target']} | {row['dtype']} | {row['config']} "
        f"| {row['registers']}{spills} | {row['stack']} | {row['shared_bytes'] / 1024:.0f} "
        f"| {row['tensor_instruction'] or '–'} | {row['instructions_per_logit']}{whole} |"
    )
