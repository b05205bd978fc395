"""What every operator family's file answers about a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from onnxlr.errors import ModelError
from onnxlr.layers.layer import Layout, Site
from onnxlr.layers.operands import Operand, OperandFinder
from onnxlr.model.shapes import Dim, TensorType
from onnxlr.model.tensors import FLOAT_TYPES, type_name

__all__ = ["Candidate", "Skipped", "attribute", "refuse_operand"]


@dataclass(frozen=True)
class Skipped:
    """A node that is left alone, why, and the operand it has, if any."""

    reason: str
    operand: Operand | None = None


@dataclass(frozen=True)
class Candidate:
    """A node to examine, with all that is known around it."""

    scope: int
    index: int
    node: onnx.NodeProto
    label: str
    view: gs.Node
    operands: OperandFinder
    types: Mapping[str, TensorType]
    model_name: str
    in_function: bool

    def dims(self, name: str) -> tuple[Dim, ...] | None:
        """Return the known dimensions of a tensor, None if its rank is unknown."""
        known = self.types.get(name)
        return known.dims if known else None

    def input(self, position: int) -> Operand | str | None:
        """Return what the input at that position is: operand, reason, or data."""
        return self.operands.find(self.scope, self.view.inputs[position])

    def site(
        self,
        operand: Operand,
        layout: Layout,
        data: int,
        swapped: bool = False,
        transpose_data: bool = False,
    ) -> Site:
        """Return the site of an operand, with its data at input `data`."""
        name = str(self.node.input[data])
        return Site(
            self.scope,
            self.index,
            self.node,
            layout,
            operand,
            swapped,
            name,
            self.label,
            transpose_data,
            self.dims(name),
            self.dims(str(self.node.output[0])),
            self.in_function,
        )

    def disagreement(self, operand: Operand, found: object, expected: str) -> ModelError:
        """Return the error for a weight whose shape does not fit its node."""
        return ModelError(
            f"{self.model_name}: node '{self.label}' ({self.node.op_type}): weight "
            f"'{operand.weight.name}' has {found}, expected {expected}"
        )

    def expect_inputs(self, site: Site, inputs: int) -> None:
        """Check that the data has as many features as the weight has inputs, where both are known.

        Raises
        ------
        ModelError
            If they disagree, or if data or result are said to have a rank that they cannot have.
        """
        self.expect_ranks(site)
        dims = site.data_dims
        if dims is None:
            return
        if site.is_convolution:
            axis = 1
        elif len(dims) < 2:
            axis = 0
        else:
            last = (site.layout is Layout.LAST) != site.transpose_data
            axis = len(dims) - 1 if last else len(dims) - 2
        features = dims[axis] if axis < len(dims) else None
        if isinstance(features, int) and features != inputs:
            shape = "×".join(map(str, site.operand.dims))
            raise self.disagreement(
                site.operand,
                f"shape {shape}, that is {inputs} inputs",
                f"{features}, the features of its data '{site.data}'",
            )

    def expect_ranks(self, site: Site) -> None:
        """Check the ranks of data and result, where they are known: files can state what they like.

        Raises
        ------
        ModelError
            If one is another than the operator allows.
        """
        data, result = site.data_dims, site.output_dims
        rank = len(site.operand.dims)
        wanted = rank if site.is_convolution or self.node.op_type == "Gemm" else None
        if data is not None and (len(data) != wanted if wanted else self._is_scalar(site)):
            raise self._wrong_rank(site.data, len(data), str(wanted or "at least 1"))
        if data is not None and wanted is None:
            if site.layout is Layout.ROWS:
                wanted = len(data) + 1
            else:
                wanted = rank - 1 if len(data) == 1 else max(len(data), rank)
        if result is not None and wanted is not None and len(result) != wanted:
            raise self._wrong_rank(site.output, len(result), str(wanted))
        if result is not None and wanted is None and len(result) < rank - 1:  # data of unknown rank
            raise self._wrong_rank(site.output, len(result), f"at least {rank - 1}")

    def _is_scalar(self, site: Site) -> bool:
        return site.data_dims == () and site.layout is not Layout.ROWS

    def _wrong_rank(self, name: str, found: int, expected: str) -> ModelError:
        return ModelError(
            f"{self.model_name}: node '{self.label}' ({self.node.op_type}): '{name}' has {found} "
            f"dimensions, expected {expected}"
        )


def attribute(node: onnx.NodeProto, name: str, default: float | str) -> float | str:
    """Return a number or string attribute of a node, or its default."""
    for candidate in node.attribute:
        if candidate.name == name:
            value = onnx.helper.get_attribute_value(candidate)
            return value.decode() if isinstance(value, bytes) else value
    return default


def refuse_operand(operand: Operand) -> str | None:
    """Return why no weight of this type and shape is factorized, None if it can be."""
    if operand.elem_type not in FLOAT_TYPES:
        return f"its weight is {type_name(operand.elem_type)}, not a float type handled yet"
    if len(operand.dims) < 2:
        return "its weight is a vector: nothing to factorize"
    if 0 in operand.dims:
        return "its weight has no entries"
    return None
