"""Every method for the same time on the same cores: kNN curves, and whether anything collapsed.

    python benchmarks/methods/compare.py /cifar10 --data-name "CIFAR-10 (JPEG q75)" --minutes 6 --out FOLDER
    python benchmarks/methods/compare.py builtin --recipe quick --minutes 0 --out FOLDER

Each method trains with its recipe of that name for as many steps as it makes in `--minutes` (evaluation and start-up
excluded; a short run before tells how fast it is), and its schedules span these steps; 0 minutes leaves each recipe its
own length, and the time is what it takes. `--jobs` methods run side by side, each in a process of its own with
`--threads` threads: the time is equal, the number of images is not. FOLDER gets samples.json, curves.png and README.md.
A method whose time turns out more than a tenth off (other work on the machine makes the short run a bad guess) runs
again with as many steps as its speed asked for, three times at most, and the run nearest to the time counts. What
samples.json already holds in time is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shlex
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import fastssl
from fastssl import recipes
from fastssl.config import BUILTIN, Config
from fastssl.data import ensure_builtin, open_splits
from fastssl.data.order import steps_per_epoch
from fastssl.errors import UserError
from fastssl.methods import METHODS
from fastssl.report.curves import INK, LINE, MUTED, read_metrics
from fastssl.report.environment import environment

MULTICROP = "swav multi-crop"
PROBE_STEPS = 60
"""Steps that tell how fast a method is."""
BANK = 50_000
"""Training images used as neighbours, by default."""
CURVE = 4
"""kNN accuracies of a curve."""
TOLERANCE = 0.1
"""Share of the time by which a run may miss it."""
TRIES = 3
"""Runs of a method until one takes the time."""
Measured = dict[str, Any]


def config_of(name: str, recipe: str, threads: int, seed: int, bank: int) -> Config:
    if name == MULTICROP:
        name, recipe = "swav", f"{recipe}-multicrop"
    config = recipes.get(name, recipe)
    return replace(
        config,
        train=replace(config.train, threads=threads, device="cpu", seed=seed),
        loader=replace(config.loader, threads=threads),
        monitor=replace(config.monitor, linear=False, tensorboard=False, knn_bank=bank),
    )


def run(
    name: str,
    data: str,
    recipe: str,
    minutes: float,
    threads: int,
    seed: int,
    bank: int,
    speed: float | None = None,
) -> Measured:
    """A method's figures, in a process of its own. speed: images/s, if it is known."""
    config = config_of(name, recipe, threads, seed, bank)
    epoch = steps_per_epoch(images(data), config.train.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        steps = config.train.epochs * epoch
        if minutes:
            speed = speed or _speed(config, data, Path(folder) / "probe")
            steps = max(PROBE_STEPS, round(60 * minutes * speed / config.train.batch_size))
            config = replace(config, train=replace(config.train, max_steps=steps, epochs=1_000_000))
        config = replace(config, monitor=replace(config.monitor, knn_epochs=math.ceil(steps / CURVE) / epoch))
        summary, rows = _finished(config, data, Path(folder) / "run")
    curve = [(row["time"] / 60, row["knn"]) for row in rows if row["kind"] == "knn"]
    last = [row for row in rows if row["kind"] == "train"][-1]
    return {
        "curve": curve,
        "random_knn": summary["random_knn"],
        "minutes": summary["training_seconds"] / 60,
        "steps": summary["steps"],
        "images": summary["steps"] * config.train.batch_size,
        "images_per_second": summary["images_per_second"],
        "rankme": [row["rankme"] for row in rows if "rankme" in row][-1],
        "last": {key: value for key, value in last.items() if isinstance(value, float)},
        "width": getattr(config.method, "out", None),
    }


def end_with_parent() -> None:
    """A comparison that is killed leaves no training behind that would slow down the next."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def images(data: str) -> int:
    """Images to train on."""
    return len(open_splits(ensure_builtin() if data == BUILTIN else Path(data))[0])


def _speed(config: Config, data: str, folder: Path) -> float:
    """Images/s of a short run. Its first steps fill caches and pools."""
    silent = replace(config.monitor, knn_epochs=0, baselines=False)
    probe = replace(config, train=replace(config.train, max_steps=PROBE_STEPS), monitor=silent)
    _, rows = _finished(probe, data, folder)
    return median([row["images_per_second"] for row in rows if row["kind"] == "train"][1:])


def in_time(found: Measured | None, minutes: float) -> bool:
    """Whether a method has run, and for as long as was asked, or for the fewest steps."""
    if found is None or not minutes:
        return found is not None
    return abs(found["minutes"] / minutes - 1) <= TOLERANCE or found["steps"] == PROBE_STEPS


def until_in_time(
    submit: Callable[[str, float | None], Future[Measured]],
    names: list[str],
    found: dict[str, Measured],
    minutes: float,
) -> Iterator[tuple[str, Measured]]:
    """Run what `found` does not hold in time, and yield each run's name and the run so far nearest to the time.

    submit: starts a method's run, at the speed that is given or at one that it must find out.
    """
    found, tries, running = dict(found), Counter[str](), dict[Future[Measured], str]()
    for name in names:
        before = found.get(name)
        if not in_time(before, minutes):
            running[submit(name, before and before["images_per_second"])] = name
    while running:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            name, new = running.pop(future), future.result()
            tries[name] += 1
            found[name] = min(new, found.get(name, new), key=lambda run: abs(run["minutes"] - minutes))
            if not in_time(found[name], minutes) and tries[name] < TRIES:
                running[submit(name, new["images_per_second"])] = name
            yield name, found[name]


def _finished(config: Config, data: str, folder: Path) -> tuple[Measured, list[Measured]]:
    result = fastssl.pretrain(config, data=data, run_dir=folder, quiet=True)
    if not result.finished:
        raise SystemExit(f"{folder.name} was interrupted")
    return json.loads((folder / "summary.json").read_text()), read_metrics(folder / "metrics.jsonl")


def table(samples: Measured) -> list[str]:
    """Markdown, the best method first."""
    rows = [
        "| method | kNN at ¼, ½, ¾ and the end, % | above the random network | minutes | images/s | epochs | "
        "embedding std · √D | rank of the features | entropy, nats |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    by_knn = sorted(samples["methods"].items(), key=lambda entry: -entry[1]["curve"][-1][1])
    for name, found in by_knn:
        curve, last = found["curve"], found["last"]
        on_the_way = [at(curve, share * found["minutes"]) for share in (0.25, 0.5, 0.75)]
        words = ", ".join("–" if knn is None else f"{100 * knn:.1f}" for knn in on_the_way)
        std = last.get("embedding_std")
        spread = "–" if std is None else f"{std * math.sqrt(found['width']):.2f}"
        entropy = [f"{last[key]:.2f} ({words})" for key, words in ENTROPIES.items() if key in last]
        rows.append(
            f"| {name} | {words}, **{100 * curve[-1][1]:.1f}** | {100 * (curve[-1][1] - found['random_knn']):+.1f} | "
            f"{found['minutes']:.1f} | {found['images_per_second']:,.0f} | {found['images'] / samples['images']:.1f} | "
            f"{spread} | "
            f"{found['rankme']:.0f} | {entropy[0] if entropy else '–'} |"
        )
    return rows


ENTROPIES = {"code_entropy": "codes", "entropy": "candidates"}


def at(curve: list[tuple[float, float]], minutes: float) -> float | None:
    """The last kNN accuracy measured by then, give or take a twentieth of the time: equal shares of the steps are not
    quite equal shares of the time."""
    before = [knn for time, knn in curve if time <= minutes * 1.05]
    return before[-1] if before else None


def draw(samples: Measured, file: Path) -> None:
    """A panel a method, the others in gray behind it."""
    from matplotlib.figure import Figure

    names = sorted(samples["methods"], key=lambda name: -samples["methods"][name]["curve"][-1][1])
    columns = 5
    figure = Figure(figsize=(11, 2.1 * math.ceil(len(names) / columns)), layout="constrained")
    grid = figure.subplots(math.ceil(len(names) / columns), columns, sharex=True, sharey=True, squeeze=False)
    axes = [*grid.flat]
    for axis, name in zip(axes, names, strict=False):
        for other in [*(n for n in names if n != name), name]:
            found = samples["methods"][other]
            x, y = zip(*[(0.0, found["random_knn"]), *found["curve"]], strict=True)
            front = other == name
            axis.plot(
                x,
                [100 * v for v in y],
                color=LINE if front else MUTED,
                lw=2 if front else 0.6,
                alpha=1 if front else 0.5,
            )
        axis.set_title(f"{name}  {100 * found['curve'][-1][1]:.1f} %", fontsize=9, color=INK)
        axis.tick_params(colors=MUTED, labelsize=7)
        for spine in axis.spines.values():
            spine.set_color(MUTED)
    for place in range(len(names), len(axes)):
        axes[place].set_visible(False)
        axes[place - columns].tick_params(labelbottom=True)
    figure.supxlabel("minutes of training", fontsize=9, color=INK)
    figure.supylabel("kNN accuracy, %", fontsize=9, color=INK)
    figure.savefig(file, transparent=True, dpi=140)


def page(samples: Measured) -> str:
    options = samples["options"]
    machine = samples["environment"]["cpu"]
    data = BUILTIN if samples["data"] == BUILTIN else "DATA"
    more = f" --seed {options['seed']}" if options.get("seed") else ""
    if options.get("knn_bank", BANK) != BANK:
        more += f" --knn-bank {options['knn_bank']}"
    if options.get("methods"):
        more += " --methods " + " ".join(map(shlex.quote, options["methods"]))
    return "\n".join(
        [
            f"# Every method for {options['minutes']:g} minutes"
            if options["minutes"]
            else "# Every method's own recipe",
            "",
            f"Data: {samples['data']}. {machine['model']}, {options['threads']} thread(s) a method, {options['jobs']} "
            f"methods side by side; recipe `{options['recipe']}`.",
            "",
            f"    python benchmarks/methods/compare.py {data} --recipe {options['recipe']} --minutes "
            f"{options['minutes']:g} --threads {options['threads']} --jobs {options['jobs']}{more} --out FOLDER",
            "",
            *table(samples),
            "",
            f"kNN: 20 neighbours among at most {options.get('knn_bank', BANK):,} images, on the held-out ones, after "
            "every quarter of the steps. An embedding's standard deviation times √D is 1 where directions are spread "
            "evenly and 0 where all embeddings are one; the rank is RankMe's of the backbone's features; entropy is "
            "that of a row's code over the prototypes, or of the softmax over its candidates.",
            "",
            "![kNN against minutes](curves.png)",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="as `fastssl pretrain --data`, with labels and held-out images; or builtin")
    parser.add_argument("--data-name", help="what to call the data instead of its path")
    parser.add_argument("--recipe", default="cifar10-small")
    parser.add_argument("--minutes", type=float, default=6.0, help="of training, for each; 0: as the recipe says")
    parser.add_argument("--threads", type=int, default=1, help="of each method")
    parser.add_argument("--jobs", type=int, default=2, help="methods side by side")
    parser.add_argument("--seed", type=int, default=0, help="of every run")
    parser.add_argument("--knn-bank", type=int, default=BANK, help="training images used as neighbours, at most")
    parser.add_argument("--methods", nargs="*", help=f"of {', '.join([*METHODS, repr(MULTICROP)])}; all by default")
    parser.add_argument("--out", type=Path, required=True, help="folder for the record")
    options = parser.parse_args()
    several = [MULTICROP] if f"{options.recipe}-multicrop" in recipes.RECIPES["swav"] else []
    names = options.methods or [*METHODS, *several]
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "samples.json"
    shown = {
        key: getattr(options, key) for key in ("recipe", "minutes", "threads", "jobs", "seed", "knn_bank", "methods")
    }
    samples: Measured = {
        "data": options.data_name or options.data,
        "images": images(options.data),
        "options": shown,
        "environment": {"cpu": environment()["cpu"]},
        "methods": {},
    }
    if file.exists():
        stored = json.loads(file.read_text())
        for key, value in shown.items():
            before = stored["options"].get(key, value)
            if key != "methods" and before != value:
                option = f"--{key.replace('_', '-')} {value}"
                raise UserError(f"{option} does not fit {file}, whose runs had {before}: choose another --out")
        samples["methods"] = stored["methods"]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        options.jobs, mp_context=spawn, max_tasks_per_child=1, initializer=end_with_parent
    ) as pool:
        arguments = (options.data, options.recipe, options.minutes, options.threads, options.seed, options.knn_bank)

        def submit(name: str, speed: float | None) -> Future[Measured]:
            return pool.submit(run, name, *arguments, speed)

        for name, found in until_in_time(submit, names, samples["methods"], options.minutes):
            samples["methods"][name] = found
            print(f"{name}: kNN {found['curve'][-1][1]:.1%} after {found['minutes']:.1f} min", flush=True)
            file.write_text(json.dumps(samples, indent=1) + "\n")
    draw(samples, options.out / "curves.png")
    (options.out / "README.md").write_text(page(samples))
    print("\n".join(table(samples)))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
