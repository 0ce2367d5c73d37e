"""Makes `proof`, which is not part of the installed package, importable; and the threads of the libraries in C."""

import sys
from pathlib import Path

import pytest
import torch
from fastssl_kernels.ema import native as average
from fastssl_kernels.nearest_neighbor import native as lookup

KERNELS = Path(__file__).parents[2] / "kernels"
sys.path.insert(0, str(KERNELS))


@pytest.fixture(params=[1, 3])
def threads(request, monkeypatch):
    """How many the libraries in C run on, however small a job is."""
    for library in (average, lookup):
        monkeypatch.setattr(library, "_ALONE", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
