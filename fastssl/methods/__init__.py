"""One file a method; each reads like its paper."""

from .base import DataFacts, Losses, Method, MethodConfig, StepState
from .build import METHODS, build_method, method_name

__all__ = ["METHODS", "DataFacts", "Losses", "Method", "MethodConfig", "StepState", "build_method", "method_name"]
