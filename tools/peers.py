"""What ONNX Runtime's own tools make of a model: the files that ours are compared with."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["dynamic_int8", "matmul_4_bits"]


def dynamic_int8(model: Path, output: Path, operators: Sequence[str] | None = None) -> None:
    """Write `model` with int8 weights, a scale for each column, and data rounded as it runs.

    Parameters
    ----------
    model, output
        The files.
    operators
        Operators to quantise; all that the tool knows (embedding tables, too) if not given.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Its first lines are always advice to run a preprocessing step, on the root logger.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        quantize_dynamic(
            _load(model),
            output,
            op_types_to_quantize=list(operators) if operators else None,
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    finally:
        root.setLevel(level)


def matmul_4_bits(model: Path, output: Path, *, block: int, symmetric: bool) -> None:
    """Write `model` with every constant matrix of a MatMul in 4 bits, rounded to nearest.

    The products run with the data rounded to int8 (`accuracy_level=4`), the fast kernel.

    Parameters
    ----------
    model, output
        The files.
    block
        Inputs that share a scale.
    symmetric
        No zero points.
    """
    quantizer = _quantizer()(
        _load(model), block_size=block, is_symmetric=symmetric, accuracy_level=4
    )
    quantizer.process()
    onnx.save(quantizer.model.model, output)


def _load(model: Path) -> onnx.ModelProto:
    """Open a model, with its Constant nodes as initializers: the tools see no other weights."""
    proto = onnx.load(model)
    kept = []
    for node in proto.graph.node:
        value = [a.t for a in node.attribute if a.name == "value"]
        if node.op_type == "Constant" and value:
            proto.graph.initializer.add().CopyFrom(value[0])
            proto.graph.initializer[-1].name = node.output[0]
        else:
            kept.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    # Before version 4 every initializer had to be an input as well.
    proto.ir_version = max(proto.ir_version, 4)
    return proto


def _quantizer() -> Any:
    """Return the class, under the name it has in this version of ONNX Runtime."""
    try:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("onnxruntime"):
            # The module is there and needs another package (onnx-ir, from 1.23 on).
            raise
        from onnxruntime.quantization.matmul_4bits_quantizer import MatMul4BitsQuantizer

        return MatMul4BitsQuantizer
    return MatMulNBitsQuantizer
