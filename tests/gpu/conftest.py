"""Every test of this folder needs the device; helpers and laws are those of the CPU's tests."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))

from on_device import DEVICE, missing


@pytest.fixture(autouse=True)
def device() -> torch.device:
    if reason := missing():
        pytest.skip(reason)
    torch.manual_seed(0)
    return DEVICE


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors are small here, and a second thread only waits for the first on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
