"""Hurt a training run in every way that a process, a disk or a file can fail, and compare it with one left alone.

    python benchmarks/faults/campaign.py --kills 20 --work WORK --record RECORD

Both runs are the same command, `fastssl pretrain … --requeue`, on a part of the built-in shapes with one image damaged.
The second is killed at random moments and inside checkpoint writes, meets a disk that takes no more (a limit on the
size of files stands for it), is told to end, finds its newest checkpoint truncated, altered or replaced by a pickle
with a payload, and is started again each time. At the end every loss, every kNN accuracy, every parameter and the
optimizer's state must be bit-identical to the first run's.

Attempts are forked from one process that has imported everything, so that each costs its own steps only.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pickle
import random
import resource
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch._dynamo  # what an optimizer would import in each attempt

from fastssl import cli
from fastssl.data import ensure_builtin
from fastssl.engine import checkpoint
from fastssl.engine.checkpoints import stored
from fastssl.report.environment import environment

RECORDS = Path(__file__).parents[1] / "records"
CHECKPOINT_STEPS = 4
DEADLINE = 120.0
"""Seconds after which an attempt that does not come to its fault is a failure of the campaign."""
OPTIONS = (
    "pretrain simclr --recipe quick --backbone.name resnet10 --backbone.width 0.125 --method.hidden 16 --method.out 8 "
    "--augment.views.0.size 16 --evaluate.size 16 --train.batch-size 24 --train.precision fp32 --train.threads 1 "
    f"--train.checkpoint-steps {CHECKPOINT_STEPS} --loader.threads 1 --monitor.log-steps 1 --monitor.knn-epochs 4 "
    "--monitor.no-linear --monitor.no-tensorboard --requeue"
)


@dataclass
class Attempt:
    """One process of the disturbed run."""

    fault: str
    start: int
    """Step that it continued from."""
    reached: int
    """Last step that it logged."""
    code: int
    """Exit code; -n: ended by signal n."""
    lost: int = 0
    """Steps that the next attempt had to make again."""


# -- data -------------------------------------------------------------------------------------------------------------


def images(folder: Path) -> Path:
    """Ten training and three test images of each built-in class; one of them is no image."""
    builtin = ensure_builtin()
    for part, count in (("train", 10), ("test", 3)):
        for kind in sorted((builtin / part).iterdir()):
            (folder / part / kind.name).mkdir(parents=True)
            for path in sorted(kind.iterdir())[:count]:
                shutil.copy(path, folder / part / kind.name)
    victim = sorted((folder / "train").rglob("*.jpg"))[17]
    victim.write_bytes(b"\xff\xd8\xff\xe0 no image")
    return folder


# -- processes --------------------------------------------------------------------------------------------------------


def start(command: list[str], log: Path, hook: Callable[[], None] | None) -> int:
    """Fork a process that runs `command`, after `hook`; its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if hook is not None:
            hook()
        code = cli.main(command)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def steps_logged(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return 0
    steps = [0]
    for line in path.read_text(errors="replace").splitlines():
        if line.endswith("}"):
            steps.append(json.loads(line)["step"])
    return max(steps)


def ended(child: int) -> int | None:
    """Exit code of a process that has ended: -n if signal n did it."""
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


# -- faults -----------------------------------------------------------------------------------------------------------


def kill_inside_write(point: str, number: int) -> Callable[[], None]:
    """Let the process die at `point` of its checkpoint write number `number`."""

    def install() -> None:
        real, seen = os.fsync, [0]

        def fsync(descriptor: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            if regular and ".step-" in path.name:
                seen[0] += 1
                if seen[0] == number and point == "half written":
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                if seen[0] == number and point in ("half written", "before fsync"):
                    os.kill(os.getpid(), signal.SIGKILL)
            real(descriptor)
            here = {"before rename": regular and ".step-" in path.name, "before link": path.name == "checkpoints"}
            here["before removing old ones"] = (path / "checkpoints").is_dir()
            if seen[0] == number and here.get(point):
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = fsync

    return install


def full_disk() -> None:
    """No file of this process may grow to the size of a checkpoint: the kernel refuses the write."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))


class Payload:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("executed",)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def plant_a_payload(path: Path) -> None:
    path.write_bytes(pickle.dumps({"format": 1, "method": Payload()}))


POINTS = ("half written", "before fsync", "before rename", "before link", "before removing old ones")
DAMAGE = {"newest truncated": truncate, "bit flipped in newest": flip_a_bit, "newest is a payload": plant_a_payload}


def plan(kills: int, chance: random.Random) -> list[str]:
    """The faults in the order in which they happen."""
    faults = ["kill" if i % 4 else "kill at start" for i in range(1, kills + 1)]
    others = [f"kill {point}" for point in POINTS] + list(DAMAGE) + ["disk full", "SIGTERM", "SIGUSR1"]
    faults += others
    chance.shuffle(faults)
    return faults


class Campaign:
    """Both runs in the folder `work`."""

    def __init__(self, work: Path, *, kills: int, steps: int, seed: int) -> None:
        self.work, self.chance, self.kills = work, random.Random(seed), kills
        options = OPTIONS.split()
        self.command = [*options, "--train.max-steps", str(steps), "--data", str(images(work / "images")), "--run-dir"]
        self.alone, self.hurt = work / "alone", work / "hurt"
        self.attempts: list[Attempt] = []
        self._stepped: Attempt | None = None

    def run(self) -> None:
        code = self._attempt(self.alone, None)[0]
        if code:
            raise SystemExit(f"the undisturbed run ended with {code}: see {self.work / 'alone.log'}")
        for fault in plan(self.kills, self.chance):
            self._disturb(fault)
        code, first = self._attempt(self.hurt, None)
        self._note("none", first, code)

    def _disturb(self, fault: str) -> None:
        wanted = self.chance.randint(1, 7)
        hook, number = None, signal.SIGKILL
        if fault.removeprefix("kill ") in POINTS:
            hook = kill_inside_write(fault.removeprefix("kill "), self.chance.randint(1, 2))
            number = None
        elif fault == "disk full":
            hook, number, wanted = full_disk, signal.SIGTERM, 2 * CHECKPOINT_STEPS + 1
        elif fault.startswith("SIG"):
            number = getattr(signal, fault)
        elif fault in DAMAGE:
            wanted = 2 * CHECKPOINT_STEPS + 2
        wanted = 0 if fault == "kill at start" else wanted
        code, first = self._attempt(self.hurt, hook, number=number, wanted=wanted)
        self._note(fault, first, code)
        if fault in DAMAGE:
            DAMAGE[fault](stored(self.hurt)[0])

    def _attempt(
        self, run_dir: Path, hook: Callable[[], None] | None, *, number: int | None = None, wanted: int = 0
    ) -> tuple[int, int | None]:
        """Run until the end or until signal `number`, `wanted` steps after the start (0: within a second or two steps).

        Returns the exit code and the step continued from, None if it did not come so far.
        """
        log = run_dir.with_suffix(".log")
        written = log.stat().st_size if log.exists() else 0
        child = start([*self.command, str(run_dir)], log, hook)
        begun, delay = time.monotonic(), self.chance.random()
        first, sent = None, False
        while (code := ended(child)) is None:
            time.sleep(0.002)
            if first is None:
                first = _continued_from(log, written)
            if time.monotonic() - begun > DEADLINE:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise SystemExit(f"an attempt took longer than {DEADLINE:.0f} s: see {log}")
            if number is None or sent:
                continue
            # A fast machine would otherwise be through with the run before all faults have had their turn.
            due = first is not None and steps_logged(run_dir) >= first + (wanted or 2)
            due = due or (not wanted and time.monotonic() - begun > delay)
            if due:
                time.sleep(0.03 * delay if wanted else 0)
                os.kill(child, number)
                sent = True
        return code, _continued_from(log, written) if first is None else first

    def _note(self, fault: str, first: int | None, code: int) -> None:
        """Count a process, and what the one before it that made steps has lost."""
        reached = steps_logged(self.hurt)
        if first is None:  # it ended before it read a checkpoint
            self.attempts.append(Attempt(fault, reached, reached, code))
            return
        if self._stepped is not None:
            self._stepped.lost = max(0, self._stepped.reached - first)
        self._stepped = Attempt(fault, first, max(first, reached), code)
        self.attempts.append(self._stepped)

    def differences(self) -> list[str]:
        """What the two runs do not share, in words."""
        found = []
        ours, theirs = (checkpoint.load(folder / "last.pt") for folder in (self.hurt, self.alone))
        found += [f"step {ours['step']} and {theirs['step']}"] if ours["step"] != theirs["step"] else []
        for part in ("method", "optimizer"):
            found += [] if _same(ours[part], theirs[part]) else [part]
        found += [] if _rows(self.hurt) == _rows(self.alone) else ["metrics.jsonl"]
        names = ("raw_pixel_knn", "random_knn", "trained_knn", "best_knn", "best_step", "unreadable_images", "steps")
        ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (self.hurt, self.alone))
        found += [name for name in names if ours[name] != theirs[name]]
        if len({(folder / "quarantine.json").read_text() for folder in (self.hurt, self.alone)}) > 1:
            found.append("quarantine.json")
        left = [path.name for path in self.hurt.rglob(".*")]
        found += [f"left behind: {', '.join(left)}"] if left else []
        found += ["a payload was executed"] if Path("executed").exists() else []
        return found


def _continued_from(log: Path, written: int) -> int | None:
    """The step that the process in `log` continued from, or None while it has not said so."""
    if not log.exists():
        return None
    with log.open("rb") as file:
        file.seek(written)
        text = file.read().decode(errors="replace")
    if "continuing after step " in text:
        word = text.partition("continuing after step ")[2].split("\n")[0]
        return int(word) if word.isdigit() else None
    return 0 if "before training:" in text else None


def _rows(run_dir: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "timing"} for row in rows]


def _same(ours: object, theirs: object) -> bool:
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return ours == theirs


# -- what is left -----------------------------------------------------------------------------------------------------


def draw(attempts: list[Attempt], path: Path) -> None:
    """A line an attempt: the steps it kept, the steps that were lost, and what happened to it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.26 * len(attempts) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for row, attempt in enumerate(attempts):
        kept = attempt.reached - attempt.lost
        axes.barh(row, max(0, kept - attempt.start), left=attempt.start, color="#2f81d7", height=0.7)
        axes.barh(row, attempt.lost, left=kept, color="#d1242f", height=0.7)
        words = "finished" if attempt.fault == "none" else f"{attempt.lost} lost"
        axes.text(attempt.reached + 0.6, row, words, va="center", fontsize=8, color="#57606a")
    names = ["left alone" if attempt.fault == "none" else attempt.fault for attempt in attempts]
    axes.set_yticks(range(len(attempts)), names, fontsize=8)
    axes.set_ylim(len(attempts) - 0.4, -0.6)
    axes.set_xlim(0, max(attempt.reached for attempt in attempts) * 1.12)
    axes.set_xlabel("step")
    axes.set_title("steps kept (blue) and made again (red) by each process of one run", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def table(attempts: list[Attempt]) -> str:
    lines = ["| fault | injected | survived | steps lost, each | most |", "|---|---|---|---|---|"]
    finished = attempts[-1].code == 0
    for fault in sorted({attempt.fault for attempt in attempts} - {"none"}):
        lost = [attempt.lost for attempt in attempts if attempt.fault == fault]
        survived = len(lost) if finished else 0  # each was followed by a process that went on
        lines.append(f"| {fault} | {len(lost)} | {survived} | {', '.join(map(str, lost))} | {max(lost)} |")
    return "\n".join(lines)


def write_record(folder: Path, campaign: Campaign, result: dict, words: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "faults.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    draw(campaign.attempts, folder / "faults.png")
    attempts, most = campaign.attempts, max(attempt.lost for attempt in campaign.attempts)
    (folder / "README.md").write_text(
        f"# faults\n\nOne run of {result['steps']} steps with a checkpoint every {CHECKPOINT_STEPS}, hurt "
        f"{len(attempts) - 1} times and started again by the same command,\nbeside a run left alone. "
        f"Both read a data folder with a damaged image.\n\n    python benchmarks/faults/campaign.py {words}\n\n"
        f"Parameters, optimizer state, every loss and every kNN accuracy: {result['verdict']}. Most steps lost at "
        f"once: {most}.\n\n{table(attempts)}\n\n"
        "Lost are steps that the next process made again. A write goes on behind the training, so a kill inside it\n"
        "costs the steps since the checkpoint before; so does a damaged newest file. A full disk (a limit on the size\n"
        "of files stands for it) costs all steps since it filled up. SIGTERM and SIGUSR1 cost none. `faults.json`\n"
        "holds every attempt.\n\n![attempts](faults.png)\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills at random moments, beside one of each other fault")
    parser.add_argument("--steps", type=int, default=100, help="steps of the run")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the faults and their moments")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs, which must not exist")
    parser.add_argument("--record", type=Path, help="folder to write the record to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True)
    campaign = Campaign(options.work, kills=options.kills, steps=options.steps, seed=options.seed)
    begun = time.monotonic()
    campaign.run()
    found = campaign.differences()
    result = {
        "verdict": "bit-identical" if not found else "DIFFERENT: " + "; ".join(found),
        "steps": options.steps,
        "checkpoint_steps": CHECKPOINT_STEPS,
        "seconds": round(time.monotonic() - begun, 1),
        "date": f"{datetime.date.today():%Y-%m-%d}",
        "attempts": [asdict(attempt) for attempt in campaign.attempts],
    }
    (options.work / "faults.json").write_text(json.dumps(result, indent=1) + "\n")
    if options.record:
        words = f"--kills {options.kills} --steps {options.steps} --seed {options.seed} --work WORK --record RECORD"
        write_record(options.record, campaign, result, words)
    print(table(campaign.attempts))
    print(f"{result['verdict']}, {result['seconds']} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
