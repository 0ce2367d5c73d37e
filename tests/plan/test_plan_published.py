"""The model beside published figures: one calibration, every row within a quarter."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from fastssl import recipes
from fastssl.plan.chips import CHIPS, EFFICIENCY
from fastssl.plan.predict import Plan, Prediction, Site
from fastssl.plan.published import CALIBRATION, IMAGENET, SUPERVISED, compare, implied, predict
from fastssl.plan.roofline import Machine
from fastssl.plan.words import describe_published


@pytest.fixture(scope="module")
def compared():
    return compare()


@pytest.fixture(scope="module")
def found():
    return implied()


def test_the_published_figures_are_those_of_the_source():
    figures = {(r.gpu, r.kind, r.gpus): r.images_per_second for r in SUPERVISED}
    assert figures == {
        ("a100-80", "AMP", 1): 2470,
        ("a100-80", "AMP", 8): 16621,
        ("a100-80", "TF32", 1): 938,
        ("a100-80", "TF32", 8): 7248,
        ("v100-32", "AMP", 1): 1156,
        ("v100-32", "AMP", 8): 8056,
        ("v100-32", "FP32", 1): 356,
        ("v100-32", "FP32", 8): 2766,
        ("v100-16", "AMP", 1): 1200,
        ("v100-16", "AMP", 8): 8322,
        ("v100-16", "FP32", 1): 367,
        ("v100-16", "FP32", 8): 2855,
    }


def test_the_efficiency_is_fitted_on_one_row():
    low, high = 0.3, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        if predict(CALIBRATION, middle).images_per_second < CALIBRATION.images_per_second:
            low = middle
        else:
            high = middle
    assert low == pytest.approx(EFFICIENCY, abs=0.005), "two digits of the fit"


def test_every_row_is_predicted_within_a_quarter(compared):
    assert len(compared) == len(SUPERVISED) == 12
    for entry in compared:
        assert 0.75 < entry.ratio < 1.25, entry


def test_the_batches_that_were_published_fit_the_gpus(compared):
    for entry in compared:
        run = predict(entry.row)
        assert run.micro_batch is None
        assert run.largest >= entry.row.batch, "NVIDIA trained with this batch on this GPU"


def test_official_swav_reached_a_quarter_of_its_roofline(found):
    swav = found[0]
    assert swav.row.images_per_second / 64 == pytest.approx(91, abs=0.5)
    assert swav.multiple == pytest.approx(3.10, rel=0.01)
    assert swav.of_supervised == pytest.approx(0.24, abs=0.01)


def test_official_moco_is_held_to_its_own_precision_and_to_tensor_cores(found):
    own, beside = found[2:]
    assert own.row.images_per_second / 8 == pytest.approx(168, abs=0.5)
    assert own.of_supervised == pytest.approx(168 * 1.337 / 356, rel=0.01)
    assert beside.of_supervised == pytest.approx(168 * 1.337 / 1156, rel=0.01)
    for entry in found:
        assert 0 < entry.of_peak < entry.of_roofline < 1, "the roofline is at most the peak"


def test_the_documentation_shows_these_figures(compared, found):
    text = (Path(__file__).parents[2] / "docs" / "planning.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    shown = [row for row in rows if len(row) == 5 and re.fullmatch(r"[\d.]+", row[4])]
    assert len(shown) == len(compared)
    for row, entry in zip(shown, compared, strict=True):
        assert row[0].lower().replace(" (calibration)", "") == f"{entry.row.gpu} {entry.row.kind}".lower()
        assert row[1:3] == [f"{entry.row.gpus}", f"{entry.row.images_per_second:,.0f}"]
        assert float(row[3].replace(",", "")) == pytest.approx(entry.predicted, rel=0.01)
        assert float(row[4]) == pytest.approx(entry.ratio, abs=0.01)
    shares = [row[3:] for row in rows if len(row) == 6 and row[3].endswith("%")]
    for row, entry in zip(shares, found, strict=True):
        wanted = [100 * entry.of_supervised, 100 * entry.of_roofline, 100 * entry.of_peak]
        assert [float(cell.removesuffix("%")) for cell in row] == pytest.approx(wanted, abs=0.6)


def test_the_words_name_calibration_and_verdict(compared, found):
    text = "\n".join(describe_published(compared, found))
    assert text.count("(calibration)") == 1
    assert "Within 25%: 12 of 12." in text
    assert "predicted images/s" in text
    worse = [replace(compared[0], predicted=2 * compared[0].predicted), *compared[1:]]
    assert "11 of 12. Beyond: a100-80 AMP on 1 GPU (2.00)." in "\n".join(describe_published(worse, found))


def test_a_run_on_eight_gpus_is_the_model_that_the_command_uses():
    """The row and a plan of the same recipe agree."""
    it = CHIPS["a100-80"]
    config = recipes.supervised()
    config = replace(config, train=replace(config.train, batch_size=2048, norm_ranks=1))
    plan = Plan(config, Site(Machine(it, "bf16", EFFICIENCY), it.intra, it.inter), images=IMAGENET)
    run = plan.on(8)
    assert isinstance(run, Prediction)
    assert run.images_per_second == predict(SUPERVISED[1]).images_per_second
