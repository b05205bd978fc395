"""What verbs that train are given: models, and files that data is read from."""

from __future__ import annotations

import os
from pathlib import Path

from onnxlr.calibration import DataSource
from onnxlr.model import Model, ModelSource, open_model

__all__ = ["opened", "read_from"]


def opened(model: ModelSource, anew: bool = False) -> Model:
    """Open a model; `anew` for another one that may be changed."""
    if not isinstance(model, Model):
        return open_model(model, check=not anew)
    if not anew:
        return model
    copy = open_model(model.proto, check=False)
    copy.path, copy.content = model.path, model.content
    return copy


def read_from(*sources: DataSource | float) -> list[Path]:
    """Return the files and folders that data is read from."""
    return [
        Path(source)
        for source in sources
        # Path.exists raises for names that are too long
        if isinstance(source, str | Path) and os.path.exists(source)  # noqa: PTH110
    ]
