"""Rounds in which a network learns from noisy masks, and its own averaged predictions become the next masks.

In the manner of DeepUSPS (Nguyen et al., arXiv 1909.13055): what many wrong masks have in common is learnt before their
errors, and the average over epochs of what a network says of its training images is better than what it was taught.
Here one network learns from the fused cues; each round ends with targets cut from the averages of its epochs,

    m ← α m + (1 − α) p,      α = 0.5 (the paper: 0.7), m = p in the round's first epoch,

drawn to the images' edges (the paper uses a CRF there).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.loader import ViewLoader
from ..data.params import sample_params
from ..data.sources import ArraySource
from ..data.views import Augmentation, ViewSpec
from ..errors import UserError
from .edges import follow_edges
from .network import MULTIPLE, SaliencyNetwork, f_measure_loss
from .scale import Maps

ALPHA = 0.5
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-4


@dataclass(frozen=True)
class LearningSettings:
    """What decides the network."""

    size: int = 96
    """Side, in pixels, of the square images that cues and network work on."""
    train_images: int = 4096
    """Most images that the network learns from, spread evenly over the data."""
    rounds: int = 3
    """Rounds of learning; each after the first learns from the averaged predictions of the one before."""
    epochs: int = 4
    """Epochs a round."""
    batch_size: int = 16
    """Images a step."""
    seed: int = 0
    """Seed of the weights, the order, mirrors and colours."""

    def validate(self) -> None:
        if self.size % MULTIPLE or not 32 <= self.size <= 512:
            raise UserError(f"--size must be a multiple of {MULTIPLE} from 32 to 512 pixels, got {self.size}")
        if self.train_images < 2 or self.batch_size < 2:
            raise UserError(
                f"--train-images and --batch-size must be at least 2, got {self.train_images} and {self.batch_size}"
            )
        if self.rounds < 1 or self.epochs < 1:
            raise UserError(f"--rounds and --epochs must be at least 1, got {self.rounds} and {self.epochs}")
        if not 0 <= self.seed < 1 << 64:
            raise UserError(f"--seed must be in [0, 2^64), got {self.seed}")

    @property
    def view(self) -> ViewSpec:
        """Whole images, mirrored and coloured anew."""
        return ViewSpec(
            size=self.size, scale=(1.0, 1.0), ratio=(1.0, 1.0), brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05,
            grayscale=0.1, blur=0.0,
        )  # fmt: skip


def new_network(seed: int) -> SaliencyNetwork:
    """A network whose weights follow from the seed; torch's own generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SaliencyNetwork().to(memory_format=torch.channels_last)


def learn_round(
    network: SaliencyNetwork,
    images: NDArray[np.uint8],
    targets: NDArray[np.bool_],
    settings: LearningSettings,
    number: int,
    *,
    device: torch.device,
    threads: int = 2,
    progress: Callable[[int], None] = lambda steps: None,
) -> Maps:
    """Train the network, in place, on the targets, and average what it says of the images.

    Args:
        images: uint8 `[M, S, S, 3]`.
        targets: bool `[M, S, S]`.
        number: of the round, from 0; rounds differ in order and colours.
        device: where the network is.
        threads: threads that draw the images.
        progress: called with the steps done.

    Returns:
        float32 `[M, S, S]`: the averaged probabilities.
    """
    batch = min(settings.batch_size, len(images))
    loader = ViewLoader(
        ArraySource(images), Augmentation((settings.view,)), batch_size=batch, seed=settings.seed, threads=threads,
        last="pad",
    )  # fmt: skip
    steps = settings.epochs * -(-len(images) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    average = np.zeros(targets.shape, dtype=np.float32)
    network.train()
    done = 0
    try:
        for epoch in range(settings.epochs):
            now = number * settings.epochs + epoch
            kept = np.float32(ALPHA if epoch else 0)
            for ids, mirrored, views in _batches(loader, settings, now):
                target = torch.from_numpy(_mirror(targets[ids], mirrored)).to(device, torch.float32)
                logits = network(views.to(device, memory_format=torch.channels_last))
                loss = f_measure_loss(logits, target)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                said = _mirror(torch.sigmoid(logits.detach().float()).cpu().numpy(), mirrored)
                average[ids] = kept * average[ids] + (1 - kept) * said
                done += 1
                progress(done)
    finally:
        loader.close()
    return average


def _batches(
    loader: ViewLoader, settings: LearningSettings, epoch: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_], torch.Tensor]]:
    """Ids, whether each is mirrored, and views of an epoch."""
    for batch in loader.epoch(epoch):
        ids = batch.ids.numpy()
        side = np.full(len(ids), settings.size)
        params = sample_params(
            settings.view, seed=settings.seed, epoch=epoch, samples=ids, view=0, heights=side, widths=side
        )
        yield ids, params.flip, batch.views.groups[0]


def _mirror(maps: NDArray, mirrored: NDArray[np.bool_]) -> NDArray:
    return np.where(mirrored[:, None, None], maps[:, :, ::-1], maps)


def next_targets(average: Maps, images: NDArray[np.uint8], targets: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The averages, drawn to the edges and cut; an image of which nothing would be left keeps its old targets."""
    new = np.empty(targets.shape, dtype=bool)
    for start in range(0, len(images), 256):
        part = slice(start, start + 256)
        new[part] = follow_edges(average[part], images[part]) >= 0.5
    nothing = ~new.any(axis=(1, 2))
    new[nothing] = targets[nothing]
    return new


@torch.no_grad()
def predict(network: SaliencyNetwork, images: NDArray[np.uint8], *, device: torch.device) -> Maps:
    """Probabilities float32 `[N, S, S]` of uint8 `[N, S, S, 3]`: the mean over the image and its mirror image."""
    network.eval()
    x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255  # channels last
    return ((network(x).sigmoid() + network(x.flip(3)).sigmoid().flip(2)) / 2).float().cpu().numpy()
