"""Sinkhorn's kernels, through the launcher a GPU uses, under the corrected interpreter."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from fastssl_kernels.sinkhorn import cost, launch, sinkhorn_reference
from fastssl_kernels.sinkhorn.tiles import Passes, passes_for
from fastssl_kernels.tile import Tile
from proof.interpreter import checked, same_in_any_order
from ranks import on_ranks
from torch.utils._python_dispatch import TorchDispatchMode

# Padding takes logarithms of nothing; EXCLUDED beside EXCLUDED overflows nothing.
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value encountered")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# fp32 sums of exponentials of numbers up to 20 / ln 2.
TOLERANCE = 1e-5
SMALL = Tile(64, 64, 32, 4, 2)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Small tiles, so that small batches have many; widths above 32 go in pieces."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    monkeypatch.setattr(launch, "product_tile", lambda width, *_: SMALL._replace(piece=min(width, 32)))


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def cosines(*shape, width=16):
    return unit(*shape[:-1], width) @ unit(shape[-1], width).T


def relative(ours, exact):
    assert ours.isfinite().all()
    return ((ours.double() - exact).norm() / exact.norm()).item()


def assert_matches(scores, queue=None, *, epsilon=0.05, iterations=3, tolerance=TOLERANCE):
    codes, work = same_in_any_order(lambda: launch.sinkhorn(scores, queue, epsilon, iterations, ""), 2)
    exact = [None if t is None else t.double() for t in (scores, queue)]
    expected = sinkhorn_reference(exact[0], queue=exact[1], epsilon=epsilon, iterations=iterations)
    assert codes.dtype == F32
    assert relative(codes, expected) <= tolerance
    torch.testing.assert_close(codes.sum(-1), torch.ones(codes.shape[:-1]), rtol=0, atol=1e-5)
    assert work.atomic == 0
    return codes, work


@pytest.mark.parametrize(
    ("shape", "queued", "iterations"),
    [
        ((1, 1, 1), 0, 3),
        ((1, 1, 200), 0, 3),
        ((1, 70, 1), 0, 2),
        ((1, 45, 130), 0, 1),
        ((2, 33, 300), 0, 3),
        ((2, 40, 300), 21, 3),
        ((1, 7, 3000), 5, 2),
        ((1, 3, 3001), 0, 2),
        ((1, 300, 20), 90, 3),
        ((1, 3, 5000), 0, 2),
    ],
)
def test_codes(shape, queued, iterations):
    queue = cosines(shape[0], queued, shape[2]) if queued else None
    _, work = assert_matches(cosines(*shape), queue, iterations=iterations)
    assert work.by_tensor["scores", "load"] == cost.score_reads(shape[1], queued, shape[2], iterations, 4, shape[0])


@pytest.mark.parametrize("dtype", [BF16, F16, torch.float64])
def test_dtypes(dtype):
    scores = cosines(1, 40, 300).to(dtype)
    _, work = assert_matches(scores)
    assert work.by_tensor["scores", "load"] == cost.score_reads(40, 0, 300, 3, scores.element_size())


def test_equal_and_one_hot_scores():
    codes, _ = assert_matches(torch.full((1, 20, 37), 1e4))
    torch.testing.assert_close(codes, torch.full((1, 20, 37), 1 / 37), rtol=1e-5, atol=0)
    for size in (1.0, 100.0, 1e4):
        scores = torch.zeros(1, 48, 20)
        scores[:, torch.arange(48), torch.arange(48) % 5] = size
        assert_matches(scores, tolerance=max(TOLERANCE, 4 * 2**-24 * size / 0.05))


@pytest.mark.parametrize("iterations", [1, 3, 12])
def test_large_scores_are_never_nan(iterations):
    scores = torch.randint(-4, 5, (1, 70, 33)) * 2500.0
    assert_matches(scores, epsilon=0.0625, iterations=iterations, tolerance=4 * 2**-24 * 1e4 / 0.0625)


def test_prototypes_without_mass():
    scores = cosines(1, 40, 140)
    scores[..., 3] -= 40
    codes, _ = assert_matches(scores)
    assert 0.5 * 40 / 140 < codes[..., 3].sum() < 2 * 40 / 140
    scores[..., 5] = -math.inf
    codes, _ = assert_matches(scores)
    assert codes[..., 5].eq(0).all()


def test_more_prototypes_than_fit_on_chip(monkeypatch):
    monkeypatch.setattr(launch, "WIDEST", 100)
    assert_matches(cosines(2, 30, 101), cosines(2, 9, 101))


def test_unaligned_views_and_strides():
    wide = torch.zeros(2, 50, 303)
    wide[..., 3:] = cosines(2, 50, 300)
    assert_matches(wide[..., 3:])
    flat = torch.zeros(1 + 50 * 300)[1:].view(1, 50, 300)
    flat.copy_(cosines(1, 50, 300))
    assert_matches(flat)


def test_3000_prototypes_are_three_chunks():
    assert passes_for(3000)[:2] == (1024, 3)
    for prototypes in (1, 100, 128, 129, 300, 1000, 3000, 4096, 5000, 16384):
        passes = passes_for(prototypes)
        assert prototypes <= passes.chunk * passes.chunks
        assert passes.chunks <= 4
        assert passes.chunk * passes.chunks < 1.34 * prototypes + 128


def test_work_is_what_the_formulas_say(monkeypatch):
    """Bytes of scores, codes and sums, and exponentials, on rows that fill their tiles."""
    batch, prototypes, iterations = 64, 256, 3
    passes = Passes(chunk=128, chunks=2, rows=8, warps=4, first_rows=8, first_block=128, first_warps=4)
    monkeypatch.setattr(launch, "passes_for", lambda _: passes)
    with checked() as work:
        launch.sinkhorn(cosines(1, batch, prototypes), None, 0.05, iterations, "")
    slots, first_slots = [8], 8  # 4 processors: 2 programs each, and of the first pass 4 in two blocks of columns
    moved = cost.sums_bytes(slots, iterations, prototypes, first_slots)
    assert work.by_tensor["scores", "load"] == cost.score_reads(batch, 0, prototypes, iterations, 4)
    assert work.loaded + work.stored == cost.floor_bytes(batch, 0, prototypes, iterations, 4) + moved
    assert work.launches == 2 * iterations + 1
    expected = cost.exponentials(batch, prototypes, iterations, passes)
    assert work.exponentials == expected + cost.reduce_exponentials(prototypes, 1, 32)


@pytest.mark.parametrize("iterations", [1, 3])
def test_n_iterations_read_the_scores_at_most_n_and_1_1_times(iterations):
    """All that is read counts, also sums and potentials; what is written is the codes once, and sums."""
    batch, prototypes = 2048, 32
    with checked() as work:
        launch.sinkhorn(cosines(1, batch, prototypes), None, 0.05, iterations, "")
    scores = 4 * batch * prototypes
    assert work.by_tensor["scores", "load"] == (iterations + 1) * scores
    assert work.loaded <= (iterations + 1.1) * scores
    assert work.by_tensor["codes", "store"] == scores


@pytest.mark.parametrize(
    ("shape", "queued", "width", "products", "shared"),
    [
        ((1, 1, 1), 0, 5, F32, True),
        ((2, 40, 70), 33, 20, F32, True),
        ((2, 20, 70), 0, 20, F32, False),
        ((1, 40, 100), 0, 40, F32, True),
        ((1, 130, 90), 0, 32, BF16, True),
        ((1, 40, 90), 20, 32, F16, True),
    ],
)
def test_from_features(shape, queued, width, products, shared):
    heads, batch, prototypes = shape
    z = unit(heads, batch, width).to(products)
    weights = unit(1 if shared else heads, prototypes, width).to(products)
    queue = unit(heads, queued, width).to(products) if queued else None
    codes, work = same_in_any_order(lambda: launch.sinkhorn_from_features(z, weights, queue, 0.05, 2, products, ""), 2)
    more = queue.double() @ weights.double().mT if queued else None
    expected = sinkhorn_reference(z.double() @ weights.double().mT, queue=more, iterations=2)
    # Products of 16-bit operands are exact in fp32; sums of up to 40 of them and 2 iterations are not.
    assert relative(codes, expected) <= 3e-5
    torch.testing.assert_close(codes.sum(-1), torch.ones(codes.shape[:-1]), rtol=0, atol=2e-5)
    assert work.dot_flops == cost.product_flops(batch, queued, prototypes, width, 2, heads)
    assert work.atomic == 0


def test_features_of_any_length():
    """|s| / ε up to 10⁴: the first iteration tracks its maximum, the others stay near the last potential."""
    z, weights = 25 * unit(1, 90, 16), 25 * unit(1, 40, 16)
    codes, _ = same_in_any_order(lambda: launch.sinkhorn_from_features(z, weights, None, 0.05, 3, F32, ""), 2)
    expected = sinkhorn_reference(z.double() @ weights.double().mT)
    assert relative(codes, expected) <= 1e-2


class _NoSynchronisation(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func._schema.name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"), func
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_back(monkeypatch):
    with _NoSynchronisation():
        launch.sinkhorn(torch.rand(1, 20, 16), torch.rand(1, 9, 16), 0.05, 3, "")
        launch.sinkhorn_from_features(torch.rand(1, 20, 16), torch.rand(1, 9, 16), None, 0.05, 2, F32, "")
        monkeypatch.setattr(launch, "WIDEST", 8)
        launch.sinkhorn(torch.rand(1, 20, 16), None, 0.05, 3, "")


RANKS, ROWS = 2, 35
OWN = (slice(0, 29), slice(29, 70))
"""Rows of z on each rank: not equally many."""


def _inputs():
    torch.manual_seed(0)
    z, queue, weights = unit(2, RANKS * ROWS, 16), unit(2, RANKS * 10, 16), unit(1, 40, 16)
    return z, queue, weights


def _rank(rank, world, folder):
    dist.init_process_group("gloo", rank=rank, world_size=world)
    launch.product_tile = lambda width, *_: SMALL._replace(piece=min(width, 32))
    z, queue, weights = _inputs()
    z, queue = z[:, OWN[rank]], queue[:, rank * 10 : (rank + 1) * 10]
    name, results = dist.group.WORLD.group_name, []
    for size in (1.0, 500.0):
        scores, more = z @ weights.mT * size, queue @ weights.mT * size
        results.append(launch.sinkhorn(scores, more, 0.05, 3, name))
    results.append(launch.sinkhorn_from_features(z, weights, queue, 0.05, 2, F32, name))
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_share_the_prototypes(tmp_path):
    on_ranks(_rank, RANKS, str(tmp_path))
    z, queue, weights = (t.double() for t in _inputs())
    exact = [
        sinkhorn_reference(z @ weights.mT * size, queue=queue @ weights.mT * size, iterations=iterations)
        for size, iterations in ((1.0, 3), (500.0, 3), (1.0, 2))
    ]
    for rank in range(RANKS):
        own = OWN[rank]
        for ours, expected, tolerance in zip(
            torch.load(tmp_path / f"{rank}.pt"), exact, (TOLERANCE, 5e-3, 3e-5), strict=True
        ):
            assert relative(ours, expected[:, own]) <= tolerance
