"""The one place that says what to install where torch is missing."""

from __future__ import annotations

from onnxlr.errors import MissingExtraError

try:
    import torch
except ImportError as error:
    raise MissingExtraError(
        "training needs torch, which is not installed: pip install 'onnxlr[train]' (pytorch.org "
        "says how to get a build for the CPU alone)"
    ) from error

__all__ = ["torch"]
