"""Squared gradients of single samples, against closed forms and torch's own differentiation."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from onnx import helper

import onnxlr
from tests.classifier import classifier, samples, weights

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from tests.training.fisher_models import FLOAT, by_hand, graph_of, labels, loss, random  # noqa: E402


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
