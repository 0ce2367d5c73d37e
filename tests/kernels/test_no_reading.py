"""No step reads a number back: forward, backward, queue, average and optimizer, on the CPU's path."""

import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels import (
    LARS,
    Queue,
    byol_loss,
    ema_update_,
    info_nce,
    nearest_neighbor,
    nt_xent,
    relic,
    sample_negatives,
    sinkhorn,
    sinkhorn_from_features,
    swapped_prediction,
)
from no_reading import NoReading


def leaf(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


def of_queue():
    queue = Queue(10, 8)
    for _ in range(3):  # it wraps
        queue.enqueue(leaf(4, 8))
    queue.newest(3)
    info_nce(leaf(4, 8), leaf(4, 8), queue=queue.rows, temperature=0.1).backward()


def of_relic(negatives):
    loss, _ = relic(
        leaf(18, 8), leaf(12, 8), views=(2, 1), temperature=0.2, alpha=0.3, negatives=negatives, return_metrics=True
    )
    loss.backward()


def of_swapped_prediction(from_scores):
    codes = sinkhorn(leaf(2, 6, 5))
    if from_scores:
        swapped_prediction(leaf(18, 5), None, codes, temperature=0.1).backward()
    else:
        swapped_prediction(leaf(18, 8), leaf(5, 8), codes, temperature=0.1).backward()


def of_lars(variant):
    layer, target = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    pairs = [*target.parameters()], [*layer.parameters()]
    optimizer = LARS(layer.parameters(), torch.tensor(0.1), weight_decay=1e-4, variant=variant, ema=pairs)
    optimizer.found_inf, optimizer.grad_scale = torch.zeros(()), torch.tensor(2.0)
    for _ in range(2):
        byol_loss(layer(leaf(4, 8)), leaf(4, 8)).backward()
        optimizer.step()
        optimizer.zero_grad()


STEPS = {
    "nt_xent": lambda: nt_xent(leaf(12, 8), temperature=0.1, views=3, return_metrics=True)[0].backward(),
    "nt_xent online": lambda: nt_xent(leaf(12, 8), temperature=0.01).backward(),
    "info_nce": lambda: info_nce(leaf(6, 8), leaf(6, 8), temperature=0.1, return_metrics=True)[0].backward(),
    "relic": lambda: of_relic(None),
    "relic v2": lambda: of_relic(sample_negatives(6, 3, seed=0, step=torch.tensor(4))),
    "sinkhorn": lambda: sinkhorn(leaf(9, 5), queue=leaf(4, 5)),
    "sinkhorn, large scores": lambda: sinkhorn(1e3 * leaf(9, 5).detach()),
    "sinkhorn_from_features": lambda: sinkhorn_from_features(F.normalize(leaf(9, 8)), F.normalize(leaf(5, 8))),
    "swapped_prediction": lambda: of_swapped_prediction(False),
    "swapped_prediction, scores": lambda: of_swapped_prediction(True),
    "nearest_neighbor": lambda: nearest_neighbor(leaf(4, 8), Queue(200, 8)),
    "nearest_neighbor, several": lambda: nearest_neighbor(leaf(4, 8), Queue(200, 8), k=3),
    "queue": of_queue,
    "ema_update_": lambda: ema_update_([torch.zeros(8)], [torch.ones(8)], torch.tensor(0.9)),
    "byol_loss": lambda: byol_loss(leaf(4, 8), leaf(4, 8)).backward(),
    "LARS A": lambda: of_lars("A"),
    "LARS B": lambda: of_lars("B"),
    "LARS C": lambda: of_lars("C"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_no_step_reads_a_number_back(step, autocast):
    with NoReading() as operations, torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        STEPS[step]()
    assert any(name.startswith("aten::") for name in operations.seen)


def test_the_check_sees_inside_operators():
    with NoReading() as operations:
        nt_xent(leaf(8, 4), temperature=0.1).backward()
    assert {"fastssl::nt_xent_forward", "fastssl::nt_xent_backward"} <= {*operations.seen}
    assert operations.seen.count("aten::addmm") + operations.seen.count("aten::addmm_") >= 1, operations.seen


@pytest.mark.parametrize(
    "read", [torch.Tensor.item, bool, lambda x: x[x > 0], torch.nonzero, lambda x: torch.equal(x, x)]
)
def test_the_check_refuses_what_reads(read):
    x = torch.ones(())
    with pytest.raises(AssertionError), NoReading():
        read(x)
