"""`fastssl plan` as a person meets it."""

import json
import re
from dataclasses import replace

import pytest

from fastssl import recipes
from fastssl.cli import main
from fastssl.commands.plan import SCALES, PlanOptions
from fastssl.models import BackboneConfig
from fastssl.plan.chips import CHIPS, HOP
from fastssl.plan.predict import DECODE_RATE, IMAGE_BYTES, Impossible, Plan, Prediction, Site
from fastssl.plan.published import IMAGENET
from fastssl.plan.roofline import Machine

IT = CHIPS["a100-80"]
CONFIG = replace(
    recipes.get("simclr"), backbone=BackboneConfig("resnet18"), train=replace(recipes.get("simclr").train, epochs=10)
)


def plan(config=CONFIG, **options):
    site = {"machine": Machine(IT, efficiency=0.67), "intra": IT.intra, "inter": IT.inter, **options}
    return Plan(config, Site(**site), images=1_281_167)


def test_the_defaults_of_the_options_are_those_of_the_model():
    options = PlanOptions()
    assert options.decode_rate == DECODE_RATE
    assert options.image_kb * 1e3 == IMAGE_BYTES
    assert options.hop_us * 1e-6 == pytest.approx(HOP)
    assert options.images == IMAGENET
    assert options.gpu in CHIPS


def test_help_names_every_gpu(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "simclr", "--help"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert all(name in shown for name in CHIPS)


@pytest.fixture(scope="module")
def usual():
    return plan()


def test_every_figure_stands_under_the_word_predicted(capsys):
    assert main(["plan", "simclr", "--recipe", "quick", "--images", "5000"]) == 0
    shown = capsys.readouterr().out
    head, *parts = shown.split("\n\n")
    assert "predicted, none measured" in head
    assert len(parts) == 3
    assert all("predicted" in part.splitlines()[0] for part in parts)
    for gpus in SCALES:
        assert re.search(rf"^  {gpus:,} ", parts[1], re.MULTILINE), gpus
    assert "not possible: more GPUs than the 256 images of a batch" in parts[1]
    for term in ("step = ", "gradients = ", "memory = ", "cores = ", "checkpoint = ", "hours = ", "largest batch = "):
        assert term in parts[2]


def test_published_prints_both_tables(capsys):
    assert main(["plan", "published"]) == 0
    shown = capsys.readouterr().out
    assert "predicted / published" in shown
    assert "3 min 40 s an epoch" in shown
    assert "200 epochs in 53 h" in shown


def test_json_holds_what_is_shown(tmp_path, capsys):
    file = tmp_path / "plan.json"
    args = ["plan", "simclr", "--recipe", "quick", "--images", "5000", "--gpus", "2", "--json", str(file)]
    assert main(args) == 0
    shown, held = capsys.readouterr().out, json.loads(file.read_text())
    assert f"{held['predicted']['images_per_second']:,.0f}, " in shown
    assert [entry["gpus"] for entry in held["predicted_scaling"]] == list(SCALES)
    assert all("predicted" in key for key in held if key not in ("command", "method", "recipe", "site"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "needs a method: one of simclr"),
        (["simsiam"], "unknown method 'simsiam'"),
        (["simclr", "--recipe", "none"], "--recipe 'none' is not a recipe of simclr"),
        (["simclr", "--gpu", "tpu"], "--gpu 'tpu' is not known: choose one of v100-16"),
        (["simclr", "--gpus", "0"], "--gpus must be at least 1, got 0"),
        (["simclr", "--gpus", "three"], "--gpus"),
        (["simclr", "--gpus", "3"], "--gpus 3 cannot do this: the batch of 4096 is no multiple of 3"),
        (["simclr", "--gpus", "8192"], "--gpus 8192 cannot do this: more GPUs than the 4096 images of a batch"),
        (["simclr", "--gpus", "16", "--norm-ranks", "5"], "--norm-ranks 5 must divide 16 GPUs"),
        (["mocov2", "--gpus", "16"], "--method.norm-groups 8 must be a multiple of the number of processes, 16"),
        (["simclr", "--gpus-per-machine", "0"], "--gpus-per-machine must be at least 1, got 0"),
        (["simclr", "--images", "100"], "--images 100 is less than a batch of 4096"),
        (["simclr", "--epochs", "0"], "--train.epochs must be at least 1, got 0"),
        (["simclr", "--intra-node", "0"], "--intra-node must be > 0, got 0.0"),
        (["simclr", "--inter-node", "-1"], "--inter-node must be > 0, got -1.0"),
        (["simclr", "--decode-rate", "nan"], "--decode-rate must be > 0, got nan"),
        (["simclr", "--disk", "inf"], "--disk must be > 0, got inf"),
        (["simclr", "--efficiency", "1.5"], "--efficiency must be in (0, 1], got 1.5"),
        (["simclr", "--backbone", "vgg"], "--backbone.name must be one of"),
        (["simclr", "--json", "/missing/plan.json"], "its folder does not exist"),
        (["published", "--json", "/missing/plan.json"], "its folder does not exist"),
        (["published", "--gpu", "h100"], "--gpu"),
    ],
)
def test_mistakes_get_one_sentence(args, words, capsys):
    assert main(["plan", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err


def test_a_step_is_the_sum_of_its_parts_and_hours_follow(usual):
    run = usual.on(8)
    parts = (run.forward, run.backward, run.targets, run.loss, run.update, run.communication.waited)
    assert run.step == pytest.approx(sum(parts))
    assert run.images_per_second == pytest.approx(4096 / run.step)
    assert run.hours == pytest.approx(10 * (1_281_167 // 4096) * run.step / 3600)


def test_more_gpus_are_faster_for_more_gpu_hours_until_communication_rules(usual):
    runs = [usual.on(gpus) for gpus in (2, 4, 8, 16, 32)]
    assert all(run.micro_batch is None for run in runs)
    rates = [run.images_per_second for run in runs]
    assert rates == sorted(rates)
    spent = [run.hours * run.gpus for run in runs]
    assert spent == sorted(spent)
    assert usual.on(1).communication.waited == 0
    shares = [usual.on(gpus).communication.waited / usual.on(gpus).step for gpus in SCALES]
    assert shares == sorted(shares)
    assert [run.memory for run in runs] == sorted((run.memory for run in runs), reverse=True)


def test_cores_and_disks_that_are_too_slow_set_the_pace(usual):
    free = usual.on(8)
    assert free.bound == "GPUs"
    cores = plan(cores=2.0).on(8)
    assert (cores.bound, cores.images_per_second) == ("cores", 2 * 8 * DECODE_RATE)
    disk = plan(disk=0.1).on(16)
    assert (disk.bound, disk.images_per_second) == ("disk", pytest.approx(2 * 0.1e9 / IMAGE_BYTES))
    assert disk.hours > usual.on(16).hours
    enough = plan(cores=free.cores * 1.01).on(8)
    assert enough.bound == "GPUs"
    assert enough.images_per_second == free.images_per_second


def test_what_does_not_fit_passes_in_micro_batches():
    roomy, tight = plan(), plan(machine=Machine(replace(IT, memory=12), efficiency=0.67))
    one, other = roomy.on(8), tight.on(8)
    assert one.micro_batch is None
    assert other.micro_batch <= tight.largest < 512
    assert other.images == one.images == 512
    assert other.images % other.micro_batch == 0
    assert other.memory <= 12e9 < one.memory
    assert other.forward > 1.9 * one.forward, "once without and once with gradients"
    assert other.backward == pytest.approx(one.backward, rel=0.05)


def test_a_gpu_without_room_for_two_images_is_said_so():
    small = plan(machine=Machine(replace(IT, memory=2.3), efficiency=0.67)).on(8)
    assert isinstance(small, Impossible)
    assert "do not fit" in small.reason


def test_batch_norm_needs_two_images_where_it_is_not_shared():
    apart = replace(CONFIG, train=replace(CONFIG.train, norm_ranks=1))
    assert "no statistics for batch norm" in plan(apart).on(4096).reason
    assert isinstance(plan().on(4096), Prediction)
