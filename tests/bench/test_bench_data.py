"""`fastssl bench data` on a few small images: what it says is there and adds up; no timing is judged."""

import json
import re
import tempfile
from copy import deepcopy
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_images import write_images

from fastssl import cli
from fastssl.bench import data as bench
from fastssl.bench.backends import backends, gaussian
from fastssl.bench.floor import Floor
from fastssl.bench.stages import STAGES, WHOLE, variants
from fastssl.bench.words import describe
from fastssl.data import Augmentation, ViewSpec, native, open_source
from fastssl.data.decode import CarefulDecoder
from fastssl.data.params import sample_params
from fastssl.errors import UserError

SMALL = Augmentation((ViewSpec(size=24, count=2), ViewSpec(size=16, count=1, jitter=0, grayscale=0, blur=0)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = write_images(tmp_path_factory.mktemp("bench") / "images", classes=2, per_class=3, size=20)
    (root / "class1" / "bad.jpg").write_bytes(b"\xff\xd8 nothing")
    (root / "class1" / "empty.jpg").write_bytes(b"")
    Image.fromarray(np.full((300, 280, 3), 90, dtype=np.uint8)).save(root / "class0" / "large.png")
    return root


@pytest.fixture(scope="module")
def measured(folder):
    return bench.measure(open_source(folder), SMALL, bench.Settings(threads=2, rounds=2, packed=True))


@pytest.fixture
def result(measured):
    return deepcopy(measured)


def test_each_back_end_has_a_sample_a_round_or_a_reason(result):
    assert list(result.backends) == ["native", "torch", "dali", "triton"]
    for entry in result.backends.values():
        samples = 0 if entry["unavailable"] else 2
        assert len(entry["images_per_second"]) == len(entry["cpu_ms"]) == samples
        assert all(value > 0 for value in entry["images_per_second"])
    assert result.backends["torch"]["unavailable"] is None
    assert (result.backends["native"]["unavailable"] is None) == native.available()
    assert (result.backends["triton"]["unavailable"] is None) == torch.cuda.is_available()


def test_unreadable_images_are_left_out_and_named(result):
    assert result.images["measured"] == 7
    assert result.images["total"] == 9
    assert [entry["name"] for entry in result.images["unreadable"]] == ["class1/bad.jpg", "class1/empty.jpg"]
    assert all(entry["reason"] for entry in result.images["unreadable"])


def test_stages_are_complete_and_not_negative(result):
    assert len(result.stages["rounds"]) == 2
    for sample in result.stages["rounds"]:
        assert set(sample) == {*STAGES, WHOLE}
        assert all(np.isfinite(value) and value >= 0 for value in sample.values())


def test_the_printed_stages_and_their_residual_sum_to_the_whole(result):
    lines = describe(result, recipe="small")
    start = next(i for i, line in enumerate(lines) if "where the time goes" in line) + 1
    rows = {}
    for line in lines[start : start + len(STAGES) + 2]:
        name, time, _ = re.split(r"\s{2,}", line.strip())
        rows[name] = float(time)
    whole = rows.pop(WHOLE)
    assert set(rows) == {*STAGES, "residual"}
    assert sum(rows.values()) == pytest.approx(whole, abs=0.0005 * 9 + 1e-9)  # nine figures rounded to 0.001


def test_the_floor_is_below_decoding_alone(result):
    for parts in result.floor.values():
        pairs = zip(parts["floor"]["images_per_second"], parts["decode"]["images_per_second"], strict=True)
        assert all(0 < floor <= decoding for floor, decoding in pairs)
    text = "\n".join(describe(result, recipe="small"))
    assert "Floor: " in text
    assert "one copy of the views' floats" in text


def test_the_floor_counts_every_image_and_does_not_keep_batches(folder):
    good = [path.read_bytes() for path in sorted(folder.rglob("0*.jpg"))]
    decoder = CarefulDecoder(threads=1)
    found = Floor(decoder, SMALL, 4).run([good[:4], good[4:]])
    decoder.close()
    assert found.images == 6
    assert min(found.decode, found.copy) > 0


def test_packed_images_are_measured_and_deleted(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    found = bench.measure(open_source(folder), SMALL, bench.Settings(threads=1, rounds=1, packed=True))
    assert found.packed["short_side"] == 256
    assert found.packed["bytes"] > 0
    for kind in ("original", "packed"):
        assert len(found.packed[kind]["images_per_second"]) == 1
    assert list((tmp_path / "scratch").iterdir()) == []


def test_without_packed_large_images_get_a_hint_and_small_ones_do_not(result):
    plain = replace(result, packed=None)
    assert not any("fastssl pack" in line for line in describe(plain, recipe="small"))
    plain.images = {**plain.images, "short_side": 375}
    assert any("fastssl pack IMAGES OUT --short-side 256" in line for line in describe(plain, recipe="small"))


def test_the_result_survives_json(result):
    again = bench.Result(**json.loads(json.dumps(asdict(result))))
    assert again == result
    assert describe(again, recipe="small", need=1) == describe(result, recipe="small", need=1)


@pytest.mark.parametrize(
    ("need", "words"), [(20, "is fed: 1 such core would do"), (250, "would wait: it needs 5 such")]
)
def test_the_verdict_counts_cores(result, need, words):
    name = result.stages["backend"]
    result.backends[name] = {**result.backends[name], "images_per_second": [100.0, 100.0]}
    assert any(words in line for line in describe(replace(result, packed=None), recipe="small", need=need))


def test_box_blur_becomes_gaussian_for_dali_only_and_is_noted():
    boxed = Augmentation((ViewSpec(blur_kind="pil"),))
    assert gaussian(boxed).views[0] == ViewSpec(blur_kind="gaussian")
    found = backends(boxed)
    assert "Gaussian" in found["dali"]["note"]
    assert found["native"]["note"] is None
    assert backends(SMALL)["dali"]["note"] is None


def test_variants_grow_by_one_stage_at_a_time():
    options = {"seed": 0, "epoch": 0, "samples": np.arange(64), "view": 0, "heights": [50] * 64, "widths": [60] * 64}
    params = sample_params(ViewSpec(solarize=0.5), **options)
    found = variants(params)
    assert list(found) == ["resize", "colour", "blur", "other"]
    for given in found.values():
        assert np.array_equal(given.box, params.box)
    resize, colour, blur = (found[name] for name in ("resize", "colour", "blur"))
    assert not any(part.any() for part in (resize.jitter, resize.gray, resize.sigma, resize.solarize))
    assert np.array_equal(colour.jitter, params.jitter)
    assert not colour.sigma.any()
    assert np.array_equal(blur.sigma, params.sigma)
    assert not blur.solarize.any()
    assert found["other"] is params
    assert list(variants(sample_params(SMALL.views[1], **options))) == ["resize", "other"]


def test_passes_are_all_told(folder):
    told: list[int] = []
    settings = bench.Settings(images=2, threads=1, rounds=1)
    bench.measure(open_source(folder), SMALL, settings, told.append)
    assert told == list(range(1, bench.passes(settings, SMALL) + 1))


def test_no_readable_image_is_one_sentence(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 nothing")
    with pytest.raises(UserError, match=r"none of the 1 images chosen can be decoded.*a\.jpg"):
        bench.measure(open_source(tmp_path), SMALL, bench.Settings(threads=1, rounds=1))


@pytest.mark.parametrize("at", [1, 2, 5])
def test_an_interruption_leaves_nothing_behind(folder, tmp_path, monkeypatch, at):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    threads = torch.get_num_threads()

    def stop(done):
        if done >= at:
            raise KeyboardInterrupt

    settings = bench.Settings(images=4, threads=1, rounds=1, packed=True)
    at = bench.passes(settings, SMALL) - 1 if at == 5 else at  # the last: in the middle of the packed images
    with pytest.raises(KeyboardInterrupt):
        bench.measure(open_source(folder), SMALL, settings, stop)
    assert torch.get_num_threads() == threads
    assert list((tmp_path / "scratch").iterdir()) == []


def test_the_command_prints_and_writes_json(image_folder, tmp_path, capsys):
    out = tmp_path / "samples.json"
    args = ["bench", "data", str(image_folder), "--views", "simclr", "--recipe", "cifar10-small", "--images", "8"]
    assert cli.main([*args, "--rounds", "1", "--threads", "1", "--need", "0.5", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    for word in ("native", "torch", "dali", "triton", "floor", "where the time goes", "residual", "verdict", "is fed"):
        assert word in printed
    saved = json.loads(out.read_text())
    assert saved["recipe"] == "simclr (cifar10-small)"
    assert saved["result"]["environment"]["packages"]["torch"] == torch.__version__
    assert saved["command"]
    assert bench.Result(**saved["result"]).images["measured"] == 8


def test_ctrl_c_is_exit_code_130(image_folder, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "_measure_backends", interrupted)
    assert cli.main(["bench", "data", str(image_folder), "--images", "4", "--threads", "1"]) == 130
    assert "Traceback" not in capsys.readouterr().err
