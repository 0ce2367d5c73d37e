"""Published constants, one file a method; `fastssl.recipes.simclr()` is a whole run as data."""

from ..config import Config
from ..errors import UserError
from . import byol as _byol
from . import deepclusterv2 as _deepclusterv2
from . import moco as _moco
from . import nnclr as _nnclr
from . import relic as _relic
from . import selav2 as _selav2
from . import simclr as _simclr
from . import simclrv2 as _simclrv2
from . import supervised as _supervised
from . import swav as _swav
from .byol import byol
from .deepclusterv2 import deepclusterv2
from .moco import mocov1, mocov2
from .nnclr import nnclr
from .relic import relic, relicv2
from .selav2 import selav2
from .simclr import simclr
from .simclrv2 import simclrv2
from .supervised import supervised
from .swav import swav

RECIPES: dict[str, dict[str, Config]] = {
    "simclr": _simclr.RECIPES,
    "simclrv2": _simclrv2.RECIPES,
    "mocov1": _moco.V1_RECIPES,
    "mocov2": _moco.V2_RECIPES,
    "byol": _byol.RECIPES,
    "swav": _swav.RECIPES,
    "deepclusterv2": _deepclusterv2.RECIPES,
    "selav2": _selav2.RECIPES,
    "nnclr": _nnclr.RECIPES,
    "relic": _relic.V1_RECIPES,
    "relicv2": _relic.V2_RECIPES,
    "supervised": _supervised.RECIPES,
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


__all__ = [
    "RECIPES",
    "byol",
    "deepclusterv2",
    "get",
    "mocov1",
    "mocov2",
    "nnclr",
    "relic",
    "relicv2",
    "selav2",
    "simclr",
    "simclrv2",
    "supervised",
    "swav",
]
