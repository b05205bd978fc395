"""Models of one ternary node, and sessions of them that run the op library's kernels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from onnxlr.operators.packing import pack, pack_kernel
from tests.operators import reference
from tests.operators.oplibrary import installed_library

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class TernaryNode:
    """A node with its constants, and what it computes according to the reference."""

    operator: str
    attributes: dict[str, Any]
    constants: dict[str, Array]
    ternary: Array
    rank: int
    window: dict[str, Any] = field(default_factory=dict)

    def expected(self, x: Array) -> Array:
        a, c = self.attributes, self.constants
        compute = reference.matmul if self.operator == "TernaryMatMul" else reference.conv
        return compute(
            x,
            self.ternary,
            c["scales"],
            c["input_scale"],
            c["bias"],
            a["group_size"],
            a["accuracy_level"],
            **self.window,
        )

    def with_constants(self, **changes: Array) -> TernaryNode:
        return replace(self, constants={**self.constants, **changes})

    def with_attributes(self, **changes: Any) -> TernaryNode:
        """Change attributes; None leaves one away."""
        attributes = {**self.attributes, **changes}
        return replace(self, attributes={k: v for k, v in attributes.items() if v is not None})

    def model(self, shape: list[Any] | None = None, as_inputs: tuple[str, ...] = ()) -> bytes:
        """Return the model, its X of unknown or given shape, some constants as graph inputs."""
        node = helper.make_node(
            self.operator,
            ["X", *self.constants],
            ["Y"],
            name="the node",
            domain="onnxlr",
        )
        for key, value in self.attributes.items():
            kind = onnx.AttributeProto.INTS if value == [] else None
            node.attribute.append(helper.make_attribute(key, value, attr_type=kind))
        inputs = [helper.make_tensor_value_info("X", TensorProto.FLOAT, shape)]
        for name in as_inputs:
            kind = helper.np_dtype_to_tensor_dtype(self.constants[name].dtype)
            inputs.append(helper.make_tensor_value_info(name, kind, self.constants[name].shape))
        graph = helper.make_graph(
            [node],
            "graph",
            inputs,
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("onnxlr", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        return bytes(model.SerializeToString())

    def session(self, threads: int = 1) -> ort.InferenceSession:
        return open_session(self.model(), threads)

    def run(self, x: Array, threads: int = 1) -> Array:
        return np.asarray(self.session(threads).run(None, {"X": x})[0])


def open_session(model: bytes | onnx.ModelProto, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(installed_library())
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def matmul_node(
    inputs: int,
    outputs: int,
    *,
    group_size: int | None = None,
    terms: int = 1,
    level: int = 4,
    scaled: bool = True,
    seed: int = 0,
) -> TernaryNode:
    rng = np.random.default_rng(seed)
    group_size = group_size or inputs
    ternary = rng.integers(-1, 2, (terms, inputs, outputs)).astype(np.int8)
    attributes = _format(inputs, outputs, group_size, terms, level)
    constants = _constants(rng, pack(ternary), attributes, inputs if scaled else -inputs)
    return TernaryNode("TernaryMatMul", attributes, constants, ternary, 2)


def conv_node(
    channels: int,
    outputs: int,
    kernel: tuple[int, ...],
    *,
    strides: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    group_size: int | None = None,
    terms: int = 1,
    level: int = 4,
    scaled: bool = True,
    seed: int = 0,
) -> TernaryNode:
    rng = np.random.default_rng(seed)
    ones = (1,) * len(kernel)
    inputs = channels // group * int(np.prod(kernel))
    ternary = rng.integers(-1, 2, (terms, outputs, channels // group, *kernel)).astype(np.int8)
    window = {
        "strides": list(strides or ones),
        "pads": list(pads or (0,) * (2 * len(kernel))),
        "dilations": list(dilations or ones),
        "group": group,
    }
    attributes = _format(inputs, outputs, group_size or inputs, terms, level)
    codes = pack_kernel(ternary, group)
    constants = _constants(rng, codes, attributes, channels if scaled else -channels)
    attributes |= {"kernel_shape": list(kernel), "channels": channels, **window}
    return TernaryNode("TernaryConv", attributes, constants, ternary, 2 + len(kernel), window)


def close(found: Array, expected: Array) -> None:
    """Same to 1e-5 of the largest number: float32 against float64."""
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    if expected.size:
        bound = 1e-5 * max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


def _format(inputs: int, outputs: int, group_size: int, terms: int, level: int) -> dict[str, Any]:
    return {
        "K": inputs,
        "N": outputs,
        "group_size": group_size,
        "terms": terms,
        "layout": 1,
        "accuracy_level": level,
    }


def _constants(
    rng: np.random.Generator, codes: Array, attributes: dict[str, Any], input_scales: int
) -> dict[str, Array]:
    """Draw scales and bias; fewer than no input scales are that many ones."""
    outputs, terms = attributes["N"], attributes["terms"]
    groups = -(-attributes["K"] // attributes["group_size"])
    ones = np.ones(abs(input_scales), np.float32)
    return {
        "codes": codes,
        "scales": rng.normal(size=(terms, groups, outputs)).astype(np.float32),
        "input_scale": rng.uniform(0.5, 2, input_scales).astype(np.float32)
        if input_scales > 0
        else ones,
        "bias": rng.normal(size=outputs).astype(np.float32),
    }
