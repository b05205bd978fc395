"""What a function has to serve, and the rows that it multiplies."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import AttributeProto

from onnxlr.operators.body import Body, reference

__all__ = ["Needs", "marked_steps", "prepared_rows", "rounded_rows"]

_MATMUL_INTEGER_OPSET = 10
_LARGEST = 127.0
_SMALLEST_RANGE = 1e-30


@dataclass(frozen=True)
class Needs:
    """What the nodes of one operator in a model need of its function.

    Attributes
    ----------
    levels
        Accuracy levels that occur.
    grouped
        Whether a node has several groups of inputs.
    terms
        The most terms of a node.
    """

    levels: frozenset[int]
    grouped: bool
    terms: int

    def merged(self, other: Needs) -> Needs:
        """Return what serves both."""
        return Needs(
            self.levels | other.levels,
            self.grouped or other.grouped,
            max(self.terms, other.terms),
        )

    def integer(self, opset: int) -> bool:
        """Return whether products are of integers.

        With several groups they would take memory of rows × outputs × groups, and more time than
        float products.
        """
        return opset >= _MATMUL_INTEGER_OPSET and self.levels == {4} and not self.grouped

    def decoded(self, opset: int) -> bool:
        """Return whether weights are summed up in float, scales and all, before the product."""
        return not self.integer(opset) and (self.grouped or self.terms > 1)


def rounded_rows(body: Body, x: str, axis: int) -> tuple[str, str]:
    """Return numbers rounded to -127 … 127 as floats, and what one step is worth, along an axis.

    A row that is not finite has NaN among its rounded numbers.
    """
    largest = _over(body, "ReduceMax", body.add("Abs", x), axis)
    largest = body.add("Max", largest, body.number(_SMALLEST_RANGE))
    scaled = body.add("Mul", x, body.add("Div", body.number(_LARGEST), largest))
    return body.rounded(scaled), body.add("Div", largest, body.number(_LARGEST))


def marked_steps(body: Body, rows: str, step: str, axis: int) -> str:
    """Return the steps of rounded rows, NaN where a row has NaN, which integers cannot tell."""
    nothing = body.add("Mul", _over(body, "ReduceSum", rows, axis), body.number(0.0))
    return body.add("Add", step, nothing)


def _over(body: Body, operator: str, x: str, axis: int) -> str:
    reduced = body.reduce(operator, x, axis, keep=True)
    if axis >= 0:
        return reduced
    # ONNX Runtime does not reduce such an axis where there are no rows: cut it to one entry.
    return body.add("Gather", reduced, body.constant([0]), axis=axis)


def prepared_rows(body: Body, needs: Needs, x: str, axis: int) -> tuple[str, str]:
    """Return the rows that a float product multiplies, and what one step of it is worth."""
    if needs.levels == {0}:
        return x, body.number(1.0)
    rows, step = rounded_rows(body, x, axis)
    if 0 in needs.levels:
        as_they_are = _is_level_0(body)
        rows = body.add("Where", as_they_are, x, rows)
        step = body.add("Where", as_they_are, body.number(1.0), step)
    return rows, step


def _is_level_0(body: Body) -> str:
    """Return whether the attribute accuracy_level is 0, as one bool."""
    kind = AttributeProto.INT
    if body.opset >= 12:
        level = body.add("Constant", value_int=reference("value_int", kind, "accuracy_level"))
        return body.add("Equal", level, body.constant(0))
    # No older operator makes a tensor of an int. Flattened at axis 0, codes are one row; at axis 4,
    # they are at least 64.
    flat = body.add("Flatten", "codes", axis=reference("axis", kind, "accuracy_level"))
    return body.add("Equal", body.dims(flat, 0, 1), body.constant([1]))
