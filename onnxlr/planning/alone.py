"""One layer as a small model of its own, as it is or rewritten, and data as the layer meets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from onnxlr.layers import Layer, Layout, Operand, Weight, read_weight
from onnxlr.lowering import carry_functions, find_target, lower_layer
from onnxlr.model import Model, splice
from onnxlr.model.tensors import make_tensor
from onnxlr.plan import Proposal
from onnxlr.planning.data_shapes import (
    Data,
    data_shape,
    data_type,
    declared_dims,
    sizes_of_symbols,
)

__all__ = ["Alone", "Data", "data_shape", "sizes_of_symbols", "write_alone", "write_original"]

_IR_VERSION = 8
"""The least that small models have: initializers are no inputs, and functions are known."""

_INDICES = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
"""Types of shapes and axes, and of what rows are taken by; tensors of others are weights, whose
values no latency depends on."""


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
        Shape of the data, in the first run where several were seen.
    dtype
        Type of the data.
    rows
        Of a table, whose data are indices; None for other layers.
    """

    model: Model
    data: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: int | None = None

    def feed(self) -> dict[str, npt.NDArray[Any]]:
        """Return random inputs, the same each time."""
        random = np.random.default_rng(0)
        if self.rows is not None:
            return {self.data: random.integers(0, self.rows, self.shape).astype(self.dtype)}
        return {self.data: random.standard_normal(self.shape).astype(self.dtype)}

    @property
    def structure(self) -> str:
        """Hash of all but names and weights: models that have the same take the same time."""
        names: dict[str, int] = {}
        kind = self.model.proto.graph.input[0].type.tensor_type
        declared = [dim.dim_value or None for dim in kind.shape.dim]
        known: list[object] = [self.shape, declared, kind.HasField("shape"), self.dtype.name]
        for node in self.model.proto.graph.node:
            attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
            ends = [[_number(names, name) for name in side] for side in (node.input, node.output)]
            known.append((node.domain, node.op_type, attributes, ends))
        for tensor in self._constants():
            values = self.model.read(tensor).tolist() if tensor.data_type in _INDICES else None
            known.append((_number(names, tensor.name), tensor.data_type, [*tensor.dims], values))
        opsets = sorted((entry.domain, entry.version) for entry in self.model.proto.opset_import)
        return sha256(repr([known, opsets]).encode()).hexdigest()

    @property
    def content(self) -> str:
        """Hash of all but names: models that have the same compute the same."""
        digest = sha256(self.structure.encode())
        for tensor in self._constants():
            digest.update(np.ascontiguousarray(self.model.read(tensor)).tobytes())
        return digest.hexdigest()

    def _constants(self) -> list[onnx.TensorProto]:
        """Return the initializers in the order in which nodes use them."""
        graph = self.model.proto.graph
        used = dict.fromkeys(name for node in graph.node for name in node.input)
        order = {name: position for position, name in enumerate(used)}
        return sorted(graph.initializer, key=lambda tensor: order.get(tensor.name, len(order)))


def _number(names: dict[str, int], name: str) -> int:
    """Return which name it is, counted as they are met; an absent input is 0."""
    return names.setdefault(name, len(names) + 1) if name else 0


def write_alone(
    proposal: Proposal,
    model: Model,
    target: str,
    sizes: Mapping[str, int],
    data: Data | None = None,
) -> Alone:
    """Return a layer's first site, rewritten, as a model of its own.

    A bias becomes zeros, which take as long; a bias correction is added to them. The node behind,
    where that adds the bias, is part of the model.

    Parameters
    ----------
    model
        The model that the layer is of.
    target
        Name of the target.
    sizes
        Of symbolic dimensions.
    data
        What the data was seen to be; None for what `data_shape` says.

    Raises
    ------
    LoweringRefusedError
        If the chain cannot be written.
    """
    chain = proposal.chain
    if chain is None or proposal.layer.shape is None:
        raise ValueError(f"layer '{proposal.layer.name}' is kept")
    first = proposal.layer.sites[0]
    # Only its type and shape are looked at before the chain takes its place.
    bare = onnx.TensorProto(dims=first.operand.dims, data_type=first.operand.elem_type)
    alone, layer = _around(proposal.layer, model, bare, sizes, data)
    small = alone.model
    small.proto.ir_version = model.ir_version  # what may be written depends on the model's own
    change = lower_layer(
        layer,
        chain,
        small,
        small.names.trial(),
        find_target(target),
        proposal.choice.activations,
        proposal.adjustments[:1],
    )
    small.proto.ir_version = max(model.ir_version, _IR_VERSION)
    splice(small, change)
    carry_functions(small.proto)
    return alone


def write_original(
    layer: Layer, model: Model, sizes: Mapping[str, int], data: Data | None = None
) -> Alone:
    """Return a layer's first site, as it is, as a model of its own.

    The weight is stored as the node takes it, a bias becomes zeros as in `write_alone`.

    Parameters
    ----------
    model
        The model that the layer is of.
    sizes
        Of symbolic dimensions.
    data
        What the data was seen to be; None for what `data_shape` says.

    Raises
    ------
    ModelError
        If the weight cannot be read, or is not finite.
    """
    weight = layer.sites[0].arranged(read_weight(model, layer)).astype(layer.dtype, copy=False)
    return _around(layer, model, make_tensor(weight, ""), sizes, data)[0]


def _around(
    layer: Layer,
    model: Model,
    weight: onnx.TensorProto,
    sizes: Mapping[str, int],
    data: Data | None,
) -> tuple[Alone, Layer]:
    """Return the model of a layer's first site with a weight, and the layer as it is there."""
    site = layer.sites[0]
    place = 0 if site.layout in (Layout.SECOND_LAST, Layout.ROWS) else 1
    weight.name = str(site.node.input[place])
    dtype = data.dtype if data else data_type(layer, model)
    shape = data.shapes[0] if data else data_shape(layer, sizes)
    dims = declared_dims(site, data) if data else shape
    nodes, zeros = [site.node], list[onnx.TensorProto]()
    others = [name for name in site.node.input if name not in ("", weight.name, site.data)]
    if others:
        zeros.append(make_tensor(_no_bias(layer), others[0]))
    if added := _added_behind(layer, model):
        nodes.append(added[0])
        zeros.append(added[1])
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "layer",
            [
                helper.make_tensor_value_info(
                    site.data, helper.np_dtype_to_tensor_dtype(dtype), dims
                )
            ],
            [helper.make_tensor_value_info(nodes[-1].output[0], site.operand.elem_type, None)],
            [weight, *zeros],
        ),
        opset_imports=[helper.make_opsetid("", site.operand.opset)],
        ir_version=max(model.ir_version, _IR_VERSION),
    )
    small = Model(proto, None)
    small.added.update(tensor.name for tensor in proto.graph.initializer)
    stored = Weight(0, weight.name, proto.graph.initializer[0])
    operand = Operand(stored, (), (), site.operand.opset, ((0, weight.name),))
    here = replace(
        site, scope=0, index=0, node=proto.graph.node[0], operand=operand, in_function=False
    )
    rows = layer.shape[0] if layer.is_table and layer.shape else None
    alone = Alone(small, site.data, shape, dtype, rows)
    return alone, replace(layer, weight=stored, sites=(here,), other_uses=())


def _no_bias(layer: Layer) -> npt.NDArray[Any]:
    """Return zeros in the place of a bias."""
    site, shape = layer.sites[0], layer.shape or ()
    if site.is_convolution:
        return np.zeros(shape[0], layer.dtype)
    return site.along_features(np.zeros(shape[-1], layer.dtype))


def _added_behind(layer: Layer, model: Model) -> tuple[onnx.NodeProto, onnx.TensorProto] | None:
    """Return the node that adds a bias behind a product, and zeros for it; None if there is none.

    Bias corrections go there, and runtimes make one of both nodes.
    """
    site = layer.sites[0]
    if site.node.op_type != "MatMul" or site.scope != 0:
        return None
    user = model.uses.only_user((0, site.output))
    if user is None or user[0] != 0:
        return None
    node = model.proto.graph.node[user[1]]
    if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
        return None
    name = str(node.input[1 if node.input[0] == site.output else 0])
    dims = _constant_dims(model, name)
    wanted = _no_bias(layer).shape
    if dims is None or len(dims) < len(wanted) or dims[len(dims) - len(wanted) :] != wanted:
        return None
    return node, make_tensor(np.zeros(dims, layer.dtype), name)


def _constant_dims(model: Model, name: str) -> tuple[int, ...] | None:
    """Return the shape of a constant of the main graph; None for any other tensor."""
    if name in model.initializers:
        overridden = any(value.name == name for value in model.proto.graph.input)
        return None if overridden else tuple(model.initializers[name].dims)
    maker = model.uses.maker((0, name))
    if maker is None or maker[0] != 0:
        return None
    node = model.proto.graph.node[maker[1]]
    if node.op_type != "Constant":
        return None
    return next((tuple(a.t.dims) for a in node.attribute if a.name == "value"), None)
