"""RELIC on the CPU against its definition in float64, and the negatives that are drawn for it."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels import info_nce, relic, sample_negatives
from fastssl_kernels.relic import blocks, relic_reference
from fastssl_kernels.relic.pairs import Pairs
from fastssl_kernels.relic.reference import relic_gradient_reference
from laws import TOLERANCE, assert_relic, relative
from torch.library import opcheck

STOPS = ["second", "first", "entropy"]
RELIC = {"views": (2, 0), "self_pairs": False}
RELIC_V2 = {"views": (4, 2), "self_pairs": True}


@pytest.fixture(autouse=True)
def one_thread():
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def crops(batch, width, views, noise=1.0, dtype=torch.float32):
    """Online rows [(L + S)·B, D] and target rows [L·B, D] of one batch of images."""
    large, small = views
    images = torch.randn(batch, width, dtype=torch.float64)
    rows = (images + noise * torch.randn(n, batch, width, dtype=torch.float64) for n in (large + small, large))
    online, target = (x.flatten(0, 1).to(dtype) for x in rows)
    return online, target


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize(("views", "self_pairs", "drawn"), [((2, 0), False, 0), ((2, 2), True, 4), ((3, 1), False, 5)])
def test_the_closed_gradient_is_the_derivative_of_the_definition(views, self_pairs, drawn, stop):
    online, target = crops(6, 5, views, dtype=torch.float64)
    negatives = torch.randperm(6)[:drawn] if drawn else None
    options = {"views": views, "self_pairs": self_pairs, "negatives": negatives, "temperature": 0.4}
    leaf = online.clone().requires_grad_()
    relic_reference(leaf, target, alpha=0.7, stop_gradient=stop, **options).backward()
    closed = relic_gradient_reference(online, target, alpha=0.7, stop_gradient=stop, **options)
    torch.testing.assert_close(closed, leaf.grad, rtol=1e-11, atol=1e-14)
    assert torch.autograd.gradcheck(lambda x: relic_reference(x, target, alpha=0.0, **options), leaf)


def test_stopped_gradients_are_those_of_a_frozen_side():
    """Finite differences, where what is stopped stays at the point of differentiation."""
    online, target = crops(4, 3, (2, 0), dtype=torch.float64)

    def logits(x):
        o, t = F.normalize(x).view(2, 4, 3), F.normalize(target).view(2, 4, 3)
        return torch.stack([o[0] @ t[1].T, o[1] @ t[0].T]) / 0.3

    frozen = logits(online).log_softmax(2)

    def surrogate(x, stop):
        p = logits(x).log_softmax(2)
        contrastive = -p.diagonal(0, 1, 2).mean()
        if stop == "second":
            divergence = (p.exp() * (p - frozen.flip(0))).sum(2)
        elif stop == "first":
            divergence = -(frozen.exp() * p.flip(0)).sum(2)
        else:
            divergence = -(p.exp() * p.flip(0)).sum(2)
        return contrastive + 0.5 * divergence.mean()

    for stop in STOPS:
        leaf = online.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda x, stop=stop: surrogate(x, stop), leaf)
        (expected,) = torch.autograd.grad(surrogate(leaf, stop), leaf)
        ours = relic_gradient_reference(online, target, temperature=0.3, alpha=0.5, stop_gradient=stop, **RELIC)
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("batch", [1, 2, 3, 127, 300, 600])
def test_relic_with_all_negatives(batch, dtype):
    online, target = crops(batch, 64, (2, 0), dtype=dtype)
    assert_relic(online, target, temperature=0.2, alpha=1.0, tolerance=TOLERANCE[dtype], **RELIC)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize(("batch", "drawn"), [(2, 1), (33, 10), (130, 100)])
def test_relic_v2_with_sampled_negatives(batch, drawn, stop, dtype, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 1 << 14)
    monkeypatch.setattr(blocks, "NEGATIVES", 30)
    online, target = crops(batch, 48, (4, 2), dtype=dtype)
    negatives = sample_negatives(batch, drawn, seed=1, step=5)
    options = {"temperature": 0.2, "alpha": 0.3, "negatives": negatives, "stop_gradient": stop, **RELIC_V2}
    assert_relic(online, target, tolerance=TOLERANCE[dtype] * (2 if stop != "second" else 1), **options)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("self_pairs", [False, True])
@pytest.mark.parametrize("views", [(1, 1), (1, 2), (2, 0), (2, 1), (3, 0), (2, 3)])
def test_any_views(views, self_pairs, alpha):
    for negatives in (None, torch.tensor([3, 0, 3, 7]), torch.tensor([], dtype=torch.int64)):
        for stop in ("second", "entropy"):
            online, target = crops(9, 20, views)
            options = {"views": views, "self_pairs": self_pairs, "negatives": negatives, "stop_gradient": stop}
            assert_relic(online, target, temperature=0.3, alpha=alpha, tolerance=2e-5, **options)


@pytest.mark.parametrize("width", [1, 3, 33, 130])
def test_any_width(width):
    online, target = crops(40, width, (2, 1))
    assert_relic(online, target, views=(2, 1), temperature=0.5, alpha=0.5, tolerance=1e-5)


@pytest.mark.parametrize("temperature", [1e-3, 0.01, 0.0229, 0.023, 0.05, 1.0, 100.0])
@pytest.mark.parametrize("negatives", [None, torch.arange(20)])
def test_extreme_temperatures(temperature, negatives):
    online, target = crops(60, 32, (2, 2))
    options = {"views": (2, 2), "negatives": negatives, "temperature": temperature, "alpha": 0.3}
    # The weight of the divergence multiplies logits of 1 / τ.
    assert_relic(online, target, tolerance=1e-5 if temperature > 0.01 else 1e-4, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("noise", [0.1, 0.01])
def test_aligned_views_keep_their_gradient(noise, dtype):
    """Late in training predictions are nearly certain: shares and divergences are small differences."""
    online, target = crops(200, 128, (2, 1), noise=noise, dtype=dtype)
    assert_relic(online, target, views=(2, 1), temperature=0.2, alpha=0.5, tolerance=2 * TOLERANCE[dtype])


@pytest.mark.parametrize("negatives", [None, torch.tensor([5, 1, 17])])
def test_without_invariance_it_is_info_nce(negatives):
    """All other images: the library's InfoNCE in both directions. Some of them: InfoNCE against a queue."""
    batch = 40
    online, target = crops(batch, 16, (2, 0))
    ours, theirs = online.clone().requires_grad_(), online.clone().requires_grad_()
    loss = relic(ours, target, temperature=0.2, alpha=0.0, negatives=negatives, **RELIC)
    (o_0, o_1), (t_0, t_1) = theirs.chunk(2), target.chunk(2)
    if negatives is None:
        expected = (info_nce(o_0, t_1, temperature=0.2) + info_nce(o_1, t_0, temperature=0.2)) / 2
    else:
        rows = [
            info_nce(o[b : b + 1], t[b : b + 1], queue=F.normalize(t[negatives[negatives != b]]), temperature=0.2)
            for o, t in ((o_0, t_1), (o_1, t_0))
            for b in range(batch)
        ]
        expected = torch.stack(rows).mean()
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert relative(ours.grad, theirs.grad.double()) < 1e-5


def test_every_image_as_a_sample_is_all_negatives():
    online, target = crops(30, 16, (2, 2))
    options = {"views": (2, 2), "temperature": 0.2, "alpha": 0.4, "return_metrics": True}
    everything = relic(online, target, **options)
    sampled = relic(online, target, negatives=torch.randperm(30), **options)
    torch.testing.assert_close([everything[0], *everything[1]], [sampled[0], *sampled[1]], rtol=1e-6, atol=1e-6)


def test_predictions_that_agree_cost_nothing():
    """Equal crops on both networks: every prediction is its counterpart, whatever the stop-gradient."""
    rows = torch.randn(12, 8)
    online, target = rows.repeat(3, 1).requires_grad_(), rows.repeat(2, 1)
    options = {"views": (2, 1), "temperature": 0.2, "return_metrics": True}
    plain, _ = relic(online, target, alpha=0.0, **options)
    loss, metrics = relic(online, target, alpha=3.0, stop_gradient="second", **options)
    assert abs(metrics.invariance.item()) < 1e-6
    assert loss.item() == pytest.approx(plain.item(), abs=3e-6)
    for one, other in zip(*(torch.autograd.grad(value, online) for value in (loss, plain)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_the_gradient_of_a_relic_step_is_no_function_of_length():
    online, target = crops(20, 16, (2, 1))
    lengths = 10.0 ** torch.randint(-6, 7, (60, 1))
    options = {"views": (2, 1), "temperature": 0.2, "alpha": 0.5}
    ours, scaled = online.clone().requires_grad_(), (online * lengths).requires_grad_()
    relic(ours, target, **options).backward()
    relic(scaled, target * lengths[:40], **options).backward()
    torch.testing.assert_close(scaled.grad * lengths, ours.grad, rtol=1e-4, atol=1e-8)
    assert (ours * ours.grad).sum(1).abs().max() < 1e-6


def test_identical_rows_are_a_tie():
    rows = torch.randn(1, 24).expand(80, 24)
    for dtype in (torch.float32, torch.bfloat16):
        online = rows.repeat(3, 1).to(dtype).requires_grad_()
        loss, metrics = relic(
            online, rows.repeat(2, 1).to(dtype), views=(2, 1), temperature=0.2, alpha=1.0, return_metrics=True
        )
        loss.backward()
        assert metrics.accuracy.item() == 0
        assert online.grad.isfinite().all()


def test_zero_rows_have_no_direction_and_no_gradient():
    online, target = crops(6, 8, (2, 1))
    online[[3, 14]], target[2] = 0, 0
    online.requires_grad_()
    relic(online, target, views=(2, 1), temperature=0.5, alpha=0.5, negatives=torch.tensor([2, 4])).backward()
    assert online.grad.isfinite().all()
    assert online.grad[[3, 14]].eq(0).all()
    assert online.grad[2].norm() > 0


def test_the_target_gets_no_gradient():
    online, target = (t.requires_grad_() for t in crops(5, 8, (2, 0)))
    relic(online, target, temperature=0.2, alpha=1.0, **RELIC).backward()
    assert target.grad is None
    assert online.grad.norm() > 0
    assert not relic(online.detach(), target, temperature=0.2, alpha=1.0, **RELIC).requires_grad


def test_the_upstream_gradient_multiplies():
    online, target = crops(20, 8, (2, 1))
    online.requires_grad_()
    loss = relic(online, target, views=(2, 1), temperature=0.5, alpha=0.5)
    (once,) = torch.autograd.grad(loss, online, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * loss, online)
    torch.testing.assert_close(thrice, 3 * once)


def test_rows_need_not_be_contiguous():
    online, target = crops(11, 33, (2, 1))
    strided = torch.zeros(33, 70)[:, 3:36].copy_(online)
    options = {"views": (2, 1), "temperature": 0.5, "alpha": 0.5, "negatives": torch.arange(11)[::3]}
    assert relic(strided, target.T.contiguous().T, **options) == relic(online, target, **options)
    assert_relic(strided, target.T.contiguous().T, tolerance=1e-5, **options)


def test_float64_input():
    online, target = crops(30, 16, (2, 0), dtype=torch.float64)
    assert_relic(online, target, temperature=0.5, alpha=0.5, tolerance=1e-5, **RELIC)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("negatives", [None, torch.arange(10)])
def test_autocast_lowers_products_only(negatives, dtype):
    online, target = crops(100, 64, (2, 1), noise=0.3)
    online.requires_grad_()
    options = {"views": (2, 1), "temperature": 0.2, "alpha": 0.3, "negatives": negatives}
    with torch.autocast("cpu", dtype=dtype):
        loss = relic(online, target, **options)
    loss.backward()
    exact = online.detach().double().requires_grad_()
    expected = relic_reference(exact, target.double(), **options)
    expected.backward()
    assert loss.dtype == online.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
    assert relative(online.grad, exact.grad) < 5e-3


def test_non_finite_rows_are_not_hidden():
    online, target = crops(8, 4, (2, 0))
    online[2, 1] = torch.nan
    assert relic(online, target, temperature=0.1, alpha=1.0, **RELIC).isnan()


@pytest.mark.parametrize("metrics", [False, True])
@pytest.mark.parametrize("negatives", [None, torch.tensor([1, 4])])
def test_the_operators_keep_their_contract(negatives, metrics):
    online, target = crops(6, 8, (2, 1))
    options = (2, 1, 0.2, 0.5, True, "entropy", torch.float32)
    forward = torch.ops.fastssl.relic_forward.default
    opcheck(forward, (online.requires_grad_(), target, negatives, *options, metrics, True, ""))
    for at_once in (False, True):
        _, _, columns, table = forward(online.detach(), target, negatives, *options, metrics, at_once, "")
        backward = (torch.ones(()), online.detach(), target, negatives, columns, table, *options, "")
        opcheck(torch.ops.fastssl.relic_backward.default, backward)


@pytest.mark.parametrize("stop_gradient", ["second", "first", "entropy"])
@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize("views", [(2, 0), (2, 1), (4, 2)])
@pytest.mark.parametrize("drawn", [False, True])
def test_one_pass_or_two_give_the_same(drawn, views, temperature, stop_gradient, monkeypatch):
    """Few negatives fit a block, which then makes the gradient with the loss; in small blocks both ways are taken."""
    online, target = crops(150, 16, views)
    negatives = sample_negatives(150, 10, seed=0, step=0) if drawn else None
    options = {"temperature": temperature, "alpha": 0.7, "views": views, "stop_gradient": stop_gradient}
    results = []
    for block, images in ((1 << 14, 1), (1 << 10, 64)):
        monkeypatch.setattr(blocks, "NEGATIVES", 64 if negatives is None else 4)
        monkeypatch.setattr(blocks, "BLOCK", block)
        monkeypatch.setattr(blocks, "FAST_IMAGES", images)
        pairs = Pairs(*views, 150, temperature, 0.7, True, stop_gradient, torch.float32)
        assert blocks.one_pass(pairs, 150 if negatives is None else 10) == (images == 1)
        leaf = online.clone().requires_grad_()
        loss, metrics = relic(leaf, target, negatives=negatives, return_metrics=True, **options)
        (3 * loss).backward()
        results.append([loss, *metrics, leaf.grad])
    for once, twice in zip(*results, strict=True):
        assert (once - twice).norm() <= TOLERANCE[torch.float32] * twice.norm()


def test_a_loss_without_gradient_makes_none():
    online, target = crops(20, 8, (2, 0))
    with torch.no_grad():
        loss = relic(online.requires_grad_(), target, temperature=0.2, alpha=1.0, **RELIC)
    assert not loss.requires_grad
    assert loss == relic(online, target, temperature=0.2, alpha=1.0, **RELIC)


def test_compiled_without_graph_breaks():
    online, target = crops(24, 16, (2, 1))
    online.requires_grad_()

    def step(online, target, counter):
        negatives = sample_negatives(24, 5, seed=3, step=counter)
        options = {"views": (2, 1), "temperature": 0.2, "alpha": 0.5}
        loss, metrics = relic(online * 2, target, negatives=negatives, return_metrics=True, **options)
        return loss + relic(online, target, **options), metrics.accuracy

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    arguments = (online, target, torch.tensor(7))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = step(*arguments), compiled(*arguments)
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad(result[0], online)[0] for result in results]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


MEMORY = """
import torch
from fastssl_kernels import relic
torch.set_num_threads(2)

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

def step(batch):
    online = torch.randn(2 * batch, 64, requires_grad=True)
    target = torch.randn(2 * batch, 64)
    before = peak()
    relic(online, target, views=(2, 0), self_pairs=False, temperature=0.2, alpha=1.0).backward()
    return peak() - before

step(512)
print(step(4096))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_memory_is_linear_in_the_batch():
    """B = 4,096: the logits of one pair would be 64 MB; all rows are 4 MB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 32


def splitmix64(state):
    """The generator as published, in unbounded integers."""
    mask = (1 << 64) - 1
    z = state & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (1, 7), (2**64 - 1, 10**6), (-5, 3)])
def test_negatives_are_the_images_with_the_smallest_hashes(seed, step):
    golden = 0x9E3779B97F4A7C15
    base = splitmix64(seed + golden * step)
    keys = [splitmix64(base + golden * (image + 1)) for image in range(50)]
    keys = [key - (1 << 64) if key >= 1 << 63 else key for key in keys]
    expected = sorted(range(50), key=lambda image: keys[image])[:10]
    assert sample_negatives(50, 10, seed=seed, step=step).tolist() == expected
    assert sample_negatives(50, 10, seed=seed, step=torch.tensor(step)).tolist() == expected


def test_negatives_are_different_and_uniform():
    draws = torch.stack([sample_negatives(20, 5, seed=0, step=step) for step in range(4000)])
    assert all(len(set(draw)) == 5 for draw in draws.tolist())
    counts = draws.flatten().bincount(minlength=20).double()
    # 19 degrees of freedom: 99.99 % of samples stay below 52; sampling without replacement lowers it further.
    assert ((counts - 1000).square() / 1000).sum() < 52
    assert sample_negatives(20, 20, seed=0, step=0).sort().values.tolist() == list(range(20))


@pytest.mark.parametrize(("images", "count"), [(0, 1), (5, 0), (5, 6)])
def test_sample_negatives_says_what_is_wrong(images, count):
    with pytest.raises(
        ValueError, match="images must be an integer of at least 1" if not images else "count must be from 1 to"
    ):
        sample_negatives(images, count, seed=0, step=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be finite and > 0, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be finite and > 0, got nan"),
        ({"temperature": torch.tensor(0.1)}, "temperature must be a Python number"),
        ({"alpha": -0.1}, "alpha must be finite and >= 0, got -0.1"),
        ({"alpha": float("inf")}, "alpha must be finite and >= 0, got inf"),
        ({"views": 2}, r"views must be two integers \(large, small\), got 2"),
        ({"views": (0, 2)}, r"views must have at least one large crop .*, got \(0, 2\)"),
        ({"views": (2, -1)}, "no negative number"),
        ({"views": (1, 0), "self_pairs": False}, "no pair of different views"),
        ({"views": (3, 0)}, r"online has 8 rows, which is not a multiple of \(L \+ S\)=3"),
        ({"views": (1, 1)}, r"online and target must be .*got \(8, 4\) and \(8, 4\)"),
        ({"target": torch.randn(8, 5)}, r"online and target must be .*got \(8, 4\) and \(8, 5\)"),
        ({"online": torch.randn(8)}, "online must have two dimensions"),
        ({"online": torch.zeros(0, 4)}, "online must not be empty"),
        ({"target": torch.zeros(8, 4, dtype=torch.int64)}, "target must be a floating-point tensor, got torch.int64"),
        ({"target": torch.zeros(8, 4, device="meta")}, "target must be on the device of online, cpu, got meta"),
        ({"negatives": torch.tensor([1, 2], dtype=torch.int32)}, "negatives must be an int64 tensor"),
        ({"negatives": torch.tensor([[1]])}, "negatives must be an int64 tensor"),
        ({"negatives": torch.tensor([4])}, r"negatives must be images of the batch, 0 to 3, got \[4\]"),
        ({"negatives": torch.tensor([-1])}, "negatives must be images of the batch"),
        ({"negatives": torch.zeros(2, dtype=torch.int64, device="meta")}, "negatives must be on the device of online"),
        ({"stop_gradient": "both"}, "stop_gradient must be one of"),
        ({"group": "all"}, "group must be a process group"),
    ],
)
def test_relic_says_what_is_wrong(change, message):
    arguments = {"online": torch.randn(8, 4), "target": torch.randn(8, 4), "views": (2, 0), "temperature": 0.1}
    arguments |= {"alpha": 1.0, **change}
    with pytest.raises(ValueError, match=message):
        relic(arguments.pop("online"), arguments.pop("target"), **arguments)
