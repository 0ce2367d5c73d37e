"""What the engine asks of the loader: on the CPU plain float32, on a GPU the form that the networks read."""

from dataclasses import replace

import pytest
import torch

import fastssl
from fastssl.config import LoaderConfig, validate
from fastssl.engine import feed as module
from fastssl.engine.precision import view_form
from fastssl.engine.ranks import Ranks
from fastssl.errors import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_form(channels_last):
    for precision in ("fp32", "bf16"):
        assert view_form(CPU, precision, channels_last=channels_last) == (torch.float32, False)
    assert view_form(GPU, "fp32", channels_last=channels_last) == (torch.float32, channels_last)
    assert view_form(GPU, "bf16", channels_last=channels_last) == (torch.bfloat16, channels_last)


@pytest.mark.parametrize(
    ("device", "views_on", "form", "pin"),
    [
        (CPU, CPU, (torch.float32, False), False),
        (GPU, GPU, (torch.bfloat16, True), False),
        (GPU, CPU, (torch.float32, False), True),
    ],
)
def test_what_the_loader_and_the_upload_are_asked_for(monkeypatch, tmp_path, device, views_on, form, pin):
    asked: dict = {}
    moved: list = []

    class Loader:
        def __init__(self, source, augmentation, **options) -> None:
            asked.update(options)

        def epoch(self, epoch, start_step):
            assert (epoch, start_step) == (2, 1)
            return iter(["first", "second"])

    class Upload:
        def __init__(self, device, *, dtype, channels_last) -> None:
            moved.append((device, dtype, channels_last))

        def batches(self, batches):
            return (f"{batch} there" for batch in batches)

    monkeypatch.setattr(module, "ViewLoader", Loader)
    monkeypatch.setattr(module, "Upload", Upload)
    recipe = fastssl.recipes.simclr("quick")
    config = replace(
        recipe,
        loader=LoaderConfig(
            hw_decoder_load=0.8,
            last="pad",
            prefetch=3,
            device="cpu" if views_on == CPU else "auto",
            renderer="torch",
        ),
        train=replace(recipe.train, channels_last=True),
    )
    feed = module.Feed(config, object(), None, device, "bf16", Ranks())
    feed.open(tmp_path)
    batches = list(feed.epoch(2, 1))
    assert (asked["dtype"], asked["channels_last"]) == form
    assert asked["pin"] == pin
    assert asked["device"] == str(views_on)
    assert (asked["hw_decoder_load"], asked["last"], asked["prefetch"]) == (0.8, "pad", 3)
    assert moved == ([(GPU, torch.bfloat16, True)] if pin else [])
    assert batches == (["first there", "second there"] if pin else ["first", "second"])


@pytest.mark.parametrize("share", [-0.5, 1.5])
def test_impossible_shares_of_the_hardware_decoder(share):
    config = replace(fastssl.recipes.simclr("quick"), loader=LoaderConfig(hw_decoder_load=share))
    with pytest.raises(UserError, match=r"--loader\.hw-decoder-load must be at"):
        validate(config)
