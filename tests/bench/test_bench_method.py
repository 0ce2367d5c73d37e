"""`fastssl bench METHOD` on a few small images: what it says is there and adds up; no timing is judged."""

import csv
import json
import re
from copy import deepcopy
from dataclasses import asdict, replace

import pytest
import torch
from every_method import SMALL
from PIL import Image
from ranks import on_ranks
from torch import nn

from fastssl import cli, recipes
from fastssl.bench import method as bench
from fastssl.bench import rounds
from fastssl.bench.batch import choose, smallest
from fastssl.bench.figures import figures, middle, rows
from fastssl.bench.memory import LiveBytes, bytes_of
from fastssl.bench.method_words import describe_training
from fastssl.bench.result import Result, Settings
from fastssl.bench.timeline import BACKWARD, FORWARD, LOSS, OPTIMIZER, PARTS, REST, TARGETS, VIEWS, WHOLE, Timeline
from fastssl.bench.training import CLASSES, Training, cost_multiple, supervised
from fastssl.bench.verdict import advice, data_bound, more_cores, verdict
from fastssl.config import Config
from fastssl.data import Augmentation, ViewSpec
from fastssl.engine.ranks import Ranks
from fastssl.errors import UserError
from fastssl.methods import METHODS, DataFacts
from fastssl.models import BackboneConfig
from fastssl.optim import OptimConfig
from fastssl.report.text import speed

CPU = torch.device("cpu")
TINY = BackboneConfig("resnet10", stem="cifar", width=0.125)
SHORT = Settings(steps=1, seconds=0.5)


def config_of(name, data, **train):
    """The quick recipe with a smaller network, views of 16 pixels and tiny heads."""
    config = recipes.get(name, "quick")
    views = tuple(replace(spec, size=16) for spec in config.augment.views)
    method = replace(config.method, **{k: v for k, v in SMALL[name].items() if k != "queue"})
    changed = replace(
        config, data=str(data), backbone=TINY, augment=replace(config.augment, views=views), method=method
    )
    return replace(changed, train=replace(config.train, **train))


@pytest.fixture(scope="module")
def measured(image_folder):
    return bench.measure(config_of("simclr", image_folder), replace(SHORT, steps=3))


@pytest.fixture
def result(measured):
    return deepcopy(measured)


def made_up(*, views, model, prefetch=0, one_rank=(), busy=0.9, **setting):
    """A result whose steps take these seconds for views and model; a batch of 100 takes 8 CPU seconds of views."""
    waits = max(0.0, views - model) if prefetch else views
    parts = {FORWARD: 0.3 * model, LOSS: 0.05 * model, BACKWARD: 0.6 * model, OPTIMIZER: 0.05 * model}
    step = {VIEWS: waits, **parts, REST: 0.0}
    known = {
        "method": "simclr",
        "recipe": "quick",
        "backbone": "resnet50 × 1",
        "views": [[2, 224]],
        "device": "cpu",
        "precision": "fp32",
        "channels_last": True,
        "checkpoint_activations": False,
        "batch_size": 100,
        "recipe_batch_size": 4096,
        "micro_batch": None,
        "processes": 1,
        "processes_here": 1,
        "images": 50_000,
        "epochs": 100,
        "threads": 8,
        "usable_cores": 8,
        "loader_threads": 2,
        "prefetch": prefetch,
        "norm_ranks": 0,
        "renderer": "native",
        "prepares_epochs": False,
        "memory_bytes": None,
    }
    return Result(
        {"cpu": {"instruction_sets": ["avx2"]}},
        {**known, **setting},
        full=[{**step, WHOLE: sum(step.values())}] * 3,
        synthetic=[{**step, VIEWS: 0.0, WHOLE: model}] * 3,
        synthetic_cpu=[busy * model * known["threads"]] * 3,
        views=[views] * 3,
        views_cpu=[8.0] * 3,
        alone=[{LOSS: 0.05 * model, OPTIMIZER: 0.05 * model, WHOLE: 0.1 * model}] * 3,
        supervised=[model] * 3,
        supervised_batch_size=220,
        one_rank=list(one_rank),
        multiple=2.0,
        peak_bytes=10**9,
    )


def test_threads_that_others_kept_from_computing_are_told(result):
    """Then the parts' shares say little, and nothing is concluded from the optimizer's."""
    slow = {"optimizer": 0.5}
    for busy, told in ((0.9, False), (0.5, True)):
        made = made_up(views=0.01, model=1.0, busy=busy)
        made.full = [{**reading, OPTIMIZER: slow["optimizer"], WHOLE: reading[WHOLE] + 0.45} for reading in made.full]
        words = "\n".join(describe_training(made, data="d"))
        assert ("ran for only 50% of the time" in words) == told
        assert ("a larger --train.batch-size" in words) != told
    assert figures(result).busy > 0


def test_small_speeds_keep_three_digits():
    assert [speed(rate) for rate in (0.12345, 1.2345, 12.345, 12345.6)] == ["0.123", "1.23", "12.3", "12,345.6"]


def test_rounds_that_take_far_too_long_are_given_up(image_folder, monkeypatch):
    monkeypatch.setattr(rounds, "AT_LEAST", 0.0)
    monkeypatch.setattr(rounds, "LATE", 0.0)
    result = bench.measure(config_of("simclr", image_folder), replace(SHORT, steps=3))
    assert len(result.full) == 1
    assert "Only 1 of 3 rounds were measured" in "\n".join(describe_training(result, data="d"))


@pytest.mark.parametrize("name", ["mocov2", "byol", "swav", "deepclusterv2", "supervised"])
def test_every_kind_of_method_is_measured(name, image_folder):
    result = bench.measure(config_of(name, image_folder), SHORT)
    assert len(result.full) == len(result.synthetic) == len(result.alone) == len(result.views) == 1
    found = figures(result)
    assert [part.key for part in found.parts] == list(PARTS)
    assert all(part.in_step >= 0 and part.alone >= 0 and part.low >= 0 for part in found.parts)
    assert min(found.full, found.model, found.views, found.supervised, found.roofline, result.peak_bytes) > 0
    seconds = {part.key: part.in_step for part in found.parts}
    assert min(seconds[key] for key in (VIEWS, FORWARD, LOSS, BACKWARD, OPTIMIZER)) > 0
    assert result.setting["batch_size"] <= 60
    assert ("clustering before each epoch" in "\n".join(describe_training(result, data="d"))) == ("cluster" in name)


def test_the_marks_of_a_step_leave_nothing_out(result):
    for reading in [*result.full, *result.synthetic]:
        assert set(reading) == {*PARTS, REST, WHOLE} - ({VIEWS} if VIEWS not in reading else set())
        parts = sum(seconds for key, seconds in reading.items() if key != WHOLE)
        assert parts == pytest.approx(reading[WHOLE], rel=1e-12)
        assert min(reading.values()) >= 0


def test_the_printed_parts_and_their_residual_sum_to_the_full_step(result):
    lines = describe_training(result, data="d")
    start = next(i for i, line in enumerate(lines) if "in the step" in line) + 1
    sums, alone = [], []
    for line in lines[start:]:
        name, *cells = re.split(r"\s{2,}", line.strip())
        sums.append(float(cells[0].replace(",", "")))
        alone.append(float(cells[-1].replace(",", "")))
        if name == "full step":
            break
    rounding = 0.05 * (len(sums) + 2) + 1e-9  # figures rounded to 0.1, of which two parts below 0.05 may be left out
    assert sum(sums[:-1]) == pytest.approx(sums[-1], abs=rounding)
    assert sum(alone[:-1]) == pytest.approx(alone[-1], abs=rounding)


def test_the_rows_of_the_table_say_the_same(result):
    table = {row["part"]: row for row in rows(result)}
    parts = [row for key, row in table.items() if key != WHOLE]
    for column in ("in_step_ms", "alone_ms"):
        whole = table[WHOLE]["in_step_ms"]
        assert sum(row[column] for row in parts) == pytest.approx(
            whole if column == "in_step_ms" else table[WHOLE]["alone_ms"] + table[REST]["alone_ms"], rel=1e-9
        )
    assert sum(row["share"] for row in parts) == pytest.approx(1.0, rel=1e-9)


def test_the_result_survives_json(result):
    again = Result(**json.loads(json.dumps(asdict(result))))
    assert again == result
    assert describe_training(again, data="d") == describe_training(result, data="d")


def test_where_views_and_model_take_turns_the_larger_share_bounds():
    slow, fast = made_up(views=3.0, model=1.0), made_up(views=0.25, model=1.0)
    assert data_bound(slow, figures(slow))
    assert not data_bound(fast, figures(fast))
    said = verdict(slow, figures(slow))[0]
    assert said.startswith("data-bound: the model takes 100.0 images/s, but views and model take turns")
    assert "the renderer needs 8.0 more cores" in said  # 8 core seconds a batch, which the model takes in 1
    said = verdict(fast, figures(fast))[0]
    assert said == "model-bound: the networks take 72% of the step, making views 20%, the loss 4%, the optimizer 4%."


def test_where_views_are_made_ahead_waiting_for_them_bounds():
    slow, fast = made_up(views=4.0, model=1.6, prefetch=2), made_up(views=4.0, model=4.0, prefetch=2)
    found = figures(slow)
    assert found.data_wait == pytest.approx(0.6)
    assert more_cores(slow, found) == pytest.approx(8 / 1.6 - 2)  # 5 cores at the model's speed, of which 2 are there
    assert "it waits for them 60% of the time; the renderer needs 3.0 more cores" in verdict(slow, found)[0]
    assert found.residual_alone is None
    assert verdict(fast, figures(fast))[0].startswith("model-bound: ")
    assert more_cores(fast, figures(fast)) == 0
    busy = made_up(views=4.0, model=1.6, prefetch=2, loader_threads=8)
    assert "its cores would do" in verdict(busy, figures(busy))[0]


def test_roofline_and_scaling_are_the_definitions():
    result = made_up(views=1.0, model=1.0, processes=2, one_rank=[0.9] * 3)
    found = figures(result)
    assert found.full == pytest.approx(50)
    assert found.roofline == pytest.approx(50 * 2.0 / 220)
    assert found.roofline_model == pytest.approx(100 * 2.0 / 220)
    assert found.efficiency == pytest.approx(0.9)
    assert any("2 processes are 1.80 times as fast" in line for line in verdict(result, found))


def test_advice_is_about_what_bounds():
    slow = made_up(views=4.0, model=1.0, prefetch=2)
    said = advice(slow, figures(slow), "/images")
    assert said[0].startswith("--loader.threads 8: 2 of 8 cores")
    assert "fastssl bench data /images --views simclr --recipe quick" in said[1]
    assert not any("the networks themselves are the limit" in line for line in said)
    fast = made_up(views=0.1, model=1.0)
    assert "the networks themselves are the limit" in advice(fast, figures(fast), "/images")[0]
    emulated = made_up(views=0.1, model=1.0, precision="bf16", channels_last=False, threads=1, micro_batch=10)
    said = advice(emulated, figures(emulated), "/images")
    assert [line.split()[0] for line in said] == ["--train.precision", "--train.channels-last:", "--train.threads"]
    assert len(said) == 3


def test_the_middle_half_leaves_out_a_quarter_on_each_side():
    assert middle([9, 1, 5, 3, 7, 0, 8, 2], key=float) == [2, 3, 5, 7]
    assert middle([4], key=float) == [4]
    assert middle([2, 1], key=float) == [1, 2]


def test_a_timeline_adds_up_what_belongs_to_a_part():
    times = iter([0.0, 1.0, 3.0, 6.0, 10.0, 20.0, 25.0])
    timeline = Timeline(CPU, lambda: next(times))
    for part in ("views", "forward", "views", "loss", None, "views", None):
        timeline.enter(part)
    assert timeline.read() == [
        {"views": 4.0, "forward": 2.0, "loss": 4.0, WHOLE: 10.0},
        {"views": 5.0, WHOLE: 5.0},
    ]
    assert timeline.read() == []


@pytest.mark.parametrize(
    ("name", "counts", "expected"),
    [("simclr", (2, 0), 2.0), ("mocov2", (2, 0), 1.33), ("byol", (2, 0), 2.67), ("swav", (2, 6), 3.10)],
)
def test_the_cost_multiple_of_published_views_is_the_known_one(name, counts, expected):
    """Of views of 224 and 96 pixels, with heads too small to count.

    The known figures take a backward pass for twice a forward one. Counted, it is 1.94 times in this network, as its
    first convolution needs no gradient of the image: a target's pass costs 0.341 instead of 0.333.
    """
    backbone = BackboneConfig("resnet18", stem="imagenet")
    specs = tuple(ViewSpec(size=size, count=n) for size, n in zip((224, 96), counts, strict=True) if n)
    options = {**SMALL[name], **({"norm_groups": 1} if name == "mocov2" else {})}
    config = Config(
        method=METHODS[name][0](**{k: v for k, v in options.items() if k != "queue_epoch"}),
        backbone=backbone,
        augment=Augmentation(specs),
        optim=OptimConfig(name="sgd"),
    )
    method = Training(config, DataFacts(100), CPU, "fp32", Ranks()).forward_flops(2)
    plain = Training(supervised(config), DataFacts(100, CLASSES), CPU, "fp32", Ranks()).forward_flops(2)
    assert cost_multiple(method, {**plain, BACKWARD: 2 * plain[FORWARD]}) == pytest.approx(expected, abs=0.005)
    assert cost_multiple(method, plain) == pytest.approx(expected, abs=0.012)
    trained = sum(n * (size / 224) ** 2 for size, n in zip((224, 96), counts, strict=True))
    targets = {"mocov2": 1, "byol": 2}.get(name, 0)
    once = plain[FORWARD] / (plain[FORWARD] + plain[BACKWARD])
    law = trained - (name == "mocov2") + targets * once
    assert cost_multiple(method, plain) == pytest.approx(law, rel=2e-3)
    assert (method[TARGETS] > 0) == (name in ("mocov2", "byol"))


def test_recomputed_activations_do_not_count_as_work(image_folder):
    plain = Training(config_of("simclr", image_folder), DataFacts(60), CPU, "fp32", Ranks()).forward_flops(2)
    again = config_of("simclr", image_folder, checkpoint_activations=True)
    again = Training(again, DataFacts(60), CPU, "fp32", Ranks()).forward_flops(2)
    assert again[BACKWARD] > plain[BACKWARD]
    assert cost_multiple(again, plain) == cost_multiple(plain, plain) == 1.0


def test_micro_batches_are_divided_into_the_same_parts(image_folder):
    config = config_of("byol", image_folder, batch_size=8, micro_batch=4)
    result = bench.measure(config, replace(SHORT, fixed_batch=True))
    assert result.setting["batch_size"] == 8
    assert result.notes == []
    for key in (FORWARD, TARGETS, LOSS, BACKWARD, OPTIMIZER):
        assert result.full[0][key] > 0
    assert result.full[0][REST] < result.full[0][WHOLE]


def test_batches_made_ahead_are_measured_in_full_swing(image_folder):
    config = config_of("simclr", image_folder, batch_size=8)
    config = replace(config, loader=replace(config.loader, prefetch=2))
    result = bench.measure(config, replace(SHORT, fixed_batch=True))
    assert len(result.full) == rounds.AROUND - 1
    assert "only waits for those that are not ready" in "\n".join(describe_training(result, data="d"))


def test_live_bytes_are_those_of_tensors_that_live_together():
    there = torch.zeros(100)
    with LiveBytes([there]) as live:
        first = there + 1
        del first
        second = torch.zeros(300)
        third = second.view(3, 100) * 2
    assert live.peak == 2 * 1200
    assert live.now == second.nbytes + third.nbytes
    assert bytes_of([second, second.view(3, 100), third]) == 2400


def test_the_peak_of_a_step_holds_weights_gradients_and_momentum(image_folder):
    training = Training(config_of("simclr", image_folder), DataFacts(60), CPU, "fp32", Ranks())
    training.step(training.views(2))
    weights = bytes_of(training.method.parameters())
    assert training.fixed_bytes() >= 4 * weights  # with AdamW's two moments
    small, large = (training.peak_bytes(training.views(n)) for n in (4, 8))
    assert training.fixed_bytes() < small < large < 2 * small


def test_a_batch_is_chosen_within_time_and_memory(image_folder):
    config, facts = config_of("mocov2", image_folder), DataFacts(1000)
    how = {"seconds": 0.1, "most": 5.0, "image_bytes": 1.0, "free": 1e9}
    assert smallest(config, facts, 1) == 8  # four groups of two
    assert choose(config, facts, 1, **how) == 48
    assert choose(config, facts, 2, **how) == 48
    assert choose(config, facts, 1, **{**how, "free": 30.0}) == 16  # 60 % of the memory for 18 images
    assert choose(config, facts, 1, **{**how, "most": 1e9}) == config.train.batch_size
    assert choose(config, facts, 1, **{**how, "most": 0.0}) == 8
    with pytest.raises(UserError, match="7 images, too few for a batch of mocov2"):
        smallest(config, DataFacts(7), 1)


def test_a_batch_that_memory_cannot_hold_is_one_sentence(image_folder, monkeypatch):
    monkeypatch.setattr(bench, "free_bytes", lambda device: 1000)
    config = config_of("simclr", image_folder, batch_size=32)
    with pytest.raises(UserError, match=r"--train.batch-size 32 needs about .* lower it, or give --train.micro-batch"):
        bench.measure(config, replace(SHORT, fixed_batch=True))


def test_the_step_is_left_without_marks(image_folder):
    training = Training(config_of("simclr", image_folder), DataFacts(60), CPU, "fp32", Ranks())
    with training.watched(4):
        training.timed(training.views(4))
        assert "embed" in training.method.__dict__
    assert not {"embed", "targets", "loss_of", "after_step"} & set(training.method.__dict__)
    training.step(training.views(4))
    assert training.timeline.read() == []


def test_no_step_moves_a_weight(image_folder):
    training = Training(config_of("swav", image_folder), DataFacts(60), CPU, "fp32", Ranks())
    before = [p.clone() for p in training.method.backbone.parameters()]
    training.step(training.views(4))
    assert isinstance(training.method, nn.Module)
    assert all(torch.equal(old, new) for old, new in zip(before, training.method.backbone.parameters(), strict=True))


def test_the_command_prints_draws_and_traces(image_folder, tmp_path, capsys):
    out, trace = tmp_path / "a" / "out", tmp_path / "trace"
    args = ["bench", "simclr", "--recipe", "quick", "--data", str(image_folder), "--train.batch-size", "8"]
    args += ["--backbone.width", "0.125", "--bench.steps", "1", "--out", str(out), "--profile", str(trace)]
    assert cli.main(args) == 0
    printed = capsys.readouterr().out
    for word in ("in the step", "residual", "full step", "roofline", "Peak memory", "operation", "verdict", "-bound: "):
        assert word in printed
    assert "lowered" not in printed
    saved = json.loads((out / "bench.json").read_text())
    assert Result(**saved["result"]).setting["batch_size"] == 8
    assert saved["result"]["environment"]["packages"]["torch"] == torch.__version__
    assert saved["command"]
    table = list(csv.DictReader((out / "bench.csv").open()))
    assert [row["part"] for row in table] == [*PARTS, REST, WHOLE]
    assert Image.open(out / "bench.png").size[0] > 1000
    assert "<svg" in (out / "bench.svg").read_text()
    events = json.loads((trace / "trace.json").read_text())["traceEvents"]
    assert {"fastssl: views", "fastssl: forward", "fastssl: backward"} <= {event["name"] for event in events}
    assert sum(row["share"] for row in saved["result"]["operations"]) <= 1 + 1e-9


def _on_two_ranks(rank, world, folder, out):
    result = bench.measure(config_of("mocov2", folder), SHORT)
    (out / f"{rank}.json").write_text(json.dumps(asdict(result)))


def test_two_processes_are_compared_with_one_by_itself(image_folder, tmp_path):
    on_ranks(_on_two_ranks, 2, image_folder, tmp_path)
    first, second = (Result(**json.loads((tmp_path / f"{rank}.json").read_text())) for rank in (0, 1))
    assert (first.first, second.first) == (True, False)
    assert first.setting["processes"] == 2
    assert first.setting["batch_size"] == second.setting["batch_size"]
    assert first.setting["batch_size"] % 2 == 0
    assert len(first.one_rank) == len(second.one_rank) == 1
    assert figures(first).efficiency == pytest.approx(first.one_rank[0] / first.synthetic[0][WHOLE])
    printed = "\n".join(describe_training(first, data="d"))
    assert "2 processes" in printed
    assert "Scaling efficiency" in printed


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["simsiam"], "unknown thing to measure 'simsiam'"),
        (["simclr", "--recipe", "none"], "--recipe 'none' is not a recipe of simclr"),
        (["simclr", "--bench.steps", "0"], "--bench.steps must be at least 1, got 0"),
        (["simclr", "--bench.seconds", "-1"], "--bench.seconds must be > 0, got -1"),
        (["simclr", "--out", "{file}"], "is a file: name a folder"),
        (["simclr", "--profile", "{file}"], "is a file: name a folder"),
        (["simclr", "--train.batch-size", "61", "--data", "{images}"], "larger than the 60 images"),
        (["mocov2", "--train.batch-size", "12", "--data", "{images}"], "must be a multiple of --method.norm-groups"),
        (["simclr", "--optim.lr", "0", "--data", "{images}"], "--optim.lr must be > 0"),
        (["simclr", "--data", "{images}/none"], "none"),
    ],
)
def test_mistakes_are_one_sentence(args, words, image_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    args = [word.format(images=image_folder, file=tmp_path / "file") for word in args]
    assert cli.main(["bench", *args]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert error.count("\n") == 1


def test_a_gpu_that_is_not_there_is_one_sentence(image_folder, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "simclr", "--data", str(image_folder), "--train.device", "cuda"]) == 2
    assert "no CUDA device is visible" in capsys.readouterr().err


def test_bf16_that_is_emulated_is_measured_only_where_it_is_asked_for(image_folder, monkeypatch):
    monkeypatch.setattr(bench, "resolve_precision", lambda name, device: "fp32" if name == "auto" else name)
    config = config_of("simclr", image_folder, precision="bf16")
    chosen = bench.measure(config, SHORT)
    assert chosen.setting["precision"] == "fp32"
    assert "--train.precision fp32" in chosen.notes[0]
    asked = bench.measure(config, replace(SHORT, fixed_precision=True))
    assert asked.setting["precision"] == "bf16"
