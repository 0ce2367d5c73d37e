"""The Triton kernels of NT-Xent and InfoNCE, through the launcher a GPU uses, under the corrected interpreter."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from fastssl_kernels.nt_xent import (
    cost,
    info_nce_reference,
    launch,
    launch_rows,
    launch_sums,
    nt_xent_reference,
)
from fastssl_kernels.nt_xent.logits import Logits
from fastssl_kernels.tile import Tile, padded_rows
from proof.interpreter import checked, same_in_any_order
from ranks import on_ranks
from torch.utils._python_dispatch import TorchDispatchMode

# Padding rows take logarithms of nothing.
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value encountered in divide")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
TOLERANCE = {F32: 1e-5, BF16: 5e-3, F16: 2e-3}
SMALL = {
    "triangle": Tile(64, 64, 32, 4, 2),
    "rectangle": Tile(64, 32, 32, 4, 2),
    "attraction": Tile(32, 64, 32, 4, 2),
    "gradient": Tile(64, 32, 32, 4, 2),
    "gradient-few": Tile(32, 64, 32, 4, 2),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Small tiles, so that small batches have many; widths above 32 go in pieces."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    monkeypatch.setattr(launch_rows, "tile_for", lambda kernel, width, *_: SMALL[kernel]._replace(piece=min(width, 32)))


def views_of(batch, width, views=2, noise=None):
    images = torch.randn(batch, width)
    return torch.cat(
        [images + (noise if noise is not None else 100.0) * torch.randn(batch, width) for _ in range(views)]
    )


def relative(ours, exact):
    assert ours.isfinite().all()
    return ((ours.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def nt_xent_on_kernels(z, logits, views, metrics=False, queue=None):
    """Loss, metrics and gradient as the registered operators compute them on a GPU."""
    loss, statistics, *saved = launch.nt_xent_forward(z, queue, logits, views, metrics, True, "")
    return loss, statistics, launch.nt_xent_backward(torch.tensor(2.0), z, *saved, logits, views, "")


# batch, width, views, temperature, input, products, metrics, normalize, noise between views
CASES = [
    (1, 16, 2, 0.5, F32, F32, False, True, None),
    (2, 16, 2, 0.5, F32, F32, True, True, None),
    (64, 16, 2, 0.5, F32, F32, False, True, None),
    (130, 32, 2, 0.1, F32, F32, False, True, None),
    (130, 20, 2, 0.1, F32, F32, True, True, 0.1),
    (128, 16, 3, 0.2, F32, F32, False, True, None),
    (70, 16, 4, 0.2, F32, F32, False, True, None),
    (64, 16, 5, 0.2, F32, F32, False, True, None),
    (40, 100, 2, 0.1, F32, F32, False, True, None),
    (30, 70, 3, 0.1, F32, F32, True, True, None),
    (70, 16, 2, 0.005, F32, F32, False, True, None),
    (30, 16, 3, 0.005, F32, F32, True, True, None),
    (70, 33, 2, 0.7, F32, F32, True, False, None),
    (127, 32, 2, 0.5, BF16, BF16, False, True, 0.03),
    (127, 32, 2, 0.1, BF16, BF16, True, True, None),
    (70, 32, 2, 0.1, F32, BF16, False, True, None),
    (127, 32, 2, 0.1, F16, F16, False, True, 0.5),
    (70, 32, 2, 0.01, F16, F16, True, True, None),
]


@pytest.mark.parametrize(
    ("batch", "width", "views", "temperature", "dtype", "products", "metrics", "normalize", "noise"), CASES
)
def test_nt_xent(batch, width, views, temperature, dtype, products, metrics, normalize, noise):
    z = views_of(batch, width, views, noise)
    z = (z if normalize else F.normalize(z, dim=1) * 1.5).to(dtype)
    exact = z.double().requires_grad_()
    options = {"temperature": temperature, "views": views, "normalize": normalize}
    expected, counted = nt_xent_reference(exact, return_metrics=True, **options)
    (2 * expected).backward()
    logits = Logits(temperature, normalize, products)
    (loss, statistics, gradient), work = same_in_any_order(lambda: nt_xent_on_kernels(z, logits, views, metrics), 2)
    tolerance = TOLERANCE[products]
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)
    if metrics:
        assert statistics[0].item() == pytest.approx(
            counted.accuracy.item(), abs=1e-6 if products == F32 else 2 / batch
        )
        assert statistics[1].item() == pytest.approx(counted.entropy.item(), rel=10 * tolerance, abs=10 * tolerance)
    assert gradient.dtype == dtype
    assert relative(gradient, exact.grad) <= tolerance if batch > 1 else gradient.abs().max() < 1e-6
    assert work.atomic == 0


# batch, queue, width, views, temperature, products, metrics, normalize
MEMORIES = [
    (1, 5, 16, 2, 0.2, F32, True, True),
    (70, 1, 16, 2, 0.2, F32, False, True),
    (70, 300, 50, 2, 0.1, F32, False, True),
    (70, 300, 16, 3, 0.1, F32, True, True),
    (70, 130, 32, 2, 0.01, F32, True, True),
    (40, 130, 20, 2, 1.0, F32, False, False),
    (70, 300, 32, 2, 0.1, BF16, False, True),
    (70, 300, 32, 2, 0.1, F16, True, True),
]


@pytest.mark.parametrize(
    ("batch", "queue", "width", "views", "temperature", "products", "metrics", "normalize"), MEMORIES
)
def test_nt_xent_with_a_queue(batch, queue, width, views, temperature, products, metrics, normalize):
    z = F.normalize(views_of(batch, width, views, 0.5), dim=1).to(products)
    negatives = F.normalize(torch.randn(queue, width), dim=1).to(products)
    exact = z.double().requires_grad_()
    expected, counted = nt_xent_reference(
        exact,
        temperature=temperature,
        views=views,
        queue=negatives.double(),
        normalize=normalize,
        return_metrics=True,
    )
    (2 * expected).backward()
    logits = Logits(temperature, normalize, products)
    (loss, statistics, gradient), work = same_in_any_order(
        lambda: nt_xent_on_kernels(z, logits, views, metrics, negatives), 2
    )
    tolerance = TOLERANCE[products] * (1 if temperature > 0.05 else 4)
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)
    if metrics:
        assert statistics[0].item() == pytest.approx(
            counted.accuracy.item(), abs=1e-6 if products == F32 else 2 / batch
        )
        assert statistics[1].item() == pytest.approx(counted.entropy.item(), rel=10 * tolerance, abs=10 * tolerance)
    assert relative(gradient, exact.grad) <= tolerance
    assert work.atomic == 0


# batch, queue, width, temperature, dtype, query and key want gradients, normalize
PAIRS = [
    (1, None, 16, 0.1, F32, True, True, True),
    (3, 0, 16, 0.1, F32, True, True, True),
    (130, None, 20, 0.2, F32, True, True, True),
    (70, 300, 32, 0.2, F32, True, True, True),
    (70, 130, 50, 0.2, F32, True, False, True),
    (70, None, 50, 0.2, F32, False, True, True),
    (70, 300, 33, 0.01, F32, True, False, True),
    (70, None, 32, 0.01, F32, True, True, True),
    (40, None, 20, 1.0, F32, True, True, False),
    (70, 300, 32, 0.2, BF16, True, False, True),
    (70, None, 32, 0.2, BF16, True, True, True),
    (70, 300, 32, 0.1, F16, True, False, True),
    (70, None, 32, 0.1, F16, True, True, True),
]


@pytest.mark.parametrize(("batch", "queue", "width", "temperature", "dtype", "by_query", "by_key", "normalize"), PAIRS)
def test_info_nce(batch, queue, width, temperature, dtype, by_query, by_key, normalize):
    query = F.normalize(torch.randn(batch, width), dim=1).to(dtype)
    key = (0.3 * query + F.normalize(torch.randn(batch, width), dim=1)).to(dtype)
    negatives = None if queue is None else F.normalize(torch.randn(queue, width), dim=1).to(dtype)
    exact = [t.double().requires_grad_() for t in (query, key)]
    expected, counted = info_nce_reference(
        *exact,
        queue=None if negatives is None else negatives.double(),
        temperature=temperature,
        normalize=normalize,
        return_metrics=True,
    )
    expected.backward()
    logits = Logits(temperature, normalize, dtype)
    one = torch.tensor(1.0)

    def run():
        loss, statistics, attraction, share, queries, weight = launch.info_nce_forward(
            query, key, negatives, logits, True, by_query, by_key, ""
        )
        gradients = []
        if by_query:
            gradients.append(launch.info_nce_query_backward(one, query, key, attraction, share, logits))
        if by_key:
            gradients.append(launch.info_nce_key_backward(one, query, key, share, queries, weight, logits, ""))
        return loss, statistics, gradients

    (loss, statistics, gradients), work = same_in_any_order(run, 2)
    tolerance = TOLERANCE[dtype] * (1 if temperature > 0.05 else 4)
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)
    assert statistics[0].item() == pytest.approx(counted.accuracy.item(), abs=1e-6 if dtype == F32 else 2 / batch)
    assert statistics[1].item() == pytest.approx(counted.entropy.item(), rel=10 * tolerance, abs=10 * tolerance)
    wanted = [t for t, on in zip(exact, (by_query, by_key), strict=True) if on]
    for ours, want in zip(gradients, wanted, strict=True):
        assert ours.dtype == dtype
        assert relative(ours, want.grad) <= tolerance if want.grad.norm() > 1e-9 else ours.norm() < 1e-6
    assert work.atomic == 0


def test_work_is_what_the_formulas_say():
    """On whole tiles the kernels move and multiply what `cost` says: half a product forward, two backward."""
    batch, width = 256, 32
    z = torch.randn(2 * batch, width).bfloat16()
    logits = Logits(0.5, True, BF16)
    with checked() as work:
        _, _, *saved = launch.nt_xent_forward(z, None, logits, 2, False, True, "")
    tile, tiles = SMALL["triangle"], 2 * batch // 64
    splits = max(1, min(2 * launch_sums.processors(z.device) // tiles, (tiles - 1) // 2))
    expected = cost.triangle_cost(batch, width, tile, views=2, splits=splits, itemsize=2)
    assert work.dot_flops == expected.flops
    assert work.by_tensor["z", "load"] + work.by_tensor["partial", "store"] == expected.bytes
    floor, _ = cost.nt_xent_floor(batch, width)
    # The diagonal tiles and those half way round are computed whole: 1 + 2 / tiles.
    assert floor.flops < work.dot_flops <= floor.flops * (1 + 2 / tiles)

    with checked() as work:
        launch.nt_xent_backward(torch.ones(()), z, *saved, logits, 2, "")
    expected = cost.gradient_cost(batch, width, SMALL["gradient"], views=2, itemsize=2)
    assert work.launches == 1
    assert (work.dot_flops, work.exponentials) == (expected.flops, expected.exponentials)
    assert work.loaded + work.stored == expected.bytes
    assert work.dot_flops == cost.nt_xent_floor(batch, width)[1].flops
    assert work.stored == z.numel() * 2


def test_forward_and_backward_take_at_most_2_6_products():
    """A product is 2·(V·B)²·D FLOPs; the floor is 2.5, and tiles on and half way round the diagonal add 1 / 12."""
    batch = 384
    z = torch.randn(2 * batch, 16).bfloat16()
    logits = Logits(0.5, True, BF16)
    with checked() as work:
        _, _, *saved = launch.nt_xent_forward(z, None, logits, 2, False, True, "")
        launch.nt_xent_backward(torch.ones(()), z, *saved, logits, 2, "")
    product = 2 * (2 * batch) ** 2 * 16
    assert 2.5 * product < work.dot_flops <= 2.6 * product


def test_a_queue_is_read_once_for_loss_and_gradient():
    query, key, queue = torch.randn(64, 32).bfloat16(), torch.randn(64, 32).bfloat16(), torch.randn(512, 32).bfloat16()
    with checked() as work:
        launch.info_nce_forward(query, key, queue, Logits(0.2, True, BF16), False, True, False, "")
    owners = padded_rows(64) // SMALL["attraction"].owner
    assert work.by_tensor["columns", "load"] == owners * queue.numel() * 2
    assert work.dot_flops == 2 * cost.info_nce_floor(128, 512, 32).flops // 2


def test_large_batches_run_in_several_launches(monkeypatch):
    """Partial sums stay proportional to the rows: more distances than slots means another launch."""
    monkeypatch.setattr(launch_sums, "SLOTS", 2)
    z = views_of(300, 16)
    exact = z.double().requires_grad_()
    (2 * nt_xent_reference(exact, temperature=0.2)).backward()
    with checked() as work:
        _, _, gradient = nt_xent_on_kernels(z, Logits(0.2, True, F32), 2)
    assert work.launches > 5
    assert relative(gradient, exact.grad) <= 1e-5


@pytest.mark.parametrize("views", [2, 3, 4])
def test_one_tile_a_view(views, monkeypatch):
    """The largest tile and the smallest batch: no tile is free of excluded logits."""
    monkeypatch.setitem(SMALL, "triangle", Tile(128, 128, 32, 4, 2))
    z = views_of(9, 16, views)
    exact = z.double().requires_grad_()
    (2 * nt_xent_reference(exact, temperature=0.2, views=views)).backward()
    with checked():
        _, _, gradient = nt_xent_on_kernels(z, Logits(0.2, True, F32), views)
    assert relative(gradient, exact.grad) <= 1e-5


def test_identical_rows_tie():
    z = torch.randn(1, 20).expand(64, 20).contiguous()
    for products in (F32, BF16):
        with checked():
            _, statistics, _ = nt_xent_on_kernels(z.to(products), Logits(0.1, True, products), 2, metrics=True)
        assert statistics[0].item() == 0


class _NoSynchronisation(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func._schema.name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"), func
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_back():
    z = torch.randn(20, 16)
    with _NoSynchronisation():
        nt_xent_on_kernels(z, Logits(0.1, True, F32), 2, metrics=True)


IMAGES, RANKS = 70, 2


def _inputs():
    """Views [2, all images, 16], queries and keys [2, all images, 16]."""
    torch.manual_seed(0)
    return torch.randn(2, 2, RANKS * IMAGES, 16)


def _queue():
    return F.normalize(torch.randn(40, 16, generator=torch.Generator().manual_seed(1)), dim=1)


def _rank(rank, world, folder):
    dist.init_process_group("gloo", rank=rank, world_size=world)
    launch_rows.tile_for = lambda kernel, width, *_: SMALL[kernel]._replace(piece=min(width, 32))
    views, (query, key) = (part[:, rank * IMAGES : (rank + 1) * IMAGES] for part in _inputs())
    z, name, one, results = views.flatten(0, 1), dist.group.WORLD.group_name, torch.ones(()), []
    queue = _queue()
    for products in (F32, BF16):
        logits = Logits(0.1, True, products)
        loss, _, *saved = launch.nt_xent_forward(z, queue, logits, 2, True, True, name)
        results += [loss, launch.nt_xent_backward(one, z, *saved, logits, 2, name)]
        loss, _, attraction, *saved = launch.info_nce_forward(query, key, None, logits, False, True, True, name)
        results += [loss, launch.info_nce_query_backward(one, query, key, attraction, saved[0], logits)]
        results += [launch.info_nce_key_backward(one, query, key, *saved, logits, name)]
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_share_one_gradient(tmp_path):
    """What two ranks compute averages to the gradient of one process on all rows, without talking in backward."""
    on_ranks(_rank, RANKS, str(tmp_path))
    views, (query, key) = (part.double() for part in _inputs())
    z, query, key = (t.requires_grad_() for t in (views.flatten(0, 1), query, key))
    both = nt_xent_reference(z, temperature=0.1, queue=_queue().double())
    pairs = info_nce_reference(query, key, temperature=0.1)
    (both + pairs).backward()
    for rank in range(RANKS):
        results, own = torch.load(tmp_path / f"{rank}.pt"), slice(rank * IMAGES, (rank + 1) * IMAGES)
        exact = [both, z.grad.view_as(views)[:, own].flatten(0, 1), pairs, query.grad[own], key.grad[own]]
        for ours, theirs in zip(results, exact * 2, strict=True):
            tolerance = TOLERANCE[F32] if ours is results[0] or any(ours is r for r in results[:5]) else TOLERANCE[BF16]
            assert relative(ours, theirs.detach() * (RANKS if theirs.dim() else 1)) <= tolerance
