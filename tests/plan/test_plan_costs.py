"""What the plan reads off networks: FLOPs, bytes and memory against torch's counter, real passes and hand counts."""

from dataclasses import replace

import pytest
import torch
from saved_bytes import saved_bytes as really_saved
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastssl import recipes
from fastssl.data.views import Augmentation, Views, ViewSpec
from fastssl.methods import DataFacts, build_method
from fastssl.models import BackboneConfig, build_backbone
from fastssl.optim import build_optimizer
from fastssl.plan import network as network_module
from fastssl.plan import walk
from fastssl.plan.chips import CHIPS
from fastssl.plan.losses import loss_work, momenta, update_bytes
from fastssl.plan.memory import GRANULE, Memory, checkpoint_bytes, memory
from fastssl.plan.network import Networks, backbone_flops, networks
from fastssl.plan.roofline import Machine, roofline, seconds
from fastssl.plan.walk import IMAGES, Recorder, Work

SMALL = replace(
    recipes.get("simclr", "quick"),
    backbone=BackboneConfig("resnet10", "cifar", width=0.25),
    augment=Augmentation((ViewSpec(size=24, count=2), ViewSpec(size=16, count=3))),
)
B = 6


@pytest.fixture(scope="module")
def small():
    return networks(SMALL, images=1000, precision="fp32")


def real_views() -> Views:
    torch.manual_seed(0)
    return Views((torch.randn(2 * B, 3, 24, 24), torch.randn(3 * B, 3, 16, 16)), (2, 3))


def real_method():
    torch.manual_seed(0)
    return build_method(SMALL.method, SMALL.backbone, DataFacts(1000))


def test_resnet50_has_its_published_multiply_adds():
    with torch.device("meta"):
        network = build_backbone(BackboneConfig("resnet50"))
    # He et al. as in torchvision's table: 4.09 thousand million, of which the classifier's 2 million are not ours.
    assert backbone_flops(network, 224) / 2 == pytest.approx(4.09e9, rel=1e-3)


def test_flops_are_those_of_torchs_counter_on_a_real_step(small):
    method = real_method()
    with FlopCounterMode(display=False) as counter:
        method.embed(real_views()).sum().backward()
    assert B * small.flops == pytest.approx(counter.get_total_flops(), rel=1e-9)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2), (6, 9, 9)),
        (nn.ConvTranspose2d(6, 4, 3, stride=2), (6, 5, 5)),
        (nn.Linear(5, 7), (5,)),
    ],
)
def test_products_of_single_layers_are_those_of_torchs_counter(layer, shape):
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(3, *shape))
    with Recorder() as recorder, torch.no_grad():
        layer.to("meta")(torch.empty(IMAGES, *shape, device="meta"))
    assert 3 * sum(work.flops for work in recorder.work) == pytest.approx(counter.get_total_flops(), rel=1e-9)


def test_bytes_of_a_convolution_with_batch_norm_are_those_counted_by_hand():
    layers = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)).to("meta")
    layers[1].track_running_stats, layers[1].running_mean, layers[1].running_var = False, None, None
    image = torch.empty(IMAGES, 3, 5, 5, device="meta")
    with Recorder() as recorder:
        out = layers(image)
        forward = sum(work.each for work in recorder.work if work.name != walk.TRANSPOSE)
        turned = sum(work.each for work in recorder.work if work.name == walk.TRANSPOSE)
        recorder.work.clear()
        out.backward(torch.empty_like(out))
    small, large = 4 * 3 * 25, 4 * 8 * 25
    # Convolution: in, out. Batch norm: in twice, out. ReLU in place: in, out.
    assert forward == small + large + 3 * large + 2 * large
    assert turned == 2 * (small + large)
    backward = sum(work.each for work in recorder.work if work.name != walk.TRANSPOSE)
    # ReLU: gradient, result, out. Batch norm: both twice, out. The weight's gradient: gradient, image.
    assert backward == 3 * large + 5 * large + large + small


def test_what_autograd_keeps_is_what_a_real_pass_keeps(small):
    method = real_method()
    with really_saved(method) as count:
        embedded = method.embed(real_views())
        kept = count.now
    # The statistics of batch norm, 8 bytes a channel, are counted within `fixed` here and there.
    assert B * small.saved.each + small.saved.fixed == pytest.approx(kept, rel=0.01)
    assert embedded.shape == (5 * B, 64)


def test_more_lives_at_once_than_is_kept_and_less_than_all_that_is_ever_written(small):
    assert small.saved.each < small.peak < sum(work.each for work in (*small.forward, *small.backward))


def test_tensors_that_nobody_holds_do_not_count_as_living():
    with Recorder() as recorder:
        a = torch.empty(IMAGES, 5, device="meta")
        for _ in range(4):
            a = a + 1
    assert recorder.peak == 2 * 4 * 5


def test_another_prime_number_of_images_gives_the_same_figures(small, monkeypatch):
    for module in (walk, network_module):
        monkeypatch.setattr(module, "IMAGES", 10_007)
    other = networks(SMALL, images=1000, precision="fp32")
    assert other.flops == pytest.approx(small.flops, rel=1e-12)
    assert [w.each for w in other.backward] == pytest.approx([w.each for w in small.backward], rel=1e-12)
    assert [w.fixed for w in other.backward] == [w.fixed for w in small.backward]
    assert other.peak == pytest.approx(small.peak, rel=1e-12)


def test_bf16_halves_the_activations(small):
    half = networks(SMALL, images=1000, precision="bf16")
    assert half.flops == small.flops
    # Integers and float32 statistics stay.
    assert half.saved.each == pytest.approx(small.saved.each / 2, rel=0.02)
    assert half.state == small.state, "a checkpoint holds float32 whatever the networks compute in"


@pytest.mark.parametrize(
    ("method", "multiple"),
    [("mocov2", 1.33), ("simclr", 2.0), ("nnclr", 2.0), ("byol", 2.67), ("swav", 3.10), ("relicv2", 5.70)],
)
def test_cost_multiples_are_those_of_the_passes(method, multiple):
    """Passes with gradients of each size, and passes without at a third; heads are within 2 %."""
    one = networks(recipes.supervised(), images=10_000)
    found = networks(recipes.get(method), images=10_000)
    assert found.flops / one.flops == pytest.approx(multiple, rel=0.02)


@pytest.mark.parametrize("optimizer", ["lars", "sgd", "adamw"])
def test_a_checkpoint_has_the_bytes_of_state_and_momenta(optimizer):
    config = replace(SMALL, optim=replace(SMALL.optim, name=optimizer))
    method = real_method()
    trained = build_optimizer(method, config.optim)
    for parameter in method.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    trained.step()
    held = [t for state in trained.state_dict()["state"].values() for t in state.values() if torch.is_tensor(t)]
    size = sum(t.numel() * t.itemsize for t in (*held, *method.state_dict().values()))
    # AdamW counts its steps in a number a parameter.
    assert checkpoint_bytes(config, networks(config, images=1000)) == pytest.approx(size, rel=1e-3)


def test_queues_and_memories_are_in_the_state():
    with_queue = replace(SMALL, method=recipes.get("mocov2", "quick").method)
    longer = replace(with_queue, method=replace(with_queue.method, queue=with_queue.method.queue + 1000))
    short, long = (networks(config, images=1000).state for config in (with_queue, longer))
    assert long - short == 1000 * 64 * 4
    clustering = replace(SMALL, method=replace(recipes.get("deepclusterv2", "quick").method, assign=2, heads=3, out=64))
    few, many = (networks(clustering, images=images).state for images in (1000, 3000))
    # Two crops' embeddings, whether seen, and three clusters an image.
    assert many - few == 2000 * (2 * 64 * 4 + 1 + 3 * 8)


def test_the_update_moves_five_seven_or_more_words_a_parameter(small):
    count = sum(small.trained)
    sizes = {"sgd": 20, "adamw": 28, "lars": 28}
    for name, each in sizes.items():
        config = replace(SMALL, optim=replace(SMALL.optim, name=name))
        assert update_bytes(config, small, "fp32") == each * count
        assert update_bytes(config, small, "bf16") == (each + 12) * count
        assert momenta(config) == 1 + (name == "adamw")


@pytest.mark.parametrize("method", [m for m in recipes.RECIPES if m != "supervised"])
def test_the_work_of_a_loss_falls_with_the_gpus_and_is_small(method):
    config = recipes.get(method)
    works = [loss_work(config, gpus) for gpus in (1, 2, 8)]
    assert works[0].flops > 0
    assert [w.flops for w in works] == pytest.approx([works[0].flops / g for g in (1, 2, 8)], rel=0.01)
    assert works[0].bytes(1) >= works[1].bytes(1) >= works[2].bytes(1) > 0
    # Kernels buy memory, not time: less than 4 % of ResNet-50's forward and backward pass of one view.
    assert works[0].flops < 0.04 * 24.3e9 * config.train.batch_size * config.augment.counts[0]


def test_no_prediction_is_faster_than_the_roofline(small):
    chip = CHIPS["a100-80"]
    best = roofline(small.forward, 64, Machine(chip))
    times = [seconds(small.forward, 64, Machine(chip, efficiency=e)) for e in (1.0, 0.5, 0.25)]
    assert best <= times[0] <= times[1] <= times[2]
    large = 10_000_000  # where launches no longer count
    slow, fast = (seconds(small.forward, large, Machine(chip, efficiency=e)) for e in (0.5, 1.0))
    assert slow == pytest.approx(2 * fast, rel=1e-3)


def test_only_channels_first_images_on_tensor_cores_are_turned(small):
    def time(name, precision, channels_last):
        return roofline(small.forward, 64, Machine(CHIPS[name], precision, channels_last=channels_last))

    for name, precision, turned in (("a100-80", "fp32", True), ("v100-32", "fp32", False), ("v100-32", "bf16", True)):
        assert (time(name, precision, False) > time(name, precision, True)) == turned


def test_an_operation_takes_the_longer_of_products_and_bytes():
    chip = CHIPS["h100"]
    products, moved = Work("mm", flops=989e12), Work("add", each=3350e9)
    both = Work("conv", flops=989e12, each=2 * 3350e9)
    assert roofline([products], 1, Machine(chip)) == pytest.approx(1)
    assert roofline([moved], 2, Machine(chip)) == pytest.approx(2)
    assert roofline([both], 1, Machine(chip)) == pytest.approx(2)


@pytest.mark.parametrize("name", list(CHIPS))
def test_the_largest_batch_fits_and_eight_more_do_not(name):
    chip = CHIPS[name]
    need = memory(SMALL, networks(SMALL, images=1000), "bf16")
    largest = need.largest(chip)
    assert largest % GRANULE == 0
    assert need.fits(largest, chip)
    assert not need.fits(largest + GRANULE, chip)
    assert need.bytes(8) < need.bytes(16)


def test_nothing_fits_beside_too_large_a_state():
    assert Memory(fixed=100e9, image=1e6).largest(CHIPS["h100"]) == 0


def test_works_of_networks_are_named(small):
    assert isinstance(small, Networks)
    names = {work.name for work in small.forward}
    assert {"convolution", "native_batch_norm", "relu_"} <= names
    assert small.norms == 2 * 12 + 2, "twelve in the backbone, once a resolution, and two in the head"


def test_only_the_parameters_of_target_networks_are_averaged():
    byol = replace(SMALL, method=recipes.get("byol", "quick").method)
    found = networks(byol, images=1000)
    method = build_method(byol.method, byol.backbone)
    targets = [*method.target_backbone.parameters(), *method.target_projector.parameters()]
    assert sum(found.averaged) == sum(p.numel() for p in targets)
    assert networks(SMALL, images=1000).averaged == (), "a frozen shift is no target"


@pytest.mark.parametrize(
    ("name", "multiply_adds"),
    # As torchvision states them. regnet reads numbers back while it is built, which no meta tensor has.
    [("torchvision:vit_b_16", 17.56e9), ("torchvision:swin_t", 4.49e9), ("torchvision:regnet_y_400mf", 0.40e9)],
)
def test_networks_of_libraries_have_their_published_multiply_adds(name, multiply_adds):
    pytest.importorskip("torchvision")
    config = replace(recipes.supervised(), backbone=BackboneConfig(name))
    forward = networks(config, images=1000).forward
    assert sum(work.flops for work in forward) / 2 == pytest.approx(multiply_adds, rel=0.01)


def test_a_network_that_is_built_on_the_cpu_has_a_target_too():
    pytest.importorskip("torchvision")
    config = replace(recipes.get("byol"), backbone=BackboneConfig("torchvision:regnet_y_400mf"))
    found = networks(config, images=1000)
    assert 0 < sum(found.averaged) < sum(found.trained), "all but the predictor"
    assert sum(work.flops for work in found.targets) > 0
