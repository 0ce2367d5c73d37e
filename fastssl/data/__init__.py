"""Images to views: sources -> order -> decode -> params -> render -> loader."""

from .builtin import ensure_builtin
from .evaluation import evaluation_batches
from .file_list import FileList
from .loader import Batch, ViewLoader
from .reader import RendererKind, resolve_renderer
from .sources import (
    ArraySource,
    FlatFolder,
    ImageFolder,
    ObjectSource,
    Source,
    TarImages,
    open_source,
    open_splits,
)
from .views import Augmentation, CenterCrop, Views, ViewSpec

__all__ = [
    "ArraySource",
    "Augmentation",
    "Batch",
    "CenterCrop",
    "FileList",
    "FlatFolder",
    "ImageFolder",
    "ObjectSource",
    "RendererKind",
    "Source",
    "TarImages",
    "ViewLoader",
    "ViewSpec",
    "Views",
    "ensure_builtin",
    "evaluation_batches",
    "open_source",
    "open_splits",
    "resolve_renderer",
]
