"""The formulas of a prediction, with its values put in: pairs of a formula and its values."""

from __future__ import annotations

from .chips import LAUNCH, RESERVED
from .communication import gradient_bytes
from .predict import DISK, Plan, Prediction


def time_formulas(plan: Plan, p: Prediction) -> list[tuple[str, str]]:
    """Of a step: networks, loss, update, communication."""
    site, n, sent = plan.site, plan.networks, p.communication
    network, norm_ranks = site.network(p.gpus), plan.config.train.norm_ranks
    size, buckets = gradient_bytes(plan.config, n)
    hops = f"{network.latency() * 1e6:g} µs ({site.hop * 1e6:g} a hop, twice that between machines)"
    norms = "not shared: 0 ms"
    if n.shares_norm and norm_ranks != 1:
        way = network.part(norm_ranks or p.gpus).latency()
        norms = f"{way * 1e6:g} µs, {n.norms}, {n.target_norms}, {p.passes}: {ms(sent.norms)}"
    return [
        (
            "networks = Σ max(max(FLOPs / rate, bytes / bandwidth) / efficiency, launch)",
            f"forward {ms(p.forward)}, backward {ms(p.backward)}, without gradients {ms(p.targets)}; launch "
            f"{LAUNCH * 1e6:g} µs",
        ),
        ("loss, update = floors of the kernel library / efficiency", f"{ms(p.loss)}, {ms(p.update)}"),
        (
            "gradients = 2 (n - 1) / n · bytes / link + 2 · buckets · latency",
            f"n {p.gpus:,}, {size / 1e6:,.1f} MB, {network.link / 1e9:g} GB/s, buckets {buckets}, {hops}: "
            f"{ms(sent.gradients)}",
        ),
        (
            "exposed = max(gradients / buckets, gradients - backward / passes)",
            f"{ms(sent.gradients)}, {ms(p.backward)}, {p.passes}: {ms(sent.exposed)}",
        ),
        (
            f"batch norm = latency · ({3 if p.passes == 1 else 4} · norms with gradients + norms without) · passes",
            norms,
        ),
        ("gathered = (n - 1) / n · bytes / link + latency, and sums", ms(sent.gathered)),
        (
            "step = networks + loss + update + exposed + batch norm + gathered",
            f"{ms(p.step)}; the last three are communication, {p.communication_share:.1%}",
        ),
    ]


def size_formulas(plan: Plan, p: Prediction) -> list[tuple[str, str]]:
    """Of the run: images/s, hours, memory, largest batch, cores, checkpoint."""
    site, memory, batch = plan.site, plan.memory, plan.config.train.batch_size
    fixed, image = f"{memory.fixed / 1e9:,.2f}", f"{memory.image / 1e6:,.1f} MB"
    disk = f"{site.disk:g} GB/s" if site.disk else f"{DISK:g} GB/s assumed"
    return [
        ("images/s = min(batch / step, cores · decode rate, disk / bytes)", f"{p.images_per_second:,.0f} ({p.bound})"),
        (
            "hours = epochs · (images // batch) · batch / images/s / 3600",
            f"{plan.total_steps:,} steps of {batch:,} images: {number(p.hours)}",
        ),
        (
            "memory = fixed (state + gradients + momenta + bf16 weights + reserved) + b · image",
            f"{fixed} GB, {RESERVED / 1e9:g} of it reserved; {image}, b {p.together:,}: {p.memory / 1e9:,.1f} GB",
        ),
        (
            "largest batch = (memory of the GPU - fixed) / image, in eights",
            f"({site.machine.chip.memory:g} - {fixed}) GB / {image}: {p.largest:,}",
        ),
        (
            "cores = images/s / decode rate",
            f"{p.images_per_second:,.0f} / {site.decode_rate:g} a core (--decode-rate): {p.cores * p.gpus:,.1f}",
        ),
        (
            "checkpoint = state + momenta; seconds = bytes / disk",
            f"{number(plan.checkpoint / 1e9)} GB / {disk}: {number(plan.checkpoint_seconds)} s",
        ),
    ]


def ms(seconds: float) -> str:
    return f"{number(seconds * 1e3)} ms"


def number(value: float) -> str:
    """Three digits, and all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
