"""A model as a list of calls with constants: functions inlined, subgraphs as programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, helper, inliner

from onnxlr.errors import ModelError
from onnxlr.model import Model
from onnxlr.operators.schema import DOMAIN

__all__ = ["Call", "Program", "compile_program"]

Array = npt.NDArray[Any]

_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, eq=False)
class Call:
    """One node.

    Attributes
    ----------
    operator, domain
        Its type; the domain of standard operators is empty.
    version
        Of its domain's operators that the model imports.
    label
        What messages call it.
    inputs, outputs
        Names of tensors; empty where one is left out.
    attributes
        Values as Python has them: numbers, texts, lists, arrays.
    programs
        Subgraphs by the name of their attribute.
    kinds
        ONNX's numbers of the element types of inputs; None where the graph does not say.
    """

    operator: str
    domain: str
    version: int
    label: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    programs: Mapping[str, Program] = field(default_factory=dict)
    kinds: tuple[int | None, ...] = ()

    @property
    def kind(self) -> str:
        """The operator with its domain, as messages write it."""
        return f"{self.domain}.{self.operator}" if self.domain else self.operator

    def number(self, name: str, usual: Any) -> Any:
        """Return an attribute, or what it is if not given."""
        return self.attributes.get(name, usual)

    def kind_of(self, place: int) -> int | None:
        """Return the element type of an input, None where there is none or it is not known."""
        return self.kinds[place] if place < len(self.kinds) else None

    def reads(self) -> Iterator[str]:
        """Yield the names of tensors that it uses, those that its subgraphs do too."""
        yield from self.inputs
        for program in self.programs.values():
            yield from program.outputs
            for call in program.calls:
                yield from call.reads()


@dataclass(frozen=True, eq=False)
class Program:
    """A graph.

    Attributes
    ----------
    inputs, outputs
        Names of tensors; inputs without those that constants give.
    constants
        Initializers and the values of Constant nodes by the names of their tensors.
    calls
        All other nodes, in an order that can be run.
    aliases
        Other names that constants are known by outside of the graph, where it has no name of its
        own for them: graphs beside each other may use a name for different tensors.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Array]
    calls: tuple[Call, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def last_uses(self) -> tuple[tuple[str, ...], ...]:
        """For each call, the tensors that no later one uses."""
        seen: set[str] = set()
        found = []
        for call in reversed(self.calls):
            names = {*call.reads(), *call.outputs} - seen
            seen |= names
            found.append(tuple(sorted(names)))
        return tuple(reversed(found))

    def all_calls(self) -> Iterator[Call]:
        """Yield all calls, those of subgraphs too."""
        for call in self.calls:
            yield call
            for program in call.programs.values():
                yield from program.all_calls()


def compile_program(model: Model) -> Program:
    """Return a model's main graph as a program.

    Functions are inlined, but for those of the ternary operators, which are run as operators.

    Raises
    ------
    ModelError
        If a tensor cannot be read, or functions cannot be inlined.
    """
    proto = _inlined(model) if model.proto.functions else model.proto
    versions = {
        o.domain if o.domain not in _STANDARD else "": o.version for o in proto.opset_import
    }
    return _Compiler(model, versions).program(proto.graph, {})


def _inlined(model: Model) -> onnx.ModelProto:
    own = [(f.domain, f.name) for f in model.proto.functions if f.domain == DOMAIN]
    try:
        return inliner.inline_selected_functions(model.proto, own, exclude=True)
    except Exception as error:
        raise ModelError(f"{model.name}: its functions cannot be inlined: {error}") from error


@dataclass(frozen=True)
class _Compiler:
    model: Model
    versions: Mapping[str, int]
    taken: set[str] = field(default_factory=set)

    def program(self, graph: onnx.GraphProto, around: Mapping[str, int]) -> Program:
        """Compile a graph; `around` are the element types of tensors that it sees."""
        if graph.sparse_initializer:
            raise ModelError(
                f"{self.model.name}: sparse initializers cannot be trained or run here"
            )
        constants = {tensor.name: self.model.read(tensor) for tensor in graph.initializer}
        nodes = []
        for node in graph.node:
            if node.op_type == "Constant" and node.domain in _STANDARD:
                constants[node.output[0]] = self._constant(node)
            else:
                nodes.append(node)
        aliases = self._aliases(constants)
        kinds = {**around, **_kinds(graph, constants)}
        calls = tuple(self._call(node, kinds) for node in nodes)
        inputs = tuple(value.name for value in graph.input if value.name not in constants)
        outputs = tuple(value.name for value in graph.output)
        return Program(inputs, outputs, constants, calls, aliases)

    def _aliases(self, names: Iterable[str]) -> dict[str, str]:
        """Return new names for constants of names that were taken by another graph."""
        aliases = {}
        for name in names:
            known, number = name, 1
            while known in self.taken:
                number += 1
                known = f"{name} ({number})"
            self.taken.add(known)
            if known != name:
                aliases[name] = known
        return aliases

    def _call(self, node: onnx.NodeProto, kinds: Mapping[str, int]) -> Call:
        attributes: dict[str, Any] = {}
        programs: dict[str, Program] = {}
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                programs[attribute.name] = self.program(attribute.g, kinds)
            elif attribute.type == AttributeProto.TENSOR:
                attributes[attribute.name] = self.model.read(attribute.t)
            else:
                attributes[attribute.name] = _plain(helper.get_attribute_value(attribute))
        domain = "" if node.domain in _STANDARD else node.domain
        label = node.name or f"{node.op_type} of '{','.join(node.output)}'"
        return Call(
            node.op_type,
            domain,
            self.versions.get(domain, 1),
            label,
            tuple(node.input),
            tuple(node.output),
            attributes,
            programs,
            tuple(kinds.get(name) for name in node.input),
        )

    def _constant(self, node: onnx.NodeProto) -> Array:
        attribute = node.attribute[0]
        if attribute.name == "value":
            return self.model.read(attribute.t)
        value = helper.get_attribute_value(attribute)
        if attribute.name.startswith("value_float"):
            return np.asarray(value, np.float32)
        if attribute.name.startswith("value_int"):
            return np.asarray(value, np.int64)
        raise ModelError(
            f"{self.model.name}: Constant '{node.output[0]}' has {attribute.name}, expected numbers"
        )


def _kinds(graph: onnx.GraphProto, constants: Mapping[str, Array]) -> dict[str, int]:
    """Return the element types that a graph states, and those of its constants."""
    stated = {
        value.name: int(value.type.tensor_type.elem_type)
        for value in (*graph.input, *graph.value_info)
        if value.type.HasField("tensor_type")
    }
    held = {
        name: int(helper.np_dtype_to_tensor_dtype(array.dtype)) for name, array in constants.items()
    }
    return {**stated, **held}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
