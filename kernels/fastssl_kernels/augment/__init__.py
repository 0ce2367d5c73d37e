"""Views of images: crop, resize, colour, blur and normalise, from decoded bytes to a batch of the model's dtype."""

from .op import render_views
from .parameters import view_parameters
from .reference import render_views_reference
from .study import study_parameters

__all__ = ["render_views", "render_views_reference", "study_parameters", "view_parameters"]
