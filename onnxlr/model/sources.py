"""Models as callers have them: files, bytes, protos, or opened before."""

from __future__ import annotations

from pathlib import Path

import onnx

from onnxlr.model.model import Model
from onnxlr.model.opening import open_model
from onnxlr.model.saving import check_output

__all__ = ["ModelSource", "check_beside", "open_anew", "open_source"]


def check_beside(output: Path, model: Path, *inputs: Path | None) -> None:
    """Refuse an output path as `check_output` does, and one of a model's external data.

    Raises
    ------
    OutputError
        If it cannot be written, or is an input.
    UsageError, ModelError
        If there is such a file, and the model cannot be opened.
    """
    check_output(output, model, *inputs)
    if output.exists():
        check_output(output, *open_model(model, check=False).files)


ModelSource = str | Path | bytes | onnx.ModelProto | Model
"""A path, the bytes of a model file, a proto, or an opened model."""


def open_source(model: ModelSource) -> Model:
    """Open a model for changing: what the caller holds stays as it is."""
    return open_anew(model) if isinstance(model, Model) else open_model(model)


def open_anew(model: ModelSource) -> Model:
    """Open a model once more, unchecked."""
    if not isinstance(model, Model):
        return open_model(model, check=False)
    copy = open_model(model.proto, check=False)
    copy.path, copy.content = model.path, model.content
    return copy
