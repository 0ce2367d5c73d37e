"""Twenty epochs need no more memory than two.

A batch's decoded pixels have another size each time. In one block of DALI's, those above 32 MB would be mapped and
given back by the C library; smaller ones would stay on its heaps, one a thread.
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


def write_images(folder, scale):
    """600 JPEGs, no two neighbours of a size: at scale 1, 100 × 120 to 250 × 220 pixels; a few cannot be read."""
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in range(16)]
    for i in range(600):
        width, height = (int(side * scale) for side in rng.integers((100, 120), (251, 221)))
        coarse[i % 16].resize((width, height)).save(folder / f"{i:03d}.jpg", quality=80)
    for i in range(5):
        whole = (folder / f"{100 * i:03d}.jpg").read_bytes()
        (folder / f"{100 * i:03d}.jpg").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("scale", "decoder", "prefetch"),
    [
        pytest.param(1.0, "dali", 2, id="49MB"),
        pytest.param(0.75, "dali", 0, id="28MB"),
        pytest.param(0.57, "dali", 2, id="16MB"),
        pytest.param(0.57, "torchvision", 0, id="one-by-one"),
    ],
)
def test_memory_stays_bounded(tmp_path, scale, decoder, prefetch):
    if not sys.platform.startswith("linux"):
        pytest.skip("resident memory is read from /proc")
    if decoder == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    write_images(tmp_path, scale)
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(tmp_path), decoder, str(prefetch)]
    resident = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    # The median of the last epochs: single ones breathe with the allocator.
    assert np.median(resident[-5:]) <= 1.05 * resident[1], resident
