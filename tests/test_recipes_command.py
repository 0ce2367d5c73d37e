"""`fastssl recipes`: every method and every recipe is listed, with its constants and its source."""

import pytest

from fastssl import recipes
from fastssl.cli import main


def test_all_methods(capsys):
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    for method, known in recipes.RECIPES.items():
        assert f"\n{method}: " in "\n" + shown
        assert all(name in shown for name in known)
    assert shown.count("arXiv") >= len(recipes.RECIPES) - 1, "each source names its paper"


def test_one_method(capsys):
    assert main(["recipes", "swav"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["imagenet-800ep"])
    wanted = "imagenet-800ep resnet50 × 1 2 × 224 + 6 × 96 lars C 4.8 1e-06 4096 800"
    assert row.split() == wanted.split()


def test_unknown_methods(capsys):
    assert main(["recipes", "simsiam"]) == 2
    assert main(["recipes", "swav", "byol"]) == 2
    assert "takes one method" in capsys.readouterr().err


def test_one_method_shows_every_constant_and_what_is_known(capsys):
    assert main(["recipes", "swav"]) == 0
    shown = capsys.readouterr().out
    for name in ("temperature", "epsilon", "iterations", "prototypes", "freeze-steps", "queue-epoch", "warmup-epochs"):
        assert name in shown
    assert "imagenet-800ep: Batch 4096, lr 4.8 from 0.3 and down to 0.0048; 75.3 % linear." in shown
    assert "lars C: the trust ratio" in shown
    assert "lars A" not in shown
    (crops,) = [line for line in shown.splitlines() if line.split()[:4] == ["imagenet-800ep", "96", "6", "0.05"]]
    assert "0.14" in crops
    assert "0.228 – 0.224 – 0.225" in shown
    assert "lars-eta" in shown


def test_what_is_known_at_second_hand_is_said(capsys):
    assert main(["recipes", "relicv2"]) == 0
    shown = capsys.readouterr().out
    assert "reported" in shown
    assert "second hand" in shown
    assert "background-removal" in shown
    assert main(["recipes", "simclr"]) == 0
    assert "background-removal" not in capsys.readouterr().out


@pytest.mark.parametrize("method", recipes.RECIPES)
def test_every_constant_of_the_views_is_shown_or_off(method, capsys):
    assert main(["recipes", method]) == 0
    shown = capsys.readouterr().out
    for config in recipes.RECIPES[method].values():
        for view in config.augment.views:
            for key, value in vars(view).items():
                belongs = key.rsplit("_", 1)[0]
                off = not value or not getattr(view, belongs, True) or key.startswith(("noise", "cutout", "background"))
                assert key.replace("_", "-") in shown or off, key


def test_every_method_can_be_shown(capsys):
    for method in recipes.RECIPES:
        assert main(["recipes", method]) == 0
        shown = capsys.readouterr().out
        assert shown.count("\n  imagenet") >= 1, method
