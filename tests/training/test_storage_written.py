"""Codes of each format as each target writes them: attached, moved, written back, and run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.training import TrainableModel  # noqa: E402
from onnxlr.training.storage import stored_codes  # noqa: E402
from onnxlr.training.writing import constant_tensors, write_constants  # noqa: E402
from tests.training.low_bit_models import (  # noqa: E402
    convolutions,
    data_of,
    distance,
    matrices,
    rewritten,
    run,
    table,
)

FLOAT, HALF, ROUNDED = 2e-6, 2e-3, 1e-4
"""Largest distances: of float32, of float16, and where data is rounded to int8 on the way."""

FORMATS = {
    "int8": {"format": "int8"},
    "int8 in groups": {"format": "int8", "group_size": 32},
    "int4": {"format": "int4"},
    "int4 without groups": {"format": "int4", "group_size": 0},
    "int2": {"format": "int2"},
}
TERNARY = {f"ternary x{terms}": {"options": {"terms": terms}} for terms in (1, 2, 3)}


def cases() -> list[Any]:
    """Return opset, model, target, method, choice and tolerance."""
    found = []
    for target in ("onnx", "ort", "onnxlr"):
        for name, choice in (FORMATS | TERNARY).items():
            method = "ternary" if name in TERNARY else "quantize"
            if target != "onnxlr" or name in TERNARY:  # else the same as for ort
                found.append((matrices, target, method, choice, FLOAT))
            if target == "onnx" or name in TERNARY:  # targets differ in ternary kernels alone
                found.append((convolutions, target, method, choice, FLOAT))
            if name == "int8" or name in TERNARY:
                rounded = {**choice, "activations": "dynamic_int8"}
                found.append((matrices, target, method, rounded, ROUNDED))
        factors = {"options": {"rank": 6}, "format": "int4"}
        found.append((matrices, target, "svd", factors, FLOAT))
        found.append((matrices, target, "ternary_svd", {}, FLOAT))
    rounded = {"format": "int4", "activations": "dynamic_int8"}
    found.append((matrices, "ort", "quantize", rounded, ROUNDED))
    found += [(table, "onnx", "quantize", choice, FLOAT) for choice in FORMATS.values()]
    return [
        (opset, *case)
        for case in found
        for opset in (9, 17, 21)
        if opset > 9 or case[3].get("activations") != "dynamic_int8"  # from opset 11 on
    ]


def check(model: Any, tolerance: float, expected: set[str]) -> None:
    """Attach all codes, move them, write them, and compare with ONNX Runtime each time."""
    x = data_of(model.proto)
    held = {name: model.read(tensor) for name, tensor in constant_tensors(model).items()}
    trainable = TrainableModel(model)
    modules = stored_codes(model, trainable)
    assert {module.constant for module in modules} == expected
    for module in modules:
        found = module.array()
        assert found.dtype == held[module.constant].dtype
        assert found.tobytes() == held[module.constant].tobytes()
        module.attach(trainable)
    trainable.prune()
    before = run(model, x)
    assert distance(trainable({"x": x})["y"].detach().numpy(), before) < tolerance
    bytes_before = model.proto.SerializeToString()
    write_constants(model, {module.constant: module.array() for module in modules})
    assert model.proto.SerializeToString() == bytes_before

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for values in {id(m.values): m.values for m in modules}.values():
            step = values.abs().mean() * torch.randn(values.shape, generator=generator)
            values.add_(step.to(values))
    for module in modules:
        module.settle()
    moved = trainable({"x": x})["y"].detach().numpy()
    assert distance(moved, before) > 100 * tolerance
    write_constants(model, {module.constant: module.array() for module in modules})
    assert distance(moved, run(model, x)) < tolerance
    again = TrainableModel(model)
    assert distance(again({"x": x})["y"].detach().numpy(), moved) < tolerance
    for module in modules:
        changed = np.count_nonzero(module.array() != held[module.constant])
        assert changed > 0.1 * held[module.constant].size


def named(model: Any) -> set[str]:
    """Return the constants that lowerings call codes or blocks."""
    return {
        name
        for name in constant_tensors(model)
        if any(word in name.split(".") for word in ("codes", "packed_codes", "blocks"))
    }


@pytest.mark.parametrize(("opset", "make", "target", "method", "choice", "tolerance"), cases())
def test_every_way_of_storing(
    opset: int, make: Any, target: str, method: str, choice: dict[str, Any], tolerance: float
) -> None:
    model = rewritten(make(opset), target, method, **choice)
    check(model, tolerance, named(model))


def test_int4_of_the_standard() -> None:
    choice = {"format": "int4", "activations": "dynamic_int8"}
    model = rewritten(matrices(21), "onnx", "quantize", **choice)
    assert {node.op_type for node in model.proto.graph.node} >= {"DequantizeLinear"}
    check(model, FLOAT, named(model))


@pytest.mark.parametrize("target", ["onnx", "ort"])
@pytest.mark.parametrize("format", ["int8", "int4", "int2"])
def test_models_of_float16(target: str, format: str) -> None:
    model = rewritten(matrices(17, "float16"), target, "quantize", format=format)
    check(model, HALF, named(model))


@pytest.mark.parametrize("target", ["onnx", "ort", "onnxlr"])
@pytest.mark.parametrize("rounded", [False, True])
def test_terms_of_a_sum_share_their_values(target: str, rounded: bool) -> None:
    activations = "dynamic_int8" if rounded else "float"
    model = rewritten(matrices(), target, "ternary", {"terms": 3}, activations=activations)
    modules = stored_codes(model, TrainableModel(model))
    shapes = {id(module.values): sorted(module.values.shape) for module in modules}
    assert sorted(shapes.values()) == [[24, 35], [35, 40]]
