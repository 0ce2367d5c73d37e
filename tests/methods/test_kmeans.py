"""Spherical k-means: its fixed point, empty clusters, and the same bits in any order and on any number of ranks."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import on_ranks

from fastssl.methods.kmeans import nearest, spherical_kmeans
from fastssl.methods.memory import UNASSIGNED, ImageMemory

torch.set_num_threads(1)
IMAGES, WIDTH, CLUSTERS = 61, 7, 5


def rows(count: int = IMAGES, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)))


def test_separate_bundles_are_found():
    axes = torch.eye(WIDTH)[:3]
    z = F.normalize(axes.repeat_interleave(20, 0) + 0.05 * rows(60))
    centroids, assigned = spherical_kmeans(z, z[[0, 20, 40]], 10)
    assert assigned.tolist() == [0] * 20 + [1] * 20 + [2] * 20
    torch.testing.assert_close(centroids, F.normalize(z.view(3, 20, WIDTH).double().sum(1)).float())
    torch.testing.assert_close(centroids, axes, atol=0.05, rtol=0)


def test_no_iteration_raises_the_distance():
    """Each half of an iteration can only raise the sum of cosines: k-means' own law."""
    z, centroids, last = rows(), rows()[:CLUSTERS], -1.0
    for _ in range(8):
        centroids, assigned = spherical_kmeans(z, centroids, 1)
        agreement = (z * centroids[assigned]).sum().item()
        assert agreement >= last - 1e-5
        last = agreement


def test_an_empty_cluster_keeps_its_centroid():
    z = F.normalize(torch.eye(WIDTH)[:2].repeat(5, 1))
    far = -torch.eye(WIDTH)[0]
    centroids, _ = spherical_kmeans(z, torch.stack([z[0], z[1], far]), 3)
    assert torch.equal(centroids[2], far)


def test_rows_that_cancel_keep_the_centroid():
    up = torch.eye(WIDTH)[0]
    right = torch.eye(WIDTH)[1]
    start = torch.stack([up, F.normalize(-torch.ones(WIDTH), dim=0)])
    centroids, _ = spherical_kmeans(torch.stack([right, -right]) * 1.0, start[:1], 1)
    assert torch.equal(centroids[0], up)


def test_order_of_the_rows_does_not_change_a_bit():
    z, order = rows(), torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1))
    centroids, assigned = spherical_kmeans(z, z[:CLUSTERS], 10)
    shuffled, moved = spherical_kmeans(z[order], z[:CLUSTERS], 10)
    assert torch.equal(centroids, shuffled)
    assert torch.equal(assigned[order], moved)


def test_one_row_and_more_rows_than_a_block():
    z = rows(1)
    assert spherical_kmeans(z, z, 2)[1].tolist() == [0]
    z = rows(3000)
    assert torch.equal(nearest(z, z[:9]), (z @ z[:9].T).argmax(1))


def test_memory_keeps_the_last_embedding_of_each_image():
    memory = ImageMemory(2, 9, WIDTH)
    first, second = torch.rand(2, 3, WIDTH), torch.rand(2, 2, WIDTH)
    memory.write(torch.tensor([4, 0, 7]), first)
    memory.write(torch.tensor([7, 2]), second)
    assert memory.seen.nonzero()[:, 0].tolist() == [0, 2, 4, 7]
    assert torch.equal(memory.embeddings[:, 7], second[:, 0])
    assert torch.equal(memory.embeddings[:, 4], first[:, 0])
    assert not memory.embeddings[:, 1].any()
    shard = memory.shard(1)
    assert shard.ids.tolist() == [0, 2, 4, 7]
    assert memory.gather(shard, torch.tensor([3, 1, 2, 0])).tolist() == [3, -100, 1, -100, 2, -100, -100, 0, -100]


def run(share: slice):
    """What a rank with this share of every batch ends with."""
    memory = ImageMemory(2, IMAGES, WIDTH)
    for step in range(4):
        ids = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(step))[:12]
        z = torch.stack([rows(12, 10 + step), rows(12, 20 + step)])
        memory.write(ids[share], z[:, share])
    shard = memory.shard(1)
    known = memory.seen.nonzero()[:, 0]
    centroids, assigned = spherical_kmeans(shard.embeddings, memory.embeddings[1, known[:CLUSTERS]], 10)
    return {**memory.state_dict(), "centroids": centroids, "clusters": memory.gather(shard, assigned)}


def work(rank, world, folder):
    dist.init_process_group("gloo", rank=rank, world_size=world)
    share = 12 // world
    torch.save(run(slice(rank * share, (rank + 1) * share)), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over processes")
def test_two_ranks_have_the_clusters_of_one(tmp_path):
    on_ranks(work, 2, str(tmp_path))
    alone = run(slice(None))
    assert (alone["clusters"] == UNASSIGNED).any()
    for rank in range(2):
        theirs = torch.load(tmp_path / f"{rank}.pt")
        assert all(torch.equal(theirs[name], alone[name]) for name in alone)
