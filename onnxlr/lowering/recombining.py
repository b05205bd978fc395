"""Sums of few atoms, put together by nodes on what is stored. Any opset, float data.

ONNX Runtime folds the nodes when it loads the model: a small file, the speed and the memory of
float weights. Where the weight is to be made in each run, what is stored gets its shape from the
size of the data less the size of the data: nothing is constant then, and nothing depends on what
the data is.

Nodes and tensors are written briefly: of a layer of 64 thousand weights in 3 bits, two dozen full
names would be a fifth of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxlr.lowering.arithmetic import Arithmetic
from onnxlr.lowering.decoding import exchanged
from onnxlr.lowering.lowering import shared_operand
from onnxlr.lowering.planes import numbers_of
from onnxlr.numbers.atom_storage import FLOATS, Planes, index_bits
from onnxlr.stages import Convolution, RecombinedConvolution, RecombinedLinear

if TYPE_CHECKING:
    from onnxlr.lowering.context import Context
    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place
    from onnxlr.numbers.atoms import Atoms, Coefficients, Entries
    from onnxlr.stages import Recombined

__all__ = ["Recombining"]

_SMALL = 32
"""A dictionary is decoded at load, in any case, if the weight is so many times as large."""
_PLACES_OPSET = 11
"""CumSum and ScatterElements put coefficients to their places from here on."""
_AXES_OPSET = 13


class Recombining:
    """Gather, or MatMul with the dictionary, and the product."""

    name = "recombined"
    activations = "float"

    def refuses(self, context: Context, place: Place) -> str | None:
        """Refuse what is no sum of atoms, and data that is not float."""
        if not isinstance(place.stage, RecombinedLinear | RecombinedConvolution):
            return "it is no sum of atoms"
        if context.activations != "float":
            return f"float weights are made of them, {context.activations} data was asked"
        return None

    def emit(self, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write what makes the weight, and the product."""
        stage = place.stage
        if not isinstance(stage, RecombinedLinear | RecombinedConvolution):
            raise TypeError(f"{type(stage).__name__} is no sum of atoms")
        if stage.each_run and _joins_wrongly(nodes):  # what is shared may be transposed
            return place.multiply(nodes, x, _made(nodes, x, place, stage))
        operand = shared_operand(nodes, place, lambda: _made(nodes, x, place, stage))
        return place.multiply(nodes, x, operand)


def _joins_wrongly(nodes: Nodes) -> bool:
    """Whether a Transpose must not be in front of a product, unless it is folded.

    ONNX Runtime, at least up to 1.23, joins them in float64, too, and has no kernel for that.
    """
    return nodes.dtype == np.float64


def _made(nodes: Nodes, x: gs.Tensor, place: Place, stage: Recombined) -> gs.Tensor:
    write = Arithmetic(nodes, place)
    with nodes.briefly():
        nothing = None
        if stage.each_run:
            size = nodes.add("Size", [x], "Size", (), dtype=np.int64)
            nothing = write.combine("Sub", size, size)
        weight = _Making(write, stage.atoms, nothing).weight()
    if stage.each_run:  # its shape is not to be found out from the nodes
        nodes.state(weight)
    return weight


@dataclass(frozen=True)
class _Making:
    """Writes what makes a weight.

    Attributes
    ----------
    write
        Writes nodes.
    atoms
        What is stored.
    nothing
        A zero that is not constant; None where all may be folded.
    """

    write: Arithmetic
    atoms: Atoms
    nothing: gs.Tensor | None

    @property
    def inner(self) -> np.dtype[Any]:
        """Type of the arithmetic: ONNX Runtime has none of float16 on the CPU."""
        dtype = self.write.nodes.dtype
        return dtype if dtype == np.float64 else np.dtype(np.float32)

    def weight(self) -> gs.Tensor:
        """Return the weight as the place takes it, in the layer's float type."""
        atoms, write = self.atoms, self.write
        padded = atoms.coefficients.shape[0] * atoms.dictionary.shape[1]
        fits = atoms.kernel and padded == atoms.inputs
        rows: gs.Tensor = write.reshape(
            self._sums(), atoms.dims if fits else [atoms.outputs, padded]
        )
        if not fits:
            rows = write.begin(rows, 1, atoms.inputs)
        if atoms.scales is not None:
            held = atoms.scales.reshape(-1, *[1] * (len(rows.shape) - 1))
            rows = write.combine("Mul", rows, write.cast(self._constant(held), self.inner))
        return write.cast(self._arranged(rows), write.nodes.dtype)

    def _arranged(self, rows: gs.Tensor) -> gs.Tensor:
        """Return rows of one output each as the place takes them."""
        place, dims = self.write.place, list(self.atoms.dims)
        if not isinstance(place.stage, Convolution):
            return rows if place.flip else self._transposed(rows, dims)
        kernel = rows if rows.shape == dims else self.write.reshape(rows, dims)
        return exchanged(self.write, kernel) if place.spreads else kernel

    def _transposed(self, rows: gs.Tensor, dims: list[int]) -> gs.Tensor:
        """Return a matrix of the weight's dims; all of a constant one is folded.

        ONNX Runtime joins a Transpose with the product behind it, which saves a copy in each run.
        """
        turned = self.write.nodes.add("Transpose", [rows], "Transpose", dims, dtype=rows.dtype)
        if self.nothing is None or not _joins_wrongly(self.write.nodes):
            return turned
        return self.write.reshape(turned, dims)

    def _sums(self) -> gs.Tensor:
        """Return the sums of atoms: outputs, tiles and their width in order, in any dims."""
        coefficients = self.atoms.coefficients
        form = self._form(coefficients)
        if form == "mask":
            return self._multiplied(self._masked(coefficients))
        if form == "values":
            values = coefficients.matrix().swapaxes(0, 1)
            return self._multiplied(self._values(values, coefficients.bits))
        if self._is_wide(coefficients):
            return self._multiplied(self._scattered(coefficients))
        return self._gathered(coefficients)

    def _form(self, coefficients: Coefficients) -> str:
        """Return the cheapest form that can be read at this opset, and in little memory."""
        if self.write.nodes.opset >= _PLACES_OPSET:
            return coefficients.form()
        dense = "values" if coefficients.bits else "mask"
        form = coefficients.form(("indices", dense))
        return dense if form == "indices" and self._is_wide(coefficients) else form

    def _is_wide(self, coefficients: Coefficients) -> bool:
        """Whether the atoms that a column takes are more numbers than its coefficients are."""
        size, width = self.atoms.dictionary.shape
        return size < coefficients.most * width and not coefficients.repeats

    def _gathered(self, coefficients: Coefficients) -> gs.Tensor:
        """Return sums of atoms that are taken one by one; of each column the first ones first."""
        write, (indices, values) = self.write, coefficients.entries()
        places = self._places(indices.transpose(2, 1, 0))
        width = self.atoms.dictionary.shape[1]
        dims = [*places.shape, width]
        inputs = [self._dictionary(), places]
        taken = write.nodes.add("Gather", inputs, "Gather", dims, dtype=self.inner)
        if values is not None:
            factors = self._values(values.transpose(2, 1, 0), coefficients.bits)
            apart = write.reshape(factors, [*places.shape, 1])
            taken = write.combine("Mul", taken, apart)
        entries = indices.shape[2]
        if entries == 1:
            return taken
        total = coefficients.columns * width
        return self._added(write.reshape(taken, [entries, total]))

    def _added(self, x: gs.Tensor) -> gs.Variable:
        """Return the sum along the first axis."""
        inputs, attributes = [x], dict[str, Any](keepdims=0)
        if self.write.nodes.opset < _AXES_OPSET:
            attributes["axes"] = [0]
        else:
            inputs.append(self._constant(np.array([0], np.int64)))
        return self.write.nodes.add(
            "ReduceSum", inputs, "ReduceSum", x.shape[1:], attributes, dtype=x.dtype
        )

    def _multiplied(self, coefficients: gs.Tensor) -> gs.Tensor:
        """Return the product of coefficients, columns and atoms in order, and the dictionary."""
        if self.atoms.is_plain:
            return coefficients
        write, (size, width) = self.write, self.atoms.dictionary.shape
        columns = self.atoms.coefficients.columns
        inputs = [write.reshape(coefficients, [columns, size]), self._dictionary()]
        return write.nodes.add("MatMul", inputs, "MatMul", [columns, width], dtype=self.inner)

    def _scattered(self, coefficients: Coefficients) -> gs.Tensor:
        """Return the coefficients of all atoms, from the places of those that are not 0."""
        write, (indices, values) = self.write, coefficients.entries()
        dims = [coefficients.columns, indices.shape[2]]
        places = write.reshape(self._places(indices.swapaxes(0, 1)), dims)
        if values is None:
            entries = self._filled(dims, 1)
        else:
            held = self._values(values.swapaxes(0, 1), coefficients.bits)
            entries = write.reshape(held, dims)
        whole = self._filled([coefficients.columns, coefficients.size], 0)
        inputs = [whole, places, entries]
        return write.nodes.add(
            "ScatterElements", inputs, "Scatter", whole.shape, {"axis": 1}, dtype=self.inner
        )

    def _filled(self, dims: list[int], value: int) -> gs.Variable:
        shape = self._constant(np.array(dims, np.int64))
        attributes = {"value": gs.Constant("value", np.array([value], self.inner))}
        return self.write.nodes.add(
            "ConstantOfShape", [shape], "Filled", dims, attributes, dtype=self.inner
        )

    def _masked(self, coefficients: Coefficients) -> gs.Tensor:
        """Return the coefficients of all atoms, from a bit for each that says which are not 0.

        Bits are counted: the count is the number of a coefficient among those that are stored, and
        where the bit is 0 it is that of the 0 in front of them.
        """
        write, matrix = self.write, coefficients.matrix().swapaxes(0, 1).reshape(-1)
        taken = matrix != 0
        held = Planes.of(taken.astype(np.uint8), 1)
        if not coefficients.bits:
            return numbers_of(write, held, self.inner, self._stored)
        bits = numbers_of(write, held, np.int32, self._stored)
        flat = write.reshape(bits, [matrix.size])
        axis = self._constant(np.array(0, np.int32))
        counts = write.nodes.add("CumSum", [flat, axis], "CumSum", flat.shape, dtype=np.int32)
        numbers = write.combine("Mul", counts, flat)
        kept = np.append(matrix.dtype.type(0), matrix[taken])
        if coefficients.bits not in FLOATS:
            kept = np.pad(kept, (0, -kept.size % 8))  # nothing to be cut off
        values = self._values(kept, coefficients.bits)
        inputs = [write.reshape(values, [kept.size]), numbers]
        return write.nodes.add("Gather", inputs, "Gather", numbers.shape, dtype=self.inner)

    def _places(self, indices: npt.NDArray[np.int64]) -> gs.Tensor:
        bits = max(index_bits(self.atoms.coefficients.size), 1)
        return numbers_of(self.write, Planes.of(indices, bits), np.int32, self._stored)

    def _values(self, values: Entries, bits: int) -> gs.Tensor:
        """Return entries as floats of the arithmetic, in any dims."""
        if bits in FLOATS:
            return self.write.cast(self._stored(values.reshape(-1)), self.inner)
        half = 1 << (bits - 1)
        planes = Planes.of(values.astype(np.int64) + half, bits)
        codes = numbers_of(self.write, planes, self.inner, self._stored)
        return self.write.combine("Sub", codes, self._constant(np.array(half, self.inner)))

    def _dictionary(self) -> gs.Tensor:
        """Return the atoms, `(size, width)`."""
        kept, write = self.atoms.dictionary, self.write
        is_small = kept.codes.size * _SMALL < prod(self.atoms.dims)
        hold = self._constant if is_small or kept.format.dtype == self.inner else self._stored
        if kept.format.is_packed:
            codes = numbers_of(write, Planes.of(kept.codes, kept.format.bits), self.inner, hold)
            numbers: gs.Tensor = write.reshape(codes, kept.shape)
        else:
            numbers = write.cast(hold(kept.codes), self.inner)
        if kept.zero_points is not None:
            zeros = write.cast(self._constant(kept.zero_points), self.inner)
            numbers = write.combine("Sub", numbers, zeros)
        if kept.scales is not None:
            scales = write.cast(self._constant(kept.scales), self.inner)
            numbers = write.combine("Mul", numbers, scales)
        return numbers

    def _constant(self, values: npt.NDArray[Any]) -> gs.Constant:
        return self.write.constant(values, values.dtype, "constant")

    def _stored(self, values: npt.NDArray[Any]) -> gs.Tensor:
        """Return an array of the file, which is not folded where the weight is made in each run."""
        held = self._constant(values)
        if self.nothing is None:
            return held
        if values.dtype == self.inner:  # a Reshape would be joined with the next, and both folded
            return self.write.combine("Add", held, self.write.cast(self.nothing, self.inner))
        shape = self._constant(np.array(values.shape, np.int64))
        wanted = self.write.combine("Add", shape, self.nothing)
        return self.write.nodes.add(
            "Reshape", [held, wanted], "Reshape", values.shape, dtype=values.dtype
        )
