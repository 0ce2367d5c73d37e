"""Backbones against torchvision: same names, same shapes, same numbers."""

import pytest
import torch
import torchvision
from torch import nn

from fastssl.errors import UserError
from fastssl.models import BackboneConfig, build_backbone, mlp_head, resnet
from fastssl.models.backbones import parameter_count
from fastssl.models.selective import SelectiveKernel


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_weights_travel_to_torchvision_and_give_identical_features(name):
    torch.manual_seed(0)
    ours = resnet(name, zero_init_residual=False).eval()
    theirs = getattr(torchvision.models, name)()
    theirs.fc = nn.Identity()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs.eval()(images), rtol=1e-5, atol=1e-5)


# Parameters of torchvision's classifiers (its documentation; timm's for 200 layers and for the stem of ResNet-D) less
# those of the linear layer.
EXACT = [
    ("resnet18", "imagenet", 11_689_512 - 513_000),
    ("resnet34", "imagenet", 21_797_672 - 513_000),
    ("resnet50", "imagenet", 25_557_032 - 2_049_000),
    ("resnet50", "imagenet-d", 25_576_264 - 2_049_000),
    ("resnet101", "imagenet", 44_549_160 - 2_049_000),
    ("resnet152", "imagenet", 60_192_808 - 2_049_000),
    ("resnet200", "imagenet", 64_673_832 - 2_049_000),
]


@pytest.mark.parametrize(("name", "stem", "parameters"), EXACT)
def test_published_sizes(name, stem, parameters):
    with torch.device("meta"):
        network = resnet(name, stem=stem)
    assert parameter_count(network) == parameters


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet200"])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_depth_and_width_pools_its_features(name, width):
    with torch.device("meta"):
        network = resnet(name, width=width)
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, network.feature_dim)
    assert network.feature_dim == (512 if name in ("resnet18", "resnet34") else 2048) * width


@pytest.mark.parametrize(
    ("stem", "side", "expected"),
    [("imagenet", 64, 2), ("imagenet-d", 64, 2), ("cifar", 32, 4), ("cifar-s2", 32, 2), ("imagenet", 33, 2)],
)
def test_stems_set_the_resolution(stem, side, expected):
    network = resnet("resnet18", stem=stem, width=0.25)
    sides = []
    network.layer4.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    assert network(torch.randn(2, 3, side, side)).shape == (2, 128)
    assert sides == [expected]


def test_width_multiplies_every_channel_count():
    wide = resnet("resnet50", width=2.0)
    assert (wide.conv1.out_channels, wide.feature_dim) == (128, 4096)


def test_zero_init_makes_blocks_start_as_their_shortcut():
    norms = [m.last_norm.weight for m in resnet("resnet18").modules() if hasattr(m, "last_norm")]
    assert len(norms) == 8
    assert all(bool((w == 0).all()) for w in norms)


def test_head_biases_and_norms():
    """SimCLR's projector: no linear bias, batch norm after each layer, the last one without a trained shift."""
    head = mlp_head([512, 256, 128])
    linear = [m for m in head if isinstance(m, nn.Linear)]
    norms = [m for m in head if isinstance(m, nn.BatchNorm1d)]
    assert [m.bias is None for m in linear] == [True, True]
    assert [m.bias.requires_grad for m in norms] == [True, False]
    assert isinstance(head[-1], nn.BatchNorm1d)
    assert sum(p.numel() for p in head.parameters() if p.requires_grad) == 512 * 256 + 2 * 256 + 256 * 128 + 128
    assert head(torch.randn(5, 512)).shape == (5, 128)


def test_head_without_last_norm_ends_in_a_bias():
    head = mlp_head([8, 4, 2], hidden_bias=True, last_norm=False)
    assert isinstance(head[-1], nn.Linear)
    assert head[-1].bias is not None
    assert head[0].bias is not None


@pytest.mark.parametrize(("field", "value"), [("name", "vgg"), ("width", 0.0), ("width", float("nan"))])
def test_bad_backbones_are_one_sentence(field, value):
    with pytest.raises(UserError, match=f"--backbone.{field}"):
        build_backbone(BackboneConfig(**{field: value}))


# Millions of parameters that the SimCLR papers state (arXiv 2006.10029, table 1; width 4: 2002.05709).
PUBLISHED = [
    ("resnet50", 1, 0.0, 24),
    ("resnet50", 1, 0.0625, 35),
    ("resnet50", 2, 0.0, 94),
    ("resnet50", 2, 0.0625, 140),
    ("resnet50", 4, 0.0, 375),
    ("resnet101", 1, 0.0, 43),
    ("resnet101", 1, 0.0625, 65),
    ("resnet101", 2, 0.0, 170),
    ("resnet101", 2, 0.0625, 257),
    ("resnet152", 1, 0.0, 58),
    ("resnet152", 1, 0.0625, 89),
    ("resnet152", 2, 0.0625, 354),
    ("resnet152", 3, 0.0625, 795),
]


@pytest.mark.parametrize(("name", "width", "sk_ratio", "millions"), PUBLISHED)
def test_sizes_with_selective_kernels(name, width, sk_ratio, millions):
    with torch.device("meta"):
        network = resnet(name, width=width, sk_ratio=sk_ratio)
    assert parameter_count(network) / 1e6 == pytest.approx(millions, abs=0.65)
    assert network.feature_dim == 2048 * width


def test_selective_kernel_is_its_definition():
    """Two streams, weighted channel by channel by a softmax over what the pooled sum says."""
    torch.manual_seed(0)
    layer = SelectiveKernel(6, 10, 2, 0.0625).eval()
    assert layer.reduce.out_channels == 32, "the least width"
    x = torch.randn(3, 6, 9, 9)
    with torch.no_grad():
        streams = torch.relu(layer.bn(layer.conv(x))).view(3, 2, 10, 5, 5)
        pooled = streams.sum(1).mean((2, 3))
        hidden = torch.relu(layer.reduce_bn((pooled @ layer.reduce.weight[:, :, 0, 0].T)[:, :, None, None]))[:, :, 0, 0]
        weights = (hidden @ layer.expand.weight[:, :, 0, 0].T).view(3, 2, 10).softmax(1)
        expected = (streams * weights[..., None, None]).sum(1)
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("side", [64, 33])
def test_selective_network_runs_forward_and_backward(side):
    network = resnet("resnet50", width=0.25, sk_ratio=0.0625)
    features = network(torch.randn(2, 3, side, side))
    assert features.shape == (2, 512)
    features.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_shortcuts_of_selective_networks_average_what_they_project():
    """At stride 1 too, as in the authors' code: TensorFlow's SAME pooling counts no pixel beyond the border."""
    torch.manual_seed(0)
    network = resnet("resnet50", width=0.125, sk_ratio=0.0625)
    x = torch.randn(2, 3, 5, 4)
    expected = torch.empty_like(x)
    for i in range(5):
        for j in range(4):
            expected[:, :, i, j] = x[:, :, i : i + 2, j : j + 2].mean((2, 3))
    torch.testing.assert_close(network.layer1[0].downsample[0](x), expected)
    even = torch.randn(2, 3, 6, 4)
    blocks = even.view(2, 3, 3, 2, 2, 2).mean((3, 5))
    for layer in (network.layer2, network.layer3, network.layer4):
        torch.testing.assert_close(layer[0].downsample[0](even), blocks)


def test_the_deep_stem_is_three_small_convolutions():
    """ResNet-D's (arXiv 1812.01187): stride 2 first, half the width but for the last, batch norms between."""
    stem = resnet("resnet50", stem="imagenet-d").conv1
    assert [type(part).__name__ for part in stem] == ["Conv2d", "BatchNorm2d", "ReLU"] * 2 + ["Conv2d"]
    convolutions = [part for part in stem if isinstance(part, nn.Conv2d)]
    assert [tuple(c.weight.shape) for c in convolutions] == [(32, 3, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3)]
    assert [c.stride for c in convolutions] == [(2, 2), (1, 1), (1, 1)]
    assert all(c.bias is None for c in convolutions)


def test_selective_kernels_need_bottlenecks():
    with pytest.raises(UserError, match="bottlenecks"):
        BackboneConfig(name="resnet18", sk_ratio=0.0625).validate()
    with pytest.raises(UserError, match="sk-ratio"):
        BackboneConfig(sk_ratio=2.0).validate()
