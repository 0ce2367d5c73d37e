"""fastssl: self-supervised pre-training of image backbones.

>>> import fastssl
>>> fastssl.pretrain(fastssl.recipes.simclr("quick"), run_dir="runs/quick")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from . import recipes
    from .engine import pretrain

__version__ = "0.1.0"
__all__ = ["UserError", "__version__", "pretrain", "recipes"]


def __getattr__(name: str) -> Any:
    """Load the engine on first use: `fastssl --help` and imports of one part stay quick."""
    if name == "pretrain":
        return importlib.import_module(".engine", __name__).pretrain
    if name == "recipes":
        return importlib.import_module(".recipes", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
