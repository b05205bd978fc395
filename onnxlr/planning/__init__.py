"""Deciding what becomes of each layer."""

from onnxlr.planning.selection import Selection
from onnxlr.planning.uniform import Request, propose

__all__ = ["Request", "Selection", "propose"]
