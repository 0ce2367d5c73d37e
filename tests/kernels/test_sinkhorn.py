"""Sinkhorn's codes on the CPU against the iterations in float64, and against the published code in numpy."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels import sinkhorn, sinkhorn_from_features
from fastssl_kernels.sinkhorn import cpu, sinkhorn_reference
from laws import CODES, assert_codes, relative
from torch.library import opcheck


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def cosines(*shape, width=16):
    """Scores of unit rows and unit prototypes."""
    z = F.normalize(torch.randn(*shape[:-1], width), dim=-1)
    return z @ F.normalize(torch.randn(shape[-1], width), dim=-1).T


def published(scores, epsilon, iterations):
    """`distributed_sinkhorn` of the SwAV repository as its formulas say, on one process, in numpy's float64."""
    q = np.exp(scores.double().numpy() / epsilon).T
    prototypes, batch = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(1, keepdims=True)
        q /= prototypes
        q /= q.sum(0, keepdims=True)
        q /= batch
    return torch.from_numpy((q * batch).T)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 7), (127, 300), (600, 129)])
@pytest.mark.parametrize("iterations", [1, 3])
def test_codes_match_float64_and_the_published_code(shape, iterations):
    scores = cosines(*shape)
    codes = assert_codes(scores, iterations=iterations)
    assert relative(codes, published(scores, 0.05, iterations)) <= CODES


def test_they_are_lightlys():
    lightly = pytest.importorskip("lightly.loss.swav_loss")
    scores = cosines(200, 300)
    for epsilon in (0.03, 0.05, 0.5):
        for iterations in (1, 3, 10):
            codes = sinkhorn(scores, epsilon=epsilon, iterations=iterations)
            theirs = lightly.sinkhorn(scores, iterations=iterations, epsilon=epsilon)
            torch.testing.assert_close(codes, theirs, rtol=3e-5, atol=1e-7)


def test_many_iterations_use_prototypes_alike():
    codes = assert_codes(cosines(500, 60), iterations=300)
    torch.testing.assert_close(codes.sum(0), torch.full((60,), 500 / 60), rtol=1e-3, atol=0)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("iterations", [1, 3, 100])
def test_fewer_rows_than_prototypes(batch, iterations):
    """u and v must not drift apart: (K / B) to the number of iterations overflows."""
    assert_codes(cosines(batch, 3000), iterations=iterations)


def test_equal_scores_give_equal_shares():
    for value in (0.0, 1.0, -30.0, 1e4):
        codes = sinkhorn(torch.full((50, 37), value))
        torch.testing.assert_close(codes, torch.full((50, 37), 1 / 37), rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [1.0, 10.0, 100.0, 1e4])
@pytest.mark.parametrize("iterations", [1, 3, 30])
def test_one_hot_scores(size, iterations):
    """All rows want one of a few prototypes; most have no mass that plain exponentials could hold."""
    scores = torch.zeros(64, 20)
    scores[torch.arange(64), torch.arange(64) % 5] = size
    # A multiple of 1/ε is rounded to 24 bits before it is an exponent.
    assert_codes(scores, tolerance=max(CODES, 4 * 2**-24 * size / 0.05), iterations=iterations)


@pytest.mark.parametrize("size", [3.0, 30.0, 1e4])
@pytest.mark.parametrize("iterations", [1, 3, 30])
def test_large_scores_are_never_nan(size, iterations):
    scores = torch.randint(-4, 5, (70, 33)) * (size / 4)
    # Whole steps of 50·size/4: exponents are exact where ε = 1/16, so the tolerance stays.
    assert_codes(scores, epsilon=0.0625, iterations=iterations, tolerance=max(CODES, 4 * 2**-24 * size / 0.0625))


def test_a_prototype_that_all_rows_shun_still_gets_its_share():
    """In fp32 its exponentials are 0; the published code divides 0 by 0 there."""
    scores = cosines(40, 12)
    scores[:, 3] -= 40
    codes = assert_codes(scores)
    assert 0.5 * 40 / 12 < codes[:, 3].sum() < 2 * 40 / 12


def test_a_prototype_without_scores_gets_nothing():
    scores = cosines(40, 12)
    scores[:, 3] = -math.inf
    codes = assert_codes(scores)
    assert codes[:, 3].eq(0).all()


def test_rows_far_apart():
    """Rows that differ by a constant have the same codes only after the first half step: float64 knows how."""
    assert_codes(cosines(50, 20) + torch.linspace(-100, 100, 50)[:, None], tolerance=1e-3)


def test_scores_that_are_no_numbers_are_not_hidden():
    scores = cosines(8, 5)
    scores[2, 1] = math.nan
    assert sinkhorn(scores).isnan().any()


@pytest.mark.parametrize("epsilon", [1e-3, 0.01, 0.03, 0.05, 1.0, 1e3])
def test_any_epsilon(epsilon):
    assert_codes(cosines(90, 70), epsilon=epsilon, tolerance=max(CODES, 4 * 2**-24 / epsilon))


@pytest.mark.parametrize("size", [1.0, 50.0])
@pytest.mark.parametrize("queued", [1, 33, 700])
def test_a_queue_takes_part_without_codes(queued, size):
    scores, queue = cosines(60, 80) * size, cosines(queued, 80) * size
    codes = assert_codes(scores, queue=queue, tolerance=CODES * max(1, size))
    together = sinkhorn(torch.cat([queue, scores]))[queued:]
    assert relative(codes, together.double()) <= CODES * max(1, size)
    assert relative(codes, sinkhorn(scores).double()) > 1e-2


@pytest.mark.parametrize("size", [1.0, 50.0])
def test_problems_are_independent(size):
    scores, queue = cosines(3, 40, 30) * size, cosines(3, 9, 30) * size
    codes = assert_codes(scores, queue=queue, tolerance=CODES * max(1, size))
    for h in range(3):
        assert relative(codes[h], sinkhorn(scores[h], queue=queue[h]).double()) <= CODES * max(1, size)


def test_blocks_of_rows_change_nothing(monkeypatch):
    scores, queue = cosines(100, 30), cosines(50, 30)
    for size in (1.0, 50.0):
        whole = sinkhorn(scores * size, queue=queue * size)
        with monkeypatch.context() as patch:
            patch.setattr(cpu, "BLOCK", 210)
            patch.setattr(cpu, "KEPT_BLOCK", 330)
            assert relative(sinkhorn(scores * size, queue=queue * size), whole.double()) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    """The codes of the scores as they are: arithmetic is fp32 (20 / ε would overflow fp16)."""
    codes = assert_codes(cosines(70, 50).to(dtype))
    assert assert_codes(cosines(70, 50).to(dtype) * 10, tolerance=1e-4).dtype == codes.dtype == torch.float32


def test_strides_do_not_matter_and_scores_stay_as_they_are():
    scores = cosines(50, 40)
    before = scores.clone()
    codes = sinkhorn(scores)
    assert torch.equal(scores, before)
    wide = torch.zeros(50, 99)
    wide[:, 7:47] = scores
    torch.testing.assert_close(sinkhorn(wide[:, 7:47]), codes)
    torch.testing.assert_close(sinkhorn(scores.T.contiguous().T), codes)


def test_no_gradient_and_no_autocast():
    scores = cosines(20, 30).requires_grad_()
    codes = sinkhorn(scores)
    assert not codes.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sinkhorn(scores), codes)


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


# From bf16 features the scores of rounded rows are exact to fp32: products are exact, sums fp32.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queued", [0, 50])
def test_from_features(dtype, queued):
    z, prototypes, queue = unit(90, 24).to(dtype), unit(130, 24).to(dtype), unit(50, 24).to(dtype)
    codes = sinkhorn_from_features(z, prototypes, queue=queue if queued else None)
    scores, more = z.double() @ prototypes.double().T, queue.double() @ prototypes.double().T
    expected = sinkhorn_reference(scores, queue=more if queued else None)
    assert relative(codes, expected) <= (CODES if dtype == torch.float32 else 5e-5)
    assert codes.dtype == torch.float32


def test_from_features_of_any_length_and_heads():
    z, prototypes = 30 * unit(3, 40, 8), unit(3, 30, 8)
    codes = sinkhorn_from_features(z, prototypes)
    expected = sinkhorn_reference(z.double() @ prototypes.double().mT)
    assert relative(codes, expected) <= 1e-3
    shared = sinkhorn_from_features(z, prototypes[0])
    for h in range(3):
        single = sinkhorn_from_features(z[h], prototypes[0])
        assert relative(shared[h], single.double()) <= 1e-5


def test_autocast_features_beat_autocast_scores():
    """Scores rounded to bf16 cost 4 % of the codes; rounding the features costs less, and scores stay fp32."""
    z, prototypes = unit(300, 64), unit(200, 64)
    exact = sinkhorn_reference(z.double() @ prototypes.double().T)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = relative(sinkhorn_from_features(z, prototypes), exact)
        usual = relative(sinkhorn(z @ prototypes.T), exact)
    assert ours < 0.03 < usual or ours < 0.5 * usual


def test_the_operators_keep_their_contract():
    opcheck(torch.ops.fastssl.sinkhorn.default, (cosines(2, 6, 5), cosines(2, 3, 5), 0.05, 3, ""))
    opcheck(
        torch.ops.fastssl.sinkhorn_from_features.default,
        (unit(2, 6, 5), unit(1, 4, 5), None, 0.05, 3, torch.float32, ""),
    )


def test_compiled_without_graph_breaks():
    def step(z, prototypes):
        return sinkhorn(z @ prototypes.T * 1.0) + sinkhorn_from_features(z * 1.0, prototypes)

    z, prototypes = unit(20, 8), unit(12, 8)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z, prototypes), step(z, prototypes))


MEMORY = """
import torch
from fastssl_kernels import sinkhorn
torch.set_num_threads(2)

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

sinkhorn(torch.rand(200, 3000), queue=torch.rand(200, 3000))
scores, queue = torch.rand(4096, 3000), torch.rand(4096, 3000)
before = peak()
sinkhorn(scores, queue=queue)
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_memory_is_that_of_the_result():
    """The codes are 47 MB; a concatenation with the queue and its exponentials would be 188 MB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 75


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.zeros(4)}, r"scores must have two or three dimensions, got shape \(4,\)"),
        ({"scores": torch.zeros(0, 4)}, r"scores must not be empty, got shape \(0, 4\)"),
        ({"scores": torch.zeros(4, 4, dtype=torch.int64)}, "scores must be a floating-point tensor, got torch.int64"),
        ({"epsilon": 0.0}, "epsilon must be finite and > 0, got 0.0"),
        ({"epsilon": -0.05}, "epsilon must be finite and > 0, got -0.05"),
        ({"epsilon": math.nan}, "epsilon must be finite and > 0, got nan"),
        ({"epsilon": torch.tensor(0.05)}, "epsilon must be a Python number"),
        ({"iterations": 0}, "iterations must be an integer of at least 1, got 0"),
        ({"iterations": 2.5}, "iterations must be an integer of at least 1, got 2.5"),
        ({"queue": torch.zeros(5, 3)}, "queue must have the width of scores, 4, got 3"),
        ({"queue": torch.zeros(1, 5, 4)}, "queue must have as many dimensions and problems as scores"),
        ({"queue": torch.zeros(0, 4)}, "queue must not be empty"),
        ({"queue": torch.zeros(5, 4, device="meta")}, "queue must be on the device of scores"),
        ({"group": "all"}, "group must be a process group"),
    ],
)
def test_it_says_what_is_wrong(change, message):
    arguments = {"scores": torch.zeros(6, 4), **change}
    with pytest.raises(ValueError, match=message):
        sinkhorn(arguments.pop("scores"), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": torch.zeros(6)}, "z must have two or three dimensions"),
        ({"prototypes": torch.zeros(9, 3)}, "prototypes must have the width of z, 4, got 3"),
        ({"prototypes": torch.zeros(2, 9, 4)}, "prototypes must have as many dimensions and problems as z"),
        ({"queue": torch.zeros(5, 3)}, "queue must have the width of z, 4, got 3"),
        ({"prototypes": torch.zeros(9, 4, device="meta")}, "prototypes must be on the device of z"),
        ({"epsilon": math.inf}, "epsilon must be finite and > 0, got inf"),
    ],
)
def test_features_say_what_is_wrong(change, message):
    arguments = {"z": torch.zeros(6, 4), "prototypes": torch.zeros(9, 4), **change}
    with pytest.raises(ValueError, match=message):
        sinkhorn_from_features(arguments.pop("z"), arguments.pop("prototypes"), **arguments)
