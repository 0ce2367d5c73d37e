"""The corrected interpreter itself: each thing it is meant to catch is committed once, and caught."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from proof.interpreter import checked, from_bf16, same_in_any_order, to_bf16, to_tf32
from triton.runtime.errors import InterpreterError


@triton.jit
def product(a, b, out, PRECISION: tl.constexpr):
    i = tl.arange(0, 16)
    at = i[:, None] * 16 + i[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at), input_precision=PRECISION).to(out.dtype.element_ty))


@triton.jit
def scale(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < n, other=0.0)
    tl.store(out + i, (tl.exp2(value.to(tl.float32)) * 3).to(out.dtype.element_ty), mask=i < n)


@triton.jit
def forgetful(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out, tl.sum(tl.load(x + i, mask=i < n)))


@triton.jit
def last_wins(out):
    tl.store(out, tl.program_id(0))


@triton.jit
def neighbour(out):
    i = tl.program_id(0)
    left = tl.load(out + (i + tl.num_programs(0) - 1) % tl.num_programs(0))
    tl.store(out + i, left + 1)


@triton.jit
def add(x, total):
    tl.atomic_add(total, tl.load(x + tl.program_id(0)))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_bfloat16_rounds_to_nearest_even_and_keeps_nan():
    x = torch.cat([torch.randn(1000), torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 3.4e38, 1e-40, torch.nan])])
    ours = torch.from_numpy(from_bf16(to_bf16(x.numpy())))
    torch.testing.assert_close(ours, x.bfloat16().float(), rtol=0, atol=0, equal_nan=True)


def test_tf32_keeps_ten_bits():
    x = np.float32([1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-12])
    assert to_tf32(x).tolist() == [1 + 2**-10, 1.0, 1 + 2**-9, -1.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_match_float64(dtype):
    a, b = torch.randn(2, 16, 16).to(dtype)
    with checked():
        out = torch.empty(16, 16)
        product[(1,)](a, b, out, PRECISION="ieee")
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)


def test_tf32_operands_are_rounded():
    a, b = torch.randn(2, 16, 16)
    with checked():
        out = torch.empty(16, 16)
        product[(1,)](a, b, out, PRECISION="tf32")
    rounded = [torch.from_numpy(to_tf32(t.numpy())).double() for t in (a, b)]
    torch.testing.assert_close(out.double(), rounded[0] @ rounded[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(out, a @ b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_work_is_counted(dtype):
    x = torch.randn(100).to(dtype)

    def run():
        out = torch.empty_like(x)
        scale[(4,)](x, out, 100, BLOCK=32)
        return out

    out, work = same_in_any_order(run)
    torch.testing.assert_close(out, (x.float().exp2() * 3).to(dtype))
    assert work.loaded == work.stored == 100 * dtype.itemsize
    assert work.by_tensor["x", "load"] == 100 * dtype.itemsize
    assert (work.exponentials, work.launches, work.dot_flops) == (128, 1, 0)


def test_an_access_outside_the_arguments_is_refused():
    x, out = torch.randn(100), torch.empty(64)
    with checked(), pytest.raises(InterpreterError, match="outside every tensor"):
        scale[(4,)](x, out, 100, BLOCK=32)


def test_a_view_ends_where_it_ends():
    x, out = torch.randn(200)[:100], torch.empty(200)[:90]
    with checked(), pytest.raises(InterpreterError, match="outside every tensor"):
        scale[(4,)](x, out, 100, BLOCK=32)


def test_a_masked_lane_without_other_is_not_zero():
    out = torch.zeros(1)
    with checked():
        forgetful[(1,)](torch.ones(8), out, 8, BLOCK=16)
    assert out.isnan().all()


def test_fresh_memory_is_not_zero():
    with checked():
        assert torch.empty(3).isnan().all()


def test_two_programs_must_not_write_one_address():
    with checked(), pytest.raises(InterpreterError, match="writes what another program writes"):
        last_wins[(2,)](torch.zeros(1, dtype=torch.int32))


def test_a_program_must_not_read_what_another_writes():
    with checked(), pytest.raises(InterpreterError, match="another program"):
        neighbour[(4,)](torch.zeros(4, dtype=torch.int32))


def test_a_result_that_depends_on_the_order_is_refused():
    x = torch.tensor([1e8, 1.0, -1e8, 1.0, 3.0, 1e-3])

    def run():
        total = torch.zeros(1)
        add[(6,)](x, total)
        return total

    with pytest.raises(AssertionError, match="order"):
        same_in_any_order(run, orders=8)
