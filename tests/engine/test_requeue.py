"""The same command again starts or continues a run."""

from dataclasses import replace

import pytest
from test_runs import rows, small

import fastssl
from fastssl import cli
from fastssl import config as configuration
from fastssl.engine import requeue
from fastssl.errors import UserError


def held(config, run_dir):
    run_dir.mkdir()
    configuration.save(config, run_dir / "config.yaml")


def test_a_folder_without_a_run_is_started_and_one_with_it_continued(tmp_path):
    config = fastssl.recipes.get("simclr", "quick")
    config = replace(config, run_dir=str(tmp_path / "run"))
    assert requeue.continued(config) is None
    held(config, tmp_path / "run")
    assert requeue.continued(config) == tmp_path / "run"


def test_how_the_folder_is_spelt_is_no_difference(tmp_path, monkeypatch):
    config = fastssl.recipes.get("simclr", "quick")
    held(replace(config, run_dir="elsewhere"), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert requeue.continued(replace(config, run_dir="run")) is not None


def test_the_first_option_that_differs_is_named(tmp_path):
    config = replace(fastssl.recipes.get("simclr", "quick"), run_dir=str(tmp_path / "run"))
    held(config, tmp_path / "run")
    view = replace(config.augment.views[0], count=3)
    changed = {
        "--optim.lr": replace(config, optim=replace(config.optim, lr=9.0)),
        "--augment.views.0.count": replace(config, augment=replace(config.augment, views=(view,))),
        "--augment.std": replace(config, augment=replace(config.augment, std=(1.0, 1.0, 2.0))),
        "--train.max-steps": replace(config, train=replace(config.train, max_steps=3)),
        "--method": replace(config, method=fastssl.recipes.get("byol").method),
    }
    for name, other in changed.items():
        with pytest.raises(UserError, match=f"holds a run with {name} ") as raised:
            requeue.continued(other)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"--optim\.lr \S+, not 9\.0: give the same options"):
        requeue.continued(changed["--optim.lr"])


def test_requeue_needs_a_configuration_and_no_resume(tmp_path):
    with pytest.raises(UserError, match="requeue=True needs a configuration"):
        fastssl.pretrain(requeue=True)
    with pytest.raises(UserError, match="requeue=True needs a configuration and no resume"):
        fastssl.pretrain(fastssl.recipes.simclr("quick"), resume=tmp_path, requeue=True)


def test_calling_again_after_the_end_changes_nothing(image_folder, tmp_path):
    config = small(image_folder, tmp_path / "run", epochs=1, threads=1)
    config = replace(config, monitor=replace(config.monitor, baselines=False, knn_epochs=0))
    first = fastssl.pretrain(config, requeue=True, quiet=True)
    before = rows(first.run_dir)
    again = fastssl.pretrain(config, requeue=True, quiet=True)
    assert again.finished
    assert rows(first.run_dir) == before
    with pytest.raises(UserError, match="already holds a run"):
        fastssl.pretrain(config, quiet=True)


def test_the_option_is_one_of_the_command(tmp_path, capsys, monkeypatch):
    asked = {}
    monkeypatch.setattr("fastssl.engine.pretrain", lambda config, **kind: asked.update(kind, config=config) or Done())
    assert cli.main(["pretrain", "simclr", "--recipe", "quick", "--run-dir", str(tmp_path), "--requeue"]) == 0
    assert asked["requeue"] is True
    assert type(asked["config"]) is configuration.Config
    assert asked["config"] == replace(fastssl.recipes.simclr("quick"), run_dir=str(tmp_path))
    cli.main(["pretrain", "simclr", "--recipe", "quick"])
    assert asked["requeue"] is False


class Done:
    signal, saved, finished = 0, True, True


def test_a_run_directory_appears_whole(tmp_path, image_folder, monkeypatch):
    """Killed while it writes its configuration, a run is not there yet."""

    def torn(config, path):
        path.write_text("data: [")
        raise KeyboardInterrupt

    config = small(image_folder, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(configuration, "save", torn)
        with pytest.raises(KeyboardInterrupt):
            fastssl.pretrain(config, quiet=True)
    assert requeue.continued(config) is None
