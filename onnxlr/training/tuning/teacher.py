"""What a rewritten model is trained towards: the original's outputs, and tensors inside of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import onnx

from onnxlr.layers import find_layers
from onnxlr.model import Model
from onnxlr.training.constants import array_of
from onnxlr.training.data import Arrays, TrainingData
from onnxlr.training.torch_import import torch
from onnxlr.training.trainable import TrainableModel

__all__ = ["MEMORY", "Teacher", "own_arrays", "tensors_behind"]

Tensor = Any

MEMORY = 1 << 30
"""Most bytes of outputs that are kept; more are computed anew for each batch."""

_KEPT = "original: "
"""What the names of kept outputs begin with, beside the inputs in a batch."""


def own_arrays(batch: Arrays) -> Arrays:
    """Return a batch without what a teacher keeps beside it."""
    return {name: array for name, array in batch.items() if not name.startswith(_KEPT)}


def tensors_behind(original: Model, rewritten: Model) -> list[str]:
    """Return the tensors behind rewritten layers that both models have under the same name.

    A layer counts as rewritten if its node, or a constant that this reads, is another than in the
    original. Where a constant is added to its output, the sum is taken: that is where a bias
    correction may lie.

    Parameters
    ----------
    original, rewritten
        The opened models; only tensors of their main graphs are returned, and no outputs.
    """
    makers = {name: node for node in rewritten.proto.graph.node for name in node.output if name}
    outputs = {value.name for value in original.proto.graph.output}
    found: dict[str, None] = {}
    for layer in find_layers(original):
        for site in layer.sites:
            if site.scope != 0 or layer.skip is not None:
                continue
            if _is_same(site.node, makers.get(site.output), original, rewritten):
                continue
            name = _behind(original, site.output)
            name = name if name in makers else site.output
            if name in makers and name not in outputs:
                found[name] = None
    return list(found)


def _is_same(
    node: onnx.NodeProto, other: onnx.NodeProto | None, original: Model, rewritten: Model
) -> bool:
    if other is None or node.SerializeToString() != other.SerializeToString():
        return False
    return all(
        original.initializers.get(name) == rewritten.initializers.get(name) for name in node.input
    )


def _behind(model: Model, output: str) -> str:
    """Return the tensor behind the Add of a constant that alone uses an output, else the output."""
    user = model.uses.only_user((0, output))
    if user is None or user[0] != 0:
        return output
    node = model.proto.graph.node[user[1]]
    others = [name for name in node.input if name != output]
    if node.op_type != "Add" or not others or others[0] not in model.initializers:
        return output
    return str(node.output[0])


class Teacher:
    """The original model, run without gradients.

    Parameters
    ----------
    model
        The original.
    outputs, hidden
        Names of the float outputs, and of tensors inside of it, that are learnt from.
    """

    def __init__(
        self, model: TrainableModel, outputs: Sequence[str], hidden: Sequence[str]
    ) -> None:
        self.model = model
        self.outputs, self.hidden = tuple(outputs), tuple(hidden)

    def targets(self, batch: Arrays, hidden: bool) -> dict[str, Tensor]:
        """Return the original's tensors for a batch, by name.

        Parameters
        ----------
        batch
            Inputs by name; what `remember` put beside them is not computed again.
        hidden
            Whether hidden tensors are wanted beside the outputs.
        """
        names = (*self.outputs, *(self.hidden if hidden else ()))
        if all(_KEPT + name in batch for name in names):
            device = next(self.model.parameters()).device
            return {name: torch.from_numpy(batch[_KEPT + name]).to(device) for name in names}
        with torch.no_grad():
            found = self.model(batch, watch=self.hidden if hidden else ())
        return {name: found[name] for name in names}

    def remember(self, data: TrainingData, hidden: bool, memory: int = MEMORY) -> TrainingData:
        """Return data with the original's tensors beside the inputs, where memory allows.

        Parameters
        ----------
        data
            What is trained on, and judged by; only outputs are kept of the latter.
        hidden
            Whether hidden tensors are wanted beside the outputs.
        memory
            Most bytes to keep. What does not fit is not kept at all, and computed again.
        """
        first = self._arrays(next(data.cut()), hidden)
        held = [{**batch, **self._arrays(batch, hidden=False)} for batch in data.held[:1]]
        size = data.batches * _bytes(first) + len(data.held) * _bytes(held[0])
        if size > memory:
            return data
        held += [{**batch, **self._arrays(batch, hidden=False)} for batch in data.held[1:]]
        data = replace(data, held=tuple(held))
        try:
            return data.beside(lambda batch: self._arrays(batch, hidden))
        except ValueError:  # tensors without a row for each sample cannot be cut into batches
            return data

    def _arrays(self, batch: Arrays, hidden: bool) -> Arrays:
        found = self.targets(batch, hidden)
        return {_KEPT + name: array_of(value) for name, value in found.items()}


def _bytes(arrays: Arrays) -> int:
    return sum(array.nbytes for name, array in arrays.items() if name.startswith(_KEPT))
