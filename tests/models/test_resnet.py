"""Backbones against torchvision: same names, same shapes, same numbers."""

import pytest
import torch
import torchvision
from torch import nn

from fastssl.errors import UserError
from fastssl.models import BackboneConfig, build_backbone, mlp_head, resnet
from fastssl.models.backbones import parameter_count


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
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


def test_published_sizes():
    assert parameter_count(resnet("resnet50")) == 23_508_032
    assert parameter_count(resnet("resnet18")) == 11_176_512
    assert resnet("resnet50").feature_dim == 2048


@pytest.mark.parametrize(
    ("stem", "side", "expected"), [("imagenet", 64, 2), ("cifar", 32, 4), ("cifar-s2", 32, 2), ("imagenet", 33, 2)]
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
