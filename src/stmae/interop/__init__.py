"""Models in and out: our own format, and other projects' checkpoints."""

from .native import load
from .reference import load_reference, save_reference

__all__ = ["load", "load_reference", "save_reference"]
