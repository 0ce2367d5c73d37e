"""The page of a run: one file that needs no network, with everything that a reader of the result asks for."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from .curves import References, curves_svg, read_metrics

METHODS = {
    "simclr": "SimCLR", "simclrv2": "SimCLR v2", "moco": "MoCo", "mocov2": "MoCo v2", "byol": "BYOL", "swav": "SwAV",
    "deepclusterv2": "DeepCluster-v2", "selav2": "SeLa-v2", "nnclr": "NNCLR", "relic": "RELIC", "relicv2": "RELICv2",
    "supervised": "supervised training",
}  # fmt: skip
"""How the papers write the names of the methods."""

ACCURACIES = {
    "raw_pixel_knn": "raw pixels, kNN",
    "random_knn": "untrained network, kNN",
    "trained_knn": "trained network, kNN",
    "linear_probe": "trained network, linear probe",
}
"""Keys of summary.json that are fractions 0 … 1, in the order of the table."""

NAMES = {
    "best_knn": "best kNN",
    "cpu": "CPU",
    "cuda": "CUDA",
    "gpus": "GPUs",
    "python": "Python",
    "memory_gib": "memory in GiB",
    "images_per_second": "images / s",
}
"""Other keys are shown with spaces for underscores."""

STYLE = """
:root{color-scheme:light dark;
--page:#fff;--card:#f6f8fa;--ink:#1f2328;--muted:#59636e;--rule:#d1d9e0;--bar:#2f81d7;--base:#8b949e}
@media(prefers-color-scheme:dark){:root{
--page:#0d1117;--card:#151b23;--ink:#e6edf3;--muted:#9198a1;--rule:#30363d;--bar:#539bf5;--base:#6e7681}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:36px 24px 64px}
h1{font-size:30px;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:18px;margin:44px 0 12px;padding-bottom:6px;border-bottom:1px solid var(--rule)}
h3{font-size:15px;margin:26px 0 6px}
.sub,.missing,.note{color:var(--muted)}
.sub{font-size:16px;margin:0 0 28px}
.note{font-size:13.5px;margin:6px 0 0}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:5px 16px 5px 0;vertical-align:top;font-weight:400}
th{color:var(--muted);width:17em}
td{font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.bars td{vertical-align:middle}
.bars td.n{width:5em;text-align:right;font-weight:600;padding-right:14px}
.bars i{display:block;height:16px;border-radius:3px;background:var(--base);min-width:2px}
.bars tr.main i{background:var(--bar)}
.bars tr.main th{color:var(--ink)}
.cards{display:flex;flex-wrap:wrap;gap:14px;margin:0 0 24px}
.cards div{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:12px 20px;min-width:150px}
.cards b{display:block;font-size:26px;line-height:1.25}
.cards span{color:var(--muted);font-size:13.5px}
img,svg{display:block;max-width:100%;height:auto}
svg{width:100%}
pre{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:12px 14px;margin:0;overflow-x:auto;
font:13px/1.5 ui-monospace,Menlo,Consolas,monospace}
pre.wrap{white-space:pre-wrap;overflow-wrap:anywhere}
details summary{cursor:pointer;color:var(--muted);margin-bottom:10px}
@media(max-width:640px){main{padding:20px 14px 40px}th{width:auto}.bars th{width:9em}}
"""

POLICY = "default-src 'none';img-src data:;style-src 'unsafe-inline'"
"""The page may show what it holds and fetch nothing."""


def write_report(run_dir: Path, *, command: str | None = None) -> Path:
    """Write `run_dir`/report.html from the files of the run and return its path.

    It reads summary.json, config.yaml, environment.json, metrics.jsonl, views.png and embeddings.png; what is missing
    or unreadable is named on the page. `command` defaults to the one in environment.json.
    """
    summary = _json(run_dir / "summary.json")
    config_text = _text(run_dir / "config.yaml")
    environment = _json(run_dir / "environment.json")
    config = _yaml(config_text)
    command = command or (environment or {}).get("command")
    sections = [
        ("Results", _results(summary)),
        ("Curves", _curves(run_dir / "metrics.jsonl", summary or {}, config)),
        ("Embeddings of test images", _picture(run_dir / "embeddings.png", "t-SNE of embeddings before and after")),
        ("What the network sees", _picture(run_dir / "views.png", "Images and their augmented views")),
        ("Command", f'<pre class="wrap">{escape(str(command))}</pre>' if command else _missing("the command")),
        ("Environment", _environment(environment)),
        ("Configuration", _configuration(config_text)),
    ]
    title, subtitle = _title(config, summary or {})
    body = "".join(f"<section><h2>{escape(name)}</h2>{content}</section>\n" for name, content in sections)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>"
        f'<h1>{escape(title)}</h1><p class="sub">{escape(subtitle)}</p>\n{body}</main></body></html>\n'
    )
    path = run_dir / "report.html"
    temporary = path.with_name(".report.html")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def _title(config: Mapping[str, Any], summary: Mapping[str, Any]) -> tuple[str, str]:
    method = config.get("method_name") or summary.get("method")
    recipe = config.get("recipe") or summary.get("recipe")
    data = config.get("data") or summary.get("data")
    backbone = config.get("backbone")
    name = METHODS.get(str(method), str(method)) if method else "A pre-training run"
    facts = [
        f"recipe {recipe}" if recipe else "",
        str(backbone["name"]) if isinstance(backbone, dict) and backbone.get("name") else "",
        f"data {data}" if data else "",
    ]
    return f"{name} on {data}" if data and data != "builtin" else name, " · ".join(fact for fact in facts if fact)


def _results(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return _missing("summary.json")
    rest = dict(summary)
    shares = {key: float(rest.pop(key)) for key in ACCURACIES if _is_number(rest.get(key))}
    cards = []
    if "trained_knn" in shares:
        cards.append((f"{shares['trained_knn']:.1%}", "kNN accuracy"))
    if "linear_probe" in shares:
        cards.append((f"{shares['linear_probe']:.1%}", "linear probe"))
    if _is_number(rest.get("images_per_second")):
        cards.append((f"{rest.pop('images_per_second'):,.0f}", "images / s"))
    if _is_number(rest.get("training_seconds")):
        cards.append((duration(rest.pop("training_seconds")), "training time"))
    html = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in cards)
    bars = "".join(
        f"<tr{'' if key in ('raw_pixel_knn', 'random_knn') else ' class=main'}><th>{ACCURACIES[key]}</th>"
        f'<td class="n">{share:.1%}</td><td><i style="width:{100 * min(max(share, 0.0), 1.0):.1f}%"></i></td></tr>'
        for key, share in shares.items()
    )
    absent = [name for key, name in ACCURACIES.items() if key not in shares and key != "linear_probe"]
    return (
        (f'<div class="cards">{html}</div>' if html else "")
        + (f'<table class="bars">{bars}</table>' if bars else "")
        + (f'<p class="note">Not measured: {escape("; ".join(absent))}.</p>' if absent else "")
        + (f"<h3>More figures</h3>{_table(rest)}" if rest else "")
    )


def _curves(path: Path, summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    try:
        return curves_svg(read_metrics(path), _references(summary, config)).replace(
            "<svg ", '<svg role="img" aria-label="Curves of the training" ', 1
        )
    except OSError:
        return _missing(path.name)
    except ValueError:
        return f'<p class="missing">{escape(path.name)} holds no measurements yet.</p>'


def _references(summary: Mapping[str, Any], config: Mapping[str, Any]) -> References:
    """Baselines of the kNN curve, and the spread of embeddings that fill their space."""
    names = {"raw_pixel_knn": "raw pixels", "random_knn": "untrained network"}
    found = {"knn": [(name, float(summary[key])) for key, name in names.items() if _is_number(summary.get(key))]}
    method = config.get("method")
    width = method.get("out") if isinstance(method, dict) else None
    if _is_number(width) and width > 0:
        found["embedding_std"] = [("1/√D", 1 / math.sqrt(width))]
    return found


def _picture(path: Path, description: str) -> str:
    try:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError:
        return _missing(path.name)
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">'


def _environment(environment: Mapping[str, Any] | None) -> str:
    if environment is None:
        return _missing("environment.json")
    return _table({key: value for key, value in environment.items() if key != "command"})


def _configuration(text: str | None) -> str:
    if text is None:
        return _missing("config.yaml")
    return f"<details><summary>config.yaml</summary><pre>{escape(text)}</pre></details>"


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(NAMES.get(key, str(key).replace('_', ' ')))}</th><td>{escape(shown(value, key))}</td></tr>"
        for key, value in values.items()
    )
    return f"<table>{rows}</table>"


def shown(value: Any, key: str = "") -> str:
    """A JSON value as a person reads it: lists and mappings on one line, floats to five digits, kNN as a percentage."""
    if isinstance(value, Mapping):
        named = {NAMES.get(key, str(key).replace("_", " ")): item for key, item in value.items() if item is not None}
        return ", ".join(f"{name} {shown(item)}" for name, item in named.items())
    if isinstance(value, list | tuple):
        return ", ".join(shown(item) for item in value) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if key.endswith("_knn"):
            return f"{value:.1%}"
        return f"{value:,.5g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def duration(seconds: float) -> str:
    """Seconds as "42 s", "12 min 5 s" or "3 h 7 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _missing(name: str) -> str:
    return f'<p class="missing">{escape(name)} is missing or cannot be read.</p>'


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(_text(path) or "")
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _yaml(text: str | None) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text or "")
    except yaml.YAMLError:
        return {}
    return value if isinstance(value, dict) else {}
