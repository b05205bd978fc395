"""One layer's chain as a small model of its own, and data of the shape that the layer meets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from onnxlr.calibration import Sources, load_feeds, signature
from onnxlr.layers import Layer, Layout, Site
from onnxlr.lowering import carry_functions, find_target, lower_layer
from onnxlr.model import Model
from onnxlr.model.shapes import Dim
from onnxlr.model.tensors import make_tensor
from onnxlr.plan import Proposal

__all__ = ["Alone", "data_shape", "sizes_of_symbols", "write_alone"]

_UNKNOWN = 32
"""Rows of a matrix, or places along an axis of an image, where nothing says how many."""

_IR_VERSION = 8
"""The least that small models have: initializers are no inputs, and functions are known."""

_INDICES = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
"""Types of shapes and axes; tensors of others are weights, whose values no latency depends on."""


@dataclass(frozen=True)
class Alone:
    """A model of one layer.

    Attributes
    ----------
    model
        The model.
    data
        Name of its input.
    shape
        Shape of the data.
    dtype
        Type of the data.
    """

    model: Model
    data: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def feed(self) -> dict[str, npt.NDArray[Any]]:
        """Return random inputs, the same each time."""
        values = np.random.default_rng(0).standard_normal(self.shape)
        return {self.data: values.astype(self.dtype)}

    @property
    def structure(self) -> str:
        """Hash of all but names and weights: models that have the same take the same time."""
        names: dict[str, int] = {}
        known: list[object] = [self.shape, self.dtype.name]
        graph = self.model.proto.graph
        for tensor in graph.initializer:
            values = self.model.read(tensor).tolist() if tensor.data_type in _INDICES else None
            known.append((_number(names, tensor.name), tensor.data_type, [*tensor.dims], values))
        for node in graph.node:
            attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
            ends = [[_number(names, name) for name in side] for side in (node.input, node.output)]
            known.append((node.domain, node.op_type, attributes, ends))
        return sha256(repr(known).encode()).hexdigest()


def _number(names: dict[str, int], name: str) -> int:
    """Return which name it is, counted as they are met; an absent input is 0."""
    return names.setdefault(name, len(names) + 1) if name else 0


def write_alone(proposal: Proposal, model: Model, target: str, sizes: Mapping[str, int]) -> Alone:
    """Return a layer's first site, rewritten, as a model of its own.

    A bias becomes zeros, which take as long.

    Parameters
    ----------
    model
        The model that the layer is of.
    target
        Name of the target.
    sizes
        Of symbolic dimensions.

    Raises
    ------
    LoweringRefusedError
        If the chain cannot be written.
    """
    layer, chain = replace(proposal.layer, sites=proposal.layer.sites[:1]), proposal.chain
    if chain is None or layer.shape is None:
        raise ValueError(f"layer '{layer.name}' is kept")
    site = layer.sites[0]
    change = lower_layer(
        layer,
        chain,
        model,
        model.names.trial(),
        find_target(target),
        proposal.choice.activations,
        proposal.adjustments[:1],
    )
    nodes = change.nodes[(site.scope, site.index)]
    kind = helper.np_dtype_to_tensor_dtype(layer.dtype)
    shape = data_shape(layer, sizes)
    outputs = layer.shape[0] if site.is_convolution else layer.shape[-1]
    made = {tensor.name for tensor in change.initializers} | {site.data, ""}
    made.update(name for node in nodes for name in node.output)
    others = sorted({name for node in nodes for name in node.input} - made)
    zeros = [make_tensor(np.zeros(outputs, layer.dtype), name) for name in others]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(site.data, kind, shape)],
        [helper.make_tensor_value_info(site.output, kind, None)],
        [*change.initializers, *zeros],
    )
    opsets = [helper.make_opsetid("", site.operand.opset)]
    opsets += [helper.make_opsetid(domain, 1) for domain in sorted(change.domains)]
    proto = helper.make_model(
        graph, opset_imports=opsets, ir_version=max(model.ir_version, _IR_VERSION)
    )
    carry_functions(proto)
    alone = Model(proto, None)
    alone.added.update(tensor.name for tensor in change.initializers)
    return Alone(alone, site.data, shape, layer.dtype)


def data_shape(layer: Layer, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return the shape of the data at a layer's first site.

    Of what is not known, the first of more than two dimensions is a batch of 1; any other is 32,
    or as much as a convolution's window needs.

    Parameters
    ----------
    sizes
        Of symbolic dimensions.
    """
    site, weight = layer.sites[0], layer.shape
    if weight is None:
        raise ValueError(f"layer '{layer.name}' has no weight")
    count = len(weight) if site.is_convolution else 2
    dims: Sequence[Dim] = site.data_dims or (None,) * count
    axis, inputs = _features(site, weight, len(dims))
    least = _window(site, weight) if site.is_convolution else (1,) * len(dims)
    shape = []
    for position, dim in enumerate(dims):
        size = sizes.get(dim) if isinstance(dim, str) else dim
        if size is None:
            size = 1 if position == 0 and len(dims) > 2 else max(_UNKNOWN, least[position])
        shape.append(inputs if position == axis else max(size, 1))
    return tuple(shape)


def _features(site: Site, weight: tuple[int, ...], rank: int) -> tuple[int, int]:
    """Return which axis of the data holds the features, and how many there are."""
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
