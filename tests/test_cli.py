"""The command line as a person meets it: one sentence and exit code 2 for every mistake, before any work."""

import subprocess
import sys

import pytest
import torch

from fastssl import cli


def run(*args: str, capsys) -> tuple[int, str, str]:
    code = cli.main(list(args))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["pretrian"], "unknown command 'pretrian'"),
        (["pretrain"], "needs a method: one of simclr"),
        (["pretrain", "simsiam"], "unknown method 'simsiam'"),
        (["pretrain", "simclr", "--recipe", "none"], "--recipe 'none' is not a recipe of simclr"),
        (["pretrain", "simclr", "--data", "{tmp}/missing"], "missing"),
        (["pretrain", "simclr", "--data", "{tmp}/empty"], "empty"),
        (["pretrain", "simclr", "--data", "{tmp}/text"], "no images"),
        (["pretrain", "simclr", "--data", "{tmp}/text/a.txt"], "a.txt"),
        (["pretrain", "simclr", "--optim.lr", "0"], "--optim.lr must be > 0, got 0.0"),
        (["pretrain", "simclr", "--optim.lr", "-0.1"], "--optim.lr must be > 0, got -0.1"),
        (["pretrain", "simclr", "--optim.lr", "much"], "--optim.lr"),
        (["pretrain", "simclr", "--optim.lrr", "1"], "--optim.lrr"),
        (["pretrain", "simclr", "--method.temperature", "0"], "--method.temperature must be > 0, got 0.0"),
        (["pretrain", "simclr", "--method.temperature", "inf"], "--method.temperature must be finite, got inf"),
        (["pretrain", "mocov1", "--method.temperature", "inf"], "--method.temperature must be finite, got inf"),
        (["pretrain", "nnclr", "--method.temperature", "inf"], "--method.temperature must be finite, got inf"),
        (["pretrain", "deepclusterv2", "--method.temperature", "inf"], "--method.temperature must be finite, got inf"),
        (["pretrain", "selav2", "--method.epsilon", "inf"], "--method.epsilon must be finite, got inf"),
        (["pretrain", "swav", "--method.epsilon", "nan"], "--method.epsilon must be > 0, got nan"),
        (["pretrain", "swav", "--method.queue-epoch", "inf"], "--method.queue-epoch must be at least 0 and finite"),
        (["pretrain", "swav", "--method.queue-epoch", "nan"], "--method.queue-epoch must be at least 0 and finite"),
        (
            ["pretrain", "relic", "--method.alpha", "inf"],
            "--method.alpha and --method.negatives must be at least 0 and",
        ),
        (["pretrain", "relic", "--method.temperature", "-inf"], "--method.temperature must be > 0, got -inf"),
        (["pretrain", "simclr", "--optim.lars-eta", "0"], "--optim.lars-eta must be > 0 and finite, got 0.0"),
        (["pretrain", "simclr", "--augment.views.0.size", "7"], "--augment.views.0.size must be at least 8"),
        (["pretrain", "simclr", "--augment.views.0.flip", "1.5"], "--augment.views.0.flip is a probability"),
        (["pretrain", "simclr", "--augment.views.0.scale", "0.5", "0.2"], "--augment.views.0.scale"),
        (["pretrain", "simclr", "--train.epochs", "0"], "--train.epochs must be at least 1, got 0"),
        (["pretrain", "simclr", "--monitor.knn-epochs", "-0.5"], "--monitor.knn-epochs must be at least 0, got -0.5"),
        (["pretrain", "simclr", "--monitor.knn-epochs", "nan"], "--monitor.knn-epochs must be at least 0, got nan"),
        (["pretrain", "simclr", "--monitor.knn-epochs", "inf"], "--monitor.knn-epochs must be finite, got inf"),
        (["pretrain", "simclr", "--train.batch-size", "61", "--data", "{images}"], "larger than the 60 images"),
        (["pretrain", "simclr", "--backbone.name", "vgg"], "--backbone.name must be one of"),
        (
            [
                "pretrain",
                "simclr",
                "--data",
                "{images}",
                "--train.batch-size",
                "8",
                "--backbone.name",
                "torchvision:resnet51",
            ],
            "close names: resnet",
        ),
        (
            ["pretrain", "deepclusterv2", "--data", "{images}", "--train.batch-size", "8"],
            "--method.prototypes 3000 is more than the 56 images of an epoch",
        ),
        (["pretrain", "selav2", "--method.prototypes", "1"], "--method.prototypes must be at least 2, got 1"),
        (
            ["pretrain", "supervised", "--data", "{images}/train/class0", "--train.batch-size", "8"],
            "supervised learns from labels",
        ),
        (["pretrain", "simclr", "--train.device", "cuda", "--data", "{images}"], "no CUDA device"),
        (["pretrain", "--resume", "{tmp}/missing"], "config.yaml does not exist"),
        (["pretrain", "--resume", "{tmp}/used", "--optim.lr", "1"], "--optim.lr"),
        (["pretrain", "--resume", "{tmp}/used"], "was not written by fastssl"),
        (
            ["pretrain", "simclr", "--data", "{images}", "--train.batch-size", "8", "--run-dir", "{tmp}/used"],
            "--resume",
        ),
        (["eval"], "needs a kind of evaluation: one of knn, linear"),
        (["eval", "knn"], "--checkpoint"),
        (["eval", "knn", "--checkpoint", "{tmp}/none.pt"], "none.pt does not exist"),
        (["eval", "knn", "--checkpoint", "{tmp}/text/a.txt"], "not a fastssl checkpoint"),
        (["eval", "linear", "--checkpoint", "{tmp}/foreign.pt"], "was not written by fastssl"),
        (["eval", "knn", "--checkpoint", "{tmp}/foreign.pt", "--k", "0"], "--k"),
        (["views", "simclr", "--data", "{tmp}/missing"], "missing"),
        (["views", "simclr", "--recipe", "none"], "--recipe 'none'"),
        (["bench"], "needs a thing to measure: one of data"),
        (["bench", "speed"], "unknown thing to measure 'speed': choose one of data"),
        (["bench", "data"], "PATH"),
        (["bench", "data", "{tmp}/missing"], "missing does not exist"),
        (["bench", "data", "{tmp}/empty"], "empty"),
        (
            ["bench", "data", "{images}", "--views", "simsiam"],
            "--views 'simsiam' is not a method: choose one of simclr",
        ),
        (["bench", "data", "{images}", "--recipe", "none"], "--recipe 'none' is not a recipe of simclr"),
        (["bench", "data", "{images}", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["bench", "data", "{images}", "--images", "0"], "--images must be at least 1, got 0"),
        (["bench", "data", "{images}", "--rounds", "-1"], "--rounds must be at least 1, got -1"),
        (["bench", "data", "{images}", "--need", "0"], "--need must be > 0 images/s, got 0.0"),
        (["bench", "data", "{images}", "--json", "{tmp}/none/a.json"], "its folder does not exist"),
        (["report", "{tmp}/empty"], "holds no finished run"),
        (["doctor", "--fast"], "takes no options"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(args, words, tmp_path, image_folder, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("words")
    (tmp_path / "used").mkdir()
    cli_config = "method_name: simclr\n"
    (tmp_path / "used" / "config.yaml").write_text(cli_config)
    torch.save({"model": 1}, tmp_path / "foreign.pt")
    torch.save({"model": 1}, tmp_path / "used" / "last.pt")
    before = set(tmp_path.rglob("*"))
    code, out, err = run(*(a.format(tmp=tmp_path, images=image_folder) for a in args), capsys=capsys)
    assert code == 2
    assert words in err
    assert err.startswith("fastssl: error: ")
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in out + err
    assert set(tmp_path.rglob("*")) == before, "a refused command must leave nothing behind"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "usage: fastssl COMMAND"),
        (["--help"], "pretrain METHOD"),
        (["pretrain", "--help"], "simclr"),
        (["pretrain", "simclr", "--help"], "--optim.weight-decay"),
        (["eval", "knn", "--help"], "--checkpoint"),
        (["views", "simclr", "--help"], "--images"),
        (["bench", "--help"], "fastssl bench data"),
        (["bench", "data", "--help"], "--packed"),
        (["report", "--help"], "PATH"),
        (["doctor", "--help"], "usage"),
        (["--version"], "fastssl 0."),
    ],
)
def test_help_is_there(args, words):
    done = subprocess.run([sys.executable, "-m", "fastssl", *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout


def test_a_command_line_run_from_pretrain_to_report(image_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [
        *("--data", str(image_folder), "--run-dir", "run", "--train.batch-size", "20", "--train.epochs", "2"),
        *("--backbone.width", "0.125", "--method.hidden", "16", "--method.out", "8", "--train.precision", "fp32"),
        *("--train.threads", "2", "--monitor.knn-epochs", "1"),
    ]
    code, out, _ = run("pretrain", "simclr", "--recipe", "quick", *options, capsys=capsys)
    assert code == 0
    for words in ("raw-pixel kNN", "random-network kNN", "trained kNN", "linear probe", "images/s", "report.html"):
        assert words in out
    for kind, name in (("knn", "knn"), ("linear", "linear_probe")):
        code, out, err = run("eval", kind, "--checkpoint", "run/last.pt", capsys=capsys)
        assert code == 0, err
        assert name in out
    code, out, _ = run("report", "run", capsys=capsys)
    assert code == 0
    assert "trained kNN" in out
    code, _, err = run("pretrain", "simclr", "--recipe", "quick", *options, capsys=capsys)
    assert code == 2
    assert "already holds a run: continue it with `fastssl pretrain --resume run`" in err
    code, out, _ = run("views", "simclr", "--recipe", "quick", "--data", str(image_folder), capsys=capsys)
    assert code == 0
    assert (tmp_path / "views.png").stat().st_size > 1000


@pytest.mark.parametrize("args", [["recipes"], ["recipes", "swav"]], ids=["more than a buffer", "less"])
def test_a_reader_that_has_enough_ends_the_command_quietly(args):
    """As in `fastssl recipes | head -1`: no traceback, and the code of a command that SIGPIPE ended."""
    command = [sys.executable, "-m", "fastssl", *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        error = process.stderr.read()
    assert process.returncode == 141
    assert error == b""
