"""A memory of the last embedding of every image, in which the clustering methods look for clusters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from fastssl_kernels.gather import all_reduce, gather_rows, group_name, size_and_rank
from torch import Tensor, nn

UNASSIGNED = -100
"""Stands for the cluster of an image that the memory has not seen; cross entropy ignores it."""


class Shard(NamedTuple):
    """The images of one rank: those it has seen among ids rank, rank + W, rank + 2W, …"""

    ids: Tensor
    """int64 `[n]`, ascending."""
    embeddings: Tensor
    """float32 `[n, D]`."""


class ImageMemory(nn.Module):
    """Unit embeddings of some crops of each of N images: crops · N · D floats (1.3 GB for two of ImageNet's, D = 128).

    Every rank holds all of it, so that a checkpoint of one rank is whole and fits any number of ranks; the work on it
    is shared by id (`shard`).
    """

    embeddings: Tensor
    """float32 `[crops, N, D]`; zero where `seen` is not."""
    seen: Tensor
    """bool `[N]`."""

    def __init__(self, crops: int, images: int, width: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(crops, images, width))
        self.register_buffer("seen", torch.zeros(images, dtype=torch.bool))

    @torch.no_grad()
    def write(self, ids: Tensor, embeddings: Tensor) -> None:
        """Replace what is known of the images `ids` `[B]` of every rank by `embeddings` `[crops, B, D]`."""
        group = group_name(None)
        everyone = gather_rows(ids, 1, group)
        rows = gather_rows(embeddings.detach().float().transpose(0, 1), 1, group)
        self.embeddings.index_copy_(1, everyone, rows.transpose(0, 1))
        self.seen.index_fill_(0, everyone, True)

    def shard(self, crop: int) -> Shard:
        """This rank's part of the work on crop number `crop`."""
        world, rank = size_and_rank(group_name(None))
        ids = rank + world * self.seen[rank::world].nonzero()[:, 0]
        return Shard(ids, self.embeddings[crop, ids])

    def gather(self, shard: Shard, assigned: Tensor) -> Tensor:
        """int64 `[N]`: the `assigned` `[n]` clusters of every rank's shard, `UNASSIGNED` elsewhere."""
        clusters = torch.zeros(len(self.seen), dtype=torch.int64, device=assigned.device)
        all_reduce(clusters.index_copy_(0, shard.ids, assigned), "sum", group_name(None))
        return torch.where(self.seen, clusters, UNASSIGNED)


def blocks(rows: Tensor, columns: int, elements: int = 1 << 24) -> Iterator[Tensor]:
    """`rows` in parts that make at most so many `elements` with `columns` columns: 64 MB of float32."""
    yield from rows.split(max(1, elements // columns))
