"""What becomes of each layer, as JSON that a person can read and edit."""

from onnxlr.plan.choice import Choice, Proposal
from onnxlr.plan.document import SCHEMA, Plan
from onnxlr.plan.trained import TRAINED_KEY, record_training, trained_after

__all__ = [
    "SCHEMA",
    "TRAINED_KEY",
    "Choice",
    "Plan",
    "Proposal",
    "record_training",
    "trained_after",
]
