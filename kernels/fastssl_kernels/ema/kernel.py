"""target ← m·target + (1 − m)·online for any number of tensors in one launch.

Addresses come from a table on the device: row t holds the addresses of target and online, the number of elements and
the first program of tensor t. Every access is 128 bits wide: masks are decided a vector of VEC elements at a time, and
the fewer than VEC elements left at the end of a tensor are done apart.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def array(row, column: tl.constexpr, DTYPE: tl.constexpr):
    """The array whose address stands in column `column` of a table row."""
    return tl.load(row + column).to(tl.pointer_type(DTYPE), bitcast=True)


@triton.jit
def block(p, o, VEC: tl.constexpr):
    """Pointers to the elements `o` of an array; VEC > 1 promises that whole vectors begin at multiples of 16 bytes.

    The promise must be made here: the compiler ignores it on an address that was loaded from memory.
    """
    return tl.multiple_of(p + o, 16) if VEC > 1 else p + o


@triton.jit
def lerp(target, online, weight):
    """target + weight·(online − target), exact at weight 0 and 1 and where both are equal."""
    difference = online - target
    return tl.where(weight < 0.5, target + weight * difference, online - difference * (1 - weight))


@triton.jit
def ema_block(p_target, p_online, o, m, weight, VEC: tl.constexpr):
    p_t = block(p_target, o, VEC)
    b_target = tl.load(p_t, mask=m, other=0)
    b_online = tl.load(block(p_online, o, VEC), mask=m, other=0)
    average = lerp(b_target.to(weight.dtype), b_online.to(weight.dtype), weight)
    tl.store(p_t, average.to(b_target.dtype), mask=m)


@triton.jit
def ema_kernel(
    table_ptr,
    owner_ptr,
    momentum_ptr,
    TARGET: tl.constexpr,
    ONLINE: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
):
    """One program a chunk. `owner` [programs] int32: the tensor of each program; `momentum`: one float of any width."""
    pid = tl.program_id(0)
    row = table_ptr + tl.load(owner_ptr + pid) * 4
    p_target = array(row, 0, TARGET)
    p_online = array(row, 1, ONLINE)
    begin = (pid - tl.load(row + 3)) * CHUNK
    end = tl.minimum(begin + CHUNK, tl.load(row + 2))
    weight = (1 - tl.load(momentum_ptr)).to(WIDE)
    for i in range(tl.cdiv(end - begin, BLOCK)):
        o = begin + i * BLOCK + tl.arange(0, BLOCK)
        ema_block(p_target, p_online, o, o // VEC < end // VEC, weight, VEC)
    if end % VEC != 0:
        o = end // VEC * VEC + tl.arange(0, VEC)
        ema_block(p_target, p_online, o, o < end, weight, 1)
