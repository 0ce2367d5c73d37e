"""Foreground masks of a source's images without labels: cues, a network that learns from them, and a mask a file.

    OUT/train/<class>/<name>.png   the masks
    OUT/saliency.pt                the network and what it learns from, after each round
    OUT/saliency.json              settings, shares of foreground, agreement of the cues, counts
    OUT/saliency.png               a contact sheet of images, pseudo-masks and masks
    OUT/quarantine.json            images that cannot be read, if there are any

The same command, run again, goes on after the last round that was finished, and with the first mask that is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..data.decode import DecoderKind
from ..data.masks import THRESHOLD, Masks
from ..data.quarantine import Quarantine
from ..data.reader import Reader
from ..data.sources import Source
from ..errors import UserError
from .fusion import CUES, cut, fuse, overlap
from .learning import LearningSettings, learn_round, new_network, next_targets, predict
from .network import SaliencyNetwork
from .sheet import Example, draw_sheet
from .state import State, load_state, save_state, write_json
from .working import Part, working_images
from .writing import encode_mask, mask_files, stored_bytes, write_whole

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class SaliencySettings:
    """What decides the masks."""

    learning: LearningSettings = field(default_factory=LearningSettings)
    mask_size: int = 256
    """The longer side of a mask in pixels, at most."""

    def validate(self) -> None:
        self.learning.validate()
        if not 16 <= self.mask_size <= 8192:
            raise UserError(f"--mask-size must be from 16 to 8192 pixels, got {self.mask_size}")


def _silent(what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda done: None)


def make_masks(
    source: Source,
    out: Path,
    settings: SaliencySettings,
    *,
    overwrite: bool = False,
    threads: int = 2,
    device: torch.device | str = "cpu",
    decoder: DecoderKind = "auto",
    max_bad_fraction: float = 0.01,
    examples: int = 24,
    progress: Progress = _silent,
) -> dict[str, Any]:
    """Write a mask for each image of the source, as far as there is none.

    Args:
        source: the images.
        out: folder; created.
        settings: a folder that was begun with others is refused.
        overwrite: begin anew, with a new network, and replace the masks that are there.
        threads: threads that read, decode and write.
        device: where the network runs.
        max_bad_fraction: share of unreadable images at which the work stops.
        examples: images on the contact sheet, spread over the source.
        progress: called with what is begun and its number of steps; gives what is called with the steps done.

    Returns:
        what saliency.json holds.

    Raises:
        UserError: impossible settings, images whose masks could not be told apart, a folder that was begun with other
            settings, too many unreadable images, a disk that cannot be written.
    """
    settings.validate()
    if threads < 1 or examples < 1:
        raise UserError(f"--threads and --examples must be at least 1, got {threads} and {examples}")
    files = mask_files(source, out)
    made_from = {**asdict(settings.learning), "mask_size": settings.mask_size, "images": len(source)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        state = None if overwrite else load_state(out, made_from)
        quarantine = Quarantine(len(source), max_bad_fraction=max_bad_fraction, path=out / "quarantine.json")
        reader = Reader(source, quarantine, decoder, threads, torch.device("cpu"))
        try:
            work = _Work(source, out, settings, reader, torch.device(device), threads, progress)
            state = work.learn(state, made_from)
            shares = work.write(state, files, overwrite)
            found = [share for share in shares.values() if share > 0]
            if not found:
                raise UserError(f"--data: nothing stands out in any of its {len(source)} images, so there are no masks")
            work.draw(state, examples)
        finally:
            reader.close()
        summary = {
            "settings": made_from,
            "images": len(source),
            "masks": len(found),
            "images_without_foreground": len(shares) - len(found),
            "unreadable": len(quarantine),
            "mean_foreground": float(np.mean(found)),
            **state.measures,
        }
        write_json(out / "saliency.json", summary)
    except OSError as error:
        raise UserError(
            f"--out {out} cannot be written: {error.strerror or error}; finished masks stay, and the same command "
            "goes on after them"
        ) from error
    return summary


@dataclass(frozen=True)
class _Work:
    source: Source
    out: Path
    settings: SaliencySettings
    reader: Reader
    device: torch.device
    threads: int
    progress: Progress

    def learn(self, state: State | None, made_from: dict[str, int]) -> State:
        """The network after all rounds; those that `state` has behind it are not repeated."""
        learning = self.settings.learning
        if state is not None and state.rounds == learning.rounds:
            return state
        n = len(self.source)
        count = min(n, learning.train_images)
        images, cues = self._training_images(np.arange(count) * n // count, begin=state is None)
        if state is None:
            fused = cut(_in_parts(fuse, cues, images))
            state = State(made_from, 0, new_network(learning.seed).state_dict(), fused, _measures(cues, fused))
        network = self._network(state)
        steps = learning.epochs * -(-len(images) // min(learning.batch_size, len(images)))
        for number in range(state.rounds, learning.rounds):
            with self.progress(f"learning, round {number + 1} of {learning.rounds}", steps) as tell:
                average = learn_round(
                    network, images, state.targets, learning, number,
                    device=self.device, threads=self.threads, progress=tell,
                )  # fmt: skip
            targets = next_targets(average, images, state.targets)
            measures = state.measures | {
                "agreement_of_rounds": [
                    *state.measures["agreement_of_rounds"], float(overlap(targets, state.targets).mean())
                ]
            }  # fmt: skip
            state = State(made_from, number + 1, network.state_dict(), targets, measures)
            save_state(self.out, state)
        return state

    def _training_images(self, ids: NDArray[np.int64], *, begin: bool) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """uint8 `[M, S, S, 3]` and, to begin with, the cues' maps of them."""
        images: list[NDArray[np.uint8]] = []
        cues: dict[str, list[NDArray[np.float32]]] = {name: [] for name in CUES}
        done = 0
        with (
            self.progress("cues of the images to learn from", len(ids)) as tell,
            ThreadPoolExecutor(self.threads, thread_name_prefix="fastssl-saliency") as pool,
        ):
            for part in working_images(self.reader, ids, self.settings.learning.size):
                images.append(part.images)
                if begin:
                    slices = np.array_split(part.images, min(self.threads, len(part.images)))
                    for name, cue in CUES.items():
                        cues[name] += pool.map(cue, slices)
                done += len(part.ids)
                tell(done)
        if sum(map(len, images)) < 2:
            raise UserError(f"--data must hold at least 2 images that can be read, got {done}")
        return np.concatenate(images), {name: np.concatenate(maps) for name, maps in cues.items() if begin}

    def _network(self, state: State) -> SaliencyNetwork:
        network = new_network(self.settings.learning.seed)
        network.load_state_dict(state.weights)
        return network.to(self.device)

    def write(self, state: State, files: list[Path], overwrite: bool) -> dict[int, float]:
        """Write the masks that are missing; the share of foreground of every image's mask, 0 where it gets none."""
        there = [] if overwrite else [i for i, path in enumerate(files) if path.is_file()]
        shares = {i: _share(files[i]) for i in there}
        missing = np.setdiff1d(np.arange(len(files)), np.array(there, dtype=np.int64))
        network, size = self._network(state), self.settings.learning.size
        done = 0
        with (
            self.progress("masks", len(missing)) as tell,
            ThreadPoolExecutor(self.threads, thread_name_prefix="fastssl-saliency") as pool,
        ):
            for part in working_images(self.reader, missing, size):
                maps = predict(network, part.images, device=self.device)
                write = self._write_one(part, maps, files)
                shares |= zip(part.ids.tolist(), pool.map(write, range(len(maps))), strict=True)
                done += len(part.ids)
                tell(done)
        return shares

    def _write_one(self, part: Part, maps: NDArray[np.float32], files: list[Path]) -> Callable[[int], float]:
        def run(row: int) -> float:
            index = int(part.ids[row])
            image = part.originals[row].cpu().numpy()
            png, share = encode_mask(maps[row], image, stored_bytes(self.source, index), self.settings.mask_size)
            if share > 0:
                write_whole(files[index], png)
            else:  # a crop would show nothing; without a mask it keeps its background
                files[index].unlink(missing_ok=True)
            return share

        return run

    def draw(self, state: State, examples: int) -> None:
        n = len(self.source)
        count = min(n, examples)
        network = self._network(state)
        shown: list[Example] = []
        for part in working_images(self.reader, np.arange(count) * n // count, self.settings.learning.size):
            fused = fuse({name: cue(part.images) for name, cue in CUES.items()}, part.images)
            each = zip(part.ids.tolist(), part.originals, part.images, fused, cut(fused), strict=True)
            said = predict(network, part.images, device=self.device)
            shown += [
                Example(Path(self.source.name(i)).name, i, original.cpu().numpy(), image, map_, pseudo, p)
                for (i, original, image, map_, pseudo), p in zip(each, said, strict=True)
            ]
        draw_sheet(shown, Masks(self.out, self.source), self.out / "saliency.png")


def _in_parts(
    function: Callable[[dict[str, Any], NDArray[np.uint8]], NDArray[np.float32]],
    cues: dict[str, NDArray[np.float32]],
    images: NDArray[np.uint8],
) -> NDArray[np.float32]:
    parts = [slice(start, start + 256) for start in range(0, len(images), 256)]
    return np.concatenate([function({name: maps[p] for name, maps in cues.items()}, images[p]) for p in parts])


def _measures(cues: dict[str, NDArray[np.float32]], fused: NDArray[np.bool_]) -> dict[str, Any]:
    """How far the cues, each cut by itself, agree: mean intersection over union."""
    masks = {name: cut(maps) for name, maps in cues.items()}
    pairs = [*combinations(masks.items(), 2), *((item, ("fused", fused)) for item in masks.items())]
    return {
        "agreement_of_cues": {f"{a} / {b}": float(overlap(x, y).mean()) for (a, x), (b, y) in pairs},
        "pseudo_foreground": float(fused.mean()),
        "agreement_of_rounds": [],
    }


def _share(path: Path) -> float:
    try:
        with Image.open(path) as mask:
            return float((np.asarray(mask.convert("L")) > THRESHOLD).mean())
    except Exception as error:  # PIL's plug-ins raise whatever they meet
        raise UserError(f"mask {path} cannot be read ({error}): remove it, and it is made again") from None
