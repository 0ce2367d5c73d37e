"""Memory that a step freed serves the next one: no page of it is asked of the kernel again."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

PROGRAM = """
import resource, sys, torch
from fastssl.engine.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(12 << 20) for _ in range(3)]  # 48 MB each, 36,864 pages together
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(way: str) -> int:
    ended = subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, check=True)
    return int(ended.stdout)


def test_large_blocks_are_not_mapped_afresh():
    assert faults("default") > 36_000  # what there is to gain; else the next line shows nothing
    assert faults("keep") < 100
