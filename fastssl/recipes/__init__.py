"""Published constants, one file a method; `fastssl.recipes.simclr()` is a whole run as data."""

from ..config import Config
from ..errors import UserError
from . import simclr as _simclr
from .simclr import simclr

RECIPES: dict[str, dict[str, Config]] = {"simclr": _simclr.RECIPES}
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


__all__ = ["RECIPES", "get", "simclr"]
