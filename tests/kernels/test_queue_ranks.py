"""Queues of several ranks are replicas of the queue of one process that sees all rows, after any number of steps.

Every rank enqueues its rows; afterwards all queues must hold the same rows in the same places, and lookups must find
what one process finds. Public implementations keep a queue a rank.
"""

import sys

import pytest
import torch
import torch.distributed as dist
from fastssl_kernels import Queue, nearest_neighbor
from fastssl_kernels.adapters import NNMemoryBankModule
from ranks import on_ranks

SIZE, WIDTH, BATCH, STEPS = 50, 8, 12, 7
DTYPES = [torch.float32, torch.bfloat16]


def batches():
    return torch.randn(STEPS, BATCH, WIDTH, generator=torch.Generator().manual_seed(0))


def run(images, group):
    """Neighbours of every step, and the state of the queues afterwards."""
    queues = [Queue(SIZE, WIDTH, dtype=dtype) for dtype in DTYPES]
    found = []
    for batch in batches():
        for queue in queues:
            # The whole batch looks up everywhere: a replica that differs shows at once.
            found += [nearest_neighbor(batch, queue).rows, queue.newest(5).float()]
            queue.enqueue(batch[images], group=group)
    return found, [queue.state_dict() for queue in queues]


def work(rank, world, folder):
    dist.init_process_group("gloo", rank=rank, world_size=world)
    share = BATCH // world
    images = slice(rank * share, (rank + 1) * share)
    results = {"replicas": run(images, None), "own": run(images, "local")}
    banks = [NNMemoryBankModule((SIZE, WIDTH), gather_distributed=gather) for gather in (False, True)]
    for bank in banks:
        bank(batches()[0, images], update=True)
    results["banks"] = [bank.queue.rows for bank in banks]
    small = Queue(BATCH - 1, WIDTH)
    message = f"rows must fit the queue: {BATCH} rows of all ranks for a queue of {BATCH - 1}"
    with pytest.raises(ValueError, match=message):
        small.enqueue(batches()[0, images])
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[1, 2, 4])
def ranks(request, tmp_path_factory):
    """Every rank's results, from one set of processes for all tests."""
    folder = tmp_path_factory.mktemp(f"world{request.param}")
    on_ranks(work, request.param, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo over processes")


def test_replicas_equal_the_queue_of_one_process(ranks):
    found, states = run(slice(None), "local")
    for results in ranks:
        theirs, their_states = results["replicas"]
        assert all(torch.equal(a, b) for a, b in zip(theirs, found, strict=True))
        for state, other in zip(states, their_states, strict=True):
            assert all(torch.equal(state[name], other[name]) for name in state)


def test_a_local_queue_holds_the_rows_of_its_rank(ranks):
    share = BATCH // len(ranks)
    for rank, results in enumerate(ranks):
        alone = run(slice(rank * share, (rank + 1) * share), "local")
        for state, other in zip(alone[1], results["own"][1], strict=True):
            assert all(torch.equal(state[name], other[name]) for name in state)


def test_the_adapter_gathers_only_if_told(ranks):
    own, gathered = zip(*(results["banks"] for results in ranks), strict=True)
    assert all(torch.equal(rows, gathered[0]) for rows in gathered)
    assert not any(torch.equal(rows, own[0]) for rows in own[1:])
