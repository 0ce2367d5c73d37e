"""The published constants of SimCLR, as literal numbers (arXiv 2002.05709, app. A and B; the authors' README)."""

import dataclasses

import pytest

from fastssl import config as configuration
from fastssl import recipes
from fastssl.errors import UserError

OFF = {
    "background_removal": 0.0, "background_fill": 0.0,
    "rotation": 0.0, "noise": 0.0, "noise_sigma": (0.0, 0.1), "sobel": 0.0,
    "cutout": 0.0, "cutout_side": (0.25, 0.5), "cutout_fill": 0.5,
}  # fmt: skip
"""Operations that no published recipe has."""

PAPER_VIEW = {
    "size": 224,
    "count": 2,
    "scale": (0.08, 1.0),
    "ratio": (0.75, 1.3333333333333333),
    "sampler": "tensorflow",
    "interpolation": "bicubic",
    "flip": 0.5,
    "jitter": 0.8,
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.8,
    "hue": 0.2,
    "color": "tensorflow",
    "additive_brightness": False,
    "grayscale": 0.2,
    "grayscale_first": False,
    "blur": 0.5,
    "blur_sigma": (0.1, 2.0),
    "blur_kind": "gaussian",
    "solarize": 0.0,
    "invert": 0.0,
    **OFF,
}


def test_paper_recipe():
    config = recipes.simclr()
    assert config.recipe == "imagenet-1000ep"
    assert [dataclasses.asdict(v) for v in config.augment.views] == [PAPER_VIEW]
    assert (config.augment.mean, config.augment.std) == ((0, 0, 0), (1, 1, 1))
    assert dataclasses.asdict(config.method) == {
        "temperature": 0.1,
        "hidden": 0,
        "out": 128,
        "layers": 2,
        "init_std": 0.01,
        "reduction": "sum",
    }
    assert (config.backbone.name, config.backbone.stem, config.backbone.width) == ("resnet50", "imagenet", 1.0)
    assert config.backbone.zero_init_residual
    optim = config.optim
    assert (optim.name, optim.lars_variant, optim.lars_eta, optim.momentum) == ("lars", "A", 0.001, 0.9)
    assert (optim.weight_decay, optim.exclude, optim.warmup_epochs) == (1e-6, "bias_and_norm", 10)
    assert (config.train.batch_size, config.train.epochs) == (4096, 1000)
    assert optim.peak_lr(4096) == pytest.approx(4.8)
    assert (config.evaluate.size, config.evaluate.crop) == (224, 0.875)


def test_readme_command():
    config = recipes.simclr("imagenet-100ep")
    assert config.optim.peak_lr(4096) == pytest.approx(4.8)
    assert (config.optim.lr, config.optim.lr_scaling, config.optim.weight_decay) == (0.075, "sqrt", 1e-4)
    assert (config.train.epochs, config.method.layers) == (100, 3)


def test_cifar10_command():
    config = recipes.simclr("cifar10")
    (view,) = config.augment.views
    changed = {"size": 32, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "blur": 0.0}
    assert dataclasses.asdict(view) == {**PAPER_VIEW, **changed}
    assert (config.backbone.name, config.backbone.stem) == ("resnet18", "cifar")
    assert (config.method.temperature, config.method.layers) == (0.5, 3)
    assert (config.optim.lr, config.optim.lr_scaling, config.optim.weight_decay) == (1.0, "linear", 1e-4)
    assert config.optim.peak_lr(512) == pytest.approx(2.0)
    assert (config.train.batch_size, config.train.epochs) == (512, 1000)


@pytest.mark.parametrize("batch", [4096, 1024])
def test_learning_rate_over_a_run(batch):
    """Zero at the start, the peak after 10 epochs, half of it mid-way through the cosine, nearly zero at the end."""
    optim = recipes.simclr().optim
    steps = 1_281_167 // batch
    total = 1000 * steps

    def lr(step):
        return optim.lr_at(step, batch_size=batch, steps_per_epoch=steps, total_steps=total)

    peak = 0.3 * batch / 256
    assert lr(0) == 0
    assert lr(5 * steps) == pytest.approx(peak / 2)
    assert lr(10 * steps) == pytest.approx(peak)
    assert lr(505 * steps) == pytest.approx(peak / 2)
    assert 0 < lr(total - 1) < 1e-10 * peak
    assert lr(total) == 0


@pytest.mark.parametrize("name", recipes.RECIPES["simclr"])
def test_every_recipe_is_valid_and_survives_its_file(name, tmp_path):
    config = recipes.simclr(name)
    configuration.validate(config)
    configuration.save(config, tmp_path / "config.yaml")
    assert configuration.load(tmp_path / "config.yaml") == config


def test_unknown_names_are_one_sentence():
    with pytest.raises(UserError, match="unknown method 'simsiam': choose one of simclr"):
        recipes.get("simsiam")
    with pytest.raises(UserError, match="'imagenet' is not a recipe of simclr: choose one of imagenet-1000ep"):
        recipes.get("simclr", "imagenet")
