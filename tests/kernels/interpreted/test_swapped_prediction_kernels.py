"""SwAV's kernels, through the launcher a GPU uses, under the corrected interpreter."""

import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels.swapped_prediction import cost, launch, swapped_prediction_reference
from fastssl_kernels.tile import Tile
from proof.interpreter import checked, same_in_any_order
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value encountered")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
TOLERANCE = {F32: 1e-5, BF16: 5e-3, F16: 2e-3}
SMALL = {
    "codes": Tile(32, 64, 32, 4, 2),
    "predict": Tile(64, 32, 32, 4, 2),
    "prototypes": Tile(32, 64, 32, 4, 2),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Small tiles, so that small batches have many; widths above 32 go in pieces."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    monkeypatch.setattr(launch, "tile_for", lambda kernel, width, *_: SMALL[kernel]._replace(piece=min(width, 32)))


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def problem(crops, batch, prototypes, width, assign=2):
    z = F.normalize(unit(1, batch, width) + 0.3 * torch.randn(crops, batch, width), dim=-1)
    codes = torch.softmax(5 * torch.randn(assign, batch, prototypes), -1)
    return z.flatten(0, 1), unit(prototypes, width), codes


def relative(ours, exact):
    assert ours.isfinite().all()
    return ((ours.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


# crops, batch, prototypes, width, assign, input and products, temperature, by z, by prototypes
CASES = [
    (2, 1, 3, 5, (0, 1), F32, F32, 0.1, True, True),
    (4, 20, 100, 16, (0, 1), F32, F32, 0.1, True, True),
    (3, 33, 70, 20, (2, 0, 1), F32, F32, 0.01, True, True),
    (3, 25, 64, 40, (1,), F32, F32, 0.1, True, True),
    (2, 40, 50, 16, (0, 1), F32, F32, 0.1, True, False),
    (2, 40, 50, 16, (0, 1), F32, F32, 0.1, False, True),
    (2, 40, 50, 16, (0, 1), F32, F32, 0.1, False, False),
    (4, 20, 130, 32, (0, 1), BF16, BF16, 0.1, True, True),
    (3, 40, 70, 32, (0, 1), F32, BF16, 0.1, True, True),
    (3, 40, 70, 32, (0, 1), F16, F16, 0.1, True, True),
]


@pytest.mark.parametrize(
    ("crops", "batch", "prototypes", "width", "assign", "dtype", "products", "temperature", "by_z", "by_prototypes"),
    CASES,
)
def test_from_features(crops, batch, prototypes, width, assign, dtype, products, temperature, by_z, by_prototypes):
    z, weights, codes = problem(crops, batch, prototypes, width, len(assign))
    z, weights = z.to(dtype), weights.to(dtype)
    exact = [t.double().requires_grad_() for t in (z, weights)]
    scores = exact[0].view(crops, batch, -1) @ exact[1].T
    expected = swapped_prediction_reference(scores, codes.double(), temperature=temperature, assign=assign)
    expected.backward()
    (loss, gradient, prototype_gradient), work = same_in_any_order(
        lambda: launch.swapped_prediction(z, weights, codes, temperature, list(assign), products, by_z, by_prototypes),
        2,
    )
    tolerance = TOLERANCE[products]
    assert loss.dtype == F32
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)
    for wanted, ours, leaf in ((by_z, gradient, exact[0]), (by_prototypes, prototype_gradient, exact[1])):
        assert ours.dtype == F32
        if wanted:
            assert relative(ours, leaf.grad) <= tolerance
        else:
            assert ours.numel() == 0
    if width <= 32:
        tiles, wanted = SMALL, {"z_gradient": by_z, "prototype_gradient": by_prototypes}
        assert work.dot_flops == cost.flops(batch, crops, len(assign), prototypes, width, tiles, **wanted)
        read = cost.code_bytes(len(assign), batch, prototypes, prototype_gradient=by_prototypes)
        assert work.by_tensor["codes", "load"] == read
    assert work.atomic == 0


# Sums of up to 3,000 terms; the gradient is rounded once to the dtype of the scores.
@pytest.mark.parametrize(
    ("rows", "prototypes", "dtype", "size"),
    [
        (1, 1, F32, 1.0),
        (5, 70, F32, 1.0),
        (7, 3001, F32, 1.0),
        (9, 300, F32, 1e4),
        (9, 300, BF16, 1.0),
        (9, 300, F16, 1.0),
        (9, 130, torch.float64, 1.0),
    ],
)
def test_from_scores(rows, prototypes, dtype, size):
    scores = (torch.randint(-8, 9, (rows, prototypes)) * (size / 8)).to(dtype)
    target = torch.softmax(3 * torch.randn(rows, prototypes), -1) * (0.5 + torch.rand(rows, 1))
    grad = torch.rand(rows) + 0.5
    exact = scores.to(torch.float64, copy=True).requires_grad_()
    losses = -(target.double() * torch.log_softmax(exact / 0.125, -1)).sum(-1)
    losses.backward(grad.double())

    def run():
        ours, statistics = launch.code_cross_entropy(scores, target, 0.125)
        return ours, launch.code_cross_entropy_backward(grad, scores, target, statistics, 0.125)

    (ours, gradient), work = same_in_any_order(run, 2)
    assert relative(ours, losses.detach()) <= 1e-5 if prototypes > 1 else ours.abs().max() <= 1e-5
    assert gradient.dtype == dtype
    tolerance = {BF16: 3e-3, F16: 1e-3}.get(dtype, 1e-5)
    assert relative(gradient, exact.grad) <= tolerance if prototypes > 1 else gradient.abs().max() <= 1e-5
    assert work.loaded + work.stored == sum(cost.score_bytes(rows, prototypes, scores.element_size()))


def test_strides():
    z, weights, codes = problem(3, 20, 40, 16)
    wide = torch.zeros(60, 33)
    wide[:, 3:19] = z
    plain = launch.swapped_prediction(z, weights, codes, 0.1, [0, 1], F32, True, True)
    with checked():
        strided = launch.swapped_prediction(
            wide[:, 3:19], weights.T.contiguous().T, codes.mT.contiguous().mT, 0.1, [0, 1], F32, True, True
        )
    for ours, other in zip(strided, plain, strict=True):
        torch.testing.assert_close(ours, other)


class _NoSynchronisation(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func._schema.name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"), func
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_back():
    z, weights, codes = problem(2, 10, 20, 16)
    with _NoSynchronisation():
        launch.swapped_prediction(z, weights, codes, 0.1, [0, 1], F32, True, True)
        _, statistics = launch.code_cross_entropy(codes[0], codes[1], 0.1)
        launch.code_cross_entropy_backward(torch.ones(10), codes[0], codes[1], statistics, 0.1)
