"""Batches: the same bits however they are made, and a run that survives bad files."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastssl.data import (
    ArraySource,
    Augmentation,
    Batch,
    CenterCrop,
    ViewLoader,
    ViewSpec,
    evaluation_batches,
    open_source,
)
from fastssl.data.decode import decode_one
from fastssl.data.order import batch_ids
from fastssl.data.params import center_params, sample_params
from fastssl.data.render import render
from fastssl.data.workers import worker_pool
from fastssl.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

SIMCLR = Augmentation((ViewSpec(size=24, count=2, sampler="tensorflow"),))
BYOL = Augmentation(
    (ViewSpec(size=24, sampler="clip", blur=1.0), ViewSpec(size=24, sampler="clip", blur=0.1, solarize=0.2)),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
SWAV = Augmentation(
    (
        ViewSpec(size=24, count=2, scale=(0.14, 1.0), blur_kind="pil", interpolation="bilinear"),
        ViewSpec(size=16, count=3, scale=(0.05, 0.14), blur_kind="pil", interpolation="bilinear"),
    )
)


def make(data, recipe: Augmentation = SIMCLR, **options) -> ViewLoader:
    keywords = {"batch_size": 8, "seed": 1, "threads": 2, "prefetch": 2} | options
    return ViewLoader(open_source(data), recipe, **keywords)


def same(a: Batch, b: Batch) -> bool:
    labels = a.labels is b.labels or torch.equal(a.labels, b.labels)
    groups = all(torch.equal(x, y) for x, y in zip(a.views.groups, b.views.groups, strict=True))
    return groups and labels and torch.equal(a.ids, b.ids) and a.views.counts == b.views.counts


def all_same(a: Iterable[Batch], b: Iterable[Batch]) -> bool:
    pairs = list(zip(a, b, strict=True))
    assert pairs
    return all(same(x, y) for x, y in pairs)


# ------------------------------------------------------------------------------------------------- what a batch holds


@pytest.mark.parametrize("recipe", [SIMCLR, BYOL, SWAV])
def test_batch_is_the_composition_of_its_parts(mixed_folder, recipe):
    """Order, decode, parameters and rendering done by hand, one sample and one view at a time."""
    source = open_source(mixed_folder)
    loader = make(source, recipe, renderer="torch")
    batches = list(loader.epoch(3))
    loader.close()
    assert len(batches) == loader.steps_per_epoch == 3
    for step, batch in enumerate(batches):
        ids = batch_ids(step, n=24, batch_size=8, seed=1, epoch=3)
        assert batch.ids.tolist() == ids.tolist()
        assert batch.labels.tolist() == source.labels[ids].tolist()
        place: dict[int, int] = {}
        view = 0
        for spec in recipe.views:
            for _ in range(spec.count):
                group = [g.shape[-1] for g in batch.views.groups].index(spec.size)
                at = place.get(spec.size, 0)
                place[spec.size] = at + 1
                for j, sample in enumerate(ids.tolist()):
                    image = decode_one(source.read(sample))
                    params = sample_params(
                        spec,
                        seed=1,
                        epoch=3,
                        samples=[sample],
                        view=view,
                        heights=[image.shape[0]],
                        widths=[image.shape[1]],
                    )
                    expected = render([image], params, spec, recipe.mean, recipe.std)[0]
                    assert torch.equal(batch.views.groups[group][at * 8 + j], expected)
                view += 1
        assert batch.views.counts == tuple(place.values())
        assert [g.shape for g in batch.views.groups] == [(c * 8, 3, s, s) for s, c in place.items()]
        assert all(g.dtype == torch.float32 and g.is_contiguous() for g in batch.views.groups)
        assert batch.views.batch_size == 8


@pytest.mark.parametrize("folder", ["class_folder", "mixed_folder"])
def test_threads_prefetch_and_decoder_do_not_change_a_bit(folder, request):
    data = request.getfixturevalue(folder)
    reference = make(data, threads=1, prefetch=0)
    for options in ({"threads": 3}, {"prefetch": 1}, {"decoder": "torchvision"}, {"decoder": "dali", "threads": 2}):
        if options.get("decoder") == "dali":
            pytest.importorskip("nvidia.dali", reason="DALI is not installed")
        other = make(data, **options)
        assert all_same(reference.epoch(1), other.epoch(1)), options
        other.close()
    reference.close()


def test_batch_size_does_not_change_a_view(class_folder):
    """The same sample has the same pixels in a batch of 8 and in one of 20."""
    views = []
    for size in (8, 20):
        loader = make(class_folder, batch_size=size)
        found = {}
        for batch in loader.epoch(0):
            for v in range(2):
                for j, sample in enumerate(batch.ids.tolist()):
                    found[sample, v] = batch.views.groups[0][v * size + j]
        loader.close()
        views.append(found)
    assert set(views[0]) == set(views[1])
    assert all(torch.equal(pixels, views[1][key]) for key, pixels in views[0].items())


@pytest.mark.parametrize("recipe", [SIMCLR, SWAV])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_global_batch(mixed_folder, recipe, world):
    whole = make(mixed_folder, recipe)
    ranks = [make(mixed_folder, recipe, rank=r, world=world) for r in range(world)]
    for one, parts in zip(whole.epoch(2), zip(*(r.epoch(2) for r in ranks), strict=True), strict=True):
        assert torch.equal(torch.cat([p.ids for p in parts]), one.ids)
        for g, (group, count) in enumerate(zip(one.views.groups, one.views.counts, strict=True)):
            by_view = [p.views.groups[g].unflatten(0, (count, -1)) for p in parts]
            assert torch.equal(torch.cat(by_view, dim=1).flatten(0, 1), group)
    for loader in (whole, *ranks):
        loader.close()


def test_epochs_and_seeds_differ(class_folder):
    def first(seed: int, epoch: int) -> Batch:
        loader = make(class_folder, seed=seed)
        batch = next(iter(loader.epoch(epoch)))
        loader.close()
        return batch

    a, b, c = first(1, 0), first(1, 1), first(2, 0)
    assert not torch.equal(a.ids, b.ids)
    assert not torch.equal(a.ids, c.ids)
    assert not torch.equal(a.views.groups[0], b.views.groups[0])


# ------------------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("start", [0, 1, 3, 5])
def test_resume_is_bit_exact(class_folder, start, prefetch):
    loader = make(class_folder, prefetch=prefetch)
    whole = list(loader.epoch(4))
    resumed = make(class_folder, prefetch=prefetch)
    rest = list(resumed.epoch(4, start_step=start))
    assert len(rest) == 5 - start
    assert start == 5 or all_same(rest, whole[start:])
    for each in (loader, resumed):
        each.close()
    with pytest.raises(ValueError, match="start_step"):
        loader.epoch(0, start_step=6)


def test_a_new_epoch_ends_the_one_before(class_folder):
    loader = make(class_folder)
    first = loader.epoch(0)
    next(first)
    second = list(loader.epoch(0))
    assert len(second) == 5
    assert list(first) == []
    before = threading.active_count()
    loader.close()
    assert threading.active_count() < before
    assert not [t for t in threading.enumerate() if t.name.startswith("fastssl-")]


# --------------------------------------------------------------------------------------------------------- bad files


@pytest.fixture
def damaged_folder(class_folder: Path) -> Path:
    """Three of forty images are bad: cut, empty, text."""
    (class_folder / "class1" / "001.jpg").write_bytes((class_folder / "class1" / "001.jpg").read_bytes()[:300])
    (class_folder / "class2" / "002.jpg").write_bytes(b"")
    (class_folder / "class3" / "003.jpg").write_bytes(b"this is no image")
    return class_folder


BAD = {"class1/001.jpg", "class2/002.jpg", "class3/003.jpg"}


@pytest.mark.parametrize("decoder", ["dali", "torchvision"])
def test_training_goes_on_over_bad_files(damaged_folder, tmp_path, decoder):
    if decoder == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    listed = tmp_path / "run" / "quarantine.json"
    source = open_source(damaged_folder)
    loader = make(source, quarantine=listed, decoder=decoder)
    bad = {i for i in range(40) if source.name(i) in BAD}
    for epoch in range(2):
        shown = []
        for step, batch in enumerate(loader.epoch(epoch)):
            wanted = batch_ids(step, n=40, batch_size=8, seed=1, epoch=epoch)
            for want, show in zip(wanted.tolist(), batch.ids.tolist(), strict=True):
                assert (show == want) == (want not in bad)
                assert show not in bad
                shown.append(want)
            assert batch.labels.tolist() == source.labels[batch.ids.numpy()].tolist()
            assert batch.views.groups[0].isfinite().all()
        assert set(shown) >= bad
    loader.close()
    content = json.loads(listed.read_text())
    assert content["images"] == 40
    assert {entry["name"] for entry in content["unreadable"]} == BAD
    assert all(entry["reason"] for entry in content["unreadable"])
    assert [path.name for path in listed.parent.iterdir()] == ["quarantine.json"]


def test_replacement_is_a_pure_function(damaged_folder, tmp_path):
    """The same stand-ins with other threads, from the middle of the epoch, by several ranks, and in a later run."""
    reference = make(damaged_folder)
    whole = list(reference.epoch(1))
    for options in ({"threads": 1, "prefetch": 0}, {"decoder": "torchvision"}):
        other = make(damaged_folder, **options)
        assert all_same(whole, other.epoch(1))
        other.close()
    later = make(damaged_folder)
    assert all_same(whole[3:], later.epoch(1, start_step=3))
    list(reference.epoch(0))  # by now all bad files are known
    assert all_same(whole, reference.epoch(1))
    listed = tmp_path / "quarantine.json"
    ranks = [make(damaged_folder, rank=r, world=2, quarantine=listed) for r in range(2)]
    for one, parts in zip(whole, zip(*(r.epoch(1) for r in ranks), strict=True), strict=True):
        assert torch.equal(torch.cat([p.ids for p in parts]), one.ids)
    for loader in (reference, later, *ranks):
        loader.close()
    files = [listed, tmp_path / "quarantine.rank1.json"]
    named = [entry["name"] for file in files if file.exists() for entry in json.loads(file.read_text())["unreadable"]]
    assert set(named) == BAD


def test_stand_in_has_views_of_its_own(damaged_folder):
    """A stand-in may meet itself in a batch; then their views differ."""
    source = open_source(damaged_folder)
    loader = make(source, batch_size=40)
    (batch,) = loader.epoch(0)
    loader.close()
    views = batch.views.groups[0][:40].flatten(1)
    assert len(torch.unique(batch.ids)) < 40
    assert len(torch.unique(views, dim=0)) == 40


@pytest.mark.parametrize("prefetch", [0, 2])
def test_too_many_bad_files_stop_the_run(class_folder, tmp_path, prefetch):
    for path in sorted(class_folder.rglob("*.jpg"))[:9]:
        path.write_bytes(b"damaged")
    listed = tmp_path / "quarantine.json"
    loader = make(class_folder, prefetch=prefetch, quarantine=listed)
    with pytest.raises(UserError, match=r"9 of 40 images cannot be decoded, more than the 8 allowed.*class0/000.jpg"):
        list(loader.epoch(0))
    assert len(json.loads(listed.read_text())["unreadable"]) == 9
    loader.close()
    tolerant = make(class_folder, max_bad_fraction=0.5)
    assert len(list(tolerant.epoch(0))) == 5
    tolerant.close()


def test_nothing_readable(tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(6):
        (tmp_path / "a" / f"{i}.jpg").write_bytes(b"x")
    loader = make(tmp_path, batch_size=2)
    with pytest.raises(UserError, match="no readable image was found in 64 tries to replace a/"):
        next(iter(loader.epoch(0)))
    loader.close()


def test_a_file_that_vanishes_is_a_bad_file(class_folder):
    source = open_source(class_folder)
    (class_folder / "class0" / "000.jpg").unlink()
    loader = make(source)
    assert len(list(loader.epoch(0))) == 5
    assert list(loader.quarantine.reasons.values()) == ["cannot be read (No such file or directory)"]
    loader.close()


def test_quarantine_file_keeps_what_it_held(damaged_folder, tmp_path):
    listed = tmp_path / "quarantine.json"
    listed.write_text(json.dumps({"images": 40, "unreadable": [{"name": "old.jpg", "reason": "cut"}]}))
    loader = make(damaged_folder, quarantine=listed)
    list(loader.epoch(0))
    loader.close()
    assert {entry["name"] for entry in json.loads(listed.read_text())["unreadable"]} == BAD | {"old.jpg"}
    listed.write_text("{")
    with pytest.raises(UserError, match=r"quarantine file .* is damaged"):
        make(damaged_folder, quarantine=listed)


def test_exceptions_in_the_thread_surface(class_folder):
    class Failing:
        labels = None

        def __len__(self) -> int:
            return 16

        def read(self, index: int) -> bytes:
            raise RuntimeError("the store is on fire")

    loader = make(Failing())
    with pytest.raises(RuntimeError, match="the store is on fire"):
        next(iter(loader.epoch(0)))
    loader.close()


def test_what_fails_ahead_costs_no_batch_before_it(class_folder):
    """The next batch's images are fetched while a batch is made: a fault there belongs to the next one."""
    good = open_source(class_folder)

    class FailsLater:
        labels = None

        def __len__(self) -> int:
            return len(good)

        def read(self, index: int) -> bytes:
            if index in later:
                raise RuntimeError("the store is on fire")
            return good.read(index)

    later = batch_ids(2, n=len(good), batch_size=8, seed=1, epoch=0).tolist()
    loader = make(FailsLater())
    batches = loader.epoch(0)
    for step in range(2):
        assert torch.equal(next(batches).ids, make(class_folder).batch(0, step).ids)
    with pytest.raises(RuntimeError, match="the store is on fire"):
        next(batches)
    loader.close()


# ------------------------------------------------------------------------------------------------- sources and options


def test_arrays_pass_the_decoder_by():
    rng = np.random.default_rng(0)
    source = ArraySource(rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), np.arange(20) % 3)

    class Encoded:
        """The same pixels as PNG files."""

        labels = source.labels

        def __len__(self) -> int:
            return 20

        def read(self, index: int) -> bytes:
            return source.read(index)

    arrays, files = make(source), make(Encoded())
    assert all_same(arrays.epoch(0), files.epoch(0))
    arrays.close()
    files.close()


def test_without_labels(tmp_path, make_jpeg):
    for i in range(8):
        (tmp_path / f"{i}.jpg").write_bytes(make_jpeg(32, 32, i))
    loader = make(tmp_path)
    (batch,) = loader.epoch(0)
    assert batch.labels is None
    loader.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 41}, "batch_size 41 is greater than the 40 images"),
        ({"batch_size": 9, "world": 2}, "batch_size 9 must be a multiple of the number of processes, 2"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"prefetch": -1}, "prefetch must be at least 0, got -1"),
        ({"decoder": "nvjpeg"}, "decoder must be auto, dali or torchvision"),
        ({"max_bad_fraction": 1.5}, "max_bad_fraction must be in"),
        ({"recipe": Augmentation(())}, "at least one view"),
        ({"recipe": Augmentation((ViewSpec(size=4),))}, "view size must be at least 8 pixels, got 4"),
        *(
            ({"recipe": Augmentation((ViewSpec(**{key: "tf"}),))}, f"view {key} must be one of .*'tf'")
            for key in ("sampler", "interpolation", "color", "blur_kind")
        ),
        ({"recipe": Augmentation((ViewSpec(count=0),))}, "view count must be at least 1"),
        ({"recipe": Augmentation((ViewSpec(scale=(0.5, 0.1)),))}, "view scale must satisfy"),
        ({"recipe": Augmentation((ViewSpec(ratio=(0.0, 1.0)),))}, "view ratio must satisfy"),
        ({"recipe": Augmentation((ViewSpec(flip=1.1),))}, "view flip is a probability"),
        ({"recipe": Augmentation((ViewSpec(hue=0.6),))}, "view hue must be in"),
        ({"recipe": Augmentation((ViewSpec(contrast=-1.0),))}, "view contrast must be at least 0"),
        ({"recipe": Augmentation((ViewSpec(blur_sigma=(0.0, 2.0)),))}, "view blur_sigma must satisfy"),
    ],
)
def test_bad_options(class_folder, options, message):
    with pytest.raises(UserError, match=message):
        make(class_folder, **options)


def test_workers_leave_torch_threads_alone():
    torch.set_num_threads(2)
    pool = worker_pool(3, "test")
    assert torch.get_num_threads() == 2
    seen = list(pool.map(lambda _: (time.sleep(0.02), torch.get_num_threads())[1], range(6)))
    assert seen == [1] * 6
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]
    pool.shutdown()


# -------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_evaluation_is_the_center_view_in_order(mixed_folder, threads):
    source = open_source(mixed_folder)
    crop = CenterCrop(size=24)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    batches = list(evaluation_batches(source, crop, mean, std, batch_size=7, threads=threads, renderer="torch"))
    assert [len(ids) for _, _, ids in batches] == [7, 7, 7, 3]
    images, labels, ids = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert ids.tolist() == list(range(24))
    assert labels.tolist() == source.labels.tolist()
    for i in range(24):
        image = decode_one(source.read(i))
        params = center_params(crop, [image.shape[0]], [image.shape[1]])
        assert torch.equal(images[i], render([image], params, ViewSpec(size=24), mean, std)[0])


def test_evaluation_limit_spreads_over_the_source(class_folder):
    source = open_source(class_folder)
    parts = list(evaluation_batches(source, CenterCrop(size=16), batch_size=3, limit=8))
    assert torch.cat([ids for _, _, ids in parts]).tolist() == [0, 5, 10, 15, 20, 25, 30, 35]
    assert torch.cat([labels for _, labels, _ in parts]).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert sum(len(i) for _, _, i in evaluation_batches(source, CenterCrop(size=16), batch_size=64, limit=99)) == 40
    with pytest.raises(UserError, match="limit must be at least 1"):
        next(evaluation_batches(source, CenterCrop(size=16), batch_size=3, limit=0))
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        next(evaluation_batches(source, CenterCrop(size=16), batch_size=0))


def test_evaluation_leaves_bad_files_out(damaged_folder, tmp_path):
    source = open_source(damaged_folder)
    listed = tmp_path / "quarantine.json"
    parts = list(evaluation_batches(source, CenterCrop(size=16), batch_size=10, quarantine=listed))
    ids = torch.cat([ids for _, _, ids in parts])
    assert len(ids) == 37
    assert {source.name(i) for i in range(40)} - {source.name(i) for i in ids.tolist()} == BAD
    assert torch.cat([labels for _, labels, _ in parts]).tolist() == source.labels[ids.numpy()].tolist()
    assert all(len(images) == len(labels) for images, labels, _ in parts)
    assert {entry["name"] for entry in json.loads(listed.read_text())["unreadable"]} == BAD
