"""One global batch gives every method the same numbers on one process, on two and on four.

The network has batch norm, shared by the ranks (or in groups, where the method wants it so). Gradients are compared by
their norms: fp32 sums come in another order, 1e-5 of a parameter's gradient, or of all of them where batch norm makes
that one zero (a bias ahead of it). Five steps later rounding has been carried on five times: 1e-4; a queue in bfloat16
may round some numbers to the other side, 2⁻⁸. Softplus takes the place of the rectifiers, at whose kink rounding alone
would decide (with them, runs of one process whose weights differ by 6e-8 part by 2e-3).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import nn

from fastssl import recipes
from fastssl.data.views import Views
from fastssl.engine.ranks import Parallel, Ranks
from fastssl.engine.step import train_step
from fastssl.methods import METHODS, DataFacts, StepState, build_method
from fastssl.models import module_config

IMAGES, BATCH, STEPS = 32, 16, 5
GRADIENT, STATE = 1e-5, 1e-4
MICRO = ("simclr", "mocov2", "nnclr", "relicv2", "swav")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def config_of(name):
    """The quick recipe with two large and one small crop, queues that are used, and no more than a batch needs."""
    config = recipes.get(name, "quick").method
    changes = {"queue": 32, "queue_epoch": 0.0, "prototypes": 12, "freeze_steps": 1, "hidden": 24, "negatives": 5}
    changes |= {"norm_groups": 4, "head_norm": False}
    known = {key: value for key, value in changes.items() if getattr(config, key, None)}
    if name == "swav":
        known |= {"queue": 32, "queue_epoch": 0.0}
    if name == "simclrv2":
        known |= {"memory": 32}
    return replace(config, **known)


def global_batch(name, step):
    generator = torch.Generator().manual_seed(step)
    ids = torch.randperm(IMAGES, generator=generator)[:BATCH]
    counts = (1,) if name == "supervised" else (2, 1)
    groups = tuple(
        torch.randn(count, BATCH, 3, size, size, generator=generator)
        for count, size in zip(counts, (16, 8), strict=False)
    )
    return groups, counts, ids


def slice_of(name, step, ranks):
    groups, counts, ids = global_batch(name, step)
    mine = ranks.share(BATCH)
    own = tuple(group[:, mine].flatten(0, 1) for group in groups)
    return Views(own, counts, ids=ids[mine], labels=ids[mine] % 3)


class Network(nn.Module):
    """Two convolutions with batch norm; any image size."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24)

    def forward(self, x):
        x = nn.functional.softplus(self.norm1(self.conv1(x)))
        return nn.functional.softplus(self.norm2(self.conv2(x))).mean((2, 3))


def build(name):
    """The method with rectifiers made smooth."""
    torch.manual_seed(0)
    network = Network()
    method = build_method(config_of(name), module_config(network), DataFacts(IMAGES, 3), network=network, sizes=(16, 8))
    for head in [module for module in method.modules() if isinstance(module, nn.Sequential)]:
        for i, layer in enumerate(head):
            if isinstance(layer, nn.ReLU):
                head[i] = nn.Softplus()
    return method


@torch.no_grad()
def settle(method, images):
    """Take statistics from `images`: with those of an untrained network all features are nearly the same."""
    norms = [module for module in method.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    method.train()
    z = method.projector(method.backbone(images))
    getattr(method, "predictor", nn.Identity())(z)


def trained(name, ranks):
    config_of(name).validate_ranks(ranks.world)
    method = build(name)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    parallel = Parallel(method, ranks)
    method.train()
    found = {}
    for step in range(STEPS):
        state = StepState(step, STEPS, 2)
        if step % 2 == 0:
            with torch.no_grad():
                method.before_epoch(state, lambda step=step: (slice_of(name, s, ranks) for s in (step, step + 1)))
        losses = train_step(
            method, optimizer, slice_of(name, step, ranks), state, lr=0.01, precision="fp32", parallel=parallel
        )
        if step == 0:
            found["loss"] = ranks.mean(losses.total.detach().clone())
            found["gradients"] = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
            found["gradients"] = {n: g.clone() for n, g in found["gradients"].items()}
    found["state"] = method.state_dict()
    return found


def in_micro_batches(name, ranks):
    """The gradient of the first step, four images a time; with fixed statistics, as micro-batches differ in theirs."""
    method = build(name)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.0)
    settle(method, global_batch(name, 0)[0][0].flatten(0, 1))
    parallel = Parallel(method, ranks)
    method.eval()
    options = {"lr": 0.0, "precision": "fp32", "parallel": parallel, "micro_batch": None if ranks.world == 1 else 4}
    losses = train_step(method, optimizer, slice_of(name, 0, ranks), StepState(0, STEPS, 2), **options)
    gradients = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    method.train()
    train_step(method, optimizer, slice_of(name, 1, ranks), StepState(1, STEPS, 2), **options)
    buffers = {key: value.clone() for key, value in method.backbone.named_buffers()}
    return {"loss": ranks.mean(losses.total.detach().clone()), "gradients": gradients, "buffers": buffers}


def work(rank, world, folder, names):
    if world > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world)
    ranks = Ranks(rank, world, rank, world)
    for name in names:
        torch.save(trained(name, ranks), f"{folder}/{name}-{world}-{rank}.pt")
    for name in MICRO if world < 4 else ():
        torch.save(in_micro_batches(name, ranks), f"{folder}/micro {name}-{world}-{rank}.pt")
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for world in (1, 2, 4):
        on_ranks(work, world, str(folder), list(METHODS))
    return lambda name, world, rank: torch.load(folder / f"{name}-{world}-{rank}.pt", weights_only=True)


def largest(tensors):
    return max(float(t.norm()) for t in tensors)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", METHODS)
def test_one_global_batch_gives_one_result(results, name, world):
    alone = results(name, 1, 0)
    floor = GRADIENT * largest(alone["gradients"].values())
    for rank in range(world):
        found = results(name, world, rank)
        assert abs(found["loss"] - alone["loss"]) <= GRADIENT * abs(alone["loss"])
        assert found["gradients"].keys() == alone["gradients"].keys()
        for key, gradient in alone["gradients"].items():
            error = float((found["gradients"][key] - gradient).norm())
            assert error <= max(GRADIENT * float(gradient.norm()), floor), (key, error, float(gradient.norm()))
        assert found["state"].keys() == alone["state"].keys()
        for key, value in alone["state"].items():
            if key.endswith(STATISTICS) and not build_shares(name):
                continue
            error = float((found["state"][key].double() - value.double()).norm())
            tolerance = 2**-8 if value.dtype == torch.bfloat16 else STATE
            assert error <= tolerance * max(1.0, float(value.double().norm())), (key, error)


@pytest.mark.parametrize("name", MICRO)
def test_micro_batches_on_two_processes_give_the_gradient_of_one(results, name):
    alone = results(f"micro {name}", 1, 0)
    for rank in range(2):
        found = results(f"micro {name}", 2, rank)
        assert abs(found["loss"] - alone["loss"]) <= GRADIENT * abs(alone["loss"])
        for key, gradient in alone["gradients"].items():
            assert float((found["gradients"][key] - gradient).norm()) <= GRADIENT * largest(alone["gradients"].values())


def test_shared_statistics_move_in_the_first_pass_alone(results):
    """Two sizes of two micro-batches on each of two processes, in training mode, after one batch that `settle` saw."""
    first, second = (results("micro simclr", 2, rank)["buffers"] for rank in range(2))
    assert int(first["norm1.num_batches_tracked"]) == 1 + 2 * 2
    assert all(torch.equal(first[key], second[key]) for key in first)


def build_shares(name):
    """Where batch norm is in groups, each rank has seen its own groups' statistics."""
    return not name.startswith("moco")
