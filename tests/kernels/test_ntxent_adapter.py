"""lightly's `NTXentLoss` by name and signature: with and without its memory bank."""

import pytest
import torch
from fastssl_kernels.adapters import NTXentLoss
from fastssl_kernels.nt_xent import nt_xent_reference


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_the_adapter_is_a_drop_in():
    first, second = torch.randn(2, 20, 16)
    ours = NTXentLoss(temperature=0.3, gather_distributed=False)(first, second)
    rows = torch.cat([first, second])
    assert ours.item() == pytest.approx(nt_xent_reference(rows, temperature=0.3).item(), rel=1e-5)


@pytest.mark.parametrize("size", [0, (90, 16)])
def test_the_adapter_agrees_with_the_original(size):
    """Loss, gradients and what the bank holds: three batches, so that the fourth replaces the first. Without a gradient
    the bank stays as it is."""
    lightly = pytest.importorskip("lightly.loss")
    arguments = (0.3, size, False)
    theirs, ours = lightly.NTXentLoss(*arguments), NTXentLoss(*arguments)
    if size:
        ours.queue.rows.copy_(theirs.memory_bank.bank)
    for step in range(5):
        first, second = torch.randn(2, 30, 16)
        leaf, other = first.clone().requires_grad_(step != 2), first.clone().requires_grad_(step != 2)
        expected, found = theirs(leaf, second), ours(other, second)
        torch.testing.assert_close(found, expected)
        if step != 2:
            expected.backward()
            found.backward()
            torch.testing.assert_close(other.grad, leaf.grad)
    if size:
        torch.testing.assert_close(ours.queue.rows, theirs.memory_bank.bank)


@pytest.mark.parametrize("size", [5, -1, True, (0, 4), (4,), (1, 2, 3)])
def test_the_adapters_bank_needs_rows_and_width(size):
    with pytest.raises(ValueError, match=r"memory_bank_size must be \(rows, width\), each at least 1, got"):
        NTXentLoss(0.5, size)
