"""The constants of DeepCluster-v2, SeLa-v2 and supervised training, as literal numbers."""

import dataclasses

import pytest

from fastssl import recipes


def lr(config, epoch: float, steps_per_epoch: int) -> float:
    return config.optim.lr_at(
        round(epoch * steps_per_epoch),
        batch_size=config.train.batch_size,
        steps_per_epoch=steps_per_epoch,
        total_steps=config.train.epochs * steps_per_epoch,
    )


@pytest.mark.parametrize(
    ("name", "epochs", "crops"),
    [
        ("imagenet-800ep", 800, [(224, 2, (0.14, 1.0)), (96, 6, (0.05, 0.14))]),
        ("imagenet-400ep", 400, [(160, 2, (0.08, 1.0)), (96, 4, (0.05, 0.14))]),
        ("imagenet-400ep-2x224", 400, [(224, 2, (0.08, 1.0))]),
    ],
)
def test_deepclusterv2(name, epochs, crops):
    config = recipes.deepclusterv2(name)
    assert dataclasses.asdict(config.method) == {
        "temperature": 0.1, "hidden": 2048, "out": 128, "prototypes": 3000, "heads": 3, "assign": 2, "iterations": 10,
    }  # fmt: skip
    assert [(v.size, v.count, v.scale) for v in config.augment.views] == crops
    assert config.augment.std == (0.228, 0.224, 0.225)
    optim = config.optim
    assert (optim.name, optim.lars_variant, optim.lars_eta, optim.exclude) == ("lars", "C", 0.001, "none")
    assert (optim.momentum, optim.weight_decay) == (0.9, 1e-6)
    assert [lr(config, e, 312) for e in (0, 5, 10)] == pytest.approx([0.3, 2.55, 4.8])
    assert lr(config, epochs - 0.001, 312) == pytest.approx(0.0048, rel=1e-3)
    assert (config.train.epochs, config.train.batch_size) == (epochs, 4096)


@pytest.mark.parametrize("name", ["imagenet-400ep", "imagenet-400ep-2x224"])
def test_selav2_is_deepclusterv2_with_other_labels(name):
    config, like = recipes.selav2(name), recipes.deepclusterv2(name)
    assert dataclasses.replace(config, method=like.method) == like
    assert dataclasses.asdict(config.method) == {
        "temperature": 0.1, "hidden": 2048, "out": 128, "prototypes": 3000, "heads": 3, "assign": 2, "iterations": 3,
        "epsilon": 0.05, "freeze_steps": 313,
    }  # fmt: skip


def test_supervised():
    config = recipes.supervised()
    assert config.method.label_smoothing == 0
    assert [dataclasses.asdict(view) for view in config.augment.views] == [{
        "size": 224, "count": 1, "scale": (0.08, 1.0), "ratio": (0.75, 1.3333333333333333), "sampler": "attempts",
        "interpolation": "bilinear", "flip": 0.5, "jitter": 0.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4,
        "hue": 0.1, "color": "torchvision", "additive_brightness": False, "grayscale": 0.0, "grayscale_first": False,
        "blur": 0.0, "blur_sigma": (0.1, 2.0), "blur_kind": "pil", "solarize": 0.0, "invert": 0.0,
        "background_removal": 0.0, "background_fill": 0.0, "rotation": 0.0, "noise": 0.0, "noise_sigma": (0.0, 0.1),
        "sobel": 0.0, "cutout": 0.0, "cutout_side": (0.25, 0.5), "cutout_fill": 0.5,
    }]  # fmt: skip
    assert (config.augment.mean, config.augment.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    optim = config.optim
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.1, 0.9, 1e-4)
    assert (optim.exclude, optim.warmup_epochs) == ("none", 0)
    assert [lr(config, e, 5004) for e in (0, 29.99, 30, 59.99, 60, 89.99)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )
    assert (config.train.epochs, config.train.batch_size) == (90, 256)
