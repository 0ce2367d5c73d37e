"""From a source to batches of views: order, read, decode, draw, render."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import UserError
from .buffers import give_back_free_memory
from .counter import MAX_VIEWS, REPLACEMENT_VIEW, words
from .dali_graph import check_view
from .decode import HW_DECODER_LOAD, DecoderKind
from .masks import Masks, check_masks
from .order import LastBatch, batch_ids, steps_per_epoch
from .params import background_removed, group_params
from .quarantine import Quarantine
from .reader import Reader, RendererKind, image_sizes
from .sources import Source
from .study import check as check_study
from .views import Augmentation, Views, ViewSpec, check_words

_REPLACEMENT_TRIES = 64
_Fetched = tuple[NDArray[np.int64], torch.Tensor | list[torch.Tensor | None]]
"""Sample ids of a batch, and their images as `Reader.fetch` gives them."""


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch: B images."""

    views: Views
    ids: torch.Tensor
    """int64 `[B]`, on the CPU: the samples that are shown (an unreadable one's stand-in, not itself)."""
    labels: torch.Tensor | None
    """int64 `[B]`, on the CPU, or None."""


def _check_spec(spec: ViewSpec) -> None:
    if spec.size < 8:
        raise UserError(f"view size must be at least 8 pixels, got {spec.size}")
    if spec.count < 1:
        raise UserError(f"view count must be at least 1, got {spec.count}")
    if not 0 < spec.scale[0] <= spec.scale[1] <= 1:
        raise UserError(f"view scale must satisfy 0 < least <= greatest <= 1, got {spec.scale}")
    if not 0 < spec.ratio[0] <= spec.ratio[1]:
        raise UserError(f"view ratio must satisfy 0 < least <= greatest, got {spec.ratio}")
    for name in ("flip", "jitter", "grayscale", "blur", "solarize", "invert"):
        if not 0 <= getattr(spec, name) <= 1:
            raise UserError(f"view {name} is a probability in [0, 1], got {getattr(spec, name)}")
    for name in ("brightness", "contrast", "saturation"):
        if getattr(spec, name) < 0:
            raise UserError(f"view {name} must be at least 0, got {getattr(spec, name)}")
    if not 0 <= spec.hue <= 0.5:
        raise UserError(f"view hue must be in [0, 0.5] turns, got {spec.hue}")
    if not 0 < spec.blur_sigma[0] <= spec.blur_sigma[1]:
        raise UserError(f"view blur_sigma must satisfy 0 < least <= greatest, got {spec.blur_sigma}")
    check_words(spec, "view ")
    check_study(spec, "view ")


class ViewLoader:
    """Batches of views of a source, in the order of (seed, epoch).

    What a batch holds is a pure function of (source, augmentation, seed, epoch, step): not of `threads`, of `prefetch`,
    of where an iteration started, or of how many ranks share the global batch.

    Args:
        source: encoded images, or an `ArraySource`.
        augmentation: the recipe's views and normalisation.
        batch_size: global batch size over all ranks.
        seed: in [0, 2⁶⁴).
        decoder: "auto" (DALI where it can be imported), "dali" or "torchvision".
        threads: threads that read, decode and render.
        device: where views are made.
        rank, world: this process's share of the global batch.
        quarantine: JSON file for the names of unreadable images, or None; rank r > 0 adds `.rank<r>` to its stem.
        max_bad_fraction: share of unreadable images at which an epoch stops (a handful is always allowed).
        prefetch: batches made ahead by a background thread; 0 makes each when it is asked for.
        renderer: "auto" (native for views on the CPU, where it was built; triton on a GPU, where it is installed),
            "native", "triton", "torch" or "dali".
        dtype, channels_last: what the views come in; Triton writes them so, after others they are converted.
        last: "drop" leaves out what is left after an epoch's last full batch; "pad" fills it up with the epoch's first
            samples (in the views that they had), so that each sample is shown.
        hw_decoder_load: share of a batch's JPEG data that DALI gives to the GPU's hardware decoder, where it has one.
        pin: make views on the CPU in page-locked memory (see `upload`).
        masks: of the images' foreground, for views with a `background_removal`.

    Raises:
        UserError: sizes that do not fit together, a view that cannot be drawn, or that needs masks.
    """

    def __init__(
        self,
        source: Source,
        augmentation: Augmentation,
        *,
        batch_size: int,
        seed: int,
        decoder: DecoderKind = "auto",
        threads: int = 2,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
        quarantine: Path | None = None,
        max_bad_fraction: float = 0.01,
        prefetch: int = 2,
        renderer: RendererKind = "auto",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        last: LastBatch = "drop",
        hw_decoder_load: float = HW_DECODER_LOAD,
        pin: bool = False,
        masks: Masks | None = None,
    ) -> None:
        if threads < 1:
            raise UserError(f"threads must be at least 1, got {threads}")
        if prefetch < 0:
            raise UserError(f"prefetch must be at least 0, got {prefetch}")
        if not augmentation.views:
            raise UserError("augmentation.views must hold at least one view")
        for index, spec in enumerate(augmentation.views):
            _check_spec(spec)
            check_masks(spec, f"--augment.views.{index}", masks is not None)
            if renderer == "dali":
                check_view(spec, f"--augment.views.{index}")
        if augmentation.views_per_image > MAX_VIEWS:
            raise UserError(f"augmentation.views must stay below {MAX_VIEWS} views")
        self.steps_per_epoch = steps_per_epoch(len(source), batch_size, last)
        if batch_size % world:
            raise UserError(f"batch_size {batch_size} must be a multiple of the number of processes, {world}")
        self.source, self.augmentation, self.batch_size = source, augmentation, batch_size
        self._seed, self._rank, self._world = seed, rank, world
        self._prefetch, self._last, self.masks = prefetch, last, masks
        if quarantine is not None and rank > 0:
            quarantine = quarantine.with_name(f"{quarantine.stem}.rank{rank}{quarantine.suffix}")
        self.quarantine = Quarantine(len(source), max_bad_fraction=max_bad_fraction, path=quarantine)
        self._reader = Reader(
            source,
            self.quarantine,
            decoder,
            threads,
            torch.device(device),
            renderer,
            dtype,
            channels_last,
            hw_decoder_load,
            pin,
        )
        self._producer: _Producer | None = None

    # ------------------------------------------------------------------------------------------------- one batch

    def _replace(self, images: list[torch.Tensor | None], ids: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Fill the gaps of unreadable samples, each with the first readable one of its own list of candidates."""
        n = len(self.source)
        shown = ids.copy()
        for gap in (i for i, image in enumerate(images) if image is None):
            drawn = words(self._seed, epoch, ids[gap : gap + 1], REPLACEMENT_VIEW, _REPLACEMENT_TRIES)[0]
            for candidate in ((drawn.astype(np.uint64) * np.uint64(n)) >> np.uint64(32)).astype(np.int64):
                images[gap] = self._reader.fetch(np.array([candidate]))[0]
                if images[gap] is not None:
                    shown[gap] = candidate
                    break
            else:
                raise UserError(
                    f"no readable image was found in {_REPLACEMENT_TRIES} tries to replace "
                    f"{self.source.name(int(ids[gap]))}: check the data"
                )
        return shown

    def _without_background(
        self,
        images: torch.Tensor | list[torch.Tensor],
        shown: NDArray[np.int64],
        removed: NDArray[np.bool_],
        fill: float,
    ) -> tuple[torch.Tensor | list[torch.Tensor], NDArray[np.int64]]:
        """`images` followed by copies of those that some view wants without background, and the image of each row.

        removed: `[V · N]`, view-major. An image without a readable mask is shown as it is.
        """
        n = len(images)
        copies: list[torch.Tensor] = []
        place = np.arange(n)
        for i in np.flatnonzero(removed.reshape(-1, n).any(axis=0)).tolist():
            assert self.masks is not None
            copy = self.masks.without_background(int(shown[i]), images[i], fill)
            if copy is not None:
                place[i] = n + len(copies)
                copies.append(copy)
        rows = np.arange(len(removed)) % n
        rows = np.where(removed, place[rows], rows)
        if copies and isinstance(images, torch.Tensor):
            return torch.cat([images, torch.stack(copies)]), rows
        return [*images, *copies] if copies else images, rows

    def _views(
        self,
        images: torch.Tensor | list[torch.Tensor],
        ids: NDArray[np.int64],
        shown: NDArray[np.int64],
        epoch: int,
    ) -> Views:
        """Views of `images`, which are the samples `shown`, drawn for the samples `ids`."""
        heights, widths = image_sizes(images)
        groups: dict[int, list[torch.Tensor]] = {}
        counts: dict[int, int] = {}
        view = 0
        for spec in self.augmentation.views:
            params = group_params(
                spec, seed=self._seed, epoch=epoch, samples=ids, first=view, heights=heights, widths=widths
            )
            seen, rows = images, None
            if spec.background_removal > 0:
                numbers = range(view, view + spec.count)
                removed = [background_removed(spec, seed=self._seed, epoch=epoch, samples=ids, view=v) for v in numbers]
                seen, rows = self._without_background(images, shown, np.concatenate(removed), spec.background_fill)
            view += spec.count
            rendered = self._reader.render(seen, params, spec, self.augmentation.mean, self.augmentation.std, rows)
            groups.setdefault(spec.size, []).append(rendered)
            counts[spec.size] = counts.get(spec.size, 0) + spec.count
        merged = tuple(parts[0] if len(parts) == 1 else torch.cat(parts) for parts in groups.values())
        return Views(merged, tuple(counts.values()))

    def _fetch(self, epoch: int, step: int) -> _Fetched:
        """What takes the decoder: it may be asked ahead of what is done with the pixels."""
        ids = batch_ids(
            step,
            n=len(self.source),
            batch_size=self.batch_size,
            seed=self._seed,
            epoch=epoch,
            rank=self._rank,
            world=self._world,
            last=self._last,
        )
        return ids, self._reader.fetch(ids)

    def _finish(self, epoch: int, fetched: _Fetched) -> Batch:
        ids, images = fetched
        shown = ids
        if not isinstance(images, torch.Tensor) and any(image is None for image in images):
            shown = self._replace(images, ids, epoch)
        # The parameters are those of the sample that should be there: its stand-in, if it is in the same batch as
        # itself, is seen in views of its own.
        views = self._views(images, ids, shown, epoch)  # type: ignore[arg-type]
        labels = None if self.source.labels is None else torch.from_numpy(self.source.labels[shown])
        return Batch(views, torch.from_numpy(shown), labels)

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch of one step.

        Raises:
            UserError: too many unreadable images.
        """
        return self._finish(epoch, self._fetch(epoch, step))

    def _batches(self, epoch: int, steps: range) -> Generator[Batch]:
        """The same batches; the images of the next are decoded while the views of one are drawn."""
        with ThreadPoolExecutor(1, thread_name_prefix="fastssl-fetch") as ahead:
            fetched = [ahead.submit(self._fetch, epoch, step) for step in steps[:1]]
            for step in steps:
                images = fetched.pop().result()
                fetched += [ahead.submit(self._fetch, epoch, step + 1)] if step + 1 in steps else []
                yield self._finish(epoch, images)

    # ------------------------------------------------------------------------------------------------- iteration

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start_step` on: the same ones, bit for bit, that a whole epoch has there.

        Only one iteration is alive at a time: a new one ends the one before it.

        Raises:
            UserError: too many unreadable images.
            ValueError: `start_step` out of range.
        """
        if not 0 <= start_step <= self.steps_per_epoch:
            raise ValueError(f"start_step must be in [0, {self.steps_per_epoch}], got {start_step}")
        self._stop()
        give_back_free_memory()
        steps = range(start_step, self.steps_per_epoch)
        if not self._prefetch:
            return (self.batch(epoch, step) for step in steps)
        self._producer = _Producer(self._batches(epoch, steps), self._prefetch)
        return iter(self._producer)

    def _stop(self) -> None:
        if self._producer is not None:
            self._producer.close()
            self._producer = None

    def close(self) -> None:
        """End the background thread and release the decoder."""
        self._stop()
        self._reader.close()


class _Producer:
    """Runs a generator in a background thread, a few batches ahead of the consumer."""

    _END = object()

    def __init__(self, batches: Generator[Batch], ahead: int) -> None:
        self._results: queue.Queue[object] = queue.Queue(maxsize=ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(batches,), name="fastssl-loader", daemon=True)
        self._thread.start()

    def _put(self, result: object) -> bool:
        while not self._stopped.is_set():
            try:
                self._results.put(result, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _run(self, batches: Generator[Batch]) -> None:
        try:
            with closing(batches):
                for batch in batches:
                    if not self._put(batch):
                        return
        except BaseException as error:  # the consumer raises it
            self._put(error)
        else:
            self._put(self._END)

    def __iter__(self) -> Iterator[Batch]:
        while not self._stopped.is_set():
            try:
                result = self._results.get(timeout=0.1)
            except queue.Empty:
                continue
            if result is self._END:
                return
            if isinstance(result, BaseException):
                raise result
            assert isinstance(result, Batch)
            yield result

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
