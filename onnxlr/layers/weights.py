"""Reading a layer's weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.errors import ModelError
from onnxlr.layers.layer import Layer
from onnxlr.model import Model

__all__ = ["read_weight"]


def read_weight(model: Model, layer: Layer) -> npt.NDArray[Any]:
    """Return a layer's weight in the float type its nodes compute in, in canonical shape.

    Raises
    ------
    ModelError
        If the tensor cannot be read or holds NaN or infinity.
    """
    weight = layer.weight
    if weight is None:
        raise ValueError(f"layer '{layer.name}' has no weight")
    try:
        stored = model.read(weight.tensor)
    except ModelError as error:
        raise ModelError(f"{model.name}: node '{layer.name}': {error}") from error
    site = layer.sites[0]
    values = site.operand.values(stored)
    bad = int(values.size - np.count_nonzero(np.isfinite(values)))
    if bad:
        raise ModelError(
            f"{model.name}: node '{layer.name}' ({layer.operator}): weight '{weight.name}' has "
            f"{bad:,} entries that are NaN or infinite of {values.size:,}; expected finite numbers "
            f"(--skip '{layer.name}' leaves it alone)"
        )
    return site.canonical(values)
