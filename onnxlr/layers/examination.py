"""What every operator family's file answers about a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from onnxlr.errors import ModelError
from onnxlr.layers.layer import Layout, Site
from onnxlr.layers.weights import Weight, WeightFinder
from onnxlr.model.shapes import TensorType
from onnxlr.model.tensors import FLOAT_TYPES, type_name

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

__all__ = ["Candidate", "Found", "Skipped", "attribute", "refuse_weight"]


@dataclass(frozen=True)
class Candidate:
    """A node to examine, with all that is known around it."""

    index: int
    node: onnx.NodeProto
    view: gs.Node
    weights: WeightFinder
    types: Mapping[str, TensorType]
    model_name: str

    @property
    def label(self) -> str:
        """What messages call the node."""
        return self.node.name or str(self.node.output[0])

    def dims(self, name: str) -> tuple[int | str | None, ...] | None:
        """Return the known dimensions of a tensor, None if its rank is unknown."""
        known = self.types.get(name)
        return known.dims if known else None

    def input(self, position: int) -> Weight | str | None:
        """Return what the input at that position is: weight, reason, or data."""
        return self.weights.find(self.view.inputs[position])

    def disagreement(self, weight: Weight, found: object, expected: str) -> ModelError:
        """Return the error for a weight whose shape does not fit its node."""
        return ModelError(
            f"{self.model_name}: node '{self.label}' ({self.node.op_type}): weight "
            f"'{weight.name}' has {found}, expected {expected}"
        )

    def expect_inputs(self, site: Site, weight: Weight, inputs: int) -> None:
        """Check that the data has as many features as the weight has inputs, where both are known.

        Raises
        ------
        ModelError
            If they disagree.
        """
        dims = self.dims(site.data)
        if dims is None:
            return
        if site.layout is Layout.CHANNELS:
            axis = 1
        elif len(dims) < 2:
            axis = 0
        else:
            last = (site.layout is Layout.LAST) != site.transpose_data
            axis = len(dims) - 1 if last else len(dims) - 2
        features = dims[axis] if axis < len(dims) else None
        if isinstance(features, int) and features != inputs:
            raise self.disagreement(
                weight,
                f"shape {'×'.join(map(str, weight.dims))}, that is {inputs} inputs",
                f"{features}, the features of its data '{site.data}'",
            )


@dataclass(frozen=True)
class Found:
    """A site of a weight that can be factorized."""

    weight: Weight
    site: Site


@dataclass(frozen=True)
class Skipped:
    """A node that is left alone, why, and the weight it has, if any."""

    reason: str
    weight: Weight | None = None


def attribute(node: onnx.NodeProto, name: str, default: float | str) -> float | int | str:
    """Return a number or string attribute of a node, or its default."""
    for candidate in node.attribute:
        if candidate.name == name:
            value = onnx.helper.get_attribute_value(candidate)
            return value.decode() if isinstance(value, bytes) else value
    return default


def refuse_weight(weight: Weight) -> str | None:
    """Return why no weight of this type and shape is factorized, None if it can be."""
    if weight.tensor.data_type not in FLOAT_TYPES:
        return f"its weight is {type_name(weight.tensor.data_type)}, not a float type handled yet"
    if len(weight.dims) < 2:
        return "its weight is a vector: nothing to factorize"
    if 0 in weight.dims:
        return "its weight has no entries"
    return None
