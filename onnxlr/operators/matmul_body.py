"""The body of the function TernaryMatMul."""

from __future__ import annotations

import numpy as np

from onnxlr.operators.body import FLOAT, UINT8, Body
from onnxlr.operators.products import Needs, marked_steps, prepared_rows, rounded_rows
from onnxlr.operators.unpacking import Packed

__all__ = ["write_matmul"]

_CENTRE = 128  # rows are uint8 around it: runtimes have their fastest kernels for uint8 times int8


def write_matmul(body: Body, needs: Needs) -> None:
    """Write the nodes from X to Y, all of which keep the leading dimensions of X."""
    packed = Packed(body.range(body.dims("input_scale", 0)), body.dims("bias", 0))
    x = body.add("Mul", "X", "input_scale")
    write = _integer if needs.integer(body.opset) else _float
    total, step = write(body, packed, x, needs)
    body.add("Add", body.add("Mul", total, step), "bias", output="Y")


def _integer(body: Body, packed: Packed, x: str, needs: Needs) -> tuple[str, str]:
    rows, step = rounded_rows(body, x, -1)
    step = marked_steps(body, rows, step, -1)
    rows = body.cast(body.add("Add", rows, body.number(_CENTRE)), UINT8)
    centre = body.constant(_CENTRE, np.uint8)
    sums = []
    for term in range(needs.terms):
        product = body.add("MatMulInteger", rows, packed.term(body, term), centre)
        scales = packed.scales_of_outputs(body, term)
        sums.append(body.add("Mul", body.cast(product, FLOAT), scales))
    return body.sum(sums), step


def _float(body: Body, packed: Packed, x: str, needs: Needs) -> tuple[str, str]:
    rows, step = prepared_rows(body, needs, x, -1)
    if not needs.decoded(body.opset):
        product = body.add("MatMul", rows, body.cast(packed.term(body, 0), FLOAT))
        return body.add("Mul", product, packed.scales_of_outputs(body, 0)), step
    weights = [packed.scaled(body, term, needs.grouped) for term in range(needs.terms)]
    return body.add("MatMul", rows, body.sum(weights)), step
