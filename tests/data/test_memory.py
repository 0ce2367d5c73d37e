"""Twenty epochs need no more memory than two.

A batch's decoded pixels are one block of DALI's here, of 49 MB and another size each time. Blocks above 32 MB are
mapped and given back by the C library; smaller ones stay on its heap, where their changing sizes leave gaps: batches of
16 MB can add some blocks, though each epoch gives free pages back. That is not held to a bound here.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

CHILD = """
import json, os, sys
from fastssl.data import Augmentation, ViewLoader, ViewSpec, open_source
data, decoder, prefetch = sys.argv[1:]
views = (ViewSpec(size=24, count=2, blur=0.5), ViewSpec(size=16, count=2))
loader = ViewLoader(open_source(data), Augmentation(views), batch_size=512, seed=0, decoder=decoder,
                    prefetch=int(prefetch))
resident = []
for epoch in range(20):
    for batch in loader.epoch(epoch):
        pass
    with open("/proc/self/statm") as file:
        resident.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
loader.close()
print(json.dumps(resident))
"""


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    """600 JPEGs, no two neighbours of a size: 100 × 120 to 250 × 220 pixels, and a few that cannot be read."""
    folder = tmp_path_factory.mktemp("varied")
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in range(16)]
    for i in range(600):
        width, height = (int(side) for side in rng.integers((100, 120), (251, 221)))
        coarse[i % 16].resize((width, height)).save(folder / f"{i:03d}.jpg", quality=80)
    for i in range(5):
        whole = (folder / f"{100 * i:03d}.jpg").read_bytes()
        (folder / f"{100 * i:03d}.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.mark.parametrize(("decoder", "prefetch"), [("dali", 2), ("torchvision", 0)])
def test_memory_stays_bounded(varied, decoder, prefetch):
    if not sys.platform.startswith("linux"):
        pytest.skip("resident memory is read from /proc")
    if decoder == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(varied), decoder, str(prefetch)]
    resident = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    # The median of the last epochs: single ones breathe with the allocator.
    assert np.median(resident[-5:]) <= 1.05 * resident[1], resident
