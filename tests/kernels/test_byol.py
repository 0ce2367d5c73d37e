"""BYOL's regression loss against float64, autograd and torch's cosine similarity."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels.byol import byol_loss, byol_reference
from fastssl_kernels.byol.op import byol_backward, byol_forward
from laws import gradient_of

SHAPES = [(1, 1), (1, 256), (2, 7), (33, 127), (252, 256), (5, 4099), (700, 300)]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors are small here, and a second thread only waits for the first on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_the_reference_is_twice_the_cosine_distance_and_its_own_derivative():
    p, z = rows(5, 6), rows(5, 6, seed=1)
    torch.testing.assert_close(byol_reference(p, z), 2 - 2 * F.cosine_similarity(p, z))
    torch.testing.assert_close(byol_reference(p, z), (F.normalize(p) - F.normalize(z)).square().sum(1))
    assert torch.autograd.gradcheck(lambda x: byol_reference(x, z), p.requires_grad_())


# Sums of D float32 products: relative error below 1e-6 here. The gradient is rounded once to the input's dtype.
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient(shape, dtype, tolerance):
    p, z = rows(*shape, dtype=dtype), rows(*shape, seed=1, dtype=dtype)
    # The sum over the rows: the mean's gradient would fall among float16's subnormal numbers.
    loss, gradient = gradient_of(lambda a, b: byol_loss(a, b) * shape[0], p, z)
    expected, exact = gradient_of(lambda a, b: byol_reference(a, b).sum(), p.double(), z.double())
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype
    assert abs(float(loss - expected)) <= 2 * min(tolerance, 2e-6) * shape[0]
    # In one dimension the exact gradient is 0: measure against the size of its two parts.
    size = exact.norm() if shape[1] > 1 else 2 / p.double().abs()
    assert (gradient.double() - exact).norm() <= tolerance * size


def test_gradient_of_every_row_loss():
    p, z = rows(9, 5).requires_grad_(), rows(9, 5, seed=1)
    assert torch.autograd.gradcheck(lambda x: byol_loss(x, z, reduction="none"), p)
    assert byol_loss(p, z, reduction="none").shape == (9,)


@pytest.mark.parametrize("cosine", [0.999, 1.0, -1.0])
def test_aligned_rows_keep_the_gradient_orthogonal(cosine):
    """Late in training p ≈ z: the loss is a difference of nearly equal numbers, the gradient stays orthogonal to p."""
    z = F.normalize(rows(64, 128))
    other = rows(64, 128, seed=1)
    other = F.normalize(other - (other * z).sum(1, keepdim=True) * z)
    p = (3 * (cosine * z + (1 - cosine**2) ** 0.5 * other)).float()
    loss, gradient = gradient_of(byol_loss, p, z.float())
    expected, exact = gradient_of(lambda a, b: byol_reference(a, b).mean(), p.double(), z.float().double())
    assert abs(float(loss - expected)) <= 1e-6
    assert (gradient.double() - exact).abs().max() <= 2e-7 / 64
    assert (gradient * p).sum(1).abs().max() <= 1e-6 / 64


def test_it_does_not_see_the_length_of_its_rows():
    p, z = rows(8, 32, dtype=torch.float32), rows(8, 32, seed=1, dtype=torch.float32)
    lengths = torch.tensor([1e-12, 1e-6, 1e-3, 1, 1e3, 1e6, 1e12, 1e15]).unsqueeze(1)
    torch.testing.assert_close(byol_loss(p * lengths, z / lengths), byol_loss(p, z))


def test_zero_rows_cost_two_and_get_no_gradient():
    p, z = rows(4, 8, dtype=torch.float32), rows(4, 8, seed=1, dtype=torch.float32)
    p[1], z[2] = 0, 0
    leaf = p.clone().requires_grad_()
    losses = byol_loss(leaf, z, reduction="none")
    losses.sum().backward()
    assert losses[1] == 2
    assert losses[2] == 2
    assert torch.equal(leaf.grad[1:3], torch.zeros(2, 8))
    assert torch.isfinite(leaf.grad).all()


def test_the_target_gets_no_gradient():
    p, z = rows(4, 8).requires_grad_(), rows(4, 8, seed=1).requires_grad_()
    byol_loss(p, z).backward()
    assert z.grad is None
    assert p.grad is not None


def test_strides_and_dtypes_may_differ():
    p, z = rows(40, 12, dtype=torch.float32), rows(40, 12, seed=1, dtype=torch.float32)
    expected = gradient_of(byol_loss, p, z)
    wide = torch.zeros(40, 30)
    wide[:, 3:15] = p
    for result in (
        gradient_of(byol_loss, p, z.t().contiguous().t()),
        gradient_of(byol_loss, p, z.repeat(2, 1)[40:]),
    ):
        torch.testing.assert_close(result, expected)
    leaf = wide.requires_grad_()
    byol_loss(leaf[:, 3:15], z).backward()
    torch.testing.assert_close(leaf.grad[:, 3:15], expected[1])
    mixed = gradient_of(byol_loss, p.bfloat16(), z)
    torch.testing.assert_close(mixed, gradient_of(byol_loss, p.bfloat16(), z.clone()))
    assert mixed[1].dtype == torch.bfloat16


def test_autocast_changes_nothing():
    p, z = rows(33, 65, dtype=torch.float32), rows(33, 65, seed=1, dtype=torch.float32)
    expected = gradient_of(byol_loss, p, z)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            result = gradient_of(byol_loss, p, z)
        assert torch.equal(result[0], expected[0])
        assert torch.equal(result[1], expected[1])


def test_torch_library_contract():
    p, z = rows(9, 17, dtype=torch.float32), rows(9, 17, seed=1, dtype=torch.float32)
    torch.library.opcheck(byol_forward, (p.requires_grad_(), z))
    statistics = byol_forward(p.detach(), z)[1]
    torch.library.opcheck(byol_backward, (torch.ones(9), p.detach(), z, statistics))


def test_it_compiles_into_one_graph():
    p, z = rows(19, 24, dtype=torch.float32), rows(19, 24, seed=1, dtype=torch.float32)

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return byol_loss(a * 1.5, b) + byol_loss(b + a, b)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for ours, plain in zip(gradient_of(compiled, p, z), gradient_of(loss, p, z), strict=True):
        torch.testing.assert_close(ours, plain)


def test_wrong_input_is_named():
    p = rows(4, 8)
    with pytest.raises(ValueError, match=r"one shape \[B, D\], got \(4, 8\) and \(4, 7\)"):
        byol_loss(p, p[:, :7])
    with pytest.raises(ValueError, match=r"one shape \[B, D\]"):
        byol_loss(p[0], p[0])
    with pytest.raises(ValueError, match=r"at least one row and one column, got \(0, 8\)"):
        byol_loss(p[:0], p[:0])
    with pytest.raises(TypeError, match="target must be of floating dtype"):
        byol_loss(p, p.long())
    with pytest.raises(ValueError, match="target must be on cpu"):
        byol_loss(p, torch.empty(4, 8, device="meta"))
    with pytest.raises(ValueError, match="reduction must be"):
        byol_loss(p, p, reduction="sum")
