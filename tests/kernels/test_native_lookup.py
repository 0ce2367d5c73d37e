"""The first pass of a lookup in C: its scores, its rounding, its threads, and what happens where it was not built."""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fastssl_kernels import nearest_neighbor
from fastssl_kernels.arithmetic import capabilities
from fastssl_kernels.nearest_neighbor import native
from laws import assert_nearest

VERSIONS = native.versions()
SOURCE = Path(native.__file__).parent

built = pytest.mark.skipif(not VERSIONS, reason="the library in C is not built, or has no code for this processor")
each_version = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def unit(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=1).float()


def peaks_of(z, queue):
    """The definition, in float64."""
    score = queue.double() @ z.double().T
    return torch.stack([part.amax(0) for part in score.split(native.GROUP)])


def assert_peaks(z, queue, version=None, length=1.0):
    expected = peaks_of(z, queue)
    found = native.peaks(z, queue, version)
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    # Half a unit of 1 / 32,767 in every element of both rows, and fp32 where the lengths are multiplied in.
    bound = (z.shape[1] ** 0.5 / 32767 + 1e-6) * length
    assert (found - expected).abs().max() <= bound


def test_it_is_built_where_the_processor_has_the_instructions():
    found = importlib.util.find_spec("fastssl_kernels.nearest_neighbor.native._scan")
    # An extension that does not compile is left out without a word: here that is told.
    assert found or not shutil.which("gcc") or sys.platform != "linux"
    assert bool(VERSIONS) == bool(found and capabilities().get("avx2"))
    assert ("avx512" in VERSIONS) == bool(found and capabilities().get("avx512_vnni"))


@built
@each_version
@pytest.mark.parametrize("width", [1, 2, 3, 8, 15, 16, 17, 33, 128, 256, 1000])
@pytest.mark.parametrize(("batch", "queue"), [(1, 1), (1, 64), (15, 65), (16, 63), (17, 129), (33, 500), (70, 1027)])
def test_the_largest_score_of_every_group(batch, queue, width, version, threads):
    assert_peaks(unit(batch, width), unit(queue, width).bfloat16(), version, length=1 + 2**-8)


@built
@each_version
def test_sums_of_the_largest_products_do_not_overflow(version):
    """Rows along an axis, rows of equal elements, and rows that are both: every partial sum is the largest there is."""
    for width in (1, 2, 7, 256, 4096):
        rows = torch.cat([torch.eye(width)[:3], torch.ones(1, width) / width**0.5])
        z = torch.cat([rows, -rows])
        assert_peaks(z, z.bfloat16(), version, length=1 + 2**-8)


@built
@each_version
@pytest.mark.parametrize("length", [1e-15, 1e-3, 0.5, 100.0, 1e15])
def test_rows_of_other_lengths_keep_their_scores(length, version):
    assert_peaks(unit(20, 48), (unit(300, 48) * length).bfloat16(), version, length=length * (1 + 2**-8))


@built
@each_version
def test_rows_without_a_direction_score_zero(version):
    z, queue = unit(18, 40), unit(64, 40)
    expected = native.peaks(z, queue[:60].bfloat16(), version).clamp_min(0)
    queue[60:] = torch.tensor([0.0, math.nan, math.inf, -math.inf])[:, None]
    assert torch.equal(native.peaks(z, queue.bfloat16(), version), expected)


@built
@each_version
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_harms_no_other(bad, version):
    z, queue = unit(40, 24), unit(200, 24).bfloat16()
    expected = native.peaks(z, queue, version)
    z[7] = bad
    found = native.peaks(z, queue, version)
    others = torch.arange(40) != 7
    assert torch.equal(found[:, others], expected[:, others])


@built
def test_versions_and_threads_give_the_same_bits(threads):
    z, queue = unit(90, 130), unit(700, 130).bfloat16()
    torch.set_num_threads(1)
    expected = native.peaks(z, queue, "avx2")
    torch.set_num_threads(threads)
    for version in VERSIONS:
        assert torch.equal(native.peaks(z, queue, version), expected)


@built
@each_version
@pytest.mark.parametrize("width", [1, 7, 15, 16, 17, 32, 130])
@pytest.mark.parametrize(("rows", "count", "queue"), [(1, 1, 1), (5, 64, 90), (40, 3, 200)])
def test_scores_of_chosen_rows(rows, count, queue, width, version, threads):
    z, stored = torch.randn(rows, width), torch.randn(queue, width).bfloat16()
    place = torch.randint(queue, (rows, count))
    expected = torch.einsum("rd,rcd->rc", z.double(), stored[place].double())
    size = torch.einsum("rd,rcd->rc", z.double().abs(), stored[place].double().abs())
    found = native.scores(z, stored, place, version)
    assert found.shape == (rows, count)
    # Every sum goes through at most 16 lanes and as many additions as a lane has products.
    assert ((found - expected).abs() <= (width / 16 + 18) * 2**-24 * size).all()
    assert torch.equal(found, native.scores(z, stored, place, "avx2"))


@built
def test_views_of_rows_are_read_as_they_are(threads):
    z, queue = unit(6, 24), unit(200, 24).bfloat16()
    wide = torch.zeros(200, 41, dtype=torch.bfloat16)
    wide[:, 3:27] = queue
    shifted = torch.cat([torch.zeros(1, dtype=torch.bfloat16), queue.flatten()])[1:].view(200, 24)
    place = torch.arange(12).view(2, 6).T
    for view in (wide[:, 3:27], shifted, queue.T.contiguous().T):
        assert torch.equal(native.peaks(z, view), native.peaks(z, queue))
        assert torch.equal(native.scores(z.T.contiguous().T, view, place), native.scores(z, queue, place))


@built
@each_version
def test_neighbours_of_every_version(version, monkeypatch):
    monkeypatch.setattr(native, "preferred", lambda: True)
    monkeypatch.setattr(native, "versions", lambda: (version,))
    for k in (1, 7):
        assert_nearest(torch.randn(600, 20), unit(3000, 20).bfloat16(), k)


@built
def test_the_library_answers_bfloat16_queues_only(monkeypatch):
    asked, run = [], native._run
    monkeypatch.setattr(native, "preferred", lambda: True)
    monkeypatch.setattr(native, "_run", lambda function, *rest: asked.append(function) or run(function, *rest))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        nearest_neighbor(torch.randn(4, 8), unit(70, 8).to(dtype))
        assert asked == (["fastssl_scan", "fastssl_score"] if dtype == torch.bfloat16 else [])


@built
def test_no_memory_is_said(monkeypatch):
    def scan(job):
        job._obj.failed = 1

    monkeypatch.setattr(native, "_library", lambda: SimpleNamespace(fastssl_scan=scan))
    with pytest.raises(MemoryError, match="no memory for 64 rows of a queue of width 8"):
        native.peaks(unit(2, 8), unit(70, 8).bfloat16(), VERSIONS[0])


@pytest.mark.parametrize(
    ("versions", "have", "expected"),
    [
        ((), {}, False),
        (("avx2",), {}, True),
        (("avx2",), {"avx512_f": True}, False),
        (("avx2", "avx512"), {"avx512_f": True, "avx512_bf16": True}, True),
        (("avx2", "avx512"), {"avx512_f": True, "amx_bf16": True}, False),
    ],
)
def test_it_is_taken_where_it_is_faster(versions, have, expected, monkeypatch):
    monkeypatch.setattr(native, "versions", lambda: versions)
    monkeypatch.setattr(native, "capabilities", lambda: have)
    assert native.preferred() is expected


def test_without_the_library_torch_answers(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for cached in (native._library, native.versions):
        cached.cache_clear()
    try:
        assert native.versions() == ()
        assert not native.preferred()
        assert_nearest(torch.randn(9, 12), unit(300, 12).bfloat16(), 2)
    finally:
        for cached in (native._library, native.versions):
            cached.cache_clear()


@built
def test_a_library_of_another_version_is_named(monkeypatch):
    class Longer(native._Job):
        _fields_ = (("more", native.ctypes.c_int64),)

    monkeypatch.setattr(native, "_Job", Longer)
    native._library.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="is not of this version of fastssl: install the package again"):
            native._library()
    finally:
        native._library.cache_clear()


def test_groups_are_those_of_the_source():
    source = (SOURCE / "scan.c").read_text(encoding="utf-8")
    assert int(re.search(r"#define GROUP (\d+)", source).group(1)) == native.GROUP
    assert float(re.search(r"#define ONE ([\d.]+)f", source).group(1)) == native._ONE
