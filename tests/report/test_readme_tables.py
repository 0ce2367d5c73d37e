"""The README's tables of figures are what the records say."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "benchmarks" / "records"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "benchmarks" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def records(tmp_path):
    return Path(shutil.copytree(RECORDS, tmp_path / "records"))


def test_the_readme_is_current(script):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert script.filled(text, script.tables(RECORDS)) == text


def test_a_ratio_is_one_of_medians(script, records):
    """Made samples: ours 1, 2 and 9 seconds, theirs 3, 8 and 8, so 8 / 2."""
    file = records / script.KERNELS / "sinkhorn.json"
    file.write_text(json.dumps({"seconds": {"fastssl": [9.0, 1.0, 2.0], "lightly": [3.0, 8.0, 8.0]}}))
    assert "| Sinkhorn 4096 × 3000 | lightly | 4.0 × |" in script.kernels(records)


def test_a_share_of_the_floor_is_one_of_medians(script, records):
    file = records / script.VIEWS_OF / "swav.json"
    samples = {"native": [1.0, 300.0, 400.0], "floor": [600.0], "lightly": [50.0], "dali graph": [100.0]}
    file.write_text(json.dumps({"images_per_second": samples}))
    assert "| **300** | 50 (6.0 ×) | 100 (3.0 ×) | 600 (50 %) |" in script.views(records)


def test_a_step_is_compared_by_medians(script, records):
    file = records / f"{script.TRAINING}.json"
    samples = {"fastssl": [9.0, 40.0, 60.0], "lightly": [16.0], "lightly tuned": [1.0, 20.0, 70.0]}
    file.write_text(json.dumps({"images_per_second": samples}))
    assert "| **40.0** | 16.0 (2.50 ×) | 20.0 (2.00 ×) |" in script.training(records)


def test_the_best_method_comes_first(script, records):
    def entry(knn):
        return {"curve": [[1.0, 0.3], [2.0, knn]], "random_knn": 0.25, "minutes": 2.0, "images": 3000}

    file = records / f"{script.METHODS}.json"
    file.write_text(json.dumps({"images": 2000, "methods": {"byol": entry(0.2), "simclr": entry(0.5)}}))
    assert script.methods(records).splitlines()[2:] == [
        "| simclr | 50.0 | +25.0 | 2.0 | 1.5 |",
        "| byol | 20.0 | -5.0 | 2.0 | 1.5 |",
    ]


def test_another_sample_is_another_readme(script, records):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    file = records / script.RUNS["built-in shapes, `quick`"] / "summary.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "trained_knn": 0.5}))
    changed = script.filled(text, script.tables(records))
    assert changed != text
    assert "**50.0 %**" in changed


def test_what_is_missing_is_named(script, records):
    (records / script.KERNELS / "lars.json").unlink()
    with pytest.raises(script.Missing, match=r"_kernels has no lars\.json"):
        script.tables(records)
    file = records / script.KERNELS / "sinkhorn.json"
    file.write_text(json.dumps({"seconds": {"fastssl": [1.0]}}))
    with pytest.raises(script.Missing, match=r"no samples of 'lightly' in sinkhorn\.json"):
        script.tables(records)
    with pytest.raises(script.Missing, match="markers of the table 'runs'"):
        script.filled("a README without tables", script.tables(RECORDS))


@pytest.mark.parametrize(("text", "said"), [("{}", "lacks 'raw_pixel_knn'"), ("{", "is not JSON")])
def test_a_damaged_record_is_one_sentence(script, records, text, said):
    (records / script.RUNS["built-in shapes, `quick`"] / "summary.json").write_text(text)
    with pytest.raises(script.Missing, match=rf"summary\.json of the record 2026-11-22_\S+_quick {said}"):
        script.tables(records)


def test_the_command_writes_and_then_finds_it_current(script, records, monkeypatch, capsys):
    """Of a README whose tables are empty."""
    root = records.parent
    (root / "benchmarks").mkdir()
    records.rename(root / "benchmarks" / "records")
    monkeypatch.setattr(script, "ROOT", root)
    marks = [
        f"{script.BEGIN.format(name)}\n{script.END.format(name)}\n"
        for name in script.tables(root / "benchmarks" / "records")
    ]
    (root / "README.md").write_text("before\n" + "".join(marks) + "after\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["readme.py", "--check"])
    assert script.main() == 1
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr("sys.argv", ["readme.py"])
    assert script.main() == 0
    monkeypatch.setattr("sys.argv", ["readme.py", "--check"])
    assert script.main() == 0
    text = (root / "README.md").read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert script.kernels(root / "benchmarks" / "records") in text
