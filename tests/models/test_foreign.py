"""Networks of torchvision and timm, and modules of the user's own: sizes, widths, names, refusals."""

import copy

import pytest
import torch
from torch import nn

from fastssl.errors import UserError
from fastssl.methods.momentum import target_copy
from fastssl.models import BackboneConfig, build_backbone, feature_width, foreign, resnet
from fastssl.models.backbones import parameter_count


def test_torchvisions_resnet_is_ours():
    network = build_backbone(BackboneConfig("torchvision:resnet18"), (32,)).eval()
    ours = resnet("resnet18").eval()
    ours.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), ours(images), rtol=1e-5, atol=1e-5)
    assert feature_width(network) == 512
    assert parameter_count(network) == 11_176_512


@pytest.mark.parametrize(
    ("name", "size", "parameters", "width"),
    [
        # The published sizes less the classifier, 1000 · (width + 1).
        ("torchvision:vit_b_16", 224, 86_567_656 - 769_000, 768),
        ("torchvision:mobilenet_v3_small", 64, 2_542_856 - 1_025_000, 1024),
        ("timm:vit_tiny_patch16_224", 64, 5_717_416 - 193_000, 192),
    ],
)
def test_published_sizes(name, size, parameters, width):
    pytest.importorskip(name.partition(":")[0])
    network = build_backbone(BackboneConfig(name), (size,))
    assert parameter_count(network) == parameters
    assert feature_width(network) == width
    assert network.training, "the trial leaves the training flags alone"


def test_a_timm_vision_transformer_takes_two_resolutions():
    pytest.importorskip("timm")
    network = build_backbone(BackboneConfig("timm:vit_tiny_patch16_224"), (64, 32))
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 192)


def test_image_size_builds_a_transformer_for_it():
    network = build_backbone(BackboneConfig("torchvision:vit_b_32", image_size=64), (64,))
    assert network.image_size == 64


def test_fresh_copies_are_drawn_as_the_library_draws():
    network = build_backbone(BackboneConfig("torchvision:mobilenet_v3_small"), (32,))
    target = target_copy(network, fresh=True)
    first, other = network.features[0][0].weight, target.features[0][0].weight
    assert not torch.equal(first, other)
    assert other.std().item() == pytest.approx(first.std().item(), rel=0.2)
    assert not other.requires_grad


def test_any_module_that_gives_vectors():
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = copy.deepcopy(module.state_dict())
    network = build_backbone(BackboneConfig("module:Sequential"), (16, 8), module)
    assert network is module
    assert feature_width(network) == 5
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "resnet5O"}, "got 'resnet5O'; close names: resnet50"),
        ({"name": "torchvision:resnet5O"}, "no classifier of torchvision; close names: resnet50"),
        ({"name": "timm:resnet51a"}, "no network of timm; close names: resnet"),
        ({"name": "torchvision:squeezenet1_0"}, "no linear classifier"),
        ({"name": "torchvision:resnet18", "width": 0.5}, "pass --backbone.width 1.0"),
        ({"name": "timm:resnet18", "stem": "cifar"}, "pass --backbone.stem imagenet"),
        ({"name": "torchvision:resnet18", "image_size": 64}, "image-size 64 is for networks that are built"),
        ({"name": "timm:resnet18", "image_size": 64}, "image-size 64 is for networks that are built"),
        ({"name": "resnet18", "image_size": 64}, "image-size"),
        ({"name": "torchvision:vit_b_32"}, "does not take images of 32 × 32 pixels"),
        ({"name": "module:Net"}, "was a module of a Python program"),
        ({"name": "huggingface:vit"}, "must be one of"),
    ],
)
def test_refusals_are_one_sentence(options, words):
    if options["name"].startswith("timm:"):
        pytest.importorskip("timm")
    with pytest.raises(UserError, match=words) as caught:
        build_backbone(BackboneConfig(**options), (32,))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Conv2d(3, 4, 3), "one vector an image"),
        (nn.Flatten(), "pool its output"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)), "does not take images of 8 × 8"),
    ],
)
def test_modules_that_give_no_vectors(module, words):
    with pytest.raises(UserError, match=words):
        build_backbone(BackboneConfig(f"module:{type(module).__name__}"), (16, 8), module)


def test_a_missing_library_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(foreign.importlib, "import_module", missing)
    with pytest.raises(UserError, match="needs the package timm: install it"):
        build_backbone(BackboneConfig("timm:resnet18"), (32,))
