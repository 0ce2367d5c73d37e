"""Triton's interpreter, with its silent errors corrected and what it does not notice checked.

Uncorrected, it multiplies the bit patterns of bfloat16 numbers, truncates casts to bfloat16, keeps all bits of TF32
operands, reads zeros in masked lanes that have no `other`, and runs programs one after another in order, so that no
race can show. Here

* bfloat16 and TF32 are rounded as the hardware rounds them (to nearest even);
* every access must lie inside a tensor that was passed to the kernel or named to `checked`;
* lanes that are masked out and have no `other` read NaN (integers: a large number);
* programs run in a random order, and `torch.empty` is filled with NaN;
* an address that two programs of one launch touch, one of them writing without atomics, is an error;
* bytes, dot FLOPs and exponentials are counted.

    with checked(seed=1) as work:
        launch(...)
    assert work.loaded == ...

Import this module in a process that has TRITON_INTERPRET=1 from its start.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

if os.environ.get("TRITON_INTERPRET") != "1":
    raise ImportError("proof.interpreter needs TRITON_INTERPRET=1 in the environment before triton is imported")

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton._C.libtriton import ir
from triton.runtime import interpreter as triton_interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

NOBODY, SEVERAL, ATOMIC = -1, -2, -3
_HALVES = {tl.bfloat16, tl.float16, tl.float32, tl.float64}


class KernelError(AssertionError):
    """A kernel touched memory that it must not touch."""


@dataclass
class Work:
    """What the launches inside `checked` did; bytes, operations, and bytes by (tensor name, kind of access)."""

    loaded: int = 0
    stored: int = 0
    atomic: int = 0
    dot_flops: int = 0
    exponentials: int = 0
    launches: int = 0
    by_tensor: Counter[tuple[str, str]] = field(default_factory=Counter)


class _Region:
    """One tensor's memory and who touched it during the current launch."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name = name
        extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        self.start = tensor.data_ptr()
        self.stop = self.start + (extent if tensor.numel() else 0) * tensor.element_size()
        self.item = tensor.element_size()
        self.writer = np.full(extent, NOBODY, np.int32)
        self.reader = np.full(extent, NOBODY, np.int32)

    def forget(self) -> None:
        self.writer.fill(NOBODY)
        self.reader.fill(NOBODY)

    def touch(self, addresses: np.ndarray, kind: str, program: int) -> None:
        where = (addresses - np.uint64(self.start)) // np.uint64(self.item)
        writers, readers = self.writer[where], self.reader[where]
        if kind == "load":
            self._refuse((writers != NOBODY) & (writers != program), "reads what another program writes")
            self.reader[where] = np.where((readers == NOBODY) | (readers == program), program, SEVERAL)
            return
        foreign = (readers != NOBODY) & (readers != program)
        self._refuse(foreign, "writes what another program reads")
        if kind == "atomic":
            self._refuse((writers != NOBODY) & (writers != ATOMIC), "mixes atomic and plain writes")
            self.writer[where] = ATOMIC
            return
        self._refuse((writers != NOBODY) & (writers != program), "writes what another program writes")
        self.writer[where] = program

    def _refuse(self, wrong: np.ndarray, what: str) -> None:
        if wrong.any():
            raise KernelError(f"a program {what}: {int(wrong.sum())} elements of {self.name}, in one launch")


class _State:
    """The launches being watched; one at a time, as the interpreter itself."""

    def __init__(self) -> None:
        self.active = False
        self.work = Work()
        self.named: list[_Region] = []
        self.shared: frozenset[str] = frozenset()
        self.passed: list[_Region] = []
        self.order: np.ndarray = np.zeros(0, np.int64)
        self.random = np.random.default_rng(0)
        self.program = 0

    def access(self, kind: str, pointers: TensorHandle, mask: TensorHandle | None) -> None:
        if not self.active:
            return
        item = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        allowed = np.broadcast_to(True if mask is None else mask.data, pointers.data.shape)
        addresses = pointers.data[allowed].ravel()
        attribute = {"load": "loaded", "store": "stored", "atomic": "atomic"}[kind]
        setattr(self.work, attribute, getattr(self.work, attribute) + addresses.size * item)
        for region in self.named + self.passed:
            inside = (addresses >= region.start) & (addresses < region.stop)
            if inside.any():
                self.work.by_tensor[region.name, kind] += int(inside.sum()) * item
                if region.name not in self.shared:
                    region.touch(addresses[inside], kind, self.program)
                addresses = addresses[~inside]
        if addresses.size:
            raise KernelError(
                f"{kind} of {addresses.size} elements outside every tensor, e.g. at {int(addresses[0]):#x}"
            )


_state = _State()


def to_bf16(x: np.ndarray) -> np.ndarray:
    """fp32 -> the 16 bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    x = np.ascontiguousarray(x, np.float32)
    bits = x.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def to_tf32(x: np.ndarray) -> np.ndarray:
    """fp32 -> fp32 with 10 bits of mantissa, to nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


def _is_bf16(handle: TensorHandle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _wide(handle: TensorHandle) -> TensorHandle:
    return TensorHandle(from_bf16(handle.data), tl.float32) if _is_bf16(handle) else handle


def _narrow(data: np.ndarray) -> TensorHandle:
    if data.dtype == np.bool_:
        return TensorHandle(data, tl.int1)
    return TensorHandle(to_bf16(data), tl.bfloat16)


class _Builder(InterpreterBuilder):
    """The interpreter's own builder, operation by operation made exact or observed."""

    def set_grid_dim(self, *grid: int) -> None:
        super().set_grid_dim(*grid)
        if _state.active:
            _state.work.launches += 1
            _state.order = _state.random.permutation(int(np.prod(grid)))
            for region in _state.named + _state.passed:
                region.forget()

    def set_grid_idx(self, x: int, y: int, z: int) -> None:
        if _state.active:
            _, ny, nz = self.grid_dim
            _state.program = int(_state.order[(x * ny + y) * nz + z])
            x, y, z = _state.program // (ny * nz), _state.program // nz % ny, _state.program % nz
        super().set_grid_idx(x, y, z)

    # Memory.

    def create_load(self, pointers: Any, cache: Any, eviction: Any, volatile: Any) -> TensorHandle:
        everywhere = TensorHandle(np.ones_like(pointers.data, dtype=bool), tl.int1)
        return self.create_masked_load(pointers, everywhere, None, cache, eviction, volatile)

    def create_masked_load(
        self, pointers: Any, mask: Any, other: Any, cache_modifier: Any, eviction_policy: Any, is_volatile: Any
    ) -> TensorHandle:
        _state.access("load", pointers, mask)
        if other is None:
            kind = pointers.get_element_ty()
            numpy_type = triton_interpreter._get_np_dtype(kind)
            if kind == tl.bfloat16:
                filler: Any = 0x7FC0
            elif np.issubdtype(numpy_type, np.floating):
                filler = np.nan
            else:
                filler = np.iinfo(numpy_type).max if np.issubdtype(numpy_type, np.integer) else True
            other = TensorHandle(np.full(pointers.data.shape, filler, numpy_type), kind)
        return super().create_masked_load(pointers, mask, other, cache_modifier, eviction_policy, is_volatile)

    def create_masked_store(self, pointers: Any, value: Any, mask: Any, cache: Any, eviction: Any) -> Any:
        _state.access("store", pointers, mask)
        return super().create_masked_store(pointers, value, mask, cache, eviction)

    def create_atomic_rmw(self, operation: Any, pointer: Any, value: Any, mask: Any, sem: Any, scope: Any) -> Any:
        _state.access("atomic", pointer, mask)
        if _is_bf16(value):
            raise NotImplementedError("atomics on bfloat16 are not interpreted: accumulate in float32")
        return super().create_atomic_rmw(operation, pointer, value, mask, sem, scope)

    def create_atomic_cas(self, pointer: Any, compare: Any, value: Any, sem: Any, scope: Any) -> Any:
        _state.access("atomic", pointer, None)
        return super().create_atomic_cas(pointer, compare, value, sem, scope)

    # Arithmetic.

    def get_bf16(self, value: float) -> TensorHandle:
        return _narrow(np.array([value], np.float32))

    def cast_impl(self, source: Any, target: Any) -> TensorHandle:
        before, after = source.dtype.scalar, target.scalar
        if before == after:
            return source
        if after == tl.bfloat16:
            return _narrow(np.asarray(_wide(source).data).astype(np.float32))
        if before == tl.bfloat16:
            return TensorHandle(_wide(source).data.astype(triton_interpreter._get_np_dtype(after)), after)
        return super().cast_impl(source, target)

    def create_fp_to_fp(self, source: Any, target: Any, rounding: Any) -> TensorHandle:
        nearest = rounding is None or rounding == ir.ROUNDING_MODE.RTNE
        if nearest and {source.dtype.scalar, target.scalar} <= _HALVES:
            return self.cast_impl(source, target)
        return super().create_fp_to_fp(source, target, rounding)

    def binary_op(self, left: Any, right: Any, op: Callable[..., Any]) -> TensorHandle:
        if _is_bf16(left) or _is_bf16(right):
            return _narrow(op(_wide(left).data, _wide(right).data))
        return super().binary_op(left, right, op)

    def unary_op(self, value: Any, op: Callable[..., Any]) -> TensorHandle:
        if _is_bf16(value):
            return _narrow(op(_wide(value).data))
        return super().unary_op(value, op)

    def create_rsqrt(self, value: Any) -> TensorHandle:
        return self.unary_op(value, lambda x: (1.0 / np.sqrt(x)).astype(x.dtype))

    def create_clampf(self, value: Any, low: Any, high: Any, nans: Any) -> TensorHandle:
        if _is_bf16(value):
            return self.cast_impl(super().create_clampf(_wide(value), _wide(low), _wide(high), nans), tl.bfloat16)
        return super().create_clampf(value, low, high, nans)

    def create_fma(self, x: Any, y: Any, z: Any) -> TensorHandle:
        if any(map(_is_bf16, (x, y, z))):
            return _narrow(_wide(x).data * _wide(y).data + _wide(z).data)
        if z.data.dtype == np.float32:
            exact = x.data.astype(np.float64) * y.data + z.data
            return TensorHandle(exact.astype(np.float32), z.dtype.scalar)
        return super().create_fma(x, y, z)

    def create_exp(self, value: Any) -> TensorHandle:
        _state.work.exponentials += value.data.size
        return self.unary_op(value, np.exp)

    def create_exp2(self, value: Any) -> TensorHandle:
        _state.work.exponentials += value.data.size
        return self.unary_op(value, np.exp2)

    def create_dot(self, a: Any, b: Any, accumulator: Any, input_precision: Any, imprecise: Any) -> TensorHandle:
        (*batch, m, k), n = a.data.shape, b.data.shape[-1]
        _state.work.dot_flops += 2 * int(np.prod(batch, dtype=np.int64)) * m * n * k
        if not (_is_bf16(a) or a.data.dtype in (np.float16, np.float32)):
            return super().create_dot(a, b, accumulator, input_precision, imprecise)
        left, right = _wide(a).data, _wide(b).data
        if a.dtype.scalar == tl.float32 and input_precision == ir.INPUT_PRECISION.TF32:
            left, right = to_tf32(left), to_tf32(right)
        product = np.matmul(left, right, dtype=np.float32) + _wide(accumulator).data
        return self.cast_impl(TensorHandle(product.astype(np.float32), tl.float32), accumulator.dtype)


class _Executor(GridExecutor):
    """Learns which tensors a launch may touch."""

    def _init_args_hst(self, args_dev: Any, kwargs: Any) -> Any:
        names = [*self.arg_names[: len(args_dev)], *kwargs]
        tensors = [*args_dev, *kwargs.values()]
        if _state.active:
            _state.passed = [_Region(n, t) for n, t in zip(names, tensors, strict=True) if isinstance(t, Tensor)]
        return super()._init_args_hst(args_dev, kwargs)


class _Reduce(triton_interpreter.ReduceOps):
    def apply_impl(self, input: Any) -> Any:
        if any(_is_bf16(x.handle) for x in (input if isinstance(input, tuple) else (input,))):
            raise NotImplementedError("reductions of bfloat16 are not interpreted: convert to float32 first")
        return super().apply_impl(input)


triton_interpreter.interpreter_builder.__class__ = _Builder
triton_interpreter.GridExecutor = _Executor
triton_interpreter.ReduceOps = _Reduce


@contextmanager
def checked(seed: int = 0, shared: tuple[str, ...] = (), **tensors: Tensor) -> Iterator[Work]:
    """Watch every launch in the block; raises `InterpreterError` around the first `KernelError`.

    seed: of the order in which programs run.
    shared: names of arguments through which programs of one launch communicate on purpose; not checked for races.
    tensors: memory that kernels reach through addresses rather than arguments.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    _state.__init__()  # type: ignore[misc]
    _state.active, _state.random, _state.shared = True, np.random.default_rng(seed), frozenset(shared)
    _state.named = [_Region(name, tensor) for name, tensor in tensors.items()]
    torch.use_deterministic_algorithms(True)  # also fills torch.empty with NaN
    try:
        yield _state.work
    finally:
        torch.use_deterministic_algorithms(deterministic)
        _state.active = False


def same_in_any_order(run: Callable[[], Any], orders: int = 3) -> tuple[Any, Work]:
    """The result of `run()` under several program orders, which must agree bit for bit, and the work of one run."""
    with checked(seed=0) as work:
        result = run()
    for seed in range(1, orders):
        with checked(seed=seed):
            again = run()
        for first, other in zip(_tensors(result), _tensors(again), strict=True):
            if not torch.equal(first.nan_to_num(), other.nan_to_num()):
                raise KernelError("the result depends on the order in which programs run")
    return result, work


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [t for part in result for t in _tensors(part)] if isinstance(result, (tuple, list)) else []
