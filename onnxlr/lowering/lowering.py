"""What a lowering is: one way of writing a stage as nodes, which may refuse with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.context import Context
    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place

__all__ = ["Lowering", "shared_operand"]


class Lowering(Protocol):
    """Writes a stage as ONNX nodes.

    Attributes
    ----------
    name
        What messages call it.
    activations
        What it computes the data in, one of `ACTIVATIONS`.
    """

    name: str
    activations: str

    def refuses(self, context: Context, place: Place) -> str | None:
        """Return why the place's stage cannot be written this way, None if it can."""

    def emit(self, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write the stage applied to `x` and return its result."""


def shared_operand(nodes: Nodes, place: Place, write: Callable[[], gs.Tensor]) -> gs.Tensor:
    """Return a stage's constant as this place takes it, writing it if no site has yet.

    Sites that need it the other way round transpose what is there: the file holds it once, and ONNX
    Runtime folds the Transpose when it loads the model.
    """
    key = (id(place.stage), place.site.scope, place.spreads)
    if key not in nodes.operands:
        nodes.operands[key] = (place.flip, write())
    flip, operand = nodes.operands[key]
    if flip == place.flip:
        return operand
    dims = list(place.stage.shape)
    axes = list(range(len(dims)))
    axes[-2:] = axes[:-3:-1]
    if place.flip:
        dims[-2:] = dims[:-3:-1]
    return nodes.add("Transpose", [operand], "Transpose", dims, {"perm": axes})
