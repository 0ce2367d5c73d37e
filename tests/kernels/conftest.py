"""Makes `proof`, which is not part of the installed package, importable from the folder beside `fastssl_kernels`."""

import sys
from pathlib import Path

KERNELS = Path(__file__).parents[2] / "kernels"
sys.path.insert(0, str(KERNELS))
