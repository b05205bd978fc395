"""What the data at a layer's first site is like: as it was seen, or as the model says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxlr.calibration import Sources, load_feeds, signature
from onnxlr.layers import Layer, Layout, Site
from onnxlr.model import Model
from onnxlr.model.shapes import Dim

__all__ = ["Data", "data_shape", "data_type", "declared_dims", "sizes_of_symbols"]

_UNKNOWN = 32
"""Rows of a matrix, or places along an axis of an image, where nothing says how many."""


@dataclass(frozen=True)
class Data:
    """What the data at a layer's first site was seen to be.

    Attributes
    ----------
    shapes
        Its shape in each run.
    dtype
        Its type.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtype: np.dtype[Any]


def data_type(layer: Layer, model: Model) -> np.dtype[Any]:
    """Return the type of the data: of indices the one that is known, else the usual one."""
    if not layer.is_table:
        return layer.dtype
    site = layer.sites[0]
    known = model.types.get(site.data) if site.scope == 0 else None
    return np.dtype(np.int32 if known and known.elem_type == onnx.TensorProto.INT32 else np.int64)


def declared_dims(site: Site, data: Data) -> Sequence[Dim] | None:
    """Return the dimensions that the model declares, as far as they are true of the data.

    What a runtime makes of a node depends on which sizes it knows before it runs.
    """
    dims = site.data_dims
    if dims is None or any(len(shape) != len(dims) for shape in data.shapes):
        return None
    sizes = [set(seen) for seen in zip(*data.shapes, strict=True)]
    return [
        None if isinstance(dim, int) and seen != {dim} else dim
        for dim, seen in zip(dims, sizes, strict=True)
    ]


def data_shape(layer: Layer, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return the shape of the data at a layer's first site.

    Of what is not known, the first of more than two dimensions (of indices, of more than one) is a
    batch of 1; any other is 32, or as much as a convolution's window needs.

    Parameters
    ----------
    sizes
        Of symbolic dimensions.
    """
    site, weight = layer.sites[0], layer.shape
    if weight is None:
        raise ValueError(f"layer '{layer.name}' has no weight")
    count = len(weight) if site.is_convolution else 2
    dims: Sequence[Dim] = (None,) * count if site.data_dims is None else site.data_dims
    is_stack = len(dims) > (1 if layer.is_table else 2)
    axis, inputs = _features(site, weight, len(dims))
    least = _window(site, weight) if site.is_convolution else (1,) * len(dims)
    shape = []
    for position, dim in enumerate(dims):
        size = sizes.get(dim) if isinstance(dim, str) else dim
        if size is None:
            size = 1 if position == 0 and is_stack else max(_UNKNOWN, least[position])
        shape.append(inputs if position == axis else max(size, 1))
    return tuple(shape)


def _features(site: Site, weight: tuple[int, ...], rank: int) -> tuple[int, int]:
    """Return which axis of the data holds the features, -1 for none, and how many there are."""
    if site.layout is Layout.ROWS:
        return -1, 0
    if site.is_convolution:
        return 1, weight[1] * (site.groups or 1)
    is_last = (site.layout is Layout.LAST) != site.transpose_data
    return rank - 1 if is_last or rank == 1 else rank - 2, weight[-2]


def _window(site: Site, weight: tuple[int, ...]) -> tuple[int, ...]:
    """Return for each axis of an image how much a kernel with its dilations spans."""
    given = [list(a.ints) for a in site.node.attribute if a.name == "dilations"]
    dilations = given[0] if given else [1] * (len(weight) - 2)
    spans = [(size - 1) * step + 1 for size, step in zip(weight[2:], dilations, strict=True)]
    return (1, 1, *spans)


def sizes_of_symbols(model: Model, sources: Sources) -> dict[str, int]:
    """Return the sizes of symbolic dimensions of a model's inputs, as far as they are known.

    The first dimension of an input is the batch, 1; others are those of the first calibration run.

    Raises
    ------
    DataError
        If calibration data does not fit the model.
    """
    specs, sizes = signature(model), dict[str, int]()
    if sources.calibration is not None:
        feed = next(load_feeds(sources.calibration, specs))
        for spec in specs:
            pairs = zip(spec.dims or (), feed[spec.name].shape, strict=False)
            sizes |= {dim: size for dim, size in pairs if isinstance(dim, str)}
    batches = [spec.dims[0] for spec in specs if spec.dims]
    return sizes | {dim: 1 for dim in batches if isinstance(dim, str)}
