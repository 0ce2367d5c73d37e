"""`fastssl recipes`: every method and every recipe is listed, with its constants and its source."""

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
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["imagenet-800ep"]]
    wanted = "imagenet-800ep resnet50 × 1 2 × 224 + 6 × 96 lars C 4.8 1e-06 4096 800"
    assert row.split() == wanted.split()


def test_unknown_methods(capsys):
    assert main(["recipes", "simsiam"]) == 2
    assert main(["recipes", "swav", "byol"]) == 2
    assert "takes one method" in capsys.readouterr().err
