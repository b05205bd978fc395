"""The commands that train: parsing and printing; each is one call of the API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnxlr.training_commands.fisher_information import fisher
from onnxlr.training_commands.svd import train_svd
from onnxlr.training_commands.ternary import train_ternary
from onnxlr.training_commands.tuning import tune

__all__ = ["COMMANDS"]

COMMANDS: tuple[Callable[..., Any], ...] = (fisher, train_svd, train_ternary, tune)
"""Functions that the command line registers under their names."""
