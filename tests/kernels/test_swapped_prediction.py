"""SwAV's loss on the CPU against its definition in float64, its gradient against autograd's."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels import sinkhorn, swapped_prediction
from fastssl_kernels.adapters import SwaVLoss
from fastssl_kernels.swapped_prediction import cpu, swapped_prediction_reference
from laws import TOLERANCE, exact_swapped_prediction, relative
from torch.library import opcheck


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def problem(crops, batch, prototypes, width=16, assign=2, dtype=torch.float32):
    """Features [V·B, D] of crops that look alike, prototypes [K, D], codes [A, B, K]."""
    z = F.normalize(unit(1, batch, width) + 0.3 * torch.randn(crops, batch, width), dim=-1)
    weights = unit(prototypes, width)
    codes = sinkhorn(z[:assign] @ weights.T, group="local")
    return z.flatten(0, 1).to(dtype), weights.to(dtype), codes


def test_the_reference_is_the_published_loop():
    """`main_swav.py`, lines on the SwAV loss, with other names."""
    crops, batch = 4, 5
    z, prototypes, codes = problem(crops, batch, 7)
    output = z.double() @ prototypes.double().T
    loss = 0
    for i, crop in enumerate((0, 1)):
        subloss = 0
        for v in set(range(crops)) - {crop}:
            x = output[batch * v : batch * (v + 1)] / 0.1
            subloss -= torch.mean(torch.sum(codes[i] * F.log_softmax(x, dim=1), dim=1))
        loss += subloss / (crops - 1)
    loss /= 2
    scores = output.view(crops, batch, -1)
    torch.testing.assert_close(swapped_prediction_reference(scores, codes.double(), temperature=0.1), loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("crops", "batch", "prototypes", "width"), [(2, 1, 1, 3), (2, 7, 33, 16), (8, 40, 130, 20)])
def test_from_features(crops, batch, prototypes, width, dtype):
    z, weights, codes = problem(crops, batch, prototypes, width, dtype=dtype)
    loss, by_z, by_weights = exact_swapped_prediction(z, weights, codes, temperature=0.1)
    z.requires_grad_()
    weights.requires_grad_()
    ours = swapped_prediction(z, weights, codes, temperature=0.1)
    ours.backward()
    tolerance = TOLERANCE[dtype]
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(loss.item(), rel=tolerance, abs=tolerance)
    for mine, exact, leaf in ((z.grad, by_z, z), (weights.grad, by_weights, weights)):
        assert mine.dtype == leaf.dtype
        assert relative(mine, exact) <= tolerance if prototypes > 1 else mine.abs().max() <= tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("crops", "batch", "prototypes"), [(2, 1, 1), (2, 7, 33), (5, 40, 130)])
def test_from_scores(crops, batch, prototypes, dtype):
    z, weights, codes = problem(crops, batch, prototypes)
    scores = (z @ weights.T).to(dtype).view(crops, batch, -1)
    exact = scores.to(torch.float64, copy=True).requires_grad_()
    loss = swapped_prediction_reference(exact, codes.double(), temperature=0.1)
    loss.backward()
    leaves = [crop.clone().requires_grad_() for crop in scores]
    ours = swapped_prediction(leaves, None, codes, temperature=0.1)
    ours.backward()
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-5)
    # The gradient is rounded once to the dtype of the scores.
    tolerance = {torch.bfloat16: 3e-3, torch.float16: 2e-3}.get(dtype, 1e-5)
    for leaf, theirs in zip(leaves, exact.grad, strict=True):
        assert leaf.grad.dtype == dtype
        assert relative(leaf.grad, theirs) <= tolerance if prototypes > 1 else leaf.grad.abs().max() <= 1e-5
    stacked = scores.flatten(0, 1).requires_grad_()
    again = swapped_prediction(stacked, None, list(codes), temperature=0.1)
    again.backward()
    assert torch.equal(again, ours.detach())
    assert torch.equal(stacked.grad.view_as(scores), torch.stack([leaf.grad for leaf in leaves]))


@pytest.mark.parametrize("assign", [(0,), (1, 0), (2, 0), (0, 1, 2), (3,)])
def test_any_crops_may_be_assigned(assign):
    crops = 4
    z, weights, _ = problem(crops, 30, 25)
    codes = torch.stack([sinkhorn((z @ weights.T).view(crops, 30, -1)[i]) for i in assign])
    loss, by_z, by_weights = exact_swapped_prediction(z, weights, codes, temperature=0.1, assign=assign)
    z.requires_grad_()
    weights.requires_grad_()
    ours = swapped_prediction(z, weights, codes, temperature=0.1, assign=assign)
    ours.backward()
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    assert relative(z.grad, by_z) <= 1e-5
    assert relative(weights.grad, by_weights) <= 1e-5
    scores = (z @ weights.T).detach()
    assert swapped_prediction(scores, None, codes, temperature=0.1, assign=assign).item() == pytest.approx(
        loss.item(), rel=1e-5
    )


def test_a_crop_is_not_compared_with_its_own_codes():
    """Only codes of the other crop reach a crop of two; with one code its own crop gets no gradient at all."""
    z, weights, codes = problem(2, 20, 15)
    z.requires_grad_()
    swapped_prediction(z, weights, codes[:1], temperature=0.1, assign=(0,)).backward()
    assert z.grad[:20].eq(0).all()
    assert z.grad[20:].norm() > 0


def test_the_loss_at_random_is_the_logarithm_of_the_number_of_prototypes():
    z, weights, codes = problem(3, 20, 50)
    assert swapped_prediction(z, weights, codes, temperature=1e4).item() == pytest.approx(math.log(50), rel=1e-3)


@pytest.mark.parametrize("temperature", [1e-3, 0.03, 1.0, 1e3])
def test_any_temperature(temperature):
    z, weights, codes = problem(3, 40, 30)
    loss, by_z, by_weights = exact_swapped_prediction(z, weights, codes, temperature=temperature)
    z.requires_grad_()
    weights.requires_grad_()
    ours = swapped_prediction(z, weights, codes, temperature=temperature)
    ours.backward()
    # Logits are rounded to 24 bits: of a logit of 1/τ the exponential loses 2^-24 / τ.
    tolerance = max(1e-5, 4 * 2**-24 / temperature)
    assert ours.item() == pytest.approx(loss.item(), rel=tolerance)
    assert relative(z.grad, by_z) <= tolerance
    assert relative(weights.grad, by_weights) <= tolerance


def test_large_scores():
    scores = torch.randint(-4, 5, (3, 20, 30)) * 2500.0
    codes = sinkhorn(scores[:2])
    exact = scores.double().requires_grad_()
    loss = swapped_prediction_reference(exact, codes.double(), temperature=0.125)
    loss.backward()
    leaf = scores.flatten(0, 1).requires_grad_()
    ours = swapped_prediction(leaf, None, codes, temperature=0.125)
    ours.backward()
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    assert relative(leaf.grad, exact.grad.flatten(0, 1)) <= 1e-4


def test_codes_that_do_not_sum_to_one():
    z, weights, codes = problem(3, 20, 30)
    codes = codes * torch.rand(2, 20, 1) * 3
    loss, by_z, by_weights = exact_swapped_prediction(z, weights, codes, temperature=0.1)
    z.requires_grad_()
    weights.requires_grad_()
    ours = swapped_prediction(z, weights, codes, temperature=0.1)
    ours.backward()
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    assert relative(z.grad, by_z) <= 1e-5
    assert relative(weights.grad, by_weights) <= 1e-5


def test_the_upstream_gradient_multiplies_and_frozen_prototypes_get_none():
    z, weights, codes = problem(3, 10, 12)
    z.requires_grad_()
    (once,) = torch.autograd.grad(swapped_prediction(z, weights, codes, temperature=0.1), z)
    (thrice,) = torch.autograd.grad(3 * swapped_prediction(z, weights, codes, temperature=0.1), z)
    torch.testing.assert_close(thrice, 3 * once)
    weights.requires_grad_()
    loss = swapped_prediction(z.detach(), weights, codes.requires_grad_(), temperature=0.1)
    loss.backward()
    assert codes.grad is None
    assert weights.grad.norm() > 0
    with torch.no_grad():
        assert swapped_prediction(z, weights, codes, temperature=0.1).item() == pytest.approx(loss.item(), rel=1e-6)


def test_blocks_change_nothing(monkeypatch):
    z, weights, codes = problem(3, 50, 20)
    z.requires_grad_()

    def both():
        scores = swapped_prediction(z @ weights.T, None, codes, temperature=0.1)
        loss = swapped_prediction(z, weights, codes, temperature=0.1) + scores
        return loss.detach(), torch.autograd.grad(loss, z)[0]

    whole = both()
    monkeypatch.setattr(cpu, "BLOCK", 140)
    torch.testing.assert_close(both(), whole, rtol=1e-5, atol=1e-8)


def test_strides_do_not_matter():
    z, weights, codes = problem(3, 20, 30)
    loss = swapped_prediction(z, weights, codes, temperature=0.1)
    wide = torch.zeros(60, 50)
    wide[:, 3:19] = z
    wide_codes = codes.mT.contiguous().mT
    strided = swapped_prediction(wide[:, 3:19], weights.T.contiguous().T, wide_codes, temperature=0.1)
    torch.testing.assert_close(strided, loss)
    scores = z @ weights.T
    torch.testing.assert_close(
        swapped_prediction(scores.T.contiguous().T, None, wide_codes, temperature=0.1),
        swapped_prediction(scores, None, codes, temperature=0.1),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_lowers_products_only(dtype):
    z, weights, codes = problem(4, 60, 50, width=32)
    loss, by_z, by_weights = exact_swapped_prediction(z, weights, codes, temperature=0.1)
    z.requires_grad_()
    weights.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        ours = swapped_prediction(z, weights, codes, temperature=0.1)
    ours.backward()
    assert ours.dtype == z.grad.dtype == weights.grad.dtype == torch.float32
    assert ours.item() == pytest.approx(loss.item(), rel=2e-3)
    # Gradients are differences of shares and codes, smaller than either.
    assert relative(z.grad, by_z) <= 2e-2
    assert relative(weights.grad, by_weights) <= 2e-2


def test_the_operators_keep_their_contract():
    z, weights, codes = problem(3, 6, 5)
    z.requires_grad_()
    weights.requires_grad_()
    arguments = (z, weights, codes, 0.1, [0, 1], torch.float32, True, True)
    opcheck(torch.ops.fastssl.swapped_prediction.default, arguments)
    scores = (z @ weights.T).detach()[:6]
    opcheck(torch.ops.fastssl.code_cross_entropy.default, (scores.requires_grad_(), codes[0], 0.1))
    statistics = torch.ops.fastssl.code_cross_entropy(scores.detach(), codes[0], 0.1)[1]
    opcheck(
        torch.ops.fastssl.code_cross_entropy_backward.default,
        (torch.ones(6), scores.detach(), codes[0], statistics, 0.1),
    )


def test_compiled_without_graph_breaks():
    def step(z, weights):
        scores = (z @ weights.T).float()
        codes = sinkhorn(scores.view(3, 10, -1)[:2])
        return swapped_prediction(z * 1.0, weights, codes, temperature=0.1) + swapped_prediction(
            scores, None, codes, temperature=0.1
        )

    z, weights, _ = problem(3, 10, 8)
    z.requires_grad_()
    weights.requires_grad_()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            results = [run(z, weights) for run in (step, compiled)]
        gradients = [torch.autograd.grad(loss, (z, weights)) for loss in results]
        torch.testing.assert_close(*results, rtol=1e-6, atol=0)
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def lightly_inputs(high, low, batch=24, prototypes=30, queue=0):
    scores = [crop.clone().requires_grad_() for crop in (unit(high + low, batch, 8) @ unit(prototypes, 8).T)]
    queues = [q @ unit(prototypes, 8).T for q in unit(high, queue, 8)] if queue else None
    return scores[:high], scores[high:], queues


@pytest.mark.parametrize(("high", "low", "queue"), [(2, 0, 0), (2, 6, 0), (2, 2, 40), (3, 1, 0), (1, 2, 0)])
def test_the_adapter_is_lightlys_loss(high, low, queue):
    lightly = pytest.importorskip("lightly.loss")
    arguments = lightly_inputs(high, low, queue=queue)
    options = {"temperature": 0.12, "sinkhorn_iterations": 4, "sinkhorn_epsilon": 0.06}
    leaves = arguments[0] + arguments[1]
    ours = SwaVLoss(**options)(*arguments)
    theirs = lightly.SwaVLoss(**options)(*arguments)
    assert ours.shape == ()
    torch.testing.assert_close(ours, theirs.squeeze(), rtol=1e-5, atol=0)
    wanted = [leaf for i, leaf in enumerate(leaves) if high > 1 or i > 0]
    for mine, other in zip(torch.autograd.grad(ours, wanted), torch.autograd.grad(theirs, wanted), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-8)
    assert "sinkhorn_epsilon=0.06" in repr(SwaVLoss(**options))


def test_the_adapter_survives_half_precision():
    """exp(20) is beyond fp16: the original gives NaN."""
    high, low, _ = lightly_inputs(2, 1)
    half = [[crop.detach().half().requires_grad_() for crop in crops] for crops in (high, low)]
    loss = SwaVLoss()(*half)
    loss.backward()
    torch.testing.assert_close(loss, SwaVLoss()(high, low), rtol=1e-2, atol=0)
    assert all(crop.grad.isfinite().all() for crops in half for crop in crops)


MEMORY = """
import torch
from fastssl_kernels import swapped_prediction
torch.set_num_threads(2)

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

def step(batch):
    z, weights = torch.randn(8 * batch, 64, requires_grad=True), torch.randn(1000, 64, requires_grad=True)
    codes = torch.full((2, batch, 1000), 1e-3)
    before = peak()
    swapped_prediction(z, weights, codes, temperature=0.1).backward()
    return peak() - before

step(64)
print(step(2048))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_scores_are_not_stored():
    """Eight crops of 2,048 images and 1,000 prototypes: one matrix of scores would be 62 MB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be finite and > 0, got 0.0"),
        ({"temperature": math.nan}, "temperature must be finite and > 0, got nan"),
        ({"temperature": torch.tensor(0.1)}, "temperature must be a Python number"),
        ({"z": torch.zeros(17, 4)}, "z has 17 rows, which is not a multiple of the 6 rows of codes"),
        ({"z": torch.zeros(6, 4)}, "z must hold at least two crops of the 6 images of codes, got 1"),
        ({"z": [torch.zeros(6, 4), torch.zeros(5, 4)]}, r"crop 1 of z must be \[6, 4\], got \(5, 4\)"),
        ({"z": torch.zeros(18)}, "z must have two dimensions"),
        ({"z": torch.zeros(18, 4, dtype=torch.int64)}, "z must be a floating-point tensor, got torch.int64"),
        ({"z": torch.zeros(18, 4, device="meta")}, "z must be on the device of codes, cpu, got meta"),
        ({"prototypes": torch.zeros(5, 3)}, r"prototypes must be \[5, 4\] for these codes and features"),
        ({"prototypes": torch.zeros(5, 4, device="meta")}, "prototypes must be on the device of z"),
        ({"prototypes": None}, "z must have the width of codes, 5, where prototypes are None, got 4"),
        ({"codes": torch.zeros(6, 5)}, r"codes must be \[A, B, K\] or a sequence of \[B, K\], got shape \(6, 5\)"),
        ({"codes": [torch.zeros(6, 5), torch.zeros(6, 4)]}, "codes must share shape, dtype and device"),
        ({"codes": []}, "codes must hold at least one crop's codes"),
        ({"codes": torch.zeros(2, 0, 5)}, r"codes\[0\] must not be empty"),
        ({"assign": (0,)}, r"assign must name the crop of each of the 2 codes, got \[0\]"),
        ({"assign": (0, 3)}, r"assign must name different crops from 0 to 2, got \[0, 3\]"),
        ({"assign": (1, 1)}, r"assign must name different crops from 0 to 2, got \[1, 1\]"),
    ],
)
def test_it_says_what_is_wrong(change, message):
    arguments = {
        "z": torch.zeros(18, 4),
        "prototypes": torch.zeros(5, 4),
        "codes": torch.zeros(2, 6, 5),
        "temperature": 0.1,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        swapped_prediction(arguments.pop("z"), arguments.pop("prototypes"), arguments.pop("codes"), **arguments)


def test_non_finite_features_are_not_hidden():
    z, weights, codes = problem(2, 6, 5)
    z[3, 1] = math.nan
    assert swapped_prediction(z, weights, codes, temperature=0.1).isnan()
