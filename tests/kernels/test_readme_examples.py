"""The examples of the kernels' README run as they stand, on fewer rows."""

import re
from pathlib import Path

import pytest
import torch

TEXT = (Path(__file__).parents[2] / "kernels" / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
FEWER = {"4096": "256", "98304": "512", "65536": "512", "224": "32"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: re.findall(r"import (\w+)", text)[-1])
def test_an_example_runs(example):
    for number, smaller in FEWER.items():
        example = re.sub(rf"\b{number}\b", smaller, example)
    torch.manual_seed(0)
    exec(compile(example, "README.md", "exec"), {"__name__": "example"})


def test_every_public_function_has_an_example():
    import fastssl_kernels

    shown = "".join(EXAMPLES)
    results = {"Metrics", "Neighbors", "RelicMetrics"}
    assert not [name for name in set(fastssl_kernels.__all__) - results - {"study_parameters"} if name not in shown]
