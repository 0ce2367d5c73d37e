"""NT-Xent and InfoNCE on the CPU against their definition in float64."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels import info_nce, nt_xent
from fastssl_kernels.nt_xent import info_nce_reference, nt_xent_reference
from fastssl_kernels.nt_xent.logits import KNOWN_MAXIMUM_FROM
from laws import TOLERANCE, assert_nt_xent, relative
from torch.library import opcheck

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def views_of(batch, width, views=2, cosine=None, dtype=torch.float32):
    """[views·batch, width] embeddings; `cosine` is how close the views of an image are (None: unrelated)."""
    images = torch.randn(batch, width, dtype=torch.float64)
    noise = torch.randn(views, batch, width, dtype=torch.float64)
    spread = 0.0 if cosine == 1 else math.sqrt(1 / cosine - 1) if cosine else 1e6
    return (images + spread * noise).view(-1, width).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 2, 3, 127, 256, 600])
def test_nt_xent_matches_float64(batch, dtype):
    assert_nt_xent(views_of(batch, 64, dtype=dtype), temperature=0.1, tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("views", [3, 4])
def test_more_than_two_views(views):
    assert_nt_xent(views_of(150, 48, views), temperature=0.2, views=views, tolerance=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 3, 33, 130])
def test_any_width(width, dtype):
    assert_nt_xent(views_of(40, width, dtype=dtype), temperature=0.5, tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cosine", [0.994, 0.999])
def test_aligned_positives_keep_their_gradient(cosine, dtype):
    """Formed from rounded products, this gradient is wrong by 24 % and more."""
    assert_nt_xent(views_of(300, 128, cosine=cosine, dtype=dtype), temperature=0.5, tolerance=TOLERANCE[dtype])


def test_a_solved_task_keeps_its_gradient():
    """The whole gradient is 1 − p, here 5e-6: it must not be what is left of 1 after rounding."""
    assert_nt_xent(views_of(64, 256, cosine=0.999), temperature=0.06, tolerance=3e-5)


@pytest.mark.parametrize("temperature", [1e-3, 0.01, 0.0229, KNOWN_MAXIMUM_FROM, 0.03, 1.0, 100.0, 1e4])
def test_extreme_temperatures(temperature):
    assert_nt_xent(views_of(100, 32), temperature=temperature, tolerance=1e-5)


@pytest.mark.parametrize("temperature", [0.005, 0.1])
def test_opposite_rows_do_not_underflow(temperature):
    """All negatives at cosine −1 against an anchor: the smallest sums there are."""
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [-1.0, 0.0], [-1.0, -0.2]])
    assert_nt_xent(z, temperature=temperature, tolerance=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_identical_rows_are_a_tie(dtype):
    z = torch.randn(1, 24).expand(80, 24).to(dtype).requires_grad_()
    loss, metrics = nt_xent(z, temperature=0.1, return_metrics=True)
    (gradient,) = torch.autograd.grad(loss, z)
    # All cosines are 1; a rounded row has another length, by up to 2^-9, which 1 / τ multiplies.
    slack = 1e-5 if dtype == torch.float32 else 2**-8 / 0.1
    assert loss.item() == pytest.approx(math.log(79), abs=slack)
    assert metrics.entropy.item() == pytest.approx(math.log(79), abs=slack)
    assert metrics.accuracy.item() == 0
    assert gradient.norm() < 1e-2 * 1 / 0.1


def test_a_zero_row_has_no_direction_and_no_gradient():
    z = views_of(6, 8)
    z[3] = 0
    z.requires_grad_()
    nt_xent(z, temperature=0.5).backward()
    assert z.grad.isfinite().all()
    assert z.grad[3].eq(0).all()
    assert z.grad[2].norm() > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_as_they_are(dtype):
    z = views_of(70, 20, dtype=dtype) / 1e6
    assert_nt_xent(z, temperature=0.7, normalize=False, tolerance=TOLERANCE[dtype])


def test_the_gradient_is_orthogonal_to_the_row():
    z = views_of(50, 16).requires_grad_()
    nt_xent(z, temperature=0.2).backward()
    assert (z * z.grad).sum(1).abs().max() < 1e-6 * z.grad.norm() * z.norm()


def test_float64_and_float16_inputs():
    z = views_of(30, 16, dtype=torch.float64).requires_grad_()
    loss = nt_xent(z, temperature=0.5)
    loss.backward()
    assert (loss.dtype, z.grad.dtype) == (torch.float32, torch.float64)
    half = views_of(30, 16, cosine=0.5).half()
    assert_nt_xent(half, temperature=0.5, tolerance=5e-3)


def test_the_upstream_gradient_multiplies():
    z = views_of(20, 8).requires_grad_()
    (once,) = torch.autograd.grad(nt_xent(z, temperature=0.5), z)
    (thrice,) = torch.autograd.grad(3 * nt_xent(z, temperature=0.5), z)
    torch.testing.assert_close(thrice, 3 * once)


def test_rows_need_not_be_contiguous():
    wide = torch.randn(40, 33)
    assert_nt_xent(wide.T[:32].T, temperature=0.5, tolerance=1e-5)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("queue", [0, 1, 1700])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.02, 0.2])
@pytest.mark.parametrize("batch", [1, 90])
def test_a_memory_of_negatives(batch, temperature, dtype, queue, views):
    """SimCLR v2: rows of the memory join every denominator and pull no gradient of their own."""
    negatives = F.normalize(torch.randn(queue, 64), dim=1).to(dtype).requires_grad_()
    z = views_of(batch, 64, views, cosine=0.1, dtype=dtype)
    tolerance = TOLERANCE[dtype] * (1 if temperature > 0.1 else 4)
    assert_nt_xent(z, temperature=temperature, views=views, queue=negatives.detach(), tolerance=tolerance)
    z.requires_grad_()
    nt_xent(z, temperature=temperature, views=views, queue=negatives).backward()
    assert negatives.grad is None


def test_rows_as_they_are_with_a_memory():
    z, queue = views_of(70, 20) / 1e6, torch.randn(50, 20)
    assert_nt_xent(z, temperature=0.7, normalize=False, queue=queue, tolerance=1e-5)


def test_an_empty_memory_is_none():
    z = views_of(30, 16)
    assert torch.equal(nt_xent(z, temperature=0.1, queue=z[:0]), nt_xent(z, temperature=0.1))


@pytest.mark.parametrize("queue", [None, 0, 1, 700])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.02, 0.2])
def test_info_nce_matches_float64(queue, dtype, temperature):
    width, batch = 64, 90
    query = torch.randn(batch, width).to(dtype)
    key = (0.3 * query + torch.randn(batch, width)).to(dtype)
    negatives = None if queue is None else F.normalize(torch.randn(queue, width), dim=1).to(dtype)
    ours = [t.clone().requires_grad_() for t in (query, key)]
    exact = [t.double().requires_grad_() for t in (query, key)]
    loss, metrics = info_nce(*ours, queue=negatives, temperature=temperature, return_metrics=True)
    expected, counted = info_nce_reference(
        *exact, queue=None if negatives is None else negatives.double(), temperature=temperature, return_metrics=True
    )
    loss.backward()
    expected.backward()
    tolerance = TOLERANCE[dtype] * (1 if temperature > 0.1 else 4)
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)
    assert metrics.entropy.item() == pytest.approx(counted.entropy.item(), rel=10 * tolerance, abs=10 * tolerance)
    assert abs(metrics.accuracy.item() - counted.accuracy.item()) <= 1e-6 + 1.5 / batch * (dtype == torch.bfloat16)
    for mine, other in zip(ours, exact, strict=True):
        assert relative(mine.grad, other.grad) <= tolerance if other.grad.norm() > 1e-12 else mine.grad.norm() < 1e-6


def test_a_positive_in_the_queue_is_not_special():
    """MoCo's queue may hold an older key of the same image; it counts as a negative, as published."""
    query, key = torch.randn(2, 5, 8)
    queue = F.normalize(key, dim=1)
    loss = info_nce(query, key, queue=queue, temperature=0.1)
    assert loss.item() == pytest.approx(info_nce_reference(query, key, queue=queue, temperature=0.1).item(), rel=1e-5)
    assert loss > info_nce(query, key, queue=queue[:0], temperature=0.1)


def test_detached_sides_get_no_gradient():
    query, key = torch.randn(2, 10, 8)
    key.requires_grad_()
    loss = info_nce(query, key, temperature=0.1)
    loss.backward()
    exact = key.detach().double().requires_grad_()
    info_nce_reference(query.double(), exact, temperature=0.1).backward()
    assert relative(key.grad, exact.grad) < 1e-5
    assert query.grad is None
    with torch.no_grad():
        assert not info_nce(query, key, temperature=0.1).requires_grad


def test_two_directions_of_info_nce_are_not_nt_xent_but_share_its_positive():
    """Without the queries among the negatives the loss is smaller than NT-Xent on the same rows."""
    query, key = torch.randn(2, 32, 16)
    both = (info_nce(query, key, temperature=0.5) + info_nce(key, query, temperature=0.5)) / 2
    assert both < nt_xent(torch.cat([query, key]), temperature=0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_lowers_products_only(dtype):
    z = views_of(200, 64, cosine=0.9).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = nt_xent(z, temperature=0.1)
    loss.backward()
    exact = z.detach().double().requires_grad_()
    expected = nt_xent_reference(exact, temperature=0.1)
    expected.backward()
    assert loss.dtype == z.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    assert relative(z.grad, exact.grad) < 5e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operation", ["nt_xent", "info_nce"])
def test_gradients_beside_a_queue_under_autocast(operation, stored, dtype):
    """Rows in fp32, as heads often give them, beside a queue of either dtype."""
    queue = F.normalize(torch.randn(300, 64), dim=1).to(stored)
    ours = views_of(100, 64, cosine=0.9).requires_grad_()
    exact = ours.detach().double().requires_grad_()

    def loss(z, rows, nt_xent, info_nce):
        if operation == "nt_xent":
            return nt_xent(z, queue=rows, temperature=0.2)
        return info_nce(z[:100], z[100:].detach(), queue=rows, temperature=0.2)

    expected = loss(exact, queue.double(), nt_xent_reference, info_nce_reference)
    expected.backward()
    with torch.autocast("cpu", dtype=dtype):
        found = loss(ours, queue, nt_xent, info_nce)
    found.backward()
    assert found.dtype == ours.grad.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=2e-3)
    assert relative(ours.grad, exact.grad) < 5e-3


def test_the_precision_of_other_products_is_left_alone():
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    before = getattr(matmul, "fp32_precision", None)
    a = torch.randn(64, 64)
    product = a @ a
    nt_xent(views_of(20, 8, dtype=torch.bfloat16), temperature=0.1)
    assert getattr(matmul, "fp32_precision", None) == before
    assert torch.equal(a @ a, product)


NT_XENT_ARGUMENTS = [
    (True, torch.float32, True),
    (True, torch.bfloat16, False),
    (False, torch.float32, True),
]


@pytest.mark.parametrize("queue", [False, True])
@pytest.mark.parametrize(("normalize", "dtype", "metrics"), NT_XENT_ARGUMENTS)
def test_the_operator_keeps_its_contract(normalize, dtype, metrics, queue):
    z = torch.randn(12, 8, dtype=dtype, requires_grad=True)
    negatives = torch.randn(9, 8, dtype=dtype) if queue else None
    arguments = (z, negatives, 0.1, 2, normalize, dtype, metrics, True, "")
    opcheck(torch.ops.fastssl.nt_xent_forward.default, arguments)


@pytest.mark.parametrize("queue", [False, True])
def test_the_info_nce_operator_keeps_its_contract(queue):
    query = torch.randn(6, 8, requires_grad=True)
    key = torch.randn(6, 8, requires_grad=not queue)
    negatives = torch.randn(9, 8) if queue else None
    arguments = (query, key, negatives, 0.1, True, torch.float32, True, True, not queue, "")
    opcheck(torch.ops.fastssl.info_nce_forward.default, arguments)


def test_compiled_without_graph_breaks():
    def step(z, queue):
        half = z.shape[0] // 2
        loss, metrics = nt_xent(z * 2, queue=queue, temperature=0.1, return_metrics=True)
        return loss + info_nce(z[:half], z[half:], queue=queue, temperature=0.2), metrics.accuracy

    z, queue = views_of(24, 16, cosine=0.8).requires_grad_(), F.normalize(torch.randn(40, 16), dim=1)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        eager, compiled_result = step(z, queue), compiled(z, queue)
    assert torch.equal(eager[0], compiled_result[0])
    assert torch.equal(eager[1], compiled_result[1])
    gradients = [torch.autograd.grad(result[0], z)[0] for result in (eager, compiled_result)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


MEMORY = """
import torch
from fastssl_kernels import nt_xent
torch.set_num_threads(2)

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

warm = torch.randn(1024, 64, requires_grad=True)
nt_xent(warm, temperature=0.5).backward()
z = torch.randn(16384, 64, requires_grad=True)
before = peak()
nt_xent(z, temperature=0.5).backward()
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_memory_is_linear_in_the_batch():
    """B = 8,192: one matrix of logits would be 1,024 MB; the rows are 4 MB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 48


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be finite and > 0, got 0.0"),
        ({"temperature": -0.1}, "temperature must be finite and > 0, got -0.1"),
        ({"temperature": math.nan}, "temperature must be finite and > 0, got nan"),
        ({"temperature": math.inf}, "temperature must be finite and > 0, got inf"),
        ({"temperature": torch.tensor(0.1)}, "temperature must be a Python number"),
        ({"views": 1}, "views must be an integer of at least 2, got 1"),
        ({"views": 3}, "z has 8 rows, which is not a multiple of views=3"),
        ({"z": torch.zeros(8)}, "z must have two dimensions"),
        ({"z": torch.zeros(8, 0)}, "z must not be empty"),
        ({"z": torch.zeros(0, 8)}, "z must not be empty"),
        ({"z": torch.zeros(8, 4, dtype=torch.int64)}, "z must be a floating-point tensor, got torch.int64"),
        ({"group": "all"}, "group must be a process group"),
        ({"queue": torch.randn(9, 5)}, "queue must have the width of z, 4, got 5"),
        ({"queue": torch.zeros(9, 4, dtype=torch.int32)}, "queue must be a floating-point tensor"),
        ({"queue": torch.randn(9, 4, device="meta")}, "queue must be on the device of z, cpu, got meta"),
    ],
)
def test_nt_xent_says_what_is_wrong(change, message):
    arguments = {"z": torch.randn(8, 4), "temperature": 0.1, **change}
    with pytest.raises(ValueError, match=message):
        nt_xent(arguments.pop("z"), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": torch.randn(7, 4)}, r"key must have the shape of query \(8, 4\), got \(7, 4\)"),
        ({"queue": torch.randn(9, 5)}, "queue must have the width of query, 4, got 5"),
        ({"queue": torch.zeros(9, 4, dtype=torch.int32)}, "queue must be a floating-point tensor"),
        ({"query": torch.randn(8, 4, 1)}, "query must have two dimensions"),
        ({"key": torch.randn(8, 4, device="meta")}, "key must be on the device of query"),
        ({"queue": torch.randn(9, 4, device="meta")}, "queue must be on the device of query, cpu, got meta"),
    ],
)
def test_info_nce_says_what_is_wrong(change, message):
    arguments = {"query": torch.randn(8, 4), "key": torch.randn(8, 4), "temperature": 0.1, **change}
    with pytest.raises(ValueError, match=message):
        info_nce(arguments.pop("query"), arguments.pop("key"), **arguments)


def test_non_finite_rows_are_not_hidden():
    z = torch.randn(8, 4)
    z[2, 1] = torch.nan
    assert nt_xent(z, temperature=0.1).isnan()
