"""ONNX Runtime's own tools that quantise models, muted, and with what they need prepared."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from onnxlr.model import Model
from onnxlr.model.saving import is_too_big, write_model
from onnxlr.model.scopes import scopes
from onnxlr.runtime import read_arrays
from onnxlr.scratch import scratch

__all__ = ["QuantizerError", "dynamic_int8", "matmul_nbits", "static_int8"]

_AXIS = 13
"""The first opset whose DequantizeLinear has a scale for each channel."""

_INT4 = 21
"""The first opset with numbers of 4 bits."""

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


class QuantizerError(Exception):
    """A tool cannot do this here; the message is one sentence."""


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Let nothing of what the tools print, log and warn of come out.

    The module of MatMulNBits, when it is imported, even sets the root logger up.
    """
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, root.manager.disable
    logging.disable(logging.CRITICAL)
    silence = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)


@_muted()
def dynamic_int8(
    model: Path,
    output: Path,
    feeds: Sequence[str] = (),  # noqa: ARG001  (what all tools are called with)
    *,
    operators: Sequence[str] | None = None,
) -> None:
    """Write `model` with int8 weights, a scale for each column, and data rounded as it runs.

    Parameters
    ----------
    model, output
        The files.
    feeds
        Not looked at.
    operators
        Operators to quantise; all that the tool knows (embedding tables, too) if not given.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    proto = _load(model)
    quantize_dynamic(
        proto,
        output,
        op_types_to_quantize=list(operators) if operators else None,
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=is_too_big(proto),
    )


@_muted()
def matmul_nbits(
    model: Path,
    output: Path,
    feeds: Sequence[str] = (),  # noqa: ARG001  (what all tools are called with)
    *,
    bits: int = 4,
    block: int = 32,
    symmetric: bool = False,
    tables: bool = False,
) -> None:
    """Write `model` with every constant matrix of a MatMul in few bits, rounded to nearest.

    The products run with the data rounded to int8 (`accuracy_level=4`), the fast kernel.

    Parameters
    ----------
    model, output
        The files.
    feeds
        Not looked at.
    bits
        4, or 8 where this version of ONNX Runtime knows it.
    block
        Inputs that share a scale.
    symmetric
        No zero points.
    tables
        Whether the tables of Gather nodes are quantised as well; the tool can with 4 bits only.

    Raises
    ------
    QuantizerError
        If this version of ONNX Runtime cannot, or there are no tables.
    ModuleNotFoundError
        If a package is missing that the tool needs.
    """
    quantizer = _quantizer()
    wanted: dict[str, Any] = {"bits": bits} if bits != 4 else {}
    excluded: list[str] = []
    proto = _load(model)
    if tables:
        excluded = _gathers_without_table(proto)
        wanted |= {"op_types_to_quantize": ("MatMul", "Gather")}
        proto = _of_opset(proto, _INT4)
    unknown = set(wanted) - set(inspect.signature(quantizer).parameters)
    if unknown:
        raise QuantizerError(
            f"the tool of ONNX Runtime {ort.__version__} quantises the matrices of MatMul nodes to "
            f"4 bits only, and does not know {' and '.join(sorted(unknown))}"
        )
    worker = quantizer(
        proto,
        block_size=block,
        is_symmetric=symmetric,
        accuracy_level=4,
        nodes_to_exclude=excluded,
        **wanted,
    )
    worker.process()
    write_model(Model(worker.model.model, None), output.parent, output.name)


@_muted()
def static_int8(
    model: Path, output: Path, feeds: Sequence[str] = (), *, data: str = "uint8"
) -> None:
    """Write `model` with int8 weights, a scale for each channel, and data rounded to fixed ranges.

    The ranges are the least and the largest values met, and QuantizeLinear and DequantizeLinear
    nodes say where they hold (QDQ). What ONNX Runtime recommends on x86-64 is uint8 data.

    Parameters
    ----------
    model, output
        The files.
    feeds
        Files of inputs to calibrate on.
    data
        "uint8" or "int8".

    Raises
    ------
    QuantizerError
        If there are no inputs.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    if not feeds:
        raise QuantizerError("static quantisation needs inputs to calibrate on; there are none")
    proto = _of_opset(_load(model), _AXIS)
    is_big = is_too_big(proto)
    quantize = partial(
        quantize_static,
        model_output=output,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8 if data == "uint8" else QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        use_external_data_format=is_big,
    )
    with scratch("onnxlr-stock-") as folder:
        # Files: of models in memory, old versions of the tools lose the weights.
        plain, prepared = folder / "plain.onnx", folder / "prepared.onnx"
        write_model(Model(proto, None), folder, plain.name)
        del proto
        with contextlib.suppress(Exception):  # of some models the tool handles only what they were
            _preprocess(plain, prepared, is_big)
            quantize(prepared, calibration_data_reader=_Inputs(feeds))
            return
        quantize(plain, calibration_data_reader=_Inputs(feeds))


class _Inputs:
    """Inputs as the calibration asks for them: one after the other, then None."""

    def __init__(self, feeds: Sequence[str]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        file = next(self._left, None)
        return None if file is None else read_arrays(Path(file))


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
    if proto.ir_version < 4:
        # Every initializer had to be an input as well, which now would say that it can be replaced.
        constants = {tensor.name for tensor in proto.graph.initializer}
        inputs = [value for value in proto.graph.input if value.name not in constants]
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
        proto.ir_version = 4
    return proto


def _of_opset(proto: onnx.ModelProto, least: int) -> onnx.ModelProto:
    """Return a model of that opset, or of its own where that is newer or cannot be raised."""
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions or versions[0] >= least:
        return proto
    with contextlib.suppress(Exception):  # then the tool makes what it can of the model as it is
        return onnx.version_converter.convert_version(proto, least)
    return proto


def _preprocess(model: Path, output: Path, is_big: bool) -> None:
    """Write a model with constants computed, normalisations folded, and the shapes it has.

    Without symbolic shapes: what they need is beyond most models, and they changed nothing where
    they were found. The weights of one that is too big for a file go beside it.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    place: dict[str, Any] = {}
    if is_big:
        place = {"save_as_external_data": True, "all_tensors_to_one_file": True}
        place["external_data_location"] = f"{output.name}.data"
    quant_pre_process(str(model), str(output), skip_symbolic_shape=True, **place)


def _gathers_without_table(proto: onnx.ModelProto) -> list[str]:
    """Return names of the Gather nodes without a table, which the tool must not touch.

    Raises
    ------
    QuantizerError
        If there are no tables.
    """
    found = [scope.graph for scope in scopes(proto)]
    constants = {t.name: t for graph in found for t in getattr(graph, "initializer", ())}
    gathers = [node for graph in found for node in graph.node if node.op_type == "Gather"]
    others = [node for node in gathers if not _reads_table(node, constants)]
    if len(others) == len(gathers):
        raise QuantizerError("the model has no table of floats that a Gather node reads rows of")
    for position, node in enumerate(others):
        node.name = node.name or f"Gather without a table {position}"
    return [node.name for node in others]


def _reads_table(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> bool:
    """Return whether a Gather node reads rows of a constant matrix of floats."""
    axis = [helper.get_attribute_value(a) for a in node.attribute if a.name == "axis"]
    data = constants.get(node.input[0])
    return (
        data is not None and data.data_type in _FLOATS and len(data.dims) == 2 and axis in ([], [0])
    )


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
