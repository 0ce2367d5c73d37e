"""NT-Xent and InfoNCE on a GPU: the CPU's laws, no synchronisation, a CUDA graph, memory linear in the batch."""

import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels import info_nce, nt_xent
from fastssl_kernels.nt_xent import info_nce_reference, nt_xent_reference
from laws import TOLERANCE, assert_nt_xent, relative
from on_device import DEVICE, ON_GPU, captured, large, no_synchronisation, peak_bytes

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("batch", "width", "views"),
    [(2, 16, 2), (127, 128, 2), (300, 256, 3), (130, 600, 2), pytest.param(4096, 128, 2, marks=large)],
)
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_nt_xent(batch, width, views, temperature, dtype):
    images = torch.randn(batch, width, device=DEVICE, dtype=torch.float64)
    z = (images + 0.5 * torch.randn(views, *images.shape, device=DEVICE)).flatten(0, 1).to(dtype)
    tolerance = TOLERANCE[dtype] * (1 if temperature > 0.05 else 4)
    assert_nt_xent(z, temperature=temperature, views=views, tolerance=tolerance)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("queue", [1, 1000, pytest.param(65536, marks=large)])
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_a_memory_of_negatives(temperature, queue, dtype):
    images = torch.randn(127, 128, device=DEVICE, dtype=torch.float64)
    z = (images + 0.5 * torch.randn(2, *images.shape, device=DEVICE)).flatten(0, 1).to(dtype)
    negatives = F.normalize(torch.randn(queue, 128, device=DEVICE), dim=1).to(dtype)
    tolerance = TOLERANCE[dtype] * (1 if temperature > 0.05 else 4)
    assert_nt_xent(z, temperature=temperature, queue=negatives, tolerance=tolerance)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("queue", [None, 1000, pytest.param(65536, marks=large)])
@pytest.mark.parametrize(("batch", "width"), [(256, 128), (70, 256)])
def test_info_nce(batch, width, queue, dtype):
    query = F.normalize(torch.randn(batch, width, device=DEVICE), dim=1).to(dtype)
    key = (0.3 * query + F.normalize(torch.randn(batch, width, device=DEVICE), dim=1)).to(dtype)
    negatives = None if queue is None else F.normalize(torch.randn(queue, width, device=DEVICE), dim=1).to(dtype)
    ours = [t.clone().requires_grad_() for t in (query, key)]
    exact = [t.double().requires_grad_() for t in (query, key)]
    loss = info_nce(*ours, queue=negatives, temperature=0.1)
    expected = info_nce_reference(*exact, queue=None if queue is None else negatives.double(), temperature=0.1)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=TOLERANCE[dtype])
    for mine, other in zip(ours, exact, strict=True):
        assert relative(mine.grad, other.grad) <= TOLERANCE[dtype]


def test_a_step_neither_synchronises_nor_leaves_the_device():
    z = torch.randn(512, 128, device=DEVICE, requires_grad=True)
    queue = F.normalize(torch.randn(4096, 128, device=DEVICE), dim=1)

    def step():
        loss, metrics = nt_xent(z, queue=queue, temperature=0.1, return_metrics=True)
        (loss + info_nce(z[:256], z[256:], queue=queue, temperature=0.1)).backward()
        return metrics

    step()
    with no_synchronisation():
        step()


def test_a_step_is_captured_in_a_graph():
    z = torch.randn(512, 128, device=DEVICE, requires_grad=True)

    def step():
        z.grad = None
        loss = nt_xent(z, temperature=0.1)
        loss.backward()
        return loss.detach()

    loss, replay = captured(step)
    with torch.no_grad():
        z.copy_(torch.randn_like(z))
    replay()
    exact = z.detach().double().requires_grad_()
    expected = nt_xent_reference(exact, temperature=0.1)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert relative(z.grad, exact.grad) <= 1e-5


def test_memory_is_linear_in_the_batch():
    """B = 32,768: a matrix of logits would be 16 GB; the rows are 16 MB in bf16. On a CPU an eighth of the rows."""
    rows = 65536 if ON_GPU else 8192
    z = torch.randn(rows, 128, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    nt_xent(z[:1024], temperature=0.1).backward()
    assert peak_bytes(lambda: nt_xent(z, temperature=0.1).backward(), z) < (160 if ON_GPU else 48) * 2**20
