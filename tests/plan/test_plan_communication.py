"""Laws of what GPUs send each other."""

from dataclasses import replace

import pytest

from fastssl import recipes
from fastssl.models import BackboneConfig
from fastssl.plan.communication import BUCKET, Network, communication, gathered
from fastssl.plan.network import networks

CONFIG = replace(recipes.get("byol", "quick"), backbone=BackboneConfig("resnet18", "cifar"))
MB = 1e6


@pytest.fixture(scope="module")
def small():
    return networks(CONFIG, images=1000)


def net(gpus, **options):
    return Network(gpus, **{"intra": 300, "inter": 200, **options})


def test_one_gpu_sends_nothing(small):
    assert net(1).all_reduce(MB) == net(1).all_gather(MB) == net(1).latency() == 0
    for method in recipes.RECIPES:
        config = replace(recipes.get(method), backbone=CONFIG.backbone)
        sent = communication(config, small, net(1), 0.1, 1)
        assert sent.waited == sent.gradients == 0


def test_a_ring_sends_twice_all_but_its_own_part():
    still = net(8, hop=0.0)
    assert still.all_reduce(300e9) == pytest.approx(2 * 7 / 8)
    assert still.all_gather(300e9) == pytest.approx(7 / 8)
    assert net(64, hop=0.0).all_reduce(200e9) == pytest.approx(2 * 63 / 64), "over the machines' links"
    assert net(64, hop=0.0, intra=100).all_reduce(100e9) == pytest.approx(2 * 63 / 64), "the slower of both"


def test_hops_between_machines_count_twice():
    assert net(8, hop=1.0).latency() == 3
    assert net(16, hop=1.0).latency() == 3 + 2
    assert net(4096, hop=1.0).latency() == 3 + 2 * 9
    assert net(12, hop=1.0).latency() == 3 + 2, "a machine that is half full is a machine"


def test_more_gpus_and_slower_links_take_longer():
    sizes = [net(2**p).all_reduce(100 * MB) for p in range(13)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == len(sizes)
    assert net(64, inter=25).all_reduce(MB) > net(64, inter=50).all_reduce(MB)


def test_gradients_hide_behind_the_backward_pass_but_for_the_last_bucket(small):
    size = 4 * sum(small.trained)
    buckets = -(-size // BUCKET)
    assert buckets > 1
    hidden = communication(CONFIG, small, net(16), 10.0, 1)
    assert hidden.exposed == pytest.approx(hidden.gradients / buckets)
    bare = communication(CONFIG, small, net(16), 0.0, 1)
    assert bare.exposed == bare.gradients == hidden.gradients
    half = communication(CONFIG, small, net(16), bare.gradients / 2, 1)
    assert hidden.exposed <= half.exposed <= bare.exposed
    parts = communication(CONFIG, small, net(16), bare.gradients, 4)
    assert parts.exposed == pytest.approx(0.75 * bare.gradients), "only the last micro-batch sends"


def test_compressed_gradients_are_half_the_bytes(small):
    compressed = replace(CONFIG, train=replace(CONFIG.train, compress_gradients=True))
    whole, half = (communication(c, small, net(16, hop=0.0), 0.0, 1).gradients for c in (CONFIG, compressed))
    assert half == pytest.approx(whole / 2)


def test_batch_norm_waits_for_its_group_only(small):
    def norms(ranks, gpus=64):
        config = replace(CONFIG, train=replace(CONFIG.train, norm_ranks=ranks))
        return communication(config, small, net(gpus), 1.0, 1).norms

    assert norms(1) == 0
    assert norms(8) == norms(0, gpus=8) < norms(0)
    ways = 3 * small.norms + small.target_norms
    assert norms(0) == pytest.approx(ways * net(64).latency())
    assert communication(CONFIG, replace(small, shares_norm=False), net(64), 1.0, 1).norms == 0


def test_moco_shuffles_its_images_unless_batch_norm_is_shared(small):
    config = recipes.get("mocov2")
    views = replace(small, input=2 * 2 * 3 * 224**2)
    images = 256 * 2 * 3 * 224**2
    keys = 256 * 128 * 4
    assert gathered(config, views)[0] == images + 2 * keys
    shared = replace(config, method=replace(config.method, norm_groups=1))
    assert gathered(shared, views)[0] == keys


def test_supervised_training_and_byol_send_gradients_and_statistics_only(small):
    for method in ("supervised", "byol"):
        assert gathered(recipes.get(method), small) == (0.0, 0)
