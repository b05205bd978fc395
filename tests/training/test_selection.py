"""What is chosen to be trained, and that the file says what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.errors import ModelError, UsageError  # noqa: E402
from onnxlr.model import open_model  # noqa: E402
from onnxlr.training import TrainableModel  # noqa: E402
from onnxlr.training.selection import Selection, current_values, selected  # noqa: E402
from onnxlr.training.writing import write_constants  # noqa: E402
from tests.training.low_bit_models import (  # noqa: E402
    convolutions,
    data_of,
    distance,
    drawn,
    matrices,
    model_of,
    rewritten,
    run,
    table,
)
from tests.training.test_storage_others import static  # noqa: E402

SIZE = 24


def block() -> onnx.ModelProto:
    """Return a block of a transformer as exporters write it: all numbers are constants."""
    one = np.float32
    constants = {
        "words": drawn(0, 50, SIZE),
        "positions": drawn(1, 1, 5, SIZE),
        "query": drawn(2, SIZE, SIZE),
        "query_bias": drawn(3, SIZE),
        "key": drawn(4, SIZE, SIZE),
        "gamma": 1 + drawn(5, SIZE),
        "beta": drawn(6, SIZE),
        "root": one(np.sqrt(SIZE)),
        "mask": np.triu(np.full((5, 5), -1e4, one), 1),
        "two": one(2),
        "epsilon": one(1e-5),
        "halved": one(np.sqrt(2)),
        "unit": one(1),
        "half": one(0.5),
        "last": drawn(7, SIZE, 7),
        "offset": drawn(8, 7),
        "steps": np.linspace(1, 2, 7, dtype=one),
    }
    nodes = [
        helper.make_node("Gather", ["words", "x"], ["rows"], name="words"),
        helper.make_node("Add", ["rows", "positions"], ["e"], name="placed"),
        helper.make_node("MatMul", ["e", "query"], ["q0"], name="query"),
        helper.make_node("Add", ["query_bias", "q0"], ["q"], name="query_bias"),
        helper.make_node("MatMul", ["e", "key"], ["k"], name="key"),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["s0"]),
        helper.make_node("Div", ["s0", "root"], ["s1"]),
        helper.make_node("Add", ["s1", "mask"], ["s2"]),
        helper.make_node("Softmax", ["s2"], ["s"], axis=-1),
        helper.make_node("MatMul", ["s", "e"], ["a0"]),
        helper.make_node("Add", ["a0", "e"], ["a"]),
        helper.make_node("ReduceMean", ["a"], ["m"], axes=[-1]),
        helper.make_node("Sub", ["a", "m"], ["c"]),
        helper.make_node("Pow", ["c", "two"], ["c2"]),
        helper.make_node("ReduceMean", ["c2"], ["v"], axes=[-1]),
        helper.make_node("Add", ["v", "epsilon"], ["ve"]),
        helper.make_node("Sqrt", ["ve"], ["d"]),
        helper.make_node("Div", ["c", "d"], ["n0"]),
        helper.make_node("Mul", ["n0", "gamma"], ["n1"]),
        helper.make_node("Add", ["n1", "beta"], ["n"]),
        helper.make_node("Div", ["n", "halved"], ["g0"]),
        helper.make_node("Erf", ["g0"], ["g1"]),
        helper.make_node("Add", ["g1", "unit"], ["g2"]),
        helper.make_node("Mul", ["n", "g2"], ["g3"]),
        helper.make_node("Mul", ["g3", "half"], ["g"]),
        helper.make_node("MatMul", ["g", "last"], ["l0"], name="last"),
        helper.make_node("Add", ["l0", "offset"], ["l1"]),
        helper.make_node("Tanh", ["l1"], ["l"]),
        helper.make_node("Mul", ["l", "steps"], ["y"]),
    ]
    return model_of(nodes, constants, ("n", 5), ("n", 5, 7), kind=onnx.TensorProto.INT64)


def chosen(
    model: Any, what: str, original: Any = None
) -> tuple[TrainableModel, Selection, dict[str, set[str]]]:
    trainable = TrainableModel(model)
    source = None if original is None else open_model(original)
    found = selected(trainable, model, what, source)
    return trainable, found, {kind: set(names) for kind, names in found.kinds.items() if names}


def test_weights_biases_and_normalisations_of_a_plain_model() -> None:
    model = open_model(block())
    _, _, scales = chosen(model, "scales")
    small = {"biases": {"query_bias", "offset"}, "normalisations": {"gamma", "beta"}}
    assert scales == small
    _, _, everything = chosen(model, "all")
    assert everything == {**small, "weights": {"words", "query", "key", "last"}}


@pytest.mark.parametrize("with_original", [False, True])
def test_what_a_rewrite_put_in(with_original: bool) -> None:
    """By the plan in the metadata as by the original; weights that were kept are no factors."""
    original = block()
    model = rewritten(original, "onnx", "svd", {"rank": 4}, format="int8")
    _, found, kinds = chosen(model, "factors", original if with_original else None)
    names = {name for name in model.initializers if name.split(".")[0] in ("query", "key", "last")}
    assert kinds["codes"] == {name for name in names if ".codes" in name}
    assert kinds["scales"] >= {name for name in names if ".scales" in name}
    assert kinds["biases"] == {"query_bias", "offset"}
    assert kinds["normalisations"] == {"gamma", "beta"}
    assert "weights" not in kinds
    counts = found.summary
    codes = sum(int(np.prod(model.initializers[name].dims)) for name in kinds["codes"])
    assert counts["low-bit codes"] == codes
    assert sum(counts.values()) == sum(p.numel() for p in found.parameters.values())


@pytest.mark.parametrize("make", [matrices, table])
@pytest.mark.parametrize("format", ["int8", "int4"])
def test_what_repeats_scales_and_takes_bytes_apart_is_not_trained(make: Any, format: str) -> None:
    model = rewritten(make(), "onnx", "quantize", format=format, group_size=32)
    _, _, kinds = chosen(model, "all", make())
    assert kinds["scales"] == {name for name in model.initializers if ".scales" in name}
    biases = {"biases"} if make is matrices else set()
    assert set(kinds) == {"scales", "codes"} | biases


def test_float_factors_and_factors_of_the_data() -> None:
    """What data is multiplied by, feature by feature, is a factor if a rewrite put it in."""
    constants = {"u": drawn(0, 8, 3), "s": 1 + drawn(1, 3), "v": drawn(2, 3, 4), "b": drawn(3, 4)}
    nodes = [
        helper.make_node("Tanh", ["x"], ["h"]),
        helper.make_node("MatMul", ["h", "u"], ["p"]),
        helper.make_node("Tanh", ["p"], ["t"]),
        helper.make_node("Mul", ["t", "s"], ["q"]),
        helper.make_node("MatMul", ["q", "v"], ["r"]),
        helper.make_node("Add", ["r", "b"], ["y"]),
    ]
    model = open_model(model_of(nodes, constants, ("n", 8), ("n", 4)))
    whole = [helper.make_node("MatMul", ["x", "w"], ["r"]), nodes[-1]]
    original = model_of(whole, {"w": drawn(4, 8, 4), "b": constants["b"]}, ("n", 8), ("n", 4))
    assert chosen(model, "factors", original)[2] == {
        "factors": {"u", "s", "v"},
        "biases": {"b"},
    }
    assert chosen(model, "scales", original)[2] == {"biases": {"b"}}
    assert chosen(model, "all", model.proto)[2] == {"weights": {"u", "v"}, "biases": {"b"}}


CASES = [
    (matrices, "onnx", "svd", {"options": {"rank": 6}}),
    (matrices, "onnx", "svd", {"options": {"rank": 6}, "format": "float16"}),
    (matrices, "onnx", "quantize", {"format": "int8", "group_size": 32}),
    (matrices, "ort", "quantize", {"format": "int4"}),
    (matrices, "onnx", "quantize", {"format": "int8", "activations": "dynamic_int8"}),
    (matrices, "onnxlr", "ternary", {"options": {"terms": 2}}),
    (matrices, "onnx", "ternary", {"options": {"terms": 2}}),
    (matrices, "onnx", "ternary_svd", {}),
    (matrices, "onnx", "kronecker", {"options": {"rank": 2}}),
    (convolutions, "onnx", "cp", {"options": {"rank": 3}}),
    (convolutions, "onnxlr", "ternary", {"options": {"terms": 1}}),
    (convolutions, "onnx", "tucker", {"options": {"ratio": 0.5}, "format": "int8"}),
    (table, "onnx", "quantize", {"format": "int8"}),
    (block, "onnx", "svd", {"options": {"rank": 4}, "format": "int2"}),
]


@pytest.mark.parametrize("what", ["scales", "factors", "all"])
@pytest.mark.parametrize(("make", "target", "method", "choice"), CASES)
def test_the_file_says_what_was_trained(
    make: Any, target: str, method: str, choice: dict[str, Any], what: str
) -> None:
    model = rewritten(make(), target, method, **choice)
    x, before = data_of(model.proto), model.proto.SerializeToString()
    trainable, selection, _ = chosen(model, what, make())
    tolerance = 1e-3 if choice.get("activations") else 3e-6
    assert distance(trainable({"x": x})["y"].detach().numpy(), run(model, x)) < tolerance
    write_constants(model, current_values(trainable, selection))
    assert model.proto.SerializeToString() == before

    trainable({"x": x})["y"].sin().sum().backward()
    for name, parameter in selection.parameters.items():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in selection.parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    selection.after_step()
    values = current_values(trainable, selection)
    assert values.keys() >= selection.parameters.keys()
    write_constants(model, values)
    moved = trainable({"x": x})["y"].detach().numpy()
    assert distance(moved, run(model, x)) < tolerance
    assert model.proto.SerializeToString() != before


def test_scales_keep_their_sign() -> None:
    """As multiples of the start: e to the power of what is trained, whatever that becomes."""
    model = rewritten(matrices(), "onnx", "quantize", format="int8")
    trainable, selection, kinds = chosen(model, "scales")
    (first, *_) = sorted(kinds["scales"])
    start = trainable.constants[first].copy()
    with torch.no_grad():
        selection.parameters[first].fill_(-1.5)
    found = current_values(trainable, selection)[first]
    np.testing.assert_allclose(found, np.exp(-1.5) * start, rtol=1e-6)
    assert (found > 0).all()


def test_only_what_is_selected_gets_gradients_each_once() -> None:
    model = rewritten(matrices(), "onnx", "ternary", {"terms": 2})
    trainable, selection, _ = chosen(model, "factors")
    owned = [p for group in selection.groups() for p in group["params"]]
    assert len(owned) == len({id(p) for p in owned}) == len(selection.parameters)
    asked = {id(p) for p in trainable.parameters() if p.requires_grad}
    assert asked == {id(p) for p in owned}
    rates = dict.fromkeys(("scales", "biases", "normalisations", "factors", "codes"), 0.25)
    assert {group["scale"] for group in selection.groups(rates)} == {0.25}


def test_float16_is_trained_in_float32() -> None:
    model = rewritten(matrices(17, "float16"), "onnx", "svd", {"rank": 6}, format="int8")
    trainable, selection, _ = chosen(model, "all")
    assert {p.dtype for p in selection.parameters.values()} == {torch.float32}
    values = current_values(trainable, selection)
    assert {a.dtype.name for a in values.values()} == {"float16", "int8"}
    small = 1e-5  # half a step of float16 is 2e-4 there
    with torch.no_grad():
        selection.parameters["b1"].fill_(0.5)
        for _ in range(100):
            selection.parameters["b1"].add_(small)
    assert current_values(trainable, selection)["b1"][0] == np.float16(0.501)


def test_scales_that_biases_are_kept_in_stay(tmp_path: Path) -> None:
    """Their products with the scale of the data are scales of the biases, in other constants."""
    from onnxruntime.quantization import QuantFormat, QuantType

    model = static(convolutions, tmp_path, QuantType.QInt8, True, QuantFormat.QDQ)
    _, selection, kinds = chosen(model, "all", convolutions())
    assert "k1_scale" in selection.fixed
    assert "k1_scale" not in kinds["scales"]
    assert "k2_scale" in kinds["scales"]
    assert "k1_quantized" in kinds["codes"]
    data = {name for name in model.initializers if name.endswith("_scale") and name[0] != "k"}
    assert data
    assert not data & set().union(*kinds.values())


def test_a_bias_behind_a_product_that_was_rounded() -> None:
    scale, zero = np.float32(0.05), np.uint8(128)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("QuantizeLinear", ["p", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["r"]),
        helper.make_node("Add", ["bias", "r"], ["y"]),
    ]
    constants = {"w": drawn(0, 4, 4), "bias": drawn(1, 4), "scale": scale, "zero": zero}
    model = open_model(model_of(nodes, constants, ("n", 4), ("n", 4)))
    assert chosen(model, "all")[2] == {"weights": {"w"}, "biases": {"bias"}}


def test_a_single_number_is_a_bias_only_right_behind_a_product() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "near"], ["q"]),
        helper.make_node("Add", ["q", "far"], ["y"]),
    ]
    constants = {"w": drawn(0, 4, 4), "near": np.full(1, 0.5, np.float32), "far": np.float32(1e-5)}
    model = open_model(model_of(nodes, constants, ("n", 4), ("n", 4)))
    assert chosen(model, "all")[2] == {"weights": {"w"}, "biases": {"near"}}


def test_what_several_read_is_trained_if_all_read_parameters() -> None:
    shared, alone = drawn(0, 4), drawn(1, 4)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "shared"], ["q"]),
        helper.make_node("Max", ["q", "shared"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["s"]),
        helper.make_node("Add", ["s", "alone"], ["y"]),
    ]
    constants = {"w": drawn(2, 4, 4), "shared": shared, "alone": alone}
    model = open_model(model_of(nodes, constants, ("n", 4), ("n", 4)))
    assert chosen(model, "all")[2] == {"weights": {"w"}, "biases": {"alone"}}


def test_what_cannot_be_asked_for() -> None:
    model = open_model(matrices())
    with pytest.raises(UsageError, match="'some' cannot be asked for to be trained"):
        selected(TrainableModel(model), model, "some")
    with pytest.raises(ModelError, match="holds no plan that tells what was rewritten"):
        selected(TrainableModel(model), model, "factors")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    bare = open_model(model_of(nodes, {"w": drawn(0, 4, 4)}, ("n", 4), ("n", 4)))
    with pytest.raises(ModelError, match="has nothing to train: scales were asked for"):
        selected(TrainableModel(bare), bare, "scales")
