"""Published constants, one file a method; `fastssl.recipes.simclr()` is a whole run as data."""

from ..config import Config
from ..errors import UserError
from . import byol as _byol
from . import moco as _moco
from . import nnclr as _nnclr
from . import relic as _relic
from . import simclr as _simclr
from . import simclrv2 as _simclrv2
from . import swav as _swav
from .byol import byol
from .moco import mocov1, mocov2
from .nnclr import nnclr
from .relic import relic, relicv2
from .simclr import simclr
from .simclrv2 import simclrv2
from .swav import swav

RECIPES: dict[str, dict[str, Config]] = {
    "simclr": _simclr.RECIPES,
    "simclrv2": _simclrv2.RECIPES,
    "mocov1": _moco.V1_RECIPES,
    "mocov2": _moco.V2_RECIPES,
    "byol": _byol.RECIPES,
    "swav": _swav.RECIPES,
    "nnclr": _nnclr.RECIPES,
    "relic": _relic.V1_RECIPES,
    "relicv2": _relic.V2_RECIPES,
}
"""By method, then by recipe; a method's first recipe is its default."""


def get(method: str, recipe: str | None = None) -> Config:
    """The recipe called `recipe` of `method`, or the method's default. Raises `UserError` for an unknown name."""
    if method not in RECIPES:
        raise UserError(f"unknown method {method!r}: choose one of {', '.join(RECIPES)}")
    known = RECIPES[method]
    if recipe is None:
        return next(iter(known.values()))
    if recipe not in known:
        raise UserError(f"--recipe {recipe!r} is not a recipe of {method}: choose one of {', '.join(known)}")
    return known[recipe]


__all__ = ["RECIPES", "byol", "get", "mocov1", "mocov2", "nnclr", "relic", "relicv2", "simclr", "simclrv2", "swav"]
