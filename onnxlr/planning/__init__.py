"""Deciding what becomes of each layer."""

from onnxlr.planning.making import Making, make_plan, take_plan
from onnxlr.planning.request import ALLOCATIONS, Request
from onnxlr.planning.selection import Selection

__all__ = ["ALLOCATIONS", "Making", "Request", "Selection", "make_plan", "take_plan"]
