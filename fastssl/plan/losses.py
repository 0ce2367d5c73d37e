"""The least work of the losses and of the update, from the cost formulas of the kernel library."""

from __future__ import annotations

from fastssl_kernels.byol import cost as byol_cost
from fastssl_kernels.ema import cost as ema_cost
from fastssl_kernels.lars import cost as lars_cost
from fastssl_kernels.nearest_neighbor import cost as neighbor_cost
from fastssl_kernels.nt_xent import cost as nt_xent_cost
from fastssl_kernels.relic import cost as relic_cost
from fastssl_kernels.sinkhorn import cost as sinkhorn_cost
from fastssl_kernels.swapped_prediction import cost as swapped_cost

from ..config import Config
from ..methods.byol import BYOLConfig
from ..methods.deepclusterv2 import DeepClusterV2Config
from ..methods.moco import MoCoV2Config
from ..methods.nnclr import NNCLRConfig
from ..methods.relic import RELICv2Config
from ..methods.simclr import SimCLRConfig
from ..methods.swav import SwAVConfig
from .chips import Precision
from .network import Networks
from .walk import Work


def loss_work(config: Config, gpus: int) -> Work:
    """What one of `gpus` GPUs does for the loss of a batch, its rows against all columns, with 16-bit operands."""
    batch, share = config.train.batch_size, config.train.batch_size // gpus
    method, counts = config.method, config.augment.counts
    views, large = sum(counts), counts[0]
    if isinstance(method, SimCLRConfig):
        both = nt_xent_cost.nt_xent_floor(batch, method.out, views=views)
        return _work(sum(p.flops for p in both) / gpus, sum(p.bytes for p in both))
    if isinstance(method, MoCoV2Config):
        one = nt_xent_cost.info_nce_floor(share, method.queue, method.out)
        return _work((views - 1) * one.flops, (views - 1) * one.bytes)
    if isinstance(method, NNCLRConfig):
        found = neighbor_cost.floor(share, method.queue, method.out)
        pair = nt_xent_cost.info_nce_floor(share, batch, method.out)
        pairs = large * (views - 1)
        return _work(large * found.flops + pairs * pair.flops, large * found.bytes + pairs * pair.bytes)
    if isinstance(method, BYOLConfig):
        moved = byol_cost.forward_bytes(share, method.out, 2) + byol_cost.backward_bytes(share, method.out, 2)
        pairs = large * (views - 1)
        return _work(pairs * byol_cost.flops(share, method.out), pairs * moved)
    if isinstance(method, RELICv2Config):
        negatives = method.negatives or batch
        shape = {"large": large, "small": views - large, "self_pairs": method.self_pairs}
        both = relic_cost.relic_floor(share, method.out, negatives, **shape)  # type: ignore[arg-type]
        return _work(sum(p.flops for p in both), sum(p.bytes for p in both))
    if isinstance(method, SwAVConfig):
        sizes = share, method.queue // gpus, method.prototypes
        codes = sinkhorn_cost.product_floor_flops(*sizes, method.out, method.iterations)
        moved = sinkhorn_cost.floor_bytes(*sizes, method.iterations, 2, problems=method.assign)
        moved += swapped_cost.code_bytes(method.assign, share, method.prototypes, prototype_gradient=True)
        loss = swapped_cost.floor_flops(share, views, method.prototypes, method.out)
        return _work(method.assign * codes + loss, moved)
    if isinstance(method, DeepClusterV2Config):
        return _clustering(method, share, views)
    return _work(0, 0)


def _clustering(method: DeepClusterV2Config, share: int, views: int) -> Work:
    """Scores of every crop and both gradients in each head, and an image's part of the clustering before an epoch."""
    scores = share * views * method.prototypes
    products = 3 * 2 * scores * method.out
    clustering = 2 * (method.iterations + 1) * share * method.prototypes * method.out
    return _work(method.heads * (products + clustering), method.heads * 3 * 4 * scores)


def _work(flops: float, moved: float) -> Work:
    """Of a whole batch, hence with the number of images 1."""
    return Work("loss", flops=float(flops), fixed=float(moved))


def update_bytes(config: Config, networks: Networks, precision: Precision) -> float:
    """Optimizer, moving average and, with bf16, the copies of weights and gradients that a step casts."""
    count = sum(networks.trained)
    if config.optim.name == "lars":
        moved = lars_cost.parameter_bytes(networks.trained)
    else:
        # Weight, gradient and momenta are read, weight and momenta are written.
        moved = 4 * count * (3 + 2 * momenta(config))
    if networks.averaged:
        moved += ema_cost.parameter_bytes(networks.averaged)
    if precision == "bf16":
        moved += (4 + 2) * (2 * count + sum(networks.averaged))
    return float(moved)


def momenta(config: Config) -> int:
    """Numbers that the optimizer keeps for a parameter."""
    return 2 if config.optim.name == "adamw" else 1
