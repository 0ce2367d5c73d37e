"""Compile a kernel for a GPU that is not there, and read what the assembler made of it.

Everything needed comes with the triton package: ptxas, cuobjdump and nvdisasm for NVIDIA, LLVM for AMD. Needs a process
without TRITON_INTERPRET.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction, MockTensor

from . import sass

if os.environ.get("TRITON_INTERPRET") == "1":
    raise ImportError("proof.compiler cannot work in a process with TRITON_INTERPRET=1")

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_SPILLS = ("LDL", "STL", "scratch_load", "scratch_store")
_TENSOR = ("UTCHMMA", "HGMMA", "HMMA", "v_mfma")


@dataclass(frozen=True)
class Compiled:
    """Resources of one compiled kernel.

    registers: a thread. stack: bytes a thread. shared: bytes a program.
    """

    target: str
    registers: int
    stack: int
    shared: int
    threads: int
    program: sass.Program

    @property
    def tensor_instruction(self) -> str | None:
        """The commonest matrix instruction, None if there is none."""
        used = self.program.whole.opcodes
        return max((name for name in used if name.startswith(_TENSOR)), key=lambda name: used[name], default=None)

    @property
    def widest_load(self) -> int:
        """Bits of the widest load from global memory (NVIDIA; 0 if there is none)."""
        loads = [name for name in self.program.whole.opcodes if name.startswith(("LDG", "UBLKCP", "UTMALDG"))]
        return max(
            (int(bits) for name in loads for bits in re.findall(r"\.(128|64)$", name)), default=32 if loads else 0
        )


def compile_for(target: str, kernel: JITFunction[Any], arguments: dict[str, Any], **options: Any) -> Compiled:
    """Compile `kernel` for `target` ("sm_80", "gfx942").

    arguments: by name. A torch.dtype stands for a pointer to such elements (16-byte aligned); numbers are real
        values, so that they specialise as they would at run time.
    options: num_warps, num_stages and what else Triton takes at launch.
    """
    nvidia = target.startswith("sm_")
    gpu = GPUTarget("cuda", int(target[3:]), 32) if nvidia else GPUTarget("hip", target, 64)
    driver.set_active(_NoDevice(gpu))
    kernel.device_caches.clear()
    values = {name: MockTensor(v) if isinstance(v, torch.dtype) else v for name, v in arguments.items()}
    compiled = kernel.warmup(grid=(1,), **values, **options)
    threads = compiled.metadata.num_warps * gpu.warp_size
    read = _read_nvidia if nvidia else _read_amd
    registers, stack, text = read(compiled.asm)
    return Compiled(target, registers, stack, compiled.metadata.shared, threads, sass.parse(text))


def spills_inside(loop: sass.Loop) -> int:
    """Instructions of a loop that move registers to and from memory."""
    return loop.count(*_SPILLS)


class _NoDevice:
    """As much of a driver as compiling asks for."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: Any = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def _read_nvidia(asm: dict[str, Any]) -> tuple[int, int, str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(asm["cubin"])
        cubin.flush()
        usage = _output(TOOLS / "cuobjdump", "--dump-resource-usage", cubin.name)
        text = _output(TOOLS / "nvdisasm", "-c", cubin.name)
    return _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage), text


def _read_amd(asm: dict[str, Any]) -> tuple[int, int, str]:
    text = asm["amdgcn"]
    return _number(r"\.vgpr_count:\s*(\d+)", text), _number(r"\.private_segment_fixed_size:\s*(\d+)", text), text


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the assembler did not print {pattern!r}")
    return int(found.group(1))
