"""A model's ternary nodes, and runs of them alone by their functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import onnx

from onnxlr.layers.others import is_ternary
from onnxlr.model.scopes import scopes
from onnxlr.runtime import open_runner, store_runs

__all__ = ["NodesAlone", "TernaryNode", "TernaryNodes", "run_alone"]


@dataclass(frozen=True)
class TernaryNode:
    """One of the main graph whose weights are constants.

    Attributes
    ----------
    label
        What messages call it.
    data, output
        The tensors it reads and writes.
    """

    label: str
    data: str
    output: str

    @property
    def own_data(self) -> str:
        """What its data is called in a model of such nodes alone."""
        return f"data of {self.output}"


@dataclass(frozen=True)
class TernaryNodes:
    """The ternary nodes of a model.

    Attributes
    ----------
    alone
        Those that can be run by themselves.
    inside
        Labels of all others: in subgraphs and functions, or with computed weights.
    lacking
        Operators of theirs that the model has no functions for.
    """

    alone: tuple[TernaryNode, ...] = ()
    inside: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self.alone or self.inside)

    @classmethod
    def of(cls, model: onnx.ModelProto) -> TernaryNodes:
        """Return those of a model; tensors are not read."""
        functions = {(function.domain, function.name) for function in model.functions}
        constants = _constants(model.graph)
        alone, inside, lacking = [], [], set()
        for scope in scopes(model):
            if scope.is_training:
                continue
            for node in scope.graph.node:
                if not is_ternary(node.domain, node.op_type):
                    continue
                if (node.domain, node.op_type) not in functions:
                    lacking.add(node.op_type)
                label = node.name or node.output[0]
                if scope.is_main and _is_separable(node, constants):
                    alone.append(TernaryNode(label, node.input[0], node.output[0]))
                else:
                    inside.append(" in ".join([label, *scope.path]))
        return cls(tuple(alone), tuple(inside), tuple(sorted(lacking)))


@dataclass(frozen=True)
class NodesAlone:
    """The task to run a model's ternary nodes alone, as functions.

    Attributes
    ----------
    model
        The model's file.
    feeds
        Files of inputs, `TernaryNode.own_data` by name.
    results
        Folder that outputs go to, in the order of the nodes, `<position of the feed>.npz`.
    level
        Of graph optimisation.
    """

    model: str
    feeds: Sequence[str]
    results: str
    level: str
    function: ClassVar[str] = "onnxlr.verification.ternary:run_alone"


def run_alone(model: str, feeds: Sequence[str], results: str, level: str) -> dict[str, Any]:
    """Run ternary nodes as `NodesAlone` says; return nothing.

    Raises
    ------
    ExecutionError
        If they cannot be loaded or run.
    """
    runner = open_runner(model, level, _keep_ternary_nodes, kernels=False)
    store_runs(runner, feeds, Path(results))
    return {}


def _keep_ternary_nodes(model: onnx.ModelProto) -> None:
    """Take everything off a model's graph but ternary nodes, each with data of its own."""
    graph, ternary = model.graph, TernaryNodes.of(model)
    by_output = {node.output: node for node in ternary.alone}
    kept = onnx.GraphProto(name=graph.name)
    needed: set[str] = set()
    for node in graph.node:
        mine = by_output.get(node.output[0]) if node.output else None
        if mine is None:
            continue
        own = kept.node.add()
        own.CopyFrom(node)
        own.input[0] = mine.own_data
        needed.update(own.input[1:])
        kept.input.append(
            onnx.helper.make_tensor_value_info(mine.own_data, onnx.TensorProto.FLOAT, None)
        )
        kept.output.add(name=mine.output)
    kept.initializer.extend(tensor for tensor in graph.initializer if tensor.name in needed)
    makers = [node for node in graph.node if node.op_type == "Constant"]
    for position, maker in enumerate(m for m in makers if m.output[0] in needed):
        kept.node.insert(position, maker)
    graph.CopyFrom(kept)


def _constants(graph: onnx.GraphProto) -> set[str]:
    made = {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    return made | {tensor.name for tensor in graph.initializer}


def _is_separable(node: onnx.NodeProto, constants: set[str]) -> bool:
    """Whether a node's weights are constants and its data is none."""
    data, *weights = node.input
    return bool(data) and data not in constants and constants.issuperset(filter(None, weights))
