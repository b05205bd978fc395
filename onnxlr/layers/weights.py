"""Where a weight comes from: an initializer, a Constant node, or something onnxlr leaves alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxlr.errors import ModelError
from onnxlr.model.tensors import FLOAT_TYPES, stored_bytes

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx
    import onnx_graphsurgeon as gs

    from onnxlr.layers.layer import Layer
    from onnxlr.model import Model

__all__ = ["Weight", "WeightFinder", "read_weight", "store_weight"]

_PASS_ON = {"Identity", "Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Flatten", "Mul"}
"""Operators through which a constant is still a weight, only a computed one."""

_MAX_STEPS = 8


@dataclass(frozen=True)
class Weight:
    """A constant tensor of the main graph that nodes multiply by.

    Attributes
    ----------
    name
        Name of the tensor in the graph.
    tensor
        The message that holds it.
    kernel
        Whether it is the kernel `(outputs, inputs, 1, …)` of a 1×1 convolution.
    """

    name: str
    tensor: onnx.TensorProto
    kernel: bool = False

    @property
    def dims(self) -> tuple[int, ...]:
        """Shape as stored."""
        return tuple(self.tensor.dims)

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the file."""
        return stored_bytes(self.tensor)

    @property
    def parameters(self) -> int:
        """Number of entries."""
        return int(np.prod(self.dims, dtype=np.int64))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Float type of the entries; only asked of weights that are not skipped."""
        return FLOAT_TYPES[int(self.tensor.data_type)]

    @property
    def matrix_dims(self) -> tuple[int, ...]:
        """Shape as a stored matrix or stack of matrices: a 1×1 kernel is `(outputs, inputs)`."""
        return self.dims[:2] if self.kernel else self.dims

    def canonical_shape(self, swapped: bool) -> tuple[int, ...]:
        """Return the shape `(*batch, inputs, outputs)`."""
        *batch, rows, columns = self.matrix_dims
        return (*batch, columns, rows) if swapped else (*batch, rows, columns)


class WeightFinder:
    """Says of a node's input whether it is a constant weight, a hidden one, or data."""

    def __init__(self, model: Model, view: gs.Graph) -> None:
        self._model = model
        graph = model.proto.graph
        self._inputs = {value.name for value in graph.input}
        self._constants = {
            node.outputs[0].name: graph.node[index]
            for index, node in enumerate(view.nodes)
            if node.op == "Constant" and node.outputs
        }

    def find(self, tensor: gs.Tensor) -> Weight | str | None:
        """Return the weight, the reason why it cannot be used, or None for data."""
        name = tensor.name
        if name in self._model.initializers:
            if name in self._inputs and self._model.ir_version >= 4:
                return (
                    f"its weight '{name}' is also an input of the graph: whoever runs the model "
                    "can override it"
                )
            return Weight(name, self._model.initializers[name])
        if name in self._constants:
            return _constant_weight(name, self._constants[name])
        return _hidden(tensor, self._model.initializers.keys() | self._constants.keys())


def _constant_weight(name: str, node: onnx.NodeProto) -> Weight | str:
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.HasField("t"):
            return Weight(name, attribute.t)
    kind = ", ".join(attribute.name for attribute in node.attribute)
    return f"its weight is a Constant node with {kind}, not a dense tensor"


def _hidden(tensor: gs.Tensor, constants: set[str]) -> str | None:
    """Follow a chain of simple operators upwards; a constant at its end makes it a weight."""
    through: list[str] = []
    for _ in range(_MAX_STEPS):
        producer = tensor.inputs[0] if tensor.inputs else None
        if producer is None:
            return None
        if producer.op == "DequantizeLinear":
            origin = producer.inputs[0]
            if origin.name in constants:
                return "its weight is already quantised (DequantizeLinear)"
            return None
        if producer.op not in _PASS_ON:
            return None
        through.append(producer.op)
        tensor = producer.inputs[0]
        if tensor.name in constants:
            steps = ", ".join(reversed(through))
            return f"its weight '{tensor.name}' is reached through {steps}, not handled yet"
    return None


def read_weight(model: Model, layer: Layer) -> npt.NDArray[Any]:
    """Return a layer's weight in its own float type, canonical shape `(*batch, inputs, outputs)`.

    Raises
    ------
    ModelError
        If the tensor cannot be read or holds NaN or infinity.
    """
    weight = layer.weight
    if weight is None:
        raise ValueError(f"layer '{layer.name}' has no weight")
    try:
        values = model.read(weight.tensor)
    except ModelError as error:
        raise ModelError(f"{model.name}: node '{layer.name}': {error}") from error
    bad = int(values.size - np.count_nonzero(np.isfinite(values)))
    if bad:
        raise ModelError(
            f"{model.name}: node '{layer.name}' ({layer.operator}): weight '{weight.name}' has "
            f"{bad:,} entries that are NaN or infinite of {values.size:,}; expected finite numbers "
            f"(--skip '{layer.name}' leaves it alone)"
        )
    values = values.reshape(weight.matrix_dims)
    return np.swapaxes(values, -1, -2) if layer.swapped else values


def store_weight(layer: Layer, canonical: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a canonical matrix in the shape, orientation and type of the stored weight."""
    if layer.weight is None:
        raise ValueError(f"layer '{layer.name}' has no weight")
    values = np.swapaxes(canonical, -1, -2) if layer.swapped else canonical
    return np.ascontiguousarray(values.reshape(layer.weight.dims), dtype=layer.weight.dtype)
