"""Packing: the same bytes whatever interrupts it, nothing larger than asked, nothing lost but what is bad."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.data import open_source, open_splits
from fastssl.data.decode import decode_one
from fastssl.data.pack import PackSettings, pack, transcode
from fastssl.errors import UserError

SETTINGS = PackSettings(short_side=24, quality=90, images_a_shard=3)


def encoded(width: int, height: int, seed: int = 0, kind: str = "JPEG", **options) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """train: 7 images in two classes, one of them no image; val: 2."""
    names = [("train", "cat")] * 3 + [("train", "dog")] * 3 + [("val", "cat"), ("val", "dog")]
    for i, (split, name) in enumerate(names):
        path = tmp_path / "data" / split / name / f"photo {i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(40 + i, 30 + 2 * i, i))
    (tmp_path / "data/train/cat/broken.jpg").write_bytes(b"no image")
    return tmp_path / "data"


def splits_of(folder):
    train, val = open_splits(folder)
    return {"train": train, "val": val}


def shards(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.tar"))}


def test_packed_data_are_the_data_made_small(folder, tmp_path):
    state = pack(splits_of(folder), tmp_path / "out", SETTINGS)
    wanted = ["train/000000.tar", "train/000001.tar", "train/000002.tar", "val/000000.tar"]
    assert sorted(shards(tmp_path / "out")) == wanted
    bad = [entry for shard in state["shards"].values() for entry in shard["unreadable"]]
    assert [entry["name"] for entry in bad] == ["cat/broken.jpg"]
    before, after = open_splits(folder)[0], open_splits(tmp_path / "out")[0]
    keep = [i for i in range(len(before)) if "broken" not in before.name(i)]
    assert after.classes == before.classes == ("cat", "dog")
    assert after.labels.tolist() == before.labels[keep].tolist()
    for i, j in enumerate(keep):
        small, large = decode_one(after.read(i)), decode_one(before.read(j))
        assert min(small.shape[:2]) == 24
        ratio = large.shape[0] / large.shape[1]
        assert abs(small.shape[0] / small.shape[1] - ratio) <= ratio / 24
        exact = Image.fromarray(large.numpy()).resize((small.shape[1], small.shape[0]), Image.Resampling.BICUBIC)
        # JPEG at quality 90, with halved colour, of a smooth image.
        assert (small.float() - torch.from_numpy(np.array(exact)).float()).abs().mean() <= 4


def test_an_interrupted_pack_ends_with_the_same_bytes(folder, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    pack(splits_of(folder), whole, SETTINGS, threads=1)

    class Killed(BaseException):
        pass

    def kill(split, done, total):
        if split == "train" and done >= 5:
            raise Killed

    with pytest.raises(Killed):
        pack(splits_of(folder), out, SETTINGS, progress=kill)
    assert sorted(shards(out)) == ["train/000000.tar"]
    written = (out / "train/000000.tar").stat().st_mtime_ns
    pack(splits_of(folder), out, SETTINGS, threads=3)
    assert shards(out) == shards(whole)
    assert (out / "train/000000.tar").stat().st_mtime_ns == written, "finished shards are not made again"
    state = [json.loads((folder / "pack.json").read_text()) for folder in (whole, out)]
    assert state[0] == state[1]


def test_a_shard_that_was_cut_off_is_made_again(folder, tmp_path):
    out = tmp_path / "out"
    pack(splits_of(folder), out, SETTINGS)
    whole = shards(out)
    (out / "train/000001.tar").write_bytes(whole["train/000001.tar"][:700])
    pack(splits_of(folder), out, SETTINGS)
    assert shards(out) == whole


def test_small_jpeg_files_stay_as_they_are():
    small = encoded(20, 60)
    assert transcode(small, 24, 90) == small
    for other in (encoded(20, 60, kind="PNG"), encoded(25, 60), encoded(20, 60, progressive=True)):
        again = transcode(other, 24, 90)
        assert again != other
        assert again[:2] == b"\xff\xd8"
        assert decode_one(again).shape[:2] == ((58, 24) if other == encoded(25, 60) else (60, 20))


def test_without_labels(tmp_path):
    (tmp_path / "flat").mkdir()
    for i in range(2):
        (tmp_path / "flat" / f"{i}.jpg").write_bytes(encoded(30, 30, i))
    pack({"train": open_source(tmp_path / "flat")}, tmp_path / "out", SETTINGS)
    packed = open_source(tmp_path / "out" / "train")
    assert [packed.name(i) for i in range(2)] == ["00000000-0.jpg", "00000001-1.jpg"]
    assert packed.labels is None


def test_other_settings_or_a_used_folder_are_refused(folder, tmp_path):
    out = tmp_path / "out"
    pack(splits_of(folder), out, SETTINGS)
    with pytest.raises(UserError, match="begun with other settings"):
        pack(splits_of(folder), out, PackSettings(short_side=25, images_a_shard=3))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("")
    with pytest.raises(UserError, match="holds something else"):
        pack(splits_of(folder), tmp_path / "used", SETTINGS)
    (out / "pack.json").write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        pack(splits_of(folder), out, SETTINGS)


def test_a_full_disk_keeps_what_is_finished(folder, tmp_path, monkeypatch):
    import fastssl.data.pack as module

    original = module._write_shard

    def full(path, *rest):
        if path.name == "000001.tar":
            raise OSError(28, "No space left on device")
        return original(path, *rest)

    monkeypatch.setattr(module, "_write_shard", full)
    with pytest.raises(UserError, match=r"No space left.*finished shards stay"):
        pack(splits_of(folder), tmp_path / "out", SETTINGS)
    assert sorted(shards(tmp_path / "out")) == ["train/000000.tar"]


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (PackSettings(short_side=7), "short-side"),
        (PackSettings(quality=0), "quality"),
        (PackSettings(quality=101), "quality"),
        (PackSettings(images_a_shard=0), "images-a-shard"),
    ],
)
def test_impossible_settings(folder, tmp_path, settings, word):
    with pytest.raises(UserError, match=word):
        pack(splits_of(folder), tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
