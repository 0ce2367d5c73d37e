"""Feature extraction: what it returns, and that it leaves the backbone as it found it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastssl.errors import UserError
from fastssl.evaluate.features import extract_features, raw_pixel_features

torch.set_num_threads(2)


def batches(sizes=(5, 5, 3), side=8, labeled=True):
    generator = torch.Generator().manual_seed(0)
    for index, size in enumerate(sizes):
        images = torch.rand(size, 3, side, side, generator=generator)
        labels = torch.arange(size) + 10 * index if labeled else None
        yield images, labels, list(range(size))


class Small(nn.Module):
    """Convolution, batch norm, dropout, pooling: everything whose mode matters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.formats: list[bool] = []

    def forward(self, x):
        self.formats.append(x.is_contiguous(memory_format=torch.channels_last))
        return self.drop(self.norm(self.conv(x))).mean((2, 3))


@pytest.fixture
def backbone():
    torch.manual_seed(1)
    model = Small()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    return model.train()


def test_features_are_the_evaluation_output_in_order(backbone):
    features, labels = extract_features(backbone, batches(), device="cpu")
    assert features.shape == (13, 6)
    assert features.dtype == torch.float32
    assert labels.tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 20, 21, 22]
    images = torch.cat([b[0] for b in batches()])
    backbone.eval()
    with torch.no_grad():
        expected = backbone(images)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)  # another batch size, another summation order


def test_batch_norm_statistics_do_not_move(backbone):
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    extract_features(backbone, batches(), device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_every_training_flag_is_restored(backbone):
    backbone.norm.eval()  # a frozen part in a training backbone
    extract_features(backbone, batches(), device="cpu")
    assert [backbone.training, backbone.conv.training, backbone.norm.training] == [True, True, False]


@pytest.mark.parametrize("culprit", ["data", "backbone"])
def test_training_flags_are_restored_after_an_exception(backbone, culprit):
    def broken():
        yield next(batches())
        if culprit == "data":
            raise RuntimeError("disk on fire")
        yield torch.rand(2, 4, 8, 8), None, [0, 1]  # four channels

    with pytest.raises(RuntimeError):
        extract_features(backbone, broken(), device="cpu")
    assert backbone.training
    assert backbone.norm.training
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_the_convolution(backbone, precision, dtype):
    seen = []
    backbone.conv.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    features, _ = extract_features(backbone, batches(), device="cpu", precision=precision)
    assert set(seen) == {dtype}
    assert features.dtype == torch.float32
    reference, _ = extract_features(backbone, batches(), device="cpu")
    assert (features - reference).norm() <= 2**-7 * reference.norm()  # bf16 keeps 8 bits


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_order_is_the_one_asked_for(backbone, channels_last):
    features, _ = extract_features(backbone, batches(), device="cpu", channels_last=channels_last)
    assert set(backbone.formats) == {channels_last}
    reference, _ = extract_features(backbone, batches(), device="cpu")
    torch.testing.assert_close(features, reference, rtol=1e-5, atol=1e-6)


def test_features_can_be_used_under_grad_afterwards(backbone):
    features, _ = extract_features(backbone, batches(), device="cpu")
    weight = torch.zeros(6, requires_grad=True)
    (features.clone() @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, features.sum(0))


def test_missing_labels_are_minus_one(backbone):
    for _, labels in (
        extract_features(backbone, batches(labeled=False), device="cpu"),
        raw_pixel_features(batches(labeled=False)),
    ):
        assert labels.tolist() == [-1] * 13


def test_one_by_one_maps_are_vectors():
    pool = nn.AdaptiveAvgPool2d(1)
    features, _ = extract_features(pool, batches(), device="cpu")
    torch.testing.assert_close(features, torch.cat([b[0] for b in batches()]).mean((2, 3)))


class Pair(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)), x


@pytest.mark.parametrize("model", [nn.Identity(), nn.Flatten(0), Pair()])
def test_outputs_that_are_not_vectors_are_refused(model):
    with pytest.raises(UserError, match="one feature vector an image"):
        extract_features(model, batches(), device="cpu")


def test_raw_pixels_are_the_images():
    features, labels = raw_pixel_features(batches())
    images = torch.cat([b[0] for b in batches()])
    assert torch.equal(features, images.reshape(13, 3 * 8 * 8))
    assert labels[-1] == 22


def test_nothing_to_read_and_unknown_precision_are_refused(backbone):
    with pytest.raises(UserError, match="batches is empty"):
        extract_features(backbone, iter(()), device="cpu")
    with pytest.raises(UserError, match="batches is empty"):
        raw_pixel_features(iter(()))
    with pytest.raises(UserError, match="got 'fp8'"):
        extract_features(backbone, batches(), device="cpu", precision="fp8")
    assert backbone.training


def test_batches_are_made_outside_autocast_and_inference_mode():
    """A generator that renders as it goes must see neither the network's precision nor inference tensors."""
    seen = []

    def batches():
        for start in (0, 2):
            seen.append((torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()))
            yield torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), torch.arange(start, start + 2)

    extract_features(torch.nn.Flatten(), batches(), device="cpu", precision="bf16", channels_last=True)
    assert seen == [(False, False)] * 2


def test_batches_are_rendered_outside_of_autocast(backbone):
    """A generator of batches runs inside the loop: its own arithmetic must stay float32."""
    dtypes = []

    def rendering():
        for images, labels, ids in batches():
            weight = torch.eye(8)
            dtypes.append((images @ weight).dtype)
            yield images, labels, ids

    extract_features(backbone, rendering(), device="cpu", precision="bf16")
    assert dtypes == [torch.float32] * 3
