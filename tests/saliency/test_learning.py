"""What the network makes of wrong masks, measured against the true ones of the built-in shapes."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from fastssl.data import builtin
from fastssl.saliency.edges import follow_edges
from fastssl.saliency.fusion import CUES, cut, fuse, overlap
from fastssl.saliency.learning import LearningSettings, learn_round, new_network, next_targets, predict
from fastssl.saliency.network import SaliencyNetwork, f_measure_loss

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    """Layers this small lose more by sharing out their work, on cores that are busy, than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def shapes(n: int = 288, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[N, S, S, 3]` and their true masks `[N, S, S]`."""
    ids = np.arange(n)
    return builtin.draw_images(ids, split=0, size=size), builtin.coverage(ids, split=0, size=size) > 0.5


def wrong(masks: np.ndarray) -> np.ndarray:
    """Masks with a rectangle of a third to two thirds of the side turned over, anywhere."""
    rng, size = np.random.default_rng(0), masks.shape[1]
    changed = masks.copy()
    for mask in changed:
        h, w = rng.integers(size // 3, 2 * size // 3, 2)
        y, x = rng.integers(0, size - h), rng.integers(0, size - w)
        mask[y : y + h, x : x + w] ^= True
    return changed


def test_cues_and_their_fusion_find_the_shapes():
    """Seen on 480 shapes: spectral residual 0.10, minimum barrier 0.90, histogram contrast 0.91, fused 0.93."""
    images, truth = shapes()
    maps = {name: cue(images) for name, cue in CUES.items()}
    found = {name: overlap(cut(cues), truth).mean() for name, cues in maps.items()}
    fused = overlap(cut(fuse(maps, images)), truth).mean()
    assert found["minimum barrier"] > 0.85
    assert found["histogram contrast"] > 0.85
    assert fused > 0.9
    assert fused > max(found.values())


def test_the_network_is_nearer_to_the_truth_than_the_masks_it_learns_from():
    """Seen: 0.38 of what it is taught, 0.60 of both that it says."""
    images, truth = shapes()
    targets = first = wrong(truth)
    settings = LearningSettings(size=32, epochs=6, batch_size=8)
    network = new_network(0)
    for number in range(2):
        average = learn_round(network, images, targets, settings, number, device=CPU)
        targets = next_targets(average, images, targets)
    said = follow_edges(predict(network, images, device=CPU), images) >= 0.5
    taught, learnt, final = (overlap(m, truth).mean() for m in (first, targets, said))
    assert taught < 0.6
    assert learnt > taught + 0.1
    assert final > taught + 0.1


def test_the_f_measure_loss_is_its_formula():
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(size=(3, 4, 5)), (rng.random((3, 4, 5)) < 0.4).astype(np.float64)
    targets[2] = 0
    p = 1 / (1 + np.exp(-logits))
    expected = []
    for i in range(3):
        hit = (p[i] * targets[i]).sum()
        precision, recall = hit / p[i].sum(), hit / targets[i].sum() if targets[i].any() else 0.0
        expected.append(1 - 1.3 * precision * recall / (0.3 * precision + recall) if hit else 1.0)
    found = f_measure_loss(torch.tensor(logits), torch.tensor(targets))
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-6)  # computed in float32


def test_an_image_without_foreground_gives_no_gradient():
    logits = torch.zeros(2, 4, 4, requires_grad=True)
    targets = torch.zeros(2, 4, 4)
    targets[1, :2] = 1
    f_measure_loss(logits, targets).backward()
    assert not logits.grad[0].any()
    assert logits.grad[1].all()


@pytest.mark.parametrize("size", [32, 48])
def test_the_network_keeps_the_size(size):
    assert SaliencyNetwork()(torch.rand(2, 3, size, size)).shape == (2, size, size)


def test_predictions_are_mirrored_with_their_image():
    images, _ = shapes()
    network = new_network(3)
    straight = predict(network, images[:4], device=CPU)
    mirrored = predict(network, np.ascontiguousarray(images[:4, :, ::-1]), device=CPU)
    np.testing.assert_allclose(mirrored[:, :, ::-1], straight, atol=1e-6)


def test_edges_pull_a_blurred_mask_back_to_its_shape():
    images, truth = shapes()
    blurred = torch.nn.functional.avg_pool2d(torch.from_numpy(truth[:, None]).float(), 9, 1, 4)[:, 0].numpy()
    before = overlap(blurred >= 0.5, truth).mean()
    after = overlap(follow_edges(blurred, images) >= 0.5, truth).mean()
    assert after > before + 0.05


def test_an_image_keeps_its_targets_where_nothing_would_be_left():
    images, truth = shapes()
    average = np.stack([np.zeros((32, 32), np.float32), truth[1].astype(np.float32)])
    new = next_targets(average, images[:2], truth[:2])
    assert (new[0] == truth[0]).all()
    assert overlap(new[1:], truth[1:2])[0] > 0.9
