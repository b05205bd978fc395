"""What is refused or warned of before a rewritten model is trained."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress

from onnxlr.errors import OnnxlrWarning, PlanError, UsageError
from onnxlr.model import Model
from onnxlr.plan import Plan
from onnxlr.rewriting import METADATA_KEY

__all__ = ["check_mask", "check_source"]


def check_source(rewritten: Model, original: Model) -> None:
    """Warn where a model's plans say that it was made out of another original."""
    sources = []
    for entry in rewritten.proto.metadata_props:
        if entry.key.startswith(METADATA_KEY):
            with suppress(PlanError):
                sources.append(Plan.loads(entry.value, rewritten.name).source_sha256)
    if sources and original.sha256 not in sources and None not in sources:
        warnings.warn(
            f"{rewritten.name} was made out of another model than {original.name}, whose outputs "
            "it is trained towards",
            OnnxlrWarning,
            stacklevel=2,
        )


def check_mask(mask: str | None, inputs: Sequence[str], model: Model) -> None:
    """Refuse a mask that is no input of the model.

    Raises
    ------
    UsageError
        If it is none.
    """
    if mask is not None and mask not in inputs:
        known = ", ".join(f"'{name}'" for name in inputs)
        raise UsageError(f"{model.name} has no input '{mask}' for a mask; it has {known}")
