"""Squared gradients of single samples, against closed forms and torch's own differentiation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxlr
from onnxlr.errors import DataError, ModelError, TrainingError, UsageError
from tests.classifier import CLASSES, classifier, samples, weights

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

Array = np.ndarray[Any, Any]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64

LOSSES = """
import torch
def entropy(outputs, batch):
    return torch.nn.functional.cross_entropy(outputs["logits"], batch["label"])
def summed(outputs, batch):
    return outputs["y"].sum()
def nothing(outputs, batch):
    return outputs["logits"].detach().sum()
def many(outputs, batch):
    return outputs["logits"]
def nan(outputs, batch):
    return outputs["logits"].sum() * float("nan")
def constant(outputs, batch):
    return 3.0
def drawn(outputs, batch):
    y = outputs["logits"]
    label = torch.distributions.Categorical(logits=y.detach()).sample()
    return torch.nn.functional.cross_entropy(y, label)
"""


@pytest.fixture(autouse=True)
def _losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "losses_of_fisher_tests.py").write_text(LOSSES)
    monkeypatch.syspath_prepend(str(tmp_path))


def loss(name: str) -> str:
    return f"losses_of_fisher_tests:{name}"


def graph_of(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[Any]]],
    outputs: Mapping[str, list[Any]],
    constants: Mapping[str, Array],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, dims) for name, dims in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def labels(count: int) -> Array:
    return np.random.default_rng(5).integers(0, CLASSES, count)


# --- the classifier, with labels -----------------------------------------------------------------


def by_hand(x: Array, label: Array) -> dict[str, list[Array]]:
    """Return the gradient of each sample's cross entropy, by numpy's chain rule."""
    w = {name: value.astype(np.float64) for name, value in weights().items()}
    found: dict[str, list[Array]] = {"w1": [], "w2": [], "w3": []}
    for row, y in zip(x.astype(np.float64), label, strict=True):
        a = row @ w["w1"]
        b = np.maximum(a, 0)
        c = b @ w["w2"]
        d = np.maximum(c, 0)
        z = d @ w["w3"] + w["bias"]
        p = np.exp(z - z.max())
        g = p / p.sum() - np.eye(CLASSES)[y]
        g_c = (w["w3"] @ g) * (c > 0)
        g_a = (w["w2"] @ g_c) * (a > 0)
        for name, left, right in (("w1", row, g_a), ("w2", b, g_c), ("w3", d, g)):
            found[name].append(np.outer(left, right))
    return found


def test_squares_are_of_each_sample_by_itself() -> None:
    x, label = samples(37), labels(37)
    found = onnxlr.fisher(classifier(), {"x": x, "label": label}, loss=loss("entropy"))
    expected = by_hand(x, label)
    assert (found.samples, found.uncut, found.draws) == (37, 0, 1)
    for name, gradients in expected.items():
        true = np.mean([np.square(g) for g in gradients], axis=0)
        np.testing.assert_allclose(found.arrays[name], true, rtol=1e-3, atol=1e-6 * true.max())
        # What a batch gives is far from it, however it is scaled.
        batch = np.square(np.sum(gradients, axis=0))
        scaled = batch * (true.sum() / batch.sum())
        assert np.abs(scaled - true).mean() > 0.3 * true.mean()


def test_it_agrees_with_torch_vmap_of_grad() -> None:
    x, label = samples(12, seed=3), labels(12)
    params = {name: torch.from_numpy(value) for name, value in weights().items()}

    def of_one(p: Any, row: Any, y: Any) -> Any:
        hidden = torch.relu(torch.relu(row @ p["w1"]) @ p["w2"])
        return torch.nn.functional.cross_entropy(hidden @ p["w3"] + p["bias"], y)

    each = torch.func.vmap(torch.func.grad(of_one), (None, 0, 0))
    gradients = each(params, torch.from_numpy(x), torch.from_numpy(label))
    found = onnxlr.fisher(classifier(), {"x": x, "label": label}, loss=loss("entropy"))
    for name in ("w1", "w2", "w3"):
        true = gradients[name].double().square().mean(0).numpy()
        np.testing.assert_allclose(found.arrays[name], true, rtol=1e-4, atol=1e-7 * true.max())


@pytest.mark.parametrize("cuts", [(9,), (4, 5), (1,) * 9, (7, 2)])
def test_how_samples_come_in_runs_changes_nothing(cuts: tuple[int, ...]) -> None:
    x, label = samples(9), labels(9)
    ends = np.cumsum((0, *cuts))
    runs = [{"x": x[a:b], "label": label[a:b]} for a, b in pairwise(ends)]
    found = onnxlr.fisher(classifier(), runs, loss=loss("entropy"))
    expected = by_hand(x, label)
    assert found.samples == 9
    for name, gradients in expected.items():
        true = np.mean([np.square(g) for g in gradients], axis=0)
        np.testing.assert_allclose(found.arrays[name], true, rtol=1e-3, atol=1e-6 * true.max())


def test_a_limit_takes_the_first_samples() -> None:
    x, label = samples(9), labels(9)
    arguments = {"loss": loss("entropy")}
    some = onnxlr.fisher(classifier(), {"x": x, "label": label}, samples=4, **arguments)
    first = onnxlr.fisher(classifier(), {"x": x[:4], "label": label[:4]}, **arguments)
    assert some.samples == 4
    assert all(np.array_equal(some.arrays[name], first.arrays[name]) for name in first.arrays)


def test_runs_that_cannot_be_cut_are_told_of() -> None:
    model = classifier()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    x, label = samples(8), labels(8)
    found = onnxlr.fisher(model, {"x": x, "label": label}, loss=loss("entropy"))
    assert (found.samples, found.uncut) == (2, 2)
    assert "2 of 2 runs may hold several samples" in found.notes[0]
    gradients = by_hand(x, label)["w1"]
    runs = [np.mean(gradients[:4], axis=0), np.mean(gradients[4:], axis=0)]
    true = np.mean(np.square(runs), axis=0)
    np.testing.assert_allclose(found.arrays["w1"], true, rtol=1e-3, atol=1e-6 * true.max())


def test_a_state_beside_a_single_sample_makes_no_run_of_several() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="only"),
        helper.make_node("ReduceSum", ["state", "axis"], ["s"], keepdims=0),
        helper.make_node("Add", ["h", "s"], ["y"]),
    ]
    inputs: dict[str, tuple[int, list[Any]]] = {
        "x": (FLOAT, ["N", 5]),
        "state": (FLOAT, [2, "N", 3]),
    }
    constants = {"w": random(5, 3), "axis": np.array([0], np.int64)}
    model = graph_of(nodes, inputs, {"y": ["N", 3]}, constants)
    for count, uncut in ((1, 0), (3, 1)):
        run = {"x": random(count, 5, seed=1), "state": random(2, count, 3, seed=2)}
        assert onnxlr.fisher(model, [run], loss=loss("summed")).uncut == uncut


def test_the_variance_is_that_of_the_information_inside_the_matrix() -> None:
    found = onnxlr.fisher(
        classifier(), {"x": samples(20), "label": labels(20)}, loss=loss("entropy")
    )
    assert [layer.layer for layer in found.layers] == ["first", "second", "head"]
    for layer in found.layers:
        values = found.arrays[layer.weight].astype(np.float64)
        assert layer.shape == values.shape
        assert layer.mean == pytest.approx(values.mean())
        assert layer.variance == pytest.approx(values.var() / values.mean() ** 2)


# --- without labels ------------------------------------------------------------------------------


def test_distillation_of_a_linear_model_has_a_closed_form() -> None:
    """`y = x W`: the expected square of `√2 x_i ε_j / ‖y‖` is `2 x_i² / ‖y‖²`."""
    w, x = random(5, 3), random(4, 5, seed=1)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="only")]
    model = graph_of(nodes, {"x": (FLOAT, ["N", 5])}, {"y": ["N", 3]}, {"w": w})
    lengths = np.square(x @ w).sum(1, keepdims=True)
    true = np.broadcast_to((2 * np.square(x) / lengths).mean(0)[:, None], w.shape)
    found = onnxlr.fisher(model, {"x": x}, draws=3000)
    np.testing.assert_allclose(found.arrays["w"], true, rtol=0.12)
    assert abs(found.arrays["w"].mean() / true.mean() - 1) < 0.03


def test_distillation_gives_the_curvature_of_its_loss() -> None:
    """At the model itself the Hessian of the distance to its own outputs, by torch, in float64."""
    x = samples(1, seed=4)
    model = classifier()
    model.graph.output.add(name="b").CopyFrom(helper.make_tensor_value_info("b", FLOAT, ["N", 32]))
    p = {name: torch.from_numpy(value).double() for name, value in weights().items()}

    def outputs(w1: Any) -> tuple[Any, Any]:
        b = torch.relu(torch.from_numpy(x).double() @ w1)
        return torch.relu(b @ p["w2"]) @ p["w3"] + p["bias"], b

    targets = [each.detach() for each in outputs(p["w1"])]

    def distance(flat: Any) -> Any:
        pairs = zip(outputs(flat.reshape(p["w1"].shape)), targets, strict=True)
        return sum((y - t).square().sum() / t.square().sum() for y, t in pairs) / 2

    hessian = torch.autograd.functional.hessian(distance, p["w1"].flatten())
    true = hessian.diagonal().reshape(p["w1"].shape).numpy()
    found = onnxlr.fisher(model, {"x": x}, draws=2000, kronecker=False).arrays["w1"]
    dead = true == 0
    assert not found[dead].any()
    assert 0 < dead.sum() < dead.size
    np.testing.assert_allclose(found[~dead], true[~dead], rtol=0.2)
    assert abs(found.sum() / true.sum() - 1) < 0.03


def test_labels_that_a_loss_draws_give_the_true_information() -> None:
    """Of the last weight: `E[d_i² (p_j − [y = j])²] = d_i² p_j (1 − p_j)` for `y` drawn by `p`."""
    x = 0.3 * samples(3)
    w = {name: value.astype(np.float64) for name, value in weights().items()}
    d = np.maximum(np.maximum(x @ w["w1"], 0) @ w["w2"], 0)
    p = np.exp(d @ w["w3"] + w["bias"])
    p /= p.sum(1, keepdims=True)
    true = np.einsum("ni,nj->ij", np.square(d), p * (1 - p)) / 3
    state = torch.random.get_rng_state()
    found = onnxlr.fisher(classifier(), {"x": x}, loss=loss("drawn"), draws=1500, layers=["head"])
    assert found.draws == 1500
    assert np.abs(found.arrays["w3"] - true).max() < 0.1 * true.max()
    again = onnxlr.fisher(classifier(), {"x": x}, loss=loss("drawn"), draws=3, layers=["head"])
    same = onnxlr.fisher(classifier(), {"x": x}, loss=loss("drawn"), draws=3, layers=["head"])
    assert np.array_equal(again.arrays["w3"], same.arrays["w3"])
    assert torch.equal(state, torch.random.get_rng_state())


def test_noise_depends_on_the_seed_only() -> None:
    first, again, other = (
        onnxlr.fisher(classifier(), {"x": samples(3)}, seed=seed).arrays["w2"] for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.allclose(first, other, rtol=1e-2)


def test_the_model_is_not_changed() -> None:
    model = classifier()
    before = model.SerializeToString()
    onnxlr.fisher(model, {"x": samples(3)})
    assert model.SerializeToString() == before


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
