"""Checkpoints: whole or not there, checked, and never code."""

import os
import pickle
import zipfile

import pytest
import torch

from fastssl.engine import checkpoint
from fastssl.errors import UserError


def state(step: int = 1) -> dict:
    return {
        "config": {"data": "x", "views": [1, 2]},
        "method": {"weight": torch.arange(50_000.0) + step, "count": torch.tensor(3)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(4, dtype=torch.bfloat16)}}, "param_groups": []},
        "step": step,
        "seconds": 1.5,
        "wall": 2.5,
        "results": {"knn": 0.5},
    }


def test_what_goes_in_comes_out(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, state())
    loaded = checkpoint.load(path)
    assert loaded.pop("format") == checkpoint.FORMAT
    expected = state()
    assert torch.equal(loaded["method"]["weight"], expected["method"]["weight"])
    assert loaded["optimizer"]["state"][0]["momentum_buffer"].dtype == torch.bfloat16
    for name in ("config", "step", "seconds", "results"):
        assert loaded[name] == expected[name]
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("length", [0, 1, 100, 0.5, -1])
def test_truncated_files_are_refused(tmp_path, length):
    path = tmp_path / "last.pt"
    checkpoint.save(path, state())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(length * len(whole)) if isinstance(length, float) else length])
    with pytest.raises(UserError, match=r"last\.pt is not a fastssl checkpoint or is damaged"):
        checkpoint.load(path)


def test_a_flipped_bit_in_any_record_is_found(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, state())
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    for info in infos:
        header = whole[info.header_offset :]
        start = (
            info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        )
        if not info.file_size:
            continue
        damaged = bytearray(whole)
        damaged[start + info.file_size // 2] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            checkpoint.load(path)


class Payload:
    def __reduce__(self):
        return os.mkdir, (os.environ["FASTSSL_TEST_PAYLOAD"],)


@pytest.mark.parametrize("container", ["torch", "legacy", "pickle"])
def test_a_payload_is_refused_and_not_executed(tmp_path, monkeypatch, container):
    proof = tmp_path / "executed"
    monkeypatch.setenv("FASTSSL_TEST_PAYLOAD", str(proof))
    path = tmp_path / "last.pt"
    content = {**state(), "format": checkpoint.FORMAT, "method": Payload()}
    if container == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "torch")
    with pytest.raises(UserError):
        checkpoint.load(path)
    assert not proof.exists()


@pytest.mark.parametrize("content", [{"model": torch.zeros(2)}, torch.zeros(3), [1]])
def test_foreign_checkpoints_are_named(tmp_path, content):
    path = tmp_path / "foreign.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match="was not written by fastssl"):
        checkpoint.load(path)


def test_future_formats_are_named(tmp_path):
    path = tmp_path / "last.pt"
    torch.save({**state(), "format": 99}, path)
    with pytest.raises(UserError, match="format 99"):
        checkpoint.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.pt does not exist"):
        checkpoint.load(tmp_path / "none.pt")


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, state(1))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, state(2))
    assert checkpoint.load(path)["step"] == 1
    assert os.listdir(tmp_path) == ["last.pt"]
