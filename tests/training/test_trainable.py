"""A model as a torch module: names, replacements, modes, subgraphs, devices, refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

import torch

from onnxlr.errors import ModelError, UsageError
from onnxlr.training import TrainableModel
from tests.classifier import classifier, reference, samples, weights
from tests.fixtures import runnable_model
from tests.onelayer import distance, run

Array = np.ndarray[Any, Any]
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def graph_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[Any]]],
    outputs: Mapping[str, tuple[int, Sequence[Any]]],
    constants: Mapping[str, Array] | None = None,
    opset: int = 17,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        list(nodes),
        "g",
        [value(name, *kind) for name, kind in inputs.items()],
        [value(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(v, k) for k, v in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


class Twice(torch.nn.Module):
    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.kept = torch.nn.Parameter(value / 2)

    def forward(self) -> torch.Tensor:
        return 2 * self.kept


# -- Names and values ----------------------------------------------------------------------------


def test_weights_are_parameters_under_their_own_names() -> None:
    model = TrainableModel(classifier())
    assert dict(model.named_parameters()).keys() == weights().keys()
    for name, value in weights().items():
        np.testing.assert_array_equal(model.constant(name).detach().numpy(), value)
    assert not model.training
    assert (model.inputs, model.outputs) == (("x",), ("logits",))


def test_everything_that_a_file_can_carry_beside_its_layers() -> None:
    """Functions, branches with outer values, tied weights, names with dots."""
    proto = runnable_model()
    x = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    for holds in (False, True):
        feeds = {"x": x, "condition": np.array(holds), "ids": np.array([1, 3, 3, 0])}
        model = TrainableModel(proto)
        found = model(feeds)
        for name, value in zip(found, run(proto, feeds), strict=True):
            assert distance(found[name].detach().numpy(), value) < 1e-5, name
        sum(value.sum() for value in found.values()).backward()
        assert (model.constant("inner.C").grad is not None) == holds
        assert model.constant("fc.W").grad is not None


def test_a_trained_model_is_written_and_read_as_any_other_module() -> None:
    model, other = TrainableModel(classifier()), TrainableModel(classifier())
    with torch.no_grad():
        model.constant("w2").add_(1)
    x = samples(3)
    expected = model({"x": x})["logits"]
    assert not torch.equal(other({"x": x})["logits"], expected)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other({"x": x})["logits"], expected)
    assert torch.equal(deepcopy(model)({"x": x})["logits"], expected)


def test_graphs_beside_each_other_may_use_a_name_for_different_tensors() -> None:
    def branch(value: float) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("Mul", ["x", "factor"], ["y"])],
            "branch",
            [],
            [helper.make_tensor_value_info("y", FLOAT, [3])],
            [numpy_helper.from_array(np.float32(value), "factor")],
        )

    node = helper.make_node("If", ["c"], ["out"], then_branch=branch(2.0), else_branch=branch(5.0))
    proto = graph_model([node], {"x": (FLOAT, [3]), "c": (BOOL, [])}, {"out": (FLOAT, [3])})
    model = TrainableModel(proto)
    x = np.float32([1, 2, 3])
    for holds, factor in ((True, 2), (False, 5)):
        found = model({"x": x, "c": np.array(holds)})["out"]
        np.testing.assert_array_equal(found.detach().numpy(), factor * x)
    assert sorted(value.item() for value in model.parameters()) == [2.0, 5.0]


def test_computing_in_float64() -> None:
    model = TrainableModel(classifier(), floating=torch.float64)
    found = model({"x": samples(5)})["logits"]
    assert found.dtype == torch.float64
    assert distance(found.detach().numpy(), reference(samples(5).astype(np.float64))) < 1e-14


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_models_of_other_floats(kind: str) -> None:
    model = TrainableModel(classifier(kind))
    found = model({"x": samples(5, dtype=kind)})["logits"]
    assert found.dtype == getattr(torch, kind)
    expected = reference(samples(5, dtype=kind), weights(kind))
    assert distance(found.detach().numpy(), expected) < (1e-2 if kind == "float16" else 1e-14)


# -- Watching and replacing ----------------------------------------------------------------------


def test_tensors_that_are_watched() -> None:
    model = TrainableModel(classifier())
    found = model({"x": samples(5)}, watch=["b", "x", "w1"])
    hidden = np.maximum(samples(5) @ weights()["w1"], 0)
    assert list(found) == ["logits", "b", "x", "w1"]
    np.testing.assert_allclose(found["b"].detach().numpy(), hidden, rtol=1e-4, atol=1e-6)
    with pytest.raises(UsageError, match="no tensor 'q' in its main graph"):
        model({"x": samples(5)}, watch=["q"])


@pytest.mark.parametrize("name", ["w2", "c"])
def test_modules_that_give_a_tensor(name: str) -> None:
    model = TrainableModel(classifier())
    x = samples(5)
    before = model({"x": x}, watch=[name])
    model.replace(name, Twice(before[name].detach()))
    found = model({"x": x}, watch=[name])
    torch.testing.assert_close(found["logits"], before["logits"])
    found["logits"].sum().backward()
    assert dict(model.named_parameters())[f"{name}.kept"].grad.abs().max() > 0
    assert (model.constant("w1").grad is None) == (name == "c")  # it is no longer used


def test_only_what_there_is_can_be_replaced() -> None:
    model = TrainableModel(classifier())
    with pytest.raises(UsageError, match="no constant or tensor 'w4'"):
        model.replace("w4", Twice(torch.zeros(1)))


# -- Statistics ----------------------------------------------------------------------------------


def test_running_statistics_that_a_copy_gives_are_no_parameters() -> None:
    nodes = [
        helper.make_node("Identity", ["mean"], ["m"]),
        helper.make_node("Identity", ["variance"], ["v"]),
        helper.make_node("BatchNormalization", ["x", "scale", "shift", "m", "v"], ["y"]),
    ]
    names = ("mean", "variance", "scale", "shift")
    constants = {name: np.ones(2, np.float32) for name in names}
    shape = (FLOAT, ["n", 2])
    model = TrainableModel(graph_model(nodes, {"x": shape}, {"y": shape}, constants))
    assert {name for name, _ in model.named_parameters()} == {"scale", "shift"}
    model.train()
    x = np.float32([[0, 1], [4, 3]])
    model({"x": x})
    np.testing.assert_allclose(model.constant("mean").numpy(), 0.9 + 0.1 * x.mean(0))
    np.testing.assert_allclose(model.constant("variance").numpy(), 0.9 + 0.1 * x.var(0))


# -- Devices -------------------------------------------------------------------------------------


def shaped() -> onnx.ModelProto:
    """Return a model with shape arithmetic: rows are joined by what a Shape node says."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "first"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["r"]),
        helper.make_node("Cast", ["n"], ["f"], to=FLOAT),
        helper.make_node("Div", ["r", "f"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    constants = {
        "first": np.array(0),
        "axes": np.array([0]),
        "rest": np.array([-1]),
        "w": np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32),
    }
    return graph_model(nodes, {"x": (FLOAT, ["n", 3, 4])}, {"y": (FLOAT, ["n", 3])}, constants)


def test_what_shapes_are_made_of_stays_on_the_cpu() -> None:
    model = TrainableModel(shaped()).to("meta")
    assert model.constant("w").device.type == "meta"
    assert model.constant("rest").tolist() == [-1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_models_on_an_accelerator() -> None:
    proto = shaped()
    x = np.random.default_rng(1).standard_normal((5, 3, 4)).astype(np.float32)
    model = TrainableModel(proto).cuda()
    found = model({"x": x})["y"]
    assert found.device.type == "cuda"
    found.sum().backward()
    assert model.constant("w").grad.device.type == "cuda"
    assert distance(found.detach().cpu().numpy(), run(proto, {"x": x})[0]) < 1e-3


# -- What is refused -----------------------------------------------------------------------------


def test_all_nodes_that_are_not_covered_are_named_before_any_work() -> None:
    body = helper.make_graph(
        [helper.make_node("Loup", ["x"], ["i"], "inner", domain="org.example")],
        "body",
        [],
        [helper.make_tensor_value_info("i", FLOAT, [3])],
    )
    nodes = [
        helper.make_node("Det", ["m"], ["d"], "the determinant"),
        helper.make_node("Det", ["m"], ["e"]),
        helper.make_node("MaxPool", ["p"], ["q", "places"], "pool", kernel_shape=[2]),
        helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body),
    ]
    proto = graph_model(
        nodes,
        {
            "m": (FLOAT, [2, 2]),
            "p": (FLOAT, [1, 1, 4]),
            "c": (BOOL, []),
            "x": (FLOAT, [3]),
        },
        {"y": (FLOAT, [3]), "d": (FLOAT, [])},
        domains=["org.example"],
    )
    with pytest.raises(ModelError) as caught:
        TrainableModel(proto)
    message = str(caught.value)
    assert "5 nodes cannot be run in torch" in message
    assert "Det (the operator is not covered): 'the determinant', 'Det of 'e''" in message
    assert "MaxPool (the places of largest numbers" in message
    assert "org.example.Loup (the operator is not covered): 'inner'" in message


def test_broadcasting_along_an_axis_is_refused() -> None:
    node = helper.make_node("Add", ["x", "b"], ["y"], "shift", broadcast=1, axis=1)
    shapes = {"x": (FLOAT, [2, 3, 3]), "b": (FLOAT, [3])}
    proto = graph_model([node], shapes, {"y": (FLOAT, [2, 3, 3])}, opset=6)
    with pytest.raises(ModelError, match=r"Add \(broadcasting as it was .*\): 'shift'"):
        TrainableModel(proto)


def test_loops_are_refused() -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "e"], ["t"])],
        "body",
        [helper.make_tensor_value_info(name, FLOAT, [2]) for name in "se"],
        [helper.make_tensor_value_info("t", FLOAT, [2])],
    )
    node = helper.make_node("Scan", ["s0", "x"], ["y"], "sums", body=body, num_scan_inputs=1)
    shapes = {"s0": (FLOAT, [2]), "x": (FLOAT, [5, 2])}
    with pytest.raises(ModelError, match=r"Scan \(the operator is not covered\): 'sums'"):
        TrainableModel(graph_model([node], shapes, {"y": (FLOAT, [2])}))


def test_inputs_that_are_missing_or_do_not_fit() -> None:
    model = TrainableModel(classifier())
    with pytest.raises(UsageError, match="input 'x' is missing"):
        model({})
    with pytest.raises(ModelError, match=r"MatMul 'first' cannot be run on \[2, 5\], \[24, 32\]"):
        model({"x": np.zeros((2, 5), np.float32)})


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.FLOAT8E4M3FN])
def test_constants_of_types_that_are_not_covered(kind: int) -> None:
    held = helper.make_tensor("held", kind, [2], [b"a", b"b"] if kind == 8 else [1.0, 2.0])
    proto = graph_model(
        [helper.make_node("Relu", ["x"], ["y"])], {"x": (FLOAT, [2])}, {"y": (FLOAT, [2])}
    )
    proto.graph.initializer.append(held)
    with pytest.raises(ModelError, match="constant 'held' is of type"):
        TrainableModel(proto)
