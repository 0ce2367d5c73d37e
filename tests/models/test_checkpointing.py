"""Activation checkpointing changes memory, and no bit of outputs, gradients and statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from saved_bytes import saved_bytes
from torch import nn

from fastssl.errors import UserError
from fastssl.models import BackboneConfig, build_backbone, checkpoint_activations, frozen_statistics

torch.set_num_threads(1)


def ours(sk_ratio: float = 0.0) -> nn.Module:
    name = "resnet50" if sk_ratio else "resnet18"
    config = BackboneConfig(name, stem="cifar-s2", width=0.125, sk_ratio=sk_ratio, zero_init_residual=False)
    return build_backbone(config)


def transformer() -> nn.Module:
    pytest.importorskip("torchvision")
    from torchvision.models import VisionTransformer

    return VisionTransformer(16, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, dropout=0.5, num_classes=5)


NETWORKS = {"resnet18": ours, "selective kernels": lambda: ours(0.0625), "transformer with dropout": transformer}


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_gradients_and_statistics_keep_their_bits(name, precision):
    torch.manual_seed(0)
    plain, x = NETWORKS[name]().train(), torch.rand(4, 3, 16, 16)
    saving = copy.deepcopy(plain)
    checkpoint_activations(saving)
    outputs = []
    for network in (plain, saving):
        torch.manual_seed(1)
        with torch.autocast("cpu", precision, enabled=precision is not None):
            outputs.append(network(x).float())
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    for (key, parameter), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad), key
    assert [*plain.state_dict()] == [*saving.state_dict()]
    for (key, value), other in zip(plain.state_dict().items(), saving.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


def test_copies_have_weights_of_their_own():
    """Target networks are copies; a copy of a checkpointed network must not run its model's weights."""
    torch.manual_seed(0)
    network, x = ours().eval(), torch.rand(2, 3, 16, 16)
    checkpoint_activations(network)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    assert not torch.equal(network(x), other(x))
    other.load_state_dict(network.state_dict())
    assert torch.equal(network(x), other(x))


def test_blocks_keep_nothing():
    """What is saved between the passes is the stem's, beside what enters a block, which hooks do not see."""
    network, x = ours(), torch.rand(4, 3, 16, 16)
    with saved_bytes(network) as before:
        network(x).sum().backward()
    checkpoint_activations(network)
    with saved_bytes(network) as after:
        network(x).sum().backward()
    assert after.peak < before.peak / 2


def test_a_network_without_blocks_is_one_sentence():
    with pytest.raises(UserError, match="finds no blocks in Sequential"):
        checkpoint_activations(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_frozen_statistics_stay_and_are_not_used(momentum):
    """In training mode the batch's own statistics normalise; afterwards the running ones move again."""
    torch.manual_seed(0)
    norm, x = nn.BatchNorm1d(3, momentum=momentum), torch.randn(5, 3)
    expected = norm(x)
    before = copy.deepcopy(norm.state_dict())
    with frozen_statistics(norm):
        assert torch.equal(norm(x), expected)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name]), name
    norm(x + 1)
    assert norm.momentum == momentum
    assert norm.num_batches_tracked == 2
    assert not torch.equal(norm.running_mean, before["running_mean"])
