"""`fastssl saliency`: masks of the images' foreground, made without labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .options import parse, progress, thread_count


@dataclass(frozen=True)
class SaliencyOptions:
    """Make foreground masks without labels, for `pretrain relicv2 --masks`. Interrupted, the same command goes on."""

    data: str
    """Folder, tar or file list of images, as for pretrain, or "builtin"; of data with `train`, what is in it."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder for the masks, which `--masks` of pretrain then names, and for saliency.png, a contact sheet of them."""
    size: int = 96
    """Side, in pixels, of the square images that cues and network work on: a multiple of 16."""
    mask_size: int = 256
    """The longer side of a mask in pixels, at most; smaller images get masks of their own size."""
    train_images: int = 4096
    """Most images that the network learns from, spread evenly over the data."""
    rounds: int = 3
    """Rounds of learning; each after the first learns from the averaged predictions of the one before."""
    epochs: int = 4
    """Epochs a round."""
    batch_size: int = 16
    """Images a step."""
    seed: int = 0
    """Seed of all that is random: the same seed, threads and machine give the same masks."""
    examples: int = 24
    """Images on the contact sheet."""
    overwrite: bool = False
    """Begin anew and replace masks that are there; without it they are kept."""
    max_bad_fraction: float = 0.01
    """Share of unreadable images at which the work stops."""
    decoder: Literal["auto", "dali", "torchvision"] = "auto"
    """JPEG decoder."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""
    threads: int = 0
    """Threads; 0 takes all cores."""


def saliency_command(args: list[str]) -> int:
    options = parse(SaliencyOptions, args, prog="fastssl saliency")
    import torch

    from ..config import BUILTIN
    from ..data import ensure_builtin, open_splits
    from ..engine.precision import resolve_device
    from ..saliency import LearningSettings, SaliencySettings, make_masks

    learning = LearningSettings(
        size=options.size,
        train_images=options.train_images,
        rounds=options.rounds,
        epochs=options.epochs,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    settings = SaliencySettings(learning, options.mask_size)
    settings.validate()
    threads = thread_count(options.threads)
    torch.set_num_threads(threads)
    source, _ = open_splits(ensure_builtin() if options.data == BUILTIN else Path(options.data))
    summary = make_masks(
        source,
        options.out,
        settings,
        overwrite=options.overwrite,
        threads=threads,
        device=resolve_device(options.device),
        decoder=options.decoder,
        max_bad_fraction=options.max_bad_fraction,
        examples=options.examples,
        progress=progress,
    )
    print(f"{summary['masks']:,} masks in {options.out}, {summary['mean_foreground']:.0%} foreground in the mean")
    if summary["images_without_foreground"]:
        print(f"  {summary['images_without_foreground']:,} images without one, as nothing stands out: they stay whole")
    if summary["unreadable"]:
        print(f"  {summary['unreadable']:,} unreadable images, listed in {options.out / 'quarantine.json'}")
    print(f"look at {options.out / 'saliency.png'}, then name the masks: --masks {options.out}")
    return 1 if summary["unreadable"] else 0


COMMANDS = {"saliency": saliency_command}
