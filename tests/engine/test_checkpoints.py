"""The checkpoints of a run: the last few, one writer, and the one before when the newest cannot be used."""

import os
import pickle
import threading
from pathlib import Path

import pytest
import torch

from fastssl.engine import checkpoint, checkpoints
from fastssl.engine.checkpoints import Checkpoints
from fastssl.errors import UserError


def state(step: int) -> dict:
    return {
        "config": {"data": "x"},
        "method": {"weight": torch.arange(5000.0) + step},
        "optimizer": {"state": {}, "param_groups": []},
        "step": step,
        "seconds": 1.0,
        "wall": 1.0,
        "results": {"knn": 0.5},
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(run_dir: Path, *steps: int, keep: int = 2) -> list[str]:
    """Write checkpoints of `steps`; what was said."""
    said: list[str] = []
    writer = Checkpoints(run_dir, keep=keep, say=said.append)
    for step in steps:
        writer.write(state(step))
    writer.wait()
    return said


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_k_are_kept_and_last_is_the_newest(tmp_path, keep):
    assert write(tmp_path, 8, 9, 10, 100, keep=keep) == []
    steps = [8, 9, 10, 100][-keep:]
    assert [path.name for path in checkpoints.stored(tmp_path)] == [f"step-{step}.pt" for step in reversed(steps)]
    assert names(tmp_path) == ["checkpoints", "last.pt"]
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 100
    assert checkpoints.newest(tmp_path)["step"] == 100


def test_the_best_is_a_file_of_its_own(tmp_path):
    writer = Checkpoints(tmp_path, keep=1, say=pytest.fail)
    writer.write(state(3), best=True)
    writer.write(state(4))
    writer.wait()
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 3
    assert writer.saved_step == 4


def test_what_is_written_is_the_state_at_the_call(tmp_path, monkeypatch):
    """The writer is held up until training has changed every tensor in place."""
    go, real = threading.Event(), checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda path, content: (go.wait(10), real(path, content)))
    live = state(1)
    live["method"]["transposed"] = torch.arange(6.0).view(2, 3).t()
    writer = Checkpoints(tmp_path, keep=2, say=pytest.fail)
    writer.write(live)
    for tensor in live["method"].values():
        tensor.zero_()
    live["results"]["knn"] = 0.0
    go.set()
    writer.wait()
    loaded = checkpoints.newest(tmp_path)
    assert torch.equal(loaded["method"]["weight"], torch.arange(5000.0) + 1)
    assert torch.equal(loaded["method"]["transposed"], torch.arange(6.0).view(2, 3).t())
    assert loaded["method"]["transposed"].stride() == (1, 3)
    assert loaded["results"] == {"knn": 0.5}


def test_there_is_never_more_than_one_writer(tmp_path, monkeypatch):
    inside, most, real = [], [], checkpoint.save

    def save(path, content):
        inside.append(path)
        most.append(len(inside))
        real(path, content)
        inside.remove(path)

    monkeypatch.setattr(checkpoint, "save", save)
    write(tmp_path, *range(1, 9))
    assert most == [1] * 8


def test_a_copy_keeps_a_state_dict_whole():
    module = torch.nn.BatchNorm1d(3)
    original = module.state_dict()
    copied = checkpoint.host_copy(original)
    assert type(copied) is type(original)
    assert copied._metadata == original._metadata
    assert all(torch.equal(copied[name], original[name]) for name in original)
    assert all(copied[name].data_ptr() != original[name].data_ptr() for name in original)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Payload:
    def __reduce__(self):
        return os.mkdir, (os.environ["FASTSSL_TEST_PAYLOAD"],)


def plant(path):
    torch.save({**state(3), "format": 1, "method": Payload()}, path)


def plant_pickle(path):
    path.write_bytes(pickle.dumps(Payload()))


@pytest.mark.parametrize("damage", [truncate, empty, flip, plant, plant_pickle])
def test_the_one_before_is_used_when_the_newest_is_damaged_or_refused(tmp_path, monkeypatch, capsys, damage):
    proof = tmp_path / "executed"
    monkeypatch.setenv("FASTSSL_TEST_PAYLOAD", str(proof))
    write(tmp_path, 1, 2, 3)
    damage(tmp_path / "checkpoints" / "step-3.pt")
    assert checkpoints.newest(tmp_path)["step"] == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert "step-3.pt" in told
    assert "the run continues from step-2.pt" in told
    assert not proof.exists()
    assert names(tmp_path / "checkpoints") == ["step-2.pt", "step-3.pt.damaged"]
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 2
    assert write(tmp_path, 4) == [], "the run goes on as if the damaged one had never been"
    assert names(tmp_path / "checkpoints") == ["step-2.pt", "step-3.pt.damaged", "step-4.pt"]


def test_two_damaged_ones_are_one_sentence_and_stay(tmp_path):
    write(tmp_path, 1, 2)
    for step in (1, 2):
        truncate(tmp_path / "checkpoints" / f"step-{step}.pt")
    with pytest.raises(UserError, match=r"none of its checkpoints can be used: .*step-2\.pt.*step-1\.pt") as raised:
        checkpoints.newest(tmp_path)
    assert "\n" not in str(raised.value)
    assert names(tmp_path / "checkpoints") == ["step-1.pt", "step-2.pt"]


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoints.newest(tmp_path) is None


def test_a_plain_last_file_alone_is_continued_from_and_replaced(tmp_path):
    """As copies leave it that follow links."""
    checkpoint.save(tmp_path / "last.pt", state(5))
    assert checkpoints.newest(tmp_path)["step"] == 5
    write(tmp_path, 6)
    assert (tmp_path / "last.pt").is_symlink()
    assert checkpoints.newest(tmp_path)["step"] == 6


def test_a_failed_write_is_told_and_the_former_files_stay(tmp_path, monkeypatch):
    write(tmp_path, 1, 2)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    said = []
    writer = Checkpoints(tmp_path, keep=2, say=said.append, saved_step=2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", full)
        writer.write(state(3))
        writer.wait()
    assert said == [
        "checkpoint last.pt of step 3 could not be written ([Errno 28] No space left on device); "
        "the one from step 2 is kept"
    ]
    assert writer.saved_step == 2
    assert names(tmp_path / "checkpoints") == ["step-1.pt", "step-2.pt"]
    writer.write(state(4))
    writer.wait()
    assert checkpoints.newest(tmp_path)["step"] == writer.saved_step == 4


def test_what_else_goes_wrong_in_the_writer_is_raised(tmp_path, monkeypatch):
    def broken(path, content):
        raise RuntimeError("not a disk's fault")

    monkeypatch.setattr(checkpoint, "save", broken)
    writer = Checkpoints(tmp_path, keep=2, say=pytest.fail)
    writer.write(state(1))
    with pytest.raises(RuntimeError, match="not a disk's fault"):
        writer.wait()
    writer.wait()


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    write(tmp_path, 1)
    left = [".last.pt.77", ".best.pt.5", ".config.yaml", ".summary.json", "metrics.tmp", "quarantine.json.9.partial"]
    for name in left:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "checkpoints" / ".step-2.pt.77").write_bytes(b"half")
    mine = ["config.yaml", "metrics.jsonl", ".mine", "quarantine.json"]
    for name in mine:
        (tmp_path / name).write_bytes(b"x")
    checkpoints.remove_temporaries(tmp_path)
    assert names(tmp_path) == sorted([*mine, "checkpoints", "last.pt"])
    assert names(tmp_path / "checkpoints") == ["step-1.pt"]
    checkpoints.remove_temporaries(tmp_path / "nowhere")
