"""The published constants of BYOL, MoCo and NNCLR, as literal numbers (papers and official code)."""

import dataclasses

import pytest

from fastssl import config as configuration
from fastssl import recipes
from fastssl.errors import UserError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
EVERY = [(method, name) for method, known in recipes.RECIPES.items() for name in known]


OFF = {
    "background_removal": 0.0, "background_fill": 0.0,
    "rotation": 0.0, "noise": 0.0, "noise_sigma": (0.0, 0.1), "sobel": 0.0,
    "cutout": 0.0, "cutout_side": (0.25, 0.5), "cutout_fill": 0.5,
}  # fmt: skip
"""Operations that no published recipe has."""


def views(config):
    return [dataclasses.asdict(view) for view in config.augment.views]


@pytest.mark.parametrize(("method", "name"), EVERY)
def test_every_recipe_is_possible_and_survives_a_file(method, name, tmp_path):
    config = recipes.get(method, name)
    assert config.method_name == method
    assert config.recipe == name
    wants_masks = any(view.background_removal for view in config.augment.views)
    configuration.validate(dataclasses.replace(config, masks="masks" if wants_masks else None))
    configuration.save(config, tmp_path / "config.yaml")
    assert configuration.load(tmp_path / "config.yaml") == config


def test_byol_views():
    config = recipes.byol()
    first = {
        "size": 224, "count": 1, "scale": (0.08, 1.0), "ratio": (0.75, 1.3333333333333333), "sampler": "clip",
        "interpolation": "bicubic", "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2,
        "hue": 0.1, "color": "tensorflow", "additive_brightness": True, "grayscale": 0.2, "grayscale_first": False,
        "blur": 1.0, "blur_sigma": (0.1, 2.0), "blur_kind": "gaussian", "solarize": 0.0, "invert": 0.0, **OFF,
    }  # fmt: skip
    assert views(config) == [first, {**first, "blur": 0.1, "solarize": 0.2}]
    assert (config.augment.mean, config.augment.std) == IMAGENET


@pytest.mark.parametrize(
    ("epochs", "lr", "weight_decay", "momentum"),
    [(40, 0.45, 1e-6, 0.97), (100, 0.45, 1e-6, 0.99), (300, 0.3, 1e-6, 0.99), (1000, 0.2, 1.5e-6, 0.996)],
)
def test_byol_presets(epochs, lr, weight_decay, momentum):
    config = recipes.byol(f"imagenet-{epochs}ep")
    optim = config.optim
    assert (optim.name, optim.lars_variant, optim.lars_eta, optim.momentum) == ("lars", "B", 0.001, 0.9)
    assert (optim.lr, optim.weight_decay, optim.exclude, optim.warmup_epochs) == (lr, weight_decay, "bias_and_norm", 10)
    assert optim.peak_lr(4096) == pytest.approx(lr * 16)
    assert (config.train.epochs, config.train.batch_size) == (epochs, 4096)
    assert dataclasses.asdict(config.method) == {
        "hidden": 4096, "out": 256, "momentum": momentum, "projector_norm": False,
    }  # fmt: skip


def test_moco_views():
    v2 = {
        "size": 224, "count": 2, "scale": (0.2, 1.0), "ratio": (0.75, 1.3333333333333333), "sampler": "attempts",
        "interpolation": "bilinear", "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4,
        "hue": 0.1, "color": "torchvision", "additive_brightness": False, "grayscale": 0.2, "grayscale_first": False,
        "blur": 0.5, "blur_sigma": (0.1, 2.0), "blur_kind": "pil", "solarize": 0.0, "invert": 0.0, **OFF,
    }  # fmt: skip
    assert views(recipes.mocov2()) == [v2]
    assert views(recipes.mocov1()) == [{**v2, "jitter": 1.0, "hue": 0.4, "blur": 0.0, "grayscale_first": True}]
    for config in (recipes.mocov1(), recipes.mocov2()):
        assert (config.augment.mean, config.augment.std) == IMAGENET


def test_moco_constants():
    shared = {"out": 128, "queue": 65536, "momentum": 0.999, "head_norm": False, "norm_groups": 8}
    assert dataclasses.asdict(recipes.mocov1().method) == {"temperature": 0.07, "layers": 1, **shared}
    assert dataclasses.asdict(recipes.mocov2().method) == {"temperature": 0.2, "layers": 2, **shared}
    for config in (recipes.mocov1(), recipes.mocov2()):
        optim = config.optim
        assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.03, 0.9, 1e-4)
        assert (optim.exclude, optim.warmup_epochs) == ("none", 0)
        assert (config.train.batch_size, config.train.epochs) == (256, 200)
    assert recipes.mocov2("imagenet-800ep").train.epochs == 800


def lr(config, epoch: float, steps_per_epoch: int = 5004) -> float:
    total = config.train.epochs * steps_per_epoch
    step = round(epoch * steps_per_epoch)
    return config.optim.lr_at(
        step, batch_size=config.train.batch_size, steps_per_epoch=steps_per_epoch, total_steps=total
    )


def test_moco_learning_rates():
    """Version 1 falls to a tenth at 120 and 160; version 2 keeps the cosine's value through each epoch."""
    v1, v2 = recipes.mocov1(), recipes.mocov2()
    assert [lr(v1, e) for e in (0, 119.99, 120, 159.99, 160, 199.9)] == pytest.approx(
        [0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003]
    )
    assert lr(v2, 0) == lr(v2, 0.9) == 0.03
    assert lr(v2, 100) == lr(v2, 100.99) == pytest.approx(0.015)
    assert lr(v2, 199.5) == pytest.approx(0.03 * 0.5 * (1 + -0.9998766324816606))


def test_byol_learning_rates():
    config = recipes.byol()
    assert lr(config, 0, 312) == 0
    assert lr(config, 10, 312) == pytest.approx(3.2)
    assert lr(config, 505, 312) == pytest.approx(1.6)
    assert lr(config, 999.99, 312) == pytest.approx(0, abs=1e-6)


def test_nnclr_constants():
    config = recipes.nnclr()
    assert dataclasses.asdict(config.method) == {
        "temperature": 0.1, "hidden": 2048, "out": 256, "predictor_hidden": 4096, "queue": 98304,
    }  # fmt: skip
    assert config.augment == recipes.byol().augment
    optim = config.optim
    assert (optim.name, optim.lr, optim.lr_scaling, optim.lars_variant) == ("lars", 0.3, "linear", "B")
    assert (optim.weight_decay, optim.exclude, optim.warmup_epochs) == (1e-6, "bias_and_norm", 10)
    assert (config.train.batch_size, config.train.epochs) == (4096, 1000)


def test_simclrv2_constants():
    config = recipes.simclrv2()
    assert dataclasses.asdict(config.method) == {
        "temperature": 0.1, "hidden": 0, "out": 128, "layers": 3, "init_std": 0.01, "reduction": "sum",
        "memory": 0, "memory_momentum": 0.999,
    }  # fmt: skip
    remembering = recipes.simclrv2("imagenet-800ep-memory")
    assert (remembering.method.memory, remembering.method.memory_momentum) == (65_536, 0.999)
    assert dataclasses.replace(remembering, recipe=config.recipe, method=config.method) == config
    optim = config.optim
    assert (optim.name, optim.lars_variant, optim.weight_decay, optim.warmup_epochs) == ("lars", "A", 1e-4, 40)
    assert optim.peak_lr(4096) == pytest.approx(6.4)
    assert (config.train.epochs, config.train.batch_size) == (800, 4096)
    assert config.augment == recipes.simclr().augment
    largest = recipes.simclrv2("imagenet-800ep-r152-3x-sk").backbone
    assert (largest.name, largest.width, largest.sk_ratio) == ("resnet152", 3.0, 0.0625)


def test_swav_views():
    large = {
        "size": 224, "count": 2, "scale": (0.14, 1.0), "ratio": (0.75, 1.3333333333333333), "sampler": "attempts",
        "interpolation": "bilinear", "flip": 0.5, "jitter": 0.8, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8,
        "hue": 0.2, "color": "torchvision", "additive_brightness": False, "grayscale": 0.2, "grayscale_first": False,
        "blur": 0.5, "blur_sigma": (0.1, 2.0), "blur_kind": "pil", "solarize": 0.0, "invert": 0.0, **OFF,
    }  # fmt: skip
    config = recipes.swav()
    assert views(config) == [large, {**large, "size": 96, "count": 6, "scale": (0.05, 0.14)}]
    assert (config.augment.mean, config.augment.std) == ((0.485, 0.456, 0.406), (0.228, 0.224, 0.225))


def test_swav_constants():
    config, small = recipes.swav(), recipes.swav("imagenet-200ep-batch256")
    paper = {
        "temperature": 0.1, "epsilon": 0.05, "iterations": 3, "hidden": 2048, "out": 128, "prototypes": 3000,
        "assign": 2, "freeze_steps": 313, "queue": 0, "queue_epoch": 15,
    }  # fmt: skip
    assert dataclasses.asdict(config.method) == paper
    assert dataclasses.asdict(small.method) == {**paper, "freeze_steps": 5005, "queue": 3840}
    for one in (config, small):
        optim = one.optim
        assert (optim.name, optim.lars_variant, optim.lars_eta, optim.exclude) == ("lars", "C", 0.001, "none")
        assert (optim.momentum, optim.weight_decay) == (0.9, 1e-6)
    assert [lr(config, e, 312) for e in (0, 5, 10, 405)] == pytest.approx([0.3, 2.55, 4.8, 2.4024])
    assert lr(config, 799.999, 312) == pytest.approx(0.0048, rel=1e-3)
    assert [lr(small, e) for e in (0, 100)] == pytest.approx([0.6, 0.3003])
    assert lr(small, 199.9999) == pytest.approx(0.0006, rel=1e-2)
    assert (config.train.epochs, config.train.batch_size) == (800, 4096)
    assert (small.train.epochs, small.train.batch_size) == (200, 256)


def test_relicv2_constants():
    config = recipes.relicv2()
    assert config.augment.counts == (4, 2)
    assert [(v.size, v.count, v.blur, v.solarize) for v in config.augment.views] == [
        (224, 2, 1.0, 0.0), (224, 2, 0.1, 0.2), (96, 1, 1.0, 0.0), (96, 1, 0.1, 0.2),
    ]  # fmt: skip
    assert dataclasses.asdict(config.method) == {
        "temperature": 0.2, "alpha": 0.3, "negatives": 10, "self_pairs": True, "hidden": 4096, "out": 256,
        "predictor": True, "momentum": 0.996, "stop_gradient": "second",
    }  # fmt: skip
    large = {**vars(recipes.byol().augment.views[0]), "count": 2, "background_removal": 0.1}
    small = {**large, "count": 1, "size": 96, "scale": (0.05, 0.14), "background_removal": 0.0}
    rare = {"blur": 0.1, "solarize": 0.2}
    assert views(config) == [large, {**large, **rare}, small, {**small, **rare}]
    assert (config.augment.mean, config.augment.std) == IMAGENET
    assert [view.background_removal for view in config.augment.views] == [0.1, 0.1, 0.0, 0.0]
    assert {view.background_fill for view in config.augment.views} == {0.0}


def test_relic_constants():
    config = recipes.relic()
    assert config.augment == recipes.byol().augment
    assert dataclasses.asdict(config.method) == {
        "temperature": 0.1, "alpha": 1.0, "negatives": 0, "self_pairs": False, "hidden": 4096, "out": 256,
        "predictor": False, "momentum": 0.996, "stop_gradient": "second",
    }  # fmt: skip


LARS = {
    "name": "lars", "lr": 0.3, "lr_scaling": "linear", "momentum": 0.9, "weight_decay": 1e-6, "lars_variant": "B",
    "lars_eta": 0.001, "exclude": "bias_and_norm", "schedule": "cosine", "milestones": (), "warmup_epochs": 10,
    "warmup_start": 0.0, "final_lr": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "changed", "epochs", "peak"),
    [
        ("simclr", {"lars_variant": "A"}, 1000, 4.8),
        (
            "simclrv2",
            {"lars_variant": "A", "lr": 0.1, "lr_scaling": "sqrt", "weight_decay": 1e-4, "warmup_epochs": 40},
            800,
            6.4,
        ),
        ("byol", {"lr": 0.2, "weight_decay": 1.5e-6}, 1000, 3.2),
        ("nnclr", {}, 1000, 4.8),
        ("relic", {"weight_decay": 1.5e-6}, 1000, 4.8),
        ("relicv2", {"weight_decay": 1.5e-6}, 1000, 4.8),
    ],
)
def test_optimizers_of_large_batches(method, changed, epochs, peak):
    """All constants, and the learning rate at the start, the end of the warm-up, the middle of the cosine, the end."""
    config = recipes.get(method)
    assert dataclasses.asdict(config.optim) == {**LARS, **changed}
    assert (config.train.batch_size, config.train.epochs) == (4096, epochs)
    warmup = config.optim.warmup_epochs
    moments = (0, warmup / 2, warmup, (warmup + epochs) / 2)
    assert [lr(config, e, 312) for e in moments] == pytest.approx([0, peak / 2, peak, peak / 2])
    assert 0 < lr(config, epochs - 1 / 312, 312) < 1e-9 * peak


@pytest.mark.parametrize(("epochs", "peak"), [(40, 7.2), (100, 7.2), (300, 4.8)])
def test_byol_learning_rates_of_shorter_runs(epochs, peak):
    config = recipes.byol(f"imagenet-{epochs}ep")
    moments = (0, 10, (10 + epochs) / 2)
    assert [lr(config, e, 312) for e in moments] == pytest.approx([0, peak, peak / 2])
    assert lr(config, epochs - 1 / 312, 312) < 1e-6 * peak


def test_networks():
    """ResNet-50 everywhere; Google's and DeepMind's code starts a block's last scale at zero, others' does not."""
    zero = {"simclr", "simclrv2", "byol", "nnclr", "relic", "relicv2"}
    for method in recipes.RECIPES:
        assert dataclasses.asdict(recipes.get(method).backbone) == {
            "name": "resnet50", "stem": "imagenet", "width": 1.0, "sk_ratio": 0.0, "zero_init_residual": method in zero,
            "image_size": 0,
        }, method  # fmt: skip
    wider = dataclasses.asdict(recipes.simclrv2("imagenet-800ep-r50-2x-sk").backbone)
    assert (wider["name"], wider["width"], wider["sk_ratio"]) == ("resnet50", 2.0, 0.0625)


def test_steps_need_milestones():
    config = dataclasses.replace(recipes.mocov1().optim, milestones=())
    with pytest.raises(UserError, match="milestones"):
        config.validate()
