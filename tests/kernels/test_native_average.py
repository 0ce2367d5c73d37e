"""The parameter average in C: its pieces and threads, what it leaves to torch, and what happens where it was not
built."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fastssl_kernels import native as libraries
from fastssl_kernels.ema import ema_reference, ema_update_, native
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

SOURCE = (Path(native.__file__).parent / "average.c").read_text(encoding="utf-8")
PIECE, STREAMS, WIDTH = (int(re.search(rf"#define {name} (\d+)", SOURCE)[1]) for name in ("PIECE", "STREAMS", "WIDTH"))

# Three roundings, where the processor multiplies and adds in one: the weight, the difference, the sum.
TOLERANCE = 2e-7

built = pytest.mark.skipif(not native.available(), reason="the library in C is not built: no compiler was found")


@pytest.fixture
def answers(monkeypatch):
    """How the library answers, call by call."""
    found, average = [], native.average
    monkeypatch.setattr(native, "average", lambda *lists: found.append(average(*lists)) or found[-1])
    return found


FOUND = libraries._team, native._library


@pytest.fixture
def afresh():
    for once in FOUND:
        once.cache_clear()
    yield
    for once in FOUND:
        once.cache_clear()


def test_it_is_built_where_there_is_a_compiler():
    # An extension that does not compile is left out without a word: here that is told.
    assert native.available() or not shutil.which("gcc") or sys.platform != "linux"


@built
@pytest.mark.parametrize("momentum", [0.51, 0.97, 0.9999, 1.0])
def test_pieces_of_many_sizes_on_several_threads(momentum, threads, answers):
    block = STREAMS * WIDTH
    sizes = [0, 1, block - 1, block, block + 1, 3 * block + WIDTH, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5, 0, 2]
    generator = torch.Generator().manual_seed(0)
    targets, onlines = ([torch.randn(size, generator=generator) for size in sizes] for _ in range(2))
    exact = [ema_reference(t.double(), o.double(), momentum) for t, o in zip(targets, onlines, strict=True)]
    start, untouched, versions = (
        [t.double() for t in targets],
        [o.clone() for o in onlines],
        [t._version for t in targets],
    )
    ema_update_(targets, onlines, momentum)
    assert answers == [True]
    for t, o, s, expected in zip(targets, onlines, start, exact, strict=True):
        size = s.abs() + (1 - momentum) * o.abs()
        assert ((t - expected).abs() <= TOLERANCE * size).all()
    assert all(map(torch.equal, onlines, untouched))
    assert [t._version for t in targets] == [version + 1 for version in versions]


@built
def test_numbers_beside_an_array_stay(threads):
    """Slices that begin and end anywhere, in one buffer."""
    buffer, online = torch.zeros(4 * PIECE), torch.ones(4 * PIECE)
    spans = [(1, 2), (3, 40), (41, 41 + PIECE), (PIECE + 43, 3 * PIECE)]
    ema_update_([buffer[a:b] for a, b in spans], [online[a:b] for a, b in spans], 0.75)
    expected = torch.zeros_like(buffer)
    for a, b in spans:
        expected[a:b] = 0.25
    assert torch.equal(buffer, expected)


@built
def test_every_dense_order_is_swept_and_nothing_else(answers):
    def pair(change):
        return [change(torch.zeros(4, 3, 5, 6))], [change(torch.ones(4, 3, 5, 6))]

    for change in (
        lambda t: t,
        lambda t: t.to(memory_format=torch.channels_last),
        lambda t: t.permute(3, 1, 0, 2),
        torch.nn.Parameter,
    ):
        ema_update_(*pair(change), 0.75)
    assert answers == [True] * 4
    plain, last = pair(lambda t: t)[0], pair(lambda t: t.to(memory_format=torch.channels_last))[1]
    for lists in (pair(lambda t: t[..., ::2]), pair(torch.Tensor.double), (plain, last)):
        ema_update_(*lists, 0.75)
        assert torch.equal(lists[0][0], torch.full_like(lists[0][0], 0.25))
    ema_update_(*pair(lambda t: t), 0.5)
    assert answers == [True] * 4


@built
def test_tensors_that_overlap_are_left_to_torch(answers):
    base, online = torch.zeros(8), torch.ones(8)
    ema_update_([base, base[2:5]], [online, online[:3]], 0.75)
    expected = torch.full((8,), 0.25)
    expected[2:5] += 0.25 * 0.75
    assert torch.equal(base, expected)
    ema_update_([base], [base], 0.75)
    assert torch.equal(base, expected)
    with pytest.raises(RuntimeError, match="single memory location"):
        ema_update_([base[:3]], [base[1:4]], 0.75)
    assert answers == [False] * 3
    ema_update_([base[:3], base[6:], base[3:3]], [base[3:6], online[:2], online[:0]], 0.75)
    assert answers[3:] == [True]


def updated(t, o):
    ema_update_([t], [o], 0.75)
    return t


@built
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    "record",
    [
        make_fx,
        lambda f: make_fx(f, pre_dispatch=True),
        lambda f: lambda *args: torch.jit.trace(f, args, check_trace=False),
    ],
    ids=["make_fx", "pre-dispatch", "jit.trace"],
)
def test_a_recorded_update_is_repeated(record, answers):
    program = record(updated)(torch.zeros(3), torch.ones(3))
    assert torch.equal(program(torch.zeros(3), torch.full((3,), 4.0)), torch.ones(3))
    assert answers == []


@built
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_tangents_are_averaged_too():
    with forward_ad.dual_level():
        target = forward_ad.make_dual(torch.zeros(3), torch.full((3,), 8.0))
        ema_update_([target], [forward_ad.make_dual(torch.ones(3), torch.full((3,), 4.0))], 0.75)
        assert torch.equal(forward_ad.unpack_dual(target).tangent, torch.full((3,), 7.0))


@built
def test_what_only_stands_for_a_tensor_is_left_to_torch(answers):
    with FakeTensorMode():
        ema_update_([torch.zeros(3)], [torch.ones(3)], 0.9)
    ema_update_([torch.zeros(3, device="meta")], [torch.ones(3, device="meta")], 0.9)
    negative = torch.complex(torch.zeros(1), torch.ones(1)).conj().imag  # its memory holds 1
    target = torch.zeros(1)
    ema_update_([target], [negative], 0.75)
    assert target.item() == -0.25
    ema_update_([target], [torch._efficientzerotensor((1,))], 0.75)
    assert target.item() == -0.25 * 0.75
    assert torch.equal(torch.func.functionalize(updated)(torch.zeros(3), torch.ones(3)), torch.full((3,), 0.25))
    assert not any(answers)


@built
def test_inference_tensors_change_in_inference_mode_only(answers):
    with torch.inference_mode():
        target = torch.zeros(3)
        ema_update_([target], [torch.ones(3)], 0.75)
        assert torch.equal(target, torch.full((3,), 0.25))
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside InferenceMode"):
        ema_update_([target], [torch.ones(3)], 0.75)
    assert answers == [True]


@built
def test_a_profiler_sees_it():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        ema_update_([torch.zeros(3)], [torch.ones(3)], 0.75)
    assert "ema_update_" in [event.name for event in profiler.events()]


@built
def test_threads_are_woken_only_where_torch_would(monkeypatch):
    """A child that is forked later may use them only if its parent did not."""
    asked = []
    monkeypatch.setattr(native, "run", lambda function, job, *, alone: asked.append(alone))
    for sizes in ([32768] * 8, [1] * 9, [40000] * 3, [1, 40000, 100000]):
        ema_update_([torch.zeros(size) for size in sizes], [torch.ones(size) for size in sizes], 0.75)
    assert asked == [True, True, True, False]


@built
@pytest.mark.parametrize("other", ["size", "names"])
def test_a_library_of_another_version_is_named(other, monkeypatch, afresh):
    class Longer(native._Job):
        _fields_ = (("more", ctypes.c_int64),)

    jobs = {"fastssl_average": Longer} if other == "size" else {"fastssl_average_of_old": native._Job}
    with pytest.raises(RuntimeError, match="is not of this version of fastssl: install the package again"):
        libraries.load(f"{native.__name__}._average", **jobs)


@built
def test_a_library_that_does_not_load_is_named(tmp_path, monkeypatch, afresh):
    broken = tmp_path / "_average.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=str(broken)))
    with pytest.raises(RuntimeError, match=r"_average.so does not load \(.*\): install the package again"):
        ema_update_([torch.zeros(3)], [torch.ones(3)], 0.75)


@pytest.mark.parametrize("missing", ["library", "threads"])
def test_without_it_torch_answers(missing, monkeypatch, afresh):
    if missing == "library":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(libraries, "_team", lambda: None)
    assert not native.available()
    target = torch.zeros(3)
    ema_update_([target], [torch.ones(3)], 0.75)
    assert torch.equal(target, torch.full((3,), 0.25))


def test_an_openmp_without_the_entry_is_no_team(monkeypatch, afresh):
    for error in (AttributeError, OSError, TypeError):

        def fail(name, error=error):
            raise error

        monkeypatch.setattr(libraries.ctypes, "CDLL", fail)
        libraries._team.cache_clear()
        assert libraries._team() is None
