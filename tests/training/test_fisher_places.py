"""Fisher information of weights in every place, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxlr
from onnxlr.errors import DataError, ModelError, TrainingError, UsageError
from tests.classifier import classifier, samples

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from tests.training.fisher_models import FLOAT, INT64, Array, graph_of, loss, random  # noqa: E402

# --- where weights are ---------------------------------------------------------------------------


def reached(y: Callable[[Any], Any], w: Array, rows: Array) -> Array:
    """Return the mean squared gradient of the sum of what a torch function makes of a weight."""
    total = np.zeros(w.shape)
    for row in rows:
        value = torch.from_numpy(w).double().requires_grad_(True)
        (gradient,) = torch.autograd.grad(
            y(value, torch.from_numpy(row[None]).double()).sum(), value
        )
        total += gradient.square().numpy()
    return total / len(rows)


def test_a_weight_that_is_used_twice_gets_the_sum() -> None:
    w, x = random(6, 6), random(5, 6, seed=1)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="one"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="two"),
    ]
    model = graph_of(nodes, {"x": (FLOAT, ["N", 6])}, {"y": ["N", 6]}, {"w": w})
    found = onnxlr.fisher(model, {"x": x}, loss=loss("summed"))
    true = reached(lambda v, row: torch.relu(row @ v) @ v, w, x)
    np.testing.assert_allclose(found.arrays["w"], true, rtol=1e-4)
    (layer,) = found.layers
    assert layer.rows == 10  # of both nodes
    h = np.maximum(x.astype(np.float64) @ w, 0)
    both = np.concatenate([x, h])
    np.testing.assert_allclose(
        found.arrays["w/input_covariance"], both.T @ both / 10, rtol=1e-4, atol=1e-5
    )


def test_a_weight_behind_moves_is_found_as_it_is_stored() -> None:
    w, x = random(3, 5), random(4, 5, seed=1)
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["h"], name="only"),
        helper.make_node("Tanh", ["h"], ["y"]),
    ]
    model = graph_of(nodes, {"x": (FLOAT, ["N", 5])}, {"y": ["N", 3]}, {"w": w})
    found = onnxlr.fisher(model, {"x": x}, loss=loss("summed"))
    assert found.arrays["w"].shape == (3, 5)
    true = reached(lambda v, row: torch.tanh(row @ v.T), w, x)
    np.testing.assert_allclose(found.arrays["w"], true, rtol=1e-4)
    assert found.arrays["w/input_covariance"].shape == (5, 5)
    assert found.arrays["w/output_covariance"].shape == (3, 3)


def test_tables_and_weights_no_gradient_reaches_are_left_out() -> None:
    nodes = [
        helper.make_node("Gather", ["table", "i"], ["x"], name="rows"),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="used"),
        helper.make_node("MatMul", ["x", "v"], ["z"], name="unused"),
    ]
    constants = {"table": random(7, 5), "w": random(5, 3, seed=1), "v": random(5, 3, seed=2)}
    model = graph_of(nodes, {"i": (INT64, ["N"])}, {"y": ["N", 3], "z": ["N", 3]}, constants)
    found = onnxlr.fisher(model, {"i": np.arange(7)}, loss=loss("summed"))
    assert "w" in found.arrays
    assert {name.partition("/")[0] for name in found.arrays} == {"w"}
    assert found.left["unused"] == "no gradient reaches it"
    assert "table of rows" in found.left["rows"]


def test_a_branch_counts_where_it_is_taken() -> None:
    def branch(weight: str) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["x", weight], [f"y_{weight}"], name=f"by_{weight}")
        value = helper.make_tensor_value_info(f"y_{weight}", FLOAT, ["N", 3])
        return helper.make_graph([node], weight, [], [value])

    constants = {name: random(5, 3, seed=seed) for seed, name in enumerate(("v", "w", "u"))}
    nodes = [
        helper.make_node("If", ["c"], ["h"], then_branch=branch("v"), else_branch=branch("w")),
        helper.make_node("MatMul", ["x", "u"], ["z"], name="beside"),
        helper.make_node("Add", ["h", "z"], ["y"]),
    ]
    inputs = {"x": (FLOAT, ["N", 5]), "c": (TensorProto.BOOL, [])}
    model = graph_of(nodes, inputs, {"y": ["N", 3]}, constants)
    x = random(4, 1, 5)
    runs = [
        {"x": row, "c": np.array(c)} for row, c in zip(x, (True, True, False, True), strict=True)
    ]
    found = onnxlr.fisher(model, runs, loss=loss("summed"))
    squares = np.square(x[:, 0].astype(np.float64))
    for name, true in (("v", squares[[0, 1, 3]]), ("w", squares[[2]]), ("u", squares)):
        expected = np.broadcast_to(true.sum(0)[:, None] / 4, (5, 3))
        np.testing.assert_allclose(found.arrays[name], expected, rtol=1e-5)
    why = {layer.weight: layer.why for layer in found.layers}
    assert why["u"] is None
    assert "in a branch" in str(why["v"])
    assert "v/output_covariance" not in found.arrays
    never = onnxlr.fisher(model, runs[:2], loss=loss("summed"))
    assert never.left == {"by_w": "no gradient reaches it"}


def test_patterns_choose_layers() -> None:
    arguments = {"kronecker": False, "samples": 2}
    found = onnxlr.fisher(classifier(), {"x": samples(2)}, layers=["first", "head"], **arguments)
    assert set(found.arrays) == {"w1", "w3"}
    assert found.left == {"second": "not among the layers asked for"}
    found = onnxlr.fisher(classifier(), {"x": samples(2)}, skip=["w1"], **arguments)
    assert set(found.arrays) == {"w2", "w3"}


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"samples": 0}, UsageError, "0 samples were asked for"),
        ({"draws": 0}, UsageError, "0 draws were asked for"),
        ({"mask": "nowhere"}, UsageError, "'nowhere'"),
        ({"mask": "bias"}, DataError, "the mask 'bias' fits no output"),
        ({"layers": ["fist"]}, UsageError, "did you mean 'first'?"),
        ({"skip": ["*"]}, UsageError, "no weight to find Fisher information of"),
        ({"device": "nowhere"}, UsageError, "device 'nowhere' cannot be used"),
        ({"loss": "nowhere"}, DataError, "expected module:function"),
        ({"loss": loss("absent")}, DataError, "no function 'absent'"),
        ({"loss": loss("entropy")}, TrainingError, "'label'"),
        ({"loss": loss("nothing")}, TrainingError, "does not depend on the outputs"),
        ({"loss": loss("many")}, TrainingError, "expected a torch tensor of one number"),
        ({"loss": loss("constant")}, TrainingError, "returned float"),
        ({"loss": loss("nan")}, TrainingError, "returned nan, expected a finite number"),
    ],
)
def test_what_cannot_be_followed(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as found:
        onnxlr.fisher(classifier(), {"x": samples(4)}, **arguments)
    assert words in str(found.value)


def test_labels_of_the_wrong_shape_are_told_with_the_sample() -> None:
    data = {"x": samples(4), "label": np.zeros((4, 3), np.int64)}
    with pytest.raises(TrainingError, match=r"sample 1 of the given data.*'label' \[1, 3\]"):
        onnxlr.fisher(classifier(), data, loss=loss("entropy"))


def test_labels_of_a_type_that_torch_has_not_are_named() -> None:
    data = {"x": samples(2), "label": np.array(["cat", "dog"])}
    with pytest.raises(DataError, match=r"sample 1 of .* 'label' has dtype <U3, expected one that"):
        onnxlr.fisher(classifier(), data, loss=loss("entropy"))


def test_data_that_overflows_is_named() -> None:
    x = samples(3)
    x[1] = 1e38
    with pytest.raises(DataError, match="sample 2 of the given data: 3 samples"):
        onnxlr.fisher(classifier(), {"x": x})


def test_an_operator_that_is_not_covered_is_named_before_any_work() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="only"),
        helper.make_node("Multinomial", ["h"], ["n"], name="dice", dtype=int(INT64)),
        helper.make_node("Cast", ["n"], ["y"], to=int(FLOAT)),
    ]
    model = graph_of(nodes, {"x": (FLOAT, ["N", 3])}, {"y": ["N", 1]}, {"w": random(3, 4)})

    def data() -> Any:
        pytest.fail("the data was read")
        yield {}

    with pytest.raises(ModelError, match=r"Multinomial.*'dice'"):
        onnxlr.fisher(model, data())


def test_it_is_written_whole_and_reads_as_importance(tmp_path: Path) -> None:
    file = tmp_path / "fisher.npz"
    found = onnxlr.fisher(classifier(), {"x": samples(6)}, file)
    with np.load(file) as stored:
        assert set(stored.files) == set(found.arrays)
        assert all(np.array_equal(stored[name], found.arrays[name]) for name in stored.files)
    found.save(tmp_path / "again.npz")
    assert file.read_bytes() == (tmp_path / "again.npz").read_bytes()
