"""What becomes of each layer, as JSON that a person can read and edit."""

from onnxlr.plan.choice import Choice, Proposal
from onnxlr.plan.document import SCHEMA, Plan

__all__ = ["SCHEMA", "Choice", "Plan", "Proposal"]
