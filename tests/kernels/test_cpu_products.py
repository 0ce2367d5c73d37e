"""How the CPU multiplies 16-bit input: in fp32 blocks, which the processor rounds only where it has products for that.

torch's products of 16-bit tensors are many times slower than fp32 where the processor has none, and round the result:
only sums that may be rounded are made so, and only where AVX-512 multiplies bf16.
"""

import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels import (
    Queue,
    arithmetic,
    info_nce,
    nearest_neighbor,
    nt_xent,
    relic,
    sinkhorn_from_features,
    swapped_prediction,
)
from fastssl_kernels.nearest_neighbor import native
from no_reading import NoReading

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "matmul", "mv", "addmv", "linear", "dot", "vdot", "addbmm"}
# Rounding of an operand to bf16.
TOLERANCE = 5e-3


class ProductDtypes(NoReading):
    """Collects the dtypes that products are given, inside operators too."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name.removeprefix("aten::").rstrip("_") in PRODUCTS:
            self.dtypes |= {a.dtype for a in args if isinstance(a, torch.Tensor)}
        return super().__torch_dispatch__(func, types, args, kwargs)


def rows(count, dtype, width=16):
    generator = torch.Generator().manual_seed(count)
    return F.normalize(torch.randn(count, width, generator=generator), dim=1).to(dtype).requires_grad_()


def of_nt_xent(dtype):
    z = rows(48, dtype)
    loss = nt_xent(z, temperature=0.2)
    loss.backward()
    return loss, z.grad


def of_info_nce(dtype):
    query, queue = rows(24, dtype), rows(40, dtype).detach()
    loss = info_nce(query, rows(25, dtype)[:24], queue=queue, temperature=0.2)
    loss.backward()
    return loss, query.grad


def of_relic(dtype):
    online = rows(48, dtype)
    loss = relic(online, rows(49, dtype)[:48], views=(2, 0), temperature=0.2, alpha=1.0)
    loss.backward()
    return loss, online.grad


def of_swav(dtype):
    z, prototypes = rows(48, dtype), rows(20, dtype)
    codes = sinkhorn_from_features(z.view(2, 24, -1), prototypes)
    loss = swapped_prediction(z, prototypes, codes, temperature=0.1)
    loss.backward()
    return loss, z.grad, prototypes.grad


def of_lookup(dtype):
    return (nearest_neighbor(rows(24, dtype), Queue(300, 16, dtype=dtype)).similarity,)


OPERATIONS = [of_nt_xent, of_info_nce, of_relic, of_swav, of_lookup]


@pytest.fixture(autouse=True)
def torch_multiplies(monkeypatch):
    """The library in C has no product that torch would see."""
    monkeypatch.setattr(native, "versions", lambda: ())


def has(monkeypatch, *instructions):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True))


@pytest.mark.parametrize("instructions", [(), ("avx512_bf16", "amx_bf16")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_product_is_given_16_bit_tensors(operation, dtype, instructions, monkeypatch):
    has(monkeypatch, *instructions)
    with ProductDtypes() as products:
        operation(dtype)
    assert products.dtypes == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("operation", [of_nt_xent, of_info_nce])
def test_weighted_sums_are_given_bf16_where_avx_512_multiplies_it(operation, dtype, monkeypatch):
    has(monkeypatch)
    within = operation(dtype)
    has(monkeypatch, "avx512_bf16")
    with ProductDtypes() as products:
        before = operation(dtype)
    assert products.dtypes == {torch.float32, *({dtype} if dtype == torch.bfloat16 else ())}
    for a, b in zip(within, before, strict=True):
        assert (a.double() - b.double()).norm() <= TOLERANCE * b.double().norm()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_results_with_and_without_the_switch_agree(operation, monkeypatch):
    """With the switch oneDNN may round operands, where the processor has the instructions; without it nothing does."""
    plain = operation(torch.bfloat16)
    monkeypatch.setattr(arithmetic, "_switch", lambda: None)
    without = operation(torch.bfloat16)
    for a, b in zip(plain, without, strict=True):
        assert (a.double() - b.double()).norm() <= TOLERANCE * b.double().norm()


def test_the_switch_is_taken_only_for_bf16():
    switch = arithmetic._switch()
    if switch is None:
        pytest.skip("this torch has no precision of fp32 products")
    for dtype, expected in ((torch.bfloat16, "bf16"), (torch.float32, "ieee"), (torch.float16, "ieee")):
        before = switch.fp32_precision
        with arithmetic.plain_arithmetic(dtype):
            assert switch.fp32_precision == expected
        assert switch.fp32_precision == before
