"""`fastssl views`, `fastssl check-data` and `fastssl pack`: what is done with images before a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..data.views import ViewSpec
from ..errors import UserError
from .options import parse, progress, take_word, thread_count


@dataclass(frozen=True)
class ViewsOptions:
    """Draw a contact sheet: some images, each followed by its views under a recipe."""

    data: str = "builtin"
    """Folder, tar or file list of images, or "builtin"."""
    recipe: str | None = None
    """Recipe of the method; by default its first."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("views.png")
    """The PNG to write."""
    images: int = 6
    """How many images."""
    repeats: int = 1
    """Epochs drawn: each gives every image another set of views."""
    seed: int = 0
    """Seed of the views and of the choice of images."""
    rotation: float | None = None
    """Probability of a turn by a multiple of 90 degrees in every view; by default the recipe's, as all that follows."""
    noise: float | None = None
    """Probability of Gaussian noise."""
    noise_sigma: tuple[float, float] | None = None
    """Least and greatest σ of the noise."""
    sobel: float | None = None
    """Probability of Sobel filtering."""
    cutout: float | None = None
    """Probability of a filled square."""
    cutout_side: tuple[float, float] | None = None
    """Least and greatest side of the square as a share of the view's."""

    masks: Path | None = None
    """Folder or tar of the images' foreground masks; without it backgrounds stay."""
    background_removal: float | None = None
    """Probability of a view without background."""

    def changed(self, spec: ViewSpec) -> ViewSpec:
        names = ("rotation", "noise", "noise_sigma", "sobel", "cutout", "cutout_side", "background_removal")
        return replace(spec, **{n: getattr(self, n) for n in names if getattr(self, n) is not None})


def views_command(args: list[str]) -> int:
    from .. import recipes
    from ..config import validate

    method = take_word(args, list(recipes.RECIPES), "views", "method")
    options = parse(ViewsOptions, args, prog=f"fastssl views {method}")
    config = recipes.get(method, options.recipe)
    augment = replace(config.augment, views=tuple(map(options.changed, config.augment.views)))
    asked = options.masks is not None or options.background_removal is None
    validate(replace(config, augment=augment, masks="" if asked else None))
    from ..data.masks import Masks
    from ..engine.contact import draw_views
    from ..engine.rundir import open_data

    source, _ = open_data(replace(config, data=options.data))
    masks = None if options.masks is None else Masks(options.masks, source)
    draw_views(
        options.out, source, augment, seed=options.seed, images=options.images, epochs=options.repeats, masks=masks
    )
    if masks is None and any(spec.background_removal for spec in augment.views):
        print("backgrounds stay in every view: name masks of the images with --masks")
    print(f"wrote {options.out}: {method} ({config.recipe}), {augment.views_per_image} views an image")
    return 0


@dataclass(frozen=True)
class CheckOptions:
    """Decode every image once: what is bad, how large the images are, how many a class has."""

    data: tyro.conf.Positional[Path]
    """Folder, tar or file list, as for pretrain."""
    out: Path | None = None
    """JSON file for the names and reasons of all unreadable images."""
    decoder: Literal["auto", "dali", "torchvision"] = "auto"
    """JPEG decoder."""
    threads: int = 0
    """Decoding threads; 0 takes all cores."""


def check_command(args: list[str]) -> int:
    options = parse(CheckOptions, args, prog="fastssl check-data")
    from ..data import open_splits
    from ..data.check import check_data, describe

    train, val = open_splits(options.data)
    bad: dict[str, list[tuple[str, str]]] = {}
    for split, source in (("train", train), ("val", val)):
        if source is None:
            continue
        with progress(f"decoding {split}", len(source)) as tell:
            found = check_data(
                source,
                decoder=options.decoder,
                threads=thread_count(options.threads),
                progress=lambda done, _: tell(done),
            )
        print("\n".join(describe(split, found)))
        for name, reason in found.bad[:20]:
            print(f"  unreadable {name}: {reason}")
        if len(found.bad) > 20:
            print(f"  and {len(found.bad) - 20:,} more" + ("" if options.out else ": name a file with --out for all"))
        bad[split] = found.bad
    if options.out is not None:
        from ..engine.rundir import write_json

        plain = {split: [{"name": name, "reason": reason} for name, reason in listed] for split, listed in bad.items()}
        try:
            write_json(options.out, plain)
        except OSError as error:
            raise UserError(f"--out {options.out} cannot be written: {error.strerror}") from None
    return 1 if any(bad.values()) else 0


@dataclass(frozen=True)
class PackOptions:
    """Transcode a data set once. Interrupted, the same command goes on."""

    data: tyro.conf.Positional[Path]
    """Folder, tar or file list, as for pretrain."""
    out: tyro.conf.Positional[Path]
    """Folder for the shards: what `--data` of pretrain then names."""
    short_side: int = 256
    """Larger images are reduced to this many pixels on their shorter side."""
    quality: int = 90
    """JPEG quality."""
    images_a_shard: int = 5000
    """Images a shard."""
    threads: int = 0
    """Images transcoded at once; 0 takes all cores."""


def pack_command(args: list[str]) -> int:
    options = parse(PackOptions, args, prog="fastssl pack")
    from ..data import open_splits
    from ..data.pack import PackSettings, pack

    train, val = open_splits(options.data)
    splits = {"train": train} | ({} if val is None else {"val": val})
    settings = PackSettings(options.short_side, options.quality, options.images_a_shard)
    total, before = sum(len(source) for source in splits.values()), 0 if val is None else len(train)
    with progress("packing", total) as tell:
        state = pack(
            splits,
            options.out,
            settings,
            threads=thread_count(options.threads),
            progress=lambda split, done, _: tell(done + before * (split == "val")),
        )
    shards = state["shards"].values()
    bad = [entry for shard in shards for entry in shard["unreadable"]]
    size = sum(shard["bytes"] for shard in shards) / 1e6
    print(f"wrote {total - len(bad):,} images, {size:,.1f} MB, {len(shards)} shards to {options.out}")
    for entry in bad[:20]:
        print(f"  left out {entry['name']}: {entry['reason']}")
    if len(bad) > 20:
        print(f"  and {len(bad) - 20:,} more, all listed in {options.out / 'pack.json'}")
    return 1 if bad else 0


COMMANDS = {"views": views_command, "check-data": check_command, "pack": pack_command}
