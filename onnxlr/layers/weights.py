"""Reading a layer's weight."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.errors import ModelError
from onnxlr.layers.layer import Layer
from onnxlr.model import Model

__all__ = ["layer_keys", "read_weight", "weight_key"]


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


def weight_key(layer: Layer, model: Model) -> str:
    """Return what a layer's statistics are kept under: the hash of its canonical weight.

    Raises
    ------
    ModelError
        As `read_weight` does.
    """
    values = np.ascontiguousarray(read_weight(model, layer))
    digest = hashlib.sha256(f"{values.dtype.name} {values.shape}".encode())
    digest.update(values.tobytes())
    return digest.hexdigest()


def layer_keys(
    model: Model, layers: Iterable[Layer], meant: Collection[Layer] | None = None
) -> dict[str, str]:
    """Return the key of every layer that can be rewritten, by its name.

    That is its `weight_key`, with `-2`, `-3` … behind it for further layers of an equal weight,
    which see other inputs: keys are of a model's whole list of layers.

    Parameters
    ----------
    meant
        Layers whose weights must be readable, all if not given; others without one get no key.

    Raises
    ------
    ModelError
        As `read_weight` does.
    """
    names = None if meant is None else {layer.name for layer in meant}
    keys: dict[str, str] = {}
    taken: dict[str, int] = {}
    for layer in layers:
        if layer.skip is not None:
            continue
        try:
            key = weight_key(layer, model)
        except ModelError:
            if names is None or layer.name in names:
                raise
            continue
        taken[key] = taken.get(key, 0) + 1
        keys[layer.name] = key if taken[key] == 1 else f"{key}-{taken[key]}"
    return keys
