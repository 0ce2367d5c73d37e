"""A plan as tables, formulas with their values, and sentences."""

from __future__ import annotations

from collections.abc import Sequence

from ..report.text import count, table
from .chips import EFFICIENCY
from .formulas import number, size_formulas, time_formulas
from .predict import Impossible, Plan, Prediction
from .published import CALIBRATION, Compared, Implied, SupervisedRow

WITHIN = 0.25
"""Distance of a prediction from the published figure that the model claims."""


def describe(plan: Plan, asked: Prediction, scaling: Sequence[Prediction | Impossible]) -> list[str]:
    """All lines: what is planned, the run that was asked for, other numbers of GPUs, the formulas of the first."""
    parts = [_planned(plan), _one(plan, asked), _scaling(plan, scaling), _formulas(plan, asked)]
    return [line for part in parts for line in [*part, ""]][:-1]


def describe_published(compared: Sequence[Compared], implied: Sequence[Implied]) -> list[str]:
    """The tables of published figures."""
    return [*_supervised(compared), "", *_self_supervised(implied)]


def _planned(plan: Plan) -> list[str]:
    config, site, n = plan.config, plan.site, plan.networks
    sizes = dict.fromkeys(view.size for view in config.augment.views)
    views = " + ".join(f"{count} × {size}" for size, count in zip(sizes, config.augment.counts, strict=True))
    machine = site.machine
    lines = [
        f"{config.method_name} ({config.recipe}): {config.backbone.name}, views of {views} pixels, batch "
        f"{config.train.batch_size:,}, {config.train.epochs:,} epochs of {plan.images:,} images",
        f"{machine.chip.name}, {machine.precision}: {machine.chip.rate(machine.precision) / 1e12:,g} TFLOP/s, "
        f"{machine.chip.bandwidth:,g} GB/s, {machine.chip.memory:g} GB; {site.intra:g} GB/s a GPU inside a machine of "
        f"{site.a_machine}, {site.inter:g} GB/s between machines; efficiency {machine.efficiency:g}",
        f"{number(n.flops / 1e9)} GFLOP an image and step, {sum(n.trained) / 1e6:,.1f} million trained parameters. "
        "Every figure below is predicted, none measured.",
    ]
    if machine.efficiency == EFFICIENCY and config.method_name != "supervised":
        lines.append(
            "The efficiency is that of supervised training at its best. Published self-supervised runs imply less, "
            "down to a quarter of it: `fastssl plan published`, --efficiency."
        )
    if machine.precision == "bf16" and not machine.chip.tf32:
        lines.append("The rate is that of fp16: a V100 multiplies bf16 without tensor cores, far slower.")
    return lines


def _one(plan: Plan, asked: Prediction) -> list[str]:
    site = plan.site
    cores = f"{asked.cores:,.1f} a GPU, {asked.cores * asked.gpus:,.0f} in all"
    disk = asked.images_per_second * site.image_bytes / 1e9
    rows = [
        (f"on {count(asked.gpus, 'GPU')}", "predicted"),
        ("images/s", f"{asked.images_per_second:,.0f}, {asked.images_per_second / asked.gpus:,.0f} a GPU"),
        ("hours", f"{number(asked.hours)}, {number(asked.hours * asked.gpus)} GPU hours"),
        ("memory a GPU", f"{asked.memory / 1e9:,.1f} of {site.machine.chip.memory:g} GB, {_together(asked)}"),
        ("largest batch a GPU", f"{asked.largest:,} images, {asked.largest * asked.gpus:,} in all"),
        ("cores to decode", cores),
        ("disk to read", f"{disk:,.2f} GB/s, {disk / site.machines(asked.gpus):,.2f} a machine"),
        ("communication", f"{asked.communication_share:.1%} of the step"),
        ("checkpoint", f"{number(plan.checkpoint / 1e9)} GB in {number(plan.checkpoint_seconds)} s"),
    ]
    lines = table(rows)
    if asked.bound != "GPUs":
        lines.append(f"  The {asked.bound} set the pace: GPUs alone would do {_alone(plan, asked):,.0f} images/s.")
    return lines


def _scaling(plan: Plan, scaling: Sequence[Prediction | Impossible]) -> list[str]:
    head = ("predicted, GPUs", "images a GPU", "images/s", "hours", "GPU hours", "GB a GPU", "communication", "cores")
    rows: list[tuple[str, ...]] = [head]
    for entry in scaling:
        if isinstance(entry, Impossible):
            rows.append((f"{entry.gpus:,}", f"not possible: {entry.reason}"))
            continue
        images = f"{entry.images:,}" if entry.micro_batch is None else f"{entry.images:,} by {entry.micro_batch:,}"
        cells = (images, f"{entry.images_per_second:,.0f}", number(entry.hours), number(entry.hours * entry.gpus))
        more = (f"{entry.memory / 1e9:,.1f}", f"{entry.communication_share:.1%}", f"{entry.cores * entry.gpus:,.0f}")
        rows.append((f"{entry.gpus:,}", *cells, *more))
    lines = table(rows)
    if any(isinstance(entry, Prediction) and entry.micro_batch for entry in scaling):
        lines.append('  "512 by 256": 512 images a GPU that pass 256 at a time, with --train.micro-batch 256.')
    for bound in ("cores", "disk"):
        limited = [f"{entry.gpus:,}" for entry in scaling if isinstance(entry, Prediction) and entry.bound == bound]
        if limited:
            lines.append(f"  The {bound} set the pace of {', '.join(limited)} GPUs.")
    return lines


def _formulas(plan: Plan, asked: Prediction) -> list[str]:
    rows = [("predicted, by these formulas", "with these values")]
    rows += [*time_formulas(plan, asked), *size_formulas(plan, asked)]
    width = max(len(first) for first, _ in rows)
    return [f"  {first.ljust(width)}  {second}" for first, second in rows]


def _supervised(compared: Sequence[Compared]) -> list[str]:
    rows: list[tuple[str, ...]] = [
        ("supervised ResNet-50", "GPUs", "published images/s", "predicted images/s", "predicted / published")
    ]
    for entry in compared:
        numbers = (f"{entry.row.images_per_second:,.0f}", f"{entry.predicted:,.0f}", f"{entry.ratio:.2f}")
        mark = " (calibration)" if entry.row is CALIBRATION else ""
        rows.append((f"{entry.row.gpu} {entry.row.kind}{mark}", f"{entry.row.gpus}", *numbers))
    beyond = [f"{_named(c.row)} ({c.ratio:.2f})" for c in compared if abs(c.ratio - 1) > WITHIN]
    inside = len(compared) - len(beyond)
    return [
        *table(rows),
        "  Published: NVIDIA DeepLearningExamples, ResNet-50 v1.5, PyTorch, training performance.",
        f"  Predicted: the rooflines of all operations / {EFFICIENCY:g}, an efficiency fitted on {_named(CALIBRATION)}",
        "  alone. Rows that are not AMP keep their images channels-first, so that TF32's convolutions turn them.",
        f"  Within {WITHIN:.0%}: {inside} of {len(compared)}." + (f" Beyond: {', '.join(beyond)}." if beyond else ""),
    ]


def _self_supervised(implied: Sequence[Implied]) -> list[str]:
    shares = ("of supervised", "of roofline", "of peak")
    rows: list[tuple[str, ...]] = [
        ("self-supervised, implied", "GPUs", "published", "images/s a GPU", "predicted multiple", *shares)
    ]
    for entry in implied:
        row = entry.row
        kind = "AMP" if row.precision == "bf16" else "FP32"
        shares = (f"{entry.of_supervised:.0%}", f"{entry.of_roofline:.0%}", f"{entry.of_peak:.1%}")
        name, rate = f"{row.method} {row.recipe} {row.gpu} {kind}", f"{row.images_per_second / row.gpus:,.0f}"
        rows.append((name, f"{row.gpus}", row.said, rate, f"{entry.multiple:.2f}", *shares))
    return [
        *table(rows),
        "  Efficiencies that the published times imply. Multiple: FLOPs of an image over those of supervised training.",
        "  Of supervised: images/s · multiple / NVIDIA's supervised images/s of one such GPU.",
        "  Of roofline: predicted seconds of the step's operations at best / seconds that it took; the calibration has "
        f"{EFFICIENCY:g}.",
        "  Of peak: predicted FLOPs · images/s / tensor rate, or the rate of float32 (FP32).",
        "  MoCo's code is FP32; its second row is the same run beside what AMP could do.",
    ]


def _alone(plan: Plan, p: Prediction) -> float:
    return plan.config.train.batch_size / p.step


def _named(row: SupervisedRow) -> str:
    return f"{row.gpu} {row.kind} on {count(row.gpus, 'GPU')}"


def _together(p: Prediction) -> str:
    if p.micro_batch is None:
        return f"{p.images:,} images"
    return f"{p.images:,} images with --train.micro-batch {p.micro_batch}"
