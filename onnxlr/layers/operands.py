"""Where a node's weight comes from: a constant, and the moves between it and the node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnxlr.errors import ModelError
from onnxlr.model import Model
from onnxlr.model.claims import shape_text
from onnxlr.model.scopes import Scope, scopes
from onnxlr.model.tensors import (
    FLOAT_TYPES,
    is_external,
    make_tensor,
    stored_bytes,
    type_name,
)
from onnxlr.model.view import search_view

__all__ = ["Operand", "OperandFinder", "Weight"]

MOVES = {"Identity", "Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Flatten"}
"""Operators behind which a constant is the same weight, in another shape, order or type."""

_STANDARD = ("", "ai.onnx")
"""Both names of the domain of the standard operators."""

_SCALED = {"Mul", "Div", "Sub", "Add"}
"""Operators by which an integer weight is scaled, or two constants are combined."""

_CODED = {"QuantizeLinear", "DequantizeLinear"}
"""Operators between a float weight and its codes."""

_MOST_STEPS = 64
"""Nodes to look at between a node and its weight: all of a long chain, for each node that takes a
part of it, would be quadratic work."""


@dataclass(frozen=True)
class Weight:
    """A constant as it is stored.

    Attributes
    ----------
    scope
        Position of the graph it is in, as `scopes` counts them.
    name
        Name of the tensor there.
    tensor
        The message that holds it.
    """

    scope: int
    name: str
    tensor: TensorProto

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the file."""
        return stored_bytes(self.tensor)

    @property
    def parameters(self) -> int:
        """Number of entries."""
        return int(np.prod(self.tensor.dims, dtype=np.int64))


@dataclass(frozen=True)
class Operand:
    """A weight as a node takes it.

    Attributes
    ----------
    weight
        The stored constant.
    steps
        Nodes between it and the operand, the one next to the weight first.
    settings
        Constants that those nodes take beside it: shapes and axes.
    opset
        Version of the standard operators.
    released
        Tensors from the operand to the weight, as `(scope, name)`, the operand first.
    """

    weight: Weight
    steps: tuple[onnx.NodeProto, ...]
    settings: tuple[TensorProto, ...]
    opset: int
    released: tuple[tuple[int, str], ...]

    @cached_property
    def elem_type(self) -> int:
        """ONNX element type that the node sees."""
        return (int(self.weight.tensor.data_type), *_casts(self.steps))[-1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Float type that the node sees; only asked of operands of float type."""
        return FLOAT_TYPES[self.elem_type]

    @cached_property
    def dims(self) -> tuple[int, ...]:
        """Shape that the node sees."""
        if not self.moves:
            return tuple(self.weight.tensor.dims)
        return self._follow(self.moves, np.zeros(tuple(self.weight.tensor.dims), np.int8)).shape

    @property
    def moves(self) -> tuple[onnx.NodeProto, ...]:
        """The steps that move entries."""
        return tuple(step for step in self.steps if step.op_type not in ("Identity", "Cast"))

    @cached_property
    def recipe(self) -> tuple[bytes, ...]:
        """What the moves do, apart from names; where it is the same, so are the positions."""
        parts = []
        for step in self.moves:
            bare = onnx.NodeProto(op_type=step.op_type, attribute=step.attribute)
            parts.append(bare.SerializeToString(deterministic=True))
        for setting in self.settings:
            values = TensorProto()
            values.CopyFrom(setting)
            values.ClearField("name")
            parts.append(values.SerializeToString(deterministic=True))
        return tuple(parts)

    def values(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the stored values in the shape, order and type that the node sees."""
        moved = self._follow(self.moves, stored) if self.moves else stored
        for kind in _casts(self.steps):  # a cast changes no place, a move no number
            moved = moved.astype(FLOAT_TYPES[kind], copy=False)
        return moved

    def positions(self) -> npt.NDArray[np.int64]:
        """Return for each entry that the node sees its position in the stored tensor."""
        dims = tuple(self.weight.tensor.dims)
        positions = np.arange(self.weight.parameters, dtype=np.int64).reshape(dims)
        return self._follow(self.moves, positions) if self.moves else positions

    def _follow(
        self, steps: Sequence[onnx.NodeProto], values: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        """Run steps in ONNX's reference evaluator."""
        source, result = steps[0].input[0], steps[-1].output[0]
        bare = []
        for step, before in zip(steps, ("", *(s.output[0] for s in steps)), strict=False):
            node = onnx.NodeProto()
            node.CopyFrom(step)
            if before:
                node.input[0] = before
            bare.append(node)
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        graph = helper.make_graph(
            bare,
            "moves",
            [helper.make_tensor_value_info(source, kind, None)],
            [helper.make_tensor_value_info(result, kind, None)],
            list(self.settings),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        results: Any = ReferenceEvaluator(model).run(None, {source: values})
        return np.asarray(results[0])


class OperandFinder:
    """Says of a node's input whether it is a constant weight, an unusable one, or data."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._scopes = list(scopes(model.proto))
        self._views = {index: search_view(s.graph) for index, s in enumerate(self._scopes)}
        self._stored = [_constants(scope, self._views[i]) for i, scope in enumerate(self._scopes)]
        self._tensors = [_tensors(self._views[index]) for index in range(len(self._scopes))]
        self._inputs = [_input_names(scope.graph) for scope in self._scopes]

    def view(self, scope: int) -> gs.Graph:
        """Return the search view of a graph; its nodes are in the graph's order."""
        return self._views[scope]

    def find(self, scope: int, tensor: gs.Tensor) -> Operand | str | None:
        """Return the operand, the reason why it cannot be used, or None for data."""
        name = str(tensor.name)
        steps: list[onnx.NodeProto] = []
        settings: list[TensorProto] = []
        released: list[tuple[int, str]] = []
        while True:
            scope = self._defining(scope, name)
            if scope < 0:
                return None
            released.append((scope, name))
            if name in self._stored[scope]:
                return self._operand(scope, name, steps, settings, released)
            producer = self._producer(scope, name)
            if producer is None:
                return None
            node = producer[1]
            sides = [self._constant(scope, side) for side in node.input[1:] if side]
            if node.op_type not in MOVES or node.domain not in _STANDARD or None in sides:
                return self._computed(scope, node)
            if any(attribute.ref_attr_name for attribute in node.attribute):
                return "its weight is moved by parameters of the function it is in"
            if len(steps) == _MOST_STEPS:
                return f"its weight is moved about by more than {_MOST_STEPS} nodes: fold constants"
            steps.append(node)
            settings.extend(side for side in sides if side is not None)
            name = node.input[0]

    def _defining(self, scope: int, name: str) -> int:
        """Return the graph that defines a name, seen from a graph; -1 if none does."""
        while scope >= 0:
            if name in self._stored[scope] or name in self._tensors[scope]:
                return scope
            parent = self._scopes[scope].parent
            scope = -1 if parent is None else parent
        return -1

    def _producer(self, scope: int, name: str) -> tuple[int, onnx.NodeProto] | None:
        position = self._tensors[scope].get(name)
        if position is None or position < 0:
            return None
        return position, self._scopes[scope].graph.node[position]

    def _constant(self, scope: int, name: str) -> TensorProto | None:
        """Return a constant as a tensor of that name, None if it is computed."""
        scope = self._defining(scope, name)
        found = self._stored[scope].get(name) if scope >= 0 else None
        if not isinstance(found, TensorProto) or self._can_be_overridden(scope, name):
            return None
        if is_external(found):
            return make_tensor(self._model.read(found), name)
        tensor = TensorProto()
        tensor.CopyFrom(found)
        tensor.name = name
        return tensor

    def _operand(
        self,
        scope: int,
        name: str,
        steps: list[onnx.NodeProto],
        settings: list[TensorProto],
        released: list[tuple[int, str]],
    ) -> Operand | str:
        found: TensorProto | str = self._stored[scope][name]
        if isinstance(found, str):
            return found
        if self._can_be_overridden(scope, name):
            return (
                f"its weight '{name}' is also an input of the graph: whoever runs the model can "
                "override it"
            )
        if steps and found.data_type not in FLOAT_TYPES:
            kind = type_name(found.data_type)
            return f"its weight is already quantised ({kind} with {steps[-1].op_type})"
        for target in _casts(reversed(steps)):
            if target not in FLOAT_TYPES:
                return f"its weight is cast to {type_name(target)} on the way"
        weight = Weight(scope, name, found)
        path = tuple(reversed(steps))
        opset = self._scopes[scope].opset or self._model.opset
        operand = Operand(weight, path, tuple(settings), opset, tuple(released))
        try:
            operand.dims  # noqa: B018  (kept, once they are found)
        except Exception as error:  # ONNX's evaluator raises what the nodes lead to
            moves = ", ".join(step.op_type for step in operand.moves)
            raise ModelError(
                f"{self._model.name}: weight '{name}' of shape {shape_text(found.dims)} cannot be "
                f"moved as the nodes behind it say ({moves}): {_line(error)}"
            ) from error
        return operand

    def _can_be_overridden(self, scope: int, name: str) -> bool:
        """Whether a constant is an input of the graph, too, which it must be at IR version 3."""
        return self._model.ir_version >= 4 and name in self._inputs[scope]

    def _computed(self, scope: int, node: onnx.NodeProto) -> str | None:
        """Return why a computed operand is a weight that cannot be used, None if it is data."""
        if node.op_type == "DequantizeLinear" and node.domain in (*_STANDARD, "com.microsoft"):
            source = self._made_from(scope, node.input[0])
            return "its weight is already quantised (DequantizeLinear)" if source else None
        if node.op_type not in _SCALED or node.domain not in _STANDARD:
            return None
        kinds = self._made_from(scope, node.output[0])
        if not kinds:
            return None
        if not kinds <= FLOAT_TYPES.keys():
            return f"its weight is already quantised (an integer weight with {node.op_type})"
        return f"its weight is computed by {node.op_type} of constants: fold constants first"

    def _made_from(self, scope: int, name: str) -> set[int] | None:
        """Return the types of the constants that a tensor is made from by moves and scalings.

        None if anything else is behind it, that is if it is data, or if it is made from too many.
        """
        kinds, seen = set[int](), set[tuple[int, str]]()
        pending = [(scope, name)]
        while pending:
            if len(seen) > _MOST_STEPS:
                return None
            scope, name = pending.pop()
            scope = self._defining(scope, name)
            if (scope, name) in seen:
                continue
            seen.add((scope, name))
            found = self._stored[scope].get(name) if scope >= 0 else None
            if isinstance(found, TensorProto):
                kinds.add(int(found.data_type))
                continue
            producer = self._producer(scope, name) if scope >= 0 else None
            if producer is None or producer[1].domain not in _STANDARD:
                return None
            node = producer[1]
            if node.op_type not in MOVES | _SCALED | _CODED:
                return None
            inputs = node.input if node.op_type in _SCALED else node.input[:1]
            pending.extend((scope, source) for source in inputs)
        return kinds


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _casts(steps: Iterable[onnx.NodeProto]) -> list[int]:
    """Return the element types that steps cast to, in their order."""
    return [int(a.i) for s in steps if s.op_type == "Cast" for a in s.attribute if a.name == "to"]


def _constants(scope: Scope, view: gs.Graph) -> dict[str, TensorProto | str]:
    """Return the constants of a graph; for those that are no dense tensor, the reason."""
    found: dict[str, TensorProto | str] = {}
    if isinstance(scope.graph, onnx.GraphProto):
        found |= {tensor.name: tensor for tensor in scope.graph.initializer}
        for sparse in scope.graph.sparse_initializer:
            found[sparse.values.name] = "its weight is a sparse initializer"
    for index, node in enumerate(view.nodes):
        if node.op == "Constant" and node.domain in (None, "", "ai.onnx") and node.outputs:
            found[node.outputs[0].name] = _constant_value(scope.graph.node[index])
    return found


def _constant_value(node: onnx.NodeProto) -> TensorProto | str:
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.HasField("t"):
            tensor: TensorProto = attribute.t
            return tensor
        if attribute.name == "value_ints":
            return helper.make_tensor("", TensorProto.INT64, [len(attribute.ints)], attribute.ints)
    kind = ", ".join(attribute.name for attribute in node.attribute)
    return f"its weight is a Constant node with {kind}, not a dense tensor"


def _input_names(graph: onnx.GraphProto | onnx.FunctionProto) -> set[str]:
    """Return the inputs of a graph; those of a function are none that a constant could be, too."""
    return {v.name for v in graph.input} if isinstance(graph, onnx.GraphProto) else set()


def _tensors(view: gs.Graph) -> dict[str, int]:
    """Return the position of the node that makes each tensor of a graph, -1 for its inputs."""
    made = {str(tensor.name): -1 for tensor in view.inputs}
    for index, node in enumerate(view.nodes):
        made |= {str(tensor.name): index for tensor in node.outputs if tensor.name}
    return made
