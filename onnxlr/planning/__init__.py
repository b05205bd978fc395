"""Deciding what becomes of each layer."""

from onnxlr.planning.auto.goal import Goal, Limit
from onnxlr.planning.auto.report import Contender, Findings, RoundRecord
from onnxlr.planning.auto.request import AutoRequest
from onnxlr.planning.making import Making, make_plan, take_plan
from onnxlr.planning.request import ALLOCATIONS, Request
from onnxlr.planning.selection import Selection

__all__ = [
    "ALLOCATIONS",
    "AutoRequest",
    "Contender",
    "Findings",
    "Goal",
    "Limit",
    "Making",
    "Request",
    "RoundRecord",
    "Selection",
    "make_plan",
    "take_plan",
]
