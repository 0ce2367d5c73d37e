"""One file a method; each reads like its paper."""

from .base import Losses, Method, MethodConfig, StepState
from .build import METHODS, build_method, method_name

__all__ = ["METHODS", "Losses", "Method", "MethodConfig", "StepState", "build_method", "method_name"]
