"""Deciding what becomes of each layer."""

from onnxlr.planning.auto.goal import Goal, Limit
from onnxlr.planning.auto.report import Contender, Findings, RoundRecord
from onnxlr.planning.auto.request import AutoRequest
from onnxlr.planning.auto.sweeping import SweepPoint, SweepResult, limits_of
from onnxlr.planning.making import Making, make_plan, make_sweep, take_plan
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
    "SweepPoint",
    "SweepResult",
    "limits_of",
    "make_plan",
    "make_sweep",
    "take_plan",
]
