"""Where images come from: order, labels, and one clear sentence for whatever is wrong."""

from __future__ import annotations

import io
import os
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastssl.data.decode import decode_one
from fastssl.data.sources import (
    ArraySource,
    FlatFolder,
    ImageFolder,
    ObjectSource,
    TarImages,
    open_source,
    open_splits,
)
from fastssl.errors import UserError


def make_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def touch(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# ---------------------------------------------------------------------------------------------------------- folders


def test_class_folders(tmp_path):
    for name in ("b/2.JPG", "b/1.jpeg", "a/x.png", "a/deep/y.webp", "a/notes.txt", "c/.hidden.jpg", ".git/z.jpg"):
        touch(tmp_path / name, name.encode())
    source = open_source(tmp_path)
    assert isinstance(source, ImageFolder)
    assert source.classes == ("a", "b")
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert [source.name(i) for i in range(4)] == ["a/deep/y.webp", "a/x.png", "b/1.jpeg", "b/2.JPG"]
    assert [source.read(i).decode() for i in range(4)] == [source.name(i) for i in range(4)]


def test_flat_folder(tmp_path):
    for name in ("2.jpg", "10.jpg", "1.jpg", "readme.md", ".3.jpg"):
        touch(tmp_path / name, name.encode())
    source = open_source(str(tmp_path))
    assert isinstance(source, FlatFolder)
    assert source.labels is None
    assert source.classes is None
    assert [source.name(i) for i in range(len(source))] == ["1.jpg", "10.jpg", "2.jpg"]
    assert source.read(2) == b"2.jpg"


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path / "store" / "1.jpg", b"one")
    root = tmp_path / "data"
    (root / "a").mkdir(parents=True)
    (root / "a" / "linked.jpg").symlink_to(tmp_path / "store" / "1.jpg")
    (root / "a" / "broken.jpg").symlink_to(tmp_path / "nothing.jpg")
    (root / "a" / "loop").symlink_to(root / "a")
    (root / "b").symlink_to(tmp_path / "store")
    source = open_source(root)
    assert [source.name(i) for i in range(len(source))] == ["a/linked.jpg", "b/1.jpg"]
    assert source.read(0) == source.read(1) == b"one"


# -------------------------------------------------------------------------------------------------------------- tar


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_with_class_folders(tmp_path, kind):
    long = "d" * 150 + ".jpg"
    members = [("train/b/1.jpg", b"one" * 400), ("train/a/" + "2.jpg", b"two"), ("train/notes.txt", b"no")]
    members += [(f"train/a/{long}", b"three")] if kind != tarfile.USTAR_FORMAT else []
    path = tmp_path / "data.tar"
    with tarfile.open(path, "w", format=kind) as tar:
        folder = tarfile.TarInfo("train/empty.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = open_source(path)
    assert isinstance(source, TarImages)
    assert source.classes == ("a", "b")
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 0][: len(source)]
    wanted = {name: data for name, data in members if name.endswith(".jpg")}
    for i in reversed(range(len(source))):  # in any order
        assert source.read(i) == wanted[source.name(i)]


def test_flat_tar_has_no_labels(tmp_path):
    source = TarImages([make_tar(tmp_path / "d.tar", [("1.jpg", b"1"), ("2.png", b"2")])])
    assert len(source) == 2
    assert source.labels is None
    assert source.classes is None


@pytest.mark.parametrize("name", ["/etc/1.jpg", "a/../../1.jpg", "../1.jpg"])
def test_member_that_points_outside_is_refused(tmp_path, name):
    path = make_tar(tmp_path / "d.tar", [("a/ok.jpg", b"ok"), (name, b"bad")])
    with pytest.raises(UserError, match="points outside the archive"):
        TarImages([path])


@pytest.mark.parametrize(("mode", "kind"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_compressed_tar_is_refused(tmp_path, mode, kind):
    path = make_tar(tmp_path / "d.tar", [("a/1.jpg", b"1" * 5000)], mode)
    with pytest.raises(UserError, match=rf"is compressed \({kind}\).*unpack it"):
        open_source(path)


def test_not_a_tar(tmp_path):
    with pytest.raises(UserError, match="is not a readable tar file"):
        open_source(touch(tmp_path / "a.tar", b"hello" * 500))
    with pytest.raises(UserError, match=r"is not a readable tar file|holds no images"):
        open_source(touch(tmp_path / "empty.tar", b""))


def test_cut_off_tar(tmp_path):
    path = make_tar(tmp_path / "d.tar", [("a/1.jpg", b"1" * 5000), ("a/2.jpg", b"2" * 50_000)])
    whole = path.read_bytes()
    for length in (8000, 30_000):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut off inside 'a/2.jpg'|not a readable tar"):
            TarImages([path])


def test_every_truncation_is_refused_or_harmless(tmp_path):
    """Also one between two members, which looks like the end of an archive without its closing zeros."""
    whole = make_tar(tmp_path / "d.tar", [("a/1.jpg", b"1" * 700), ("a/2.jpg", b"2" * 512)]).read_bytes()
    members = 4 * 512 + 512  # two headers, two blocks of data and one
    cut = tmp_path / "cut.tar"
    for length in sorted({*range(0, members + 1, 128), *range(members, members + 1024, 256), 511, 513, len(whole)}):
        cut.write_bytes(whole[:length])
        if length >= members + 512:  # one block of zeros says that nothing follows
            assert [TarImages([cut]).read(i) for i in range(2)] == [b"1" * 700, b"2" * 512]
        else:
            with pytest.raises(UserError, match=r"cut\.tar (is cut off|is not a readable|holds no images)"):
                TarImages([cut])


def test_a_damaged_header_hides_no_members(tmp_path):
    """tarfile takes it for the end."""
    path = make_tar(tmp_path / "d.tar", [(f"a/{i}.jpg", b"x" * 100) for i in range(4)])
    damaged = bytearray(path.read_bytes())
    damaged[2 * 1024 + 148] ^= 1  # the checksum of the third header
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"d\.tar is cut off or damaged at byte 2048"):
        TarImages([path])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret.jpg", "a/1.jpg"])
def test_links_in_a_tar_are_refused(tmp_path, kind, target):
    path = make_tar(tmp_path / "d.tar", [("a/1.jpg", b"one")])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("b/2.jpg")
        link.type, link.linkname = kind, target
        tar.addfile(link)
    with pytest.raises(UserError, match=rf"holds the member 'b/2.jpg', a link to '{target}': repack it with the files"):
        TarImages([path])


def test_sparse_files_in_a_tar_are_refused(tmp_path):
    """Their bytes in the archive are not those of the file."""
    path = tmp_path / "d.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a/1.jpg")
        info.size, info.pax_headers = 512, {"GNU.sparse.map": "0,512", "GNU.sparse.size": "1024"}
        tar.addfile(info, io.BytesIO(b"x" * 512))
    with pytest.raises(UserError, match=r"holds the sparse file 'a/1.jpg'"):
        TarImages([path])


def test_names_of_any_bytes_have_a_printable_form(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bad = os.fsdecode(b"caf\xe9.jpg")  # Latin-1
    path = make_tar(tmp_path / "d.tar", [(f"r\udce9d/{bad}", b"one"), ("blue/ü.jpg", b"two")])
    for _ in range(2):  # scanned, and from the index
        source = TarImages([path])
        assert [source.name(i) for i in range(2)] == [r"r\udce9d/caf\udce9.jpg", "blue/ü.jpg"]
        assert source.classes == ("blue", r"r\udce9d")
        assert source.read(0) == b"one"
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 1
    touch(tmp_path / "folder" / bad, b"three")
    folder = open_source(tmp_path / "folder")
    assert (folder.name(0), folder.read(0)) == (r"caf\udce9.jpg", b"three")


def test_tar_without_images(tmp_path):
    with pytest.raises(UserError, match=r"tar file .* holds no images"):
        TarImages([make_tar(tmp_path / "d.tar", [("a/1.txt", b"1")])])


def test_shards_are_one_source_and_no_mixture(tmp_path):
    make_tar(tmp_path / "s" / "01.tar", [("dog/1.jpg", b"one"), ("cat/1.jpg", b"two")])
    make_tar(tmp_path / "s" / "00.tar", [("cat/0.jpg", b"zero" * 999)])
    source = open_source(tmp_path / "s")
    assert isinstance(source, TarImages)
    assert [source.name(i) for i in range(3)] == ["00.tar/cat/0.jpg", "01.tar/dog/1.jpg", "01.tar/cat/1.jpg"]
    assert [source.read(i) for i in (2, 0, 1)] == [b"two", b"zero" * 999, b"one"]
    assert source.labels.tolist() == [0, 1, 0]
    touch(tmp_path / "s" / "loose.jpg")
    with pytest.raises(UserError, match="both tar files and images"):
        open_source(tmp_path / "s")


def test_webdataset_labels(tmp_path):
    members = [("a.jpg", b"A"), ("a.cls", b"10\n"), ("b.cls", b"9"), ("b.x.jpg", b"B"), ("b.json", b"{}")]
    source = TarImages([make_tar(tmp_path / "d.tar", members)])
    assert source.classes == ("9", "10"), "numbers sort as numbers"
    assert source.labels.tolist() == [1, 0]
    assert TarImages([make_tar(tmp_path / "e.tar", [*members[:3], ("c.jpg", b"C")])]).labels is None


def test_the_index_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    import fastssl.data.tar as module

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = make_tar(tmp_path / "d.tar", [("a/1.jpg", b"one"), ("b/2.jpg", b"two")])
    scans = []
    scan = module.read_index
    monkeypatch.setattr(module, "read_index", lambda p: scans.append(p) or scan(p))
    first, second = TarImages([path]), TarImages([path])
    assert len(scans) == 1
    assert [second.read(i) for i in range(2)] == [b"one", b"two"]
    assert (second.classes, second.labels.tolist()) == (first.classes, first.labels.tolist())
    make_tar(path, [("a/1.jpg", b"uno!"), ("b/2.jpg", b"dos"), ("b/3.jpg", b"tres")])
    os.utime(path, ns=(1, 1))
    assert [TarImages([path]).read(i) for i in range(3)] == [b"uno!", b"dos", b"tres"]
    (kept,) = (tmp_path / "cache").rglob("*.npz")
    for damage in (b"", b"PK garbage", kept.read_bytes()[:100]):
        kept.write_bytes(damage)
        assert TarImages([path]).read(2) == b"tres"
    assert len(scans) == 5


def test_the_index_of_a_replaced_file_of_equal_size_and_date_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = make_tar(tmp_path / "d.tar", [("a/1.jpg", b"one"), ("b/2.jpg", b"two")])
    before = path.stat()
    assert TarImages([path]).name(0) == "a/1.jpg"
    time.sleep(0.02)  # the file system's clock ticks every few milliseconds
    make_tar(path, [("b/2.jpg", b"two"), ("a/1.jpg", b"one")])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert TarImages([path]).name(0) == "b/2.jpg"


def test_the_index_never_runs_code(tmp_path, monkeypatch):
    """Pickled arrays are refused, not loaded."""
    import fastssl.data.tar as module

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = make_tar(tmp_path / "d.tar", [("a/1.jpg", b"one")])
    TarImages([path])
    (kept,) = (tmp_path / "cache").rglob("*.npz")
    arrays = dict(np.load(kept))
    payload = np.empty(1, dtype=object)
    payload[0] = Payload()
    for name in ("stamp", "offsets", "names"):
        np.savez(kept, **{**arrays, name: payload})
        assert module._load(kept, arrays["stamp"]) is None
    assert not (tmp_path / "executed").exists()


def test_an_index_that_points_past_the_end_is_not_believed(tmp_path, monkeypatch):
    import fastssl.data.tar as module

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = make_tar(tmp_path / "d.tar", [("a/1.jpg", b"one")])
    TarImages([path])
    (kept,) = (tmp_path / "cache").rglob("*.npz")
    arrays = dict(np.load(kept))
    for name, value in (
        ("offsets", 1 << 40),
        ("offsets", -1),
        ("sizes", 1 << 62),
        ("sizes", (1 << 63) - 1),  # the end overflows
        ("sizes", [[3]]),
        ("sizes", ["many"]),
    ):
        np.savez(kept, **{**arrays, name: np.array(value, ndmin=1)})
        assert module._load(kept, arrays["stamp"]) is None
        assert TarImages([path]).read(0) == b"one"


def test_a_shard_that_shrinks_is_an_error_of_its_images(tmp_path):
    path = make_tar(tmp_path / "d.tar", [("a/1.jpg", b"1" * 5000), ("a/2.jpg", b"2" * 50_000)])
    source = TarImages([path])
    path.write_bytes(path.read_bytes()[:8000])
    assert source.read(0) == b"1" * 5000
    with pytest.raises(OSError, match="shorter than it was"):
        source.read(1)


# ------------------------------------------------------------------------------------------------- arrays and objects


def test_arrays():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 9, 3), dtype=np.uint8)
    source = ArraySource(images, [0, 1, 0, 1, 2], ("a", "b", "c"))
    assert len(source) == 5
    assert np.array_equal(source.image(3), images[3])
    assert torch.equal(source.gather(np.array([4, 0])), torch.from_numpy(images[[4, 0]]))
    assert torch.equal(decode_one(source.read(2)), torch.from_numpy(images[2]))
    assert open_source(source) is source
    for bad in (images.astype(np.float32), images[..., :2], images[0], images[:0]):
        with pytest.raises(UserError, match="images must be a uint8 array"):
            ArraySource(bad)
    with pytest.raises(UserError, match=r"labels must have shape \[5\], got \[3\]"):
        ArraySource(images, [0, 1, 2])


def test_any_object_with_len_and_read():
    class Mine:
        def __len__(self) -> int:
            return 2

        def read(self, index: int) -> bytes:
            return bytes([index])

    source = open_source(Mine())
    assert isinstance(source, ObjectSource)
    assert (len(source), source.read(1), source.name(1), source.labels) == (2, b"\x01", "sample 1", None)
    labelled = Mine()
    labelled.labels, labelled.classes = [1, 0], ["x", "y"]  # type: ignore[attr-defined]
    assert open_source(labelled).labels.tolist() == [1, 0]
    labelled.labels = [1]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"labels must have shape \[2\]"):
        open_source(labelled)
    labelled.labels = [1, 0]  # type: ignore[attr-defined]
    labelled.name = lambda index: f"mine {index}"  # type: ignore[attr-defined]
    assert open_source(labelled).labels.dtype == np.int64
    assert open_source(labelled).name(1) == "mine 1"
    labelled.read = lambda index: bytearray(b"data") if index else "text"  # type: ignore[assignment]
    assert open_source(labelled).read(1) == b"data"
    with pytest.raises(UserError, match=r"Mine.read\(0\) must return the bytes of an image file, got str"):
        open_source(labelled).read(0)
    with pytest.raises(UserError, match="must be a path or an object with __len__ and read, got int"):
        open_source(3)


# ----------------------------------------------------------------------------------------------------------- errors


def test_missing_and_empty(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is empty"):
        open_source(tmp_path / "empty")
    touch(tmp_path / "text" / "a" / "1.txt")
    with pytest.raises(UserError, match=r"holds no images \(looked for .jpg"):
        open_source(tmp_path / "text")


def test_loose_images_beside_class_folders(tmp_path):
    touch(tmp_path / "a" / "1.jpg")
    touch(tmp_path / "2.jpg")
    with pytest.raises(UserError, match="holds both images and folders of images"):
        open_source(tmp_path)


def test_unreadable_folder(tmp_path, monkeypatch):
    touch(tmp_path / "a" / "1.jpg")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        open_source(tmp_path)


# ----------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("held_out", ["val", "test", "validation", None])
def test_splits(tmp_path, held_out):
    for split in ["train"] + ([held_out] if held_out else []):
        touch(tmp_path / split / "a" / "1.jpg")
        touch(tmp_path / split / "b" / "2.jpg")
    train, validation = open_splits(tmp_path)
    assert len(train) == 2
    assert (validation is None) == (held_out is None)


def test_no_split_folders(tmp_path):
    touch(tmp_path / "a" / "1.jpg")
    train, validation = open_splits(tmp_path)
    assert train.classes == ("a",)
    assert validation is None


def test_a_class_called_train(tmp_path):
    """As in CIFAR-100: a folder `train` among others, without a validation folder, is a class."""
    for name in ("plane", "ship", "train"):
        touch(tmp_path / name / "1.jpg")
    train, validation = open_splits(tmp_path)
    assert train.classes == ("plane", "ship", "train")
    assert validation is None


def test_validation_labels_use_the_numbers_of_training(tmp_path):
    for name in ("train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", "val/b/1.jpg", "val/c/1.jpg"):
        touch(tmp_path / name)
    _, validation = open_splits(tmp_path)
    assert validation is not None
    assert validation.labels.tolist() == [1, 2]
    assert validation.classes == ("a", "b", "c")
    touch(tmp_path / "val" / "z" / "1.jpg")
    with pytest.raises(UserError, match=r"has classes that .*train has not: z"):
        open_splits(tmp_path)
