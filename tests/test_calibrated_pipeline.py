"""Rewriting by calibration, end to end: what numpy finds by hand, and the same bytes again."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxlr
from onnxlr.errors import OnnxlrWarning, PlanError, UsageError
from onnxlr.methods import SvdOptions
from onnxlr.plan import Choice, Plan
from tests.classifier import classifier, samples, weights
from tests.onelayer import Array, model_of, run, truncated

ANY = "cosine>=-1"
DAMPING = 0.02
"""Part of the mean diagonal by which the least squares of sequential fitting are damped."""


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def open_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give the first dimension of all inputs and outputs a name."""
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "N"
    return model


def rewritten(
    model: onnx.ModelProto, file: Path, **arguments: Any
) -> tuple[onnxlr.RewriteResult, onnx.ModelProto]:
    """Return a result that is proved, and its model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OnnxlrWarning)  # full ranks are larger, as intended
        result = onnxlr.rewrite(model, file, **{"tolerance": ANY, "isolate": False, **arguments})
    assert result.report is not None
    assert result.report.passed
    assert any(check.proof == "emission" for check in result.report.checks)
    return result, onnx.load(file)


def product(model: onnx.ModelProto, layer: str) -> Array:
    """Return the product of a layer's two factors, `(inputs, outputs)`."""
    held = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    return held[f"{layer}.weight"] @ held[f"{layer}.weight.2"]


# --- in sequence ---------------------------------------------------------------------------------


def least_squares(changed: Array, original: Array, weight: Array) -> Array:
    """Return the weight that gives `original @ weight` best on `changed`, damped towards itself."""
    count, inputs = changed.shape
    covariance = changed.T @ changed / count
    damping = DAMPING * np.trace(covariance) / inputs
    right = changed.T @ original / count @ weight + damping * weight
    return np.asarray(np.linalg.solve(covariance + damping * np.eye(inputs), right))


def by_hand(**ranks: tuple[int, str]) -> Plan:
    """Return a sequential plan of SVDs: for each layer a rank and a metric."""
    choices = {name: Choice("svd", SvdOptions(rank=r), m) for name, (r, m) in ranks.items()}
    return Plan(choices, None, "onnx", 0, "test", sequential=True)


def test_a_layer_is_fitted_to_the_original_behind_those_rewritten(tmp_path: Path) -> None:
    """At full rank, the second layer is numpy's least squares on what the first now gives."""
    plan = by_hand(first=(2, "frobenius"), second=(32, "activation"))
    x = samples(80)
    _, done = rewritten(
        classifier(), tmp_path / "o.onnx", plan=plan, calibration={"x": x}, holdout=0
    )
    w = {name: value.astype(np.float64) for name, value in weights().items()}
    first = truncated(w["w1"], 2)
    np.testing.assert_allclose(product(done, "first"), first, atol=1e-5)
    changed, original = (np.maximum(x.astype(np.float64) @ m, 0) for m in (first, w["w1"]))
    expected = least_squares(changed, original, w["w2"])
    assert np.linalg.norm(expected - w["w2"]) > 0.1 * np.linalg.norm(w["w2"])
    np.testing.assert_allclose(product(done, "second"), expected, atol=2e-4)


def test_the_third_layer_sees_the_second_as_it_became(tmp_path: Path) -> None:
    plan = by_hand(first=(2, "frobenius"), second=(3, "frobenius"), head=(10, "activation"))
    x = samples(96)
    _, done = rewritten(
        classifier(), tmp_path / "o.onnx", plan=plan, calibration={"x": x}, holdout=0
    )
    w = {name: value.astype(np.float64) for name, value in weights().items()}

    def hidden(first: Array, second: Array) -> Array:
        return np.maximum(np.maximum(x.astype(np.float64) @ first, 0) @ second, 0)

    changed = hidden(truncated(w["w1"], 2), truncated(w["w2"], 3))
    expected = least_squares(changed, hidden(w["w1"], w["w2"]), w["w3"])
    np.testing.assert_allclose(product(done, "head"), expected, atol=3e-4)


def diamond() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return `x → a → Relu → (b, c) → Add → Relu → d`."""
    held = {name: normal(16, 16, seed=i) / 4 for i, name in enumerate("ABCD")}
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["a"], name="a"),
        helper.make_node("Relu", ["a"], ["ar"]),
        helper.make_node("MatMul", ["ar", "B"], ["b"], name="b"),
        helper.make_node("MatMul", ["ar", "C"], ["c"], name="c"),
        helper.make_node("Add", ["b", "c"], ["s"]),
        helper.make_node("Relu", ["s"], ["sr"]),
        helper.make_node("MatMul", ["sr", "D"], ["y"], name="d"),
    ]
    model = open_batch(model_of(nodes, {"x": normal(8, 16)}, ["y"], held))
    return model, {name: value.astype(np.float64) for name, value in held.items()}


def test_branches_are_fitted_at_once_and_what_joins_them_behind_both(tmp_path: Path) -> None:
    model, w = diamond()
    x = normal(96, 16, seed=7)
    plan = by_hand(
        a=(4, "frobenius"), b=(16, "activation"), c=(5, "frobenius"), d=(16, "activation")
    )
    _, done = rewritten(model, tmp_path / "o.onnx", plan=plan, calibration={"x": x}, holdout=0)
    one, two = (np.maximum(x.astype(np.float64) @ m, 0) for m in (truncated(w["A"], 4), w["A"]))
    b = least_squares(one, two, w["B"])
    np.testing.assert_allclose(product(done, "b"), b, atol=2e-4)
    changed = np.maximum(one @ b + one @ truncated(w["C"], 5), 0)
    original = np.maximum(two @ w["B"] + two @ w["C"], 0)
    d = least_squares(changed, original, w["D"])
    np.testing.assert_allclose(product(done, "d"), d, atol=3e-4)


def test_a_layer_behind_an_if_that_captures_what_is_rewritten(tmp_path: Path) -> None:
    """The branch is fitted first, and what comes behind it sees both it and what it captures."""
    held = {name: normal(16, 16, seed=i) / 4 for i, name in enumerate("ABC")}

    def branch(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([node], name, [], [value])

    yes = helper.make_node("MatMul", ["ar", "B"], ["yes"], name="inner")
    no = helper.make_node("Identity", ["ar"], ["no"])
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["a"], name="a"),
        helper.make_node("Relu", ["a"], ["ar"]),
        helper.make_node(
            "If", ["on"], ["k"], then_branch=branch("yes", yes), else_branch=branch("no", no)
        ),
        helper.make_node("MatMul", ["k", "C"], ["y"], name="c"),
    ]
    model = model_of(nodes, {"x": normal(8, 16), "on": np.array(True)}, ["y"], held)
    x = normal(96, 16, seed=7)
    feeds = [{"x": part, "on": np.array(True)} for part in np.split(x, 12)]
    plan = by_hand(a=(4, "frobenius"), inner=(5, "frobenius"), c=(16, "activation"))
    _, done = rewritten(model, tmp_path / "o.onnx", plan=plan, calibration=feeds, holdout=0)
    w = {name: value.astype(np.float64) for name, value in held.items()}

    def seen(first: Array, second: Array) -> Array:
        return np.maximum(x.astype(np.float64) @ first, 0) @ second

    changed = seen(truncated(w["A"], 4), truncated(w["B"], 5))
    expected = least_squares(changed, seen(w["A"], w["B"]), w["C"])
    assert np.linalg.norm(expected - w["C"]) > 0.1 * np.linalg.norm(w["C"])
    np.testing.assert_allclose(product(done, "c"), expected, atol=3e-4)


def held_out_error(model: onnx.ModelProto, done: onnx.ModelProto, x: Array) -> float:
    y, z = (run(m, {"x": x})[0].astype(np.float64) for m in (model, done))
    return float(np.linalg.norm(z - y) / np.linalg.norm(y))


@pytest.mark.parametrize("method", [{"ratio": 0.4}, {"rank": 4}])
def test_it_pays_where_much_is_cut(method: dict[str, Any], tmp_path: Path) -> None:
    held = {name: normal(32, 32, seed=i) / np.float32(6) for i, name in enumerate(("A", "B", "C"))}
    nodes, last = [], "x"
    for name in held:
        nodes.append(helper.make_node("MatMul", [last, name], [f"{name}.m"], name=name))
        nodes.append(helper.make_node("Relu", [f"{name}.m"], [f"{name}.r"]))
        last = f"{name}.r"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    model = open_batch(model_of(nodes, {"x": normal(8, 32)}, ["y"], held))
    mixing = normal(32, 32, seed=9)
    x, fresh = normal(400, 32, seed=10) @ mixing, normal(200, 32, seed=11) @ mixing
    errors = []
    for sequential in (False, True):
        _, done = rewritten(
            model,
            tmp_path / "o.onnx",
            calibration={"x": x},
            sequential=sequential,
            **method,
        )
        errors.append(held_out_error(model, done, fresh))
    assert errors[1] < errors[0]


def test_importance_counts_behind_rewritten_layers_as_well(tmp_path: Path) -> None:
    """Pairs of inputs replace what is known of the inputs, and of nothing else."""
    random = np.random.default_rng(0)
    importance = {"w1": random.random((24, 32)), "w2": random.random((32, 32)) ** 8}
    result, _ = rewritten(
        classifier(),
        tmp_path / "o.onnx",
        ratio=0.5,
        metric="fisher-rows",
        importance=importance,
        calibration={"x": samples(80)},
        holdout=0,
        sequential=True,
    )
    metrics = {record.name: record.choice.metric for record in result.layers}
    assert (metrics["first"], metrics["second"]) == ("fisher-rows", "fisher-rows")
    head = next(record for record in result.layers if record.name == "head")
    assert head.choice.reason == "metric fisher-rows needs the importance of its entries"


def test_static_ranges_behind_rewritten_layers(tmp_path: Path) -> None:
    result, done = rewritten(
        classifier(),
        tmp_path / "o.onnx",
        method="quantize",
        format="int8",
        activations="static_int8",
        calibration={"x": samples(80)},
        sequential=True,
    )
    assert [record.choice.activations for record in result.layers] == ["static_int8"] * 3
    assert "DynamicQuantizeLinear" not in {node.op_type for node in done.graph.node}


def test_in_sequence_needs_data_to_run(tmp_path: Path) -> None:
    statistics = onnxlr.observe(classifier(), {"x": samples(80)}, isolate=False)
    for known in ({}, {"statistics": statistics}):
        with pytest.raises(UsageError, match=r"sequential fitting .* give --calibration"):
            onnxlr.plan(classifier(), ratio=0.5, sequential=True, isolate=False, **known)
        with pytest.raises(UsageError, match=r"sequential fitting .* give --calibration"):
            onnxlr.rewrite(
                classifier(),
                tmp_path / "o.onnx",
                plan=by_hand(first=(2, "frobenius")),
                isolate=False,
                **known,
            )
    assert not list(tmp_path.iterdir())


# --- bias correction -----------------------------------------------------------------------------


def initializer(model: onnx.ModelProto, name: str) -> Array:
    (found,) = (t for t in model.graph.initializer if t.name == name)
    return numpy_helper.to_array(found).astype(np.float64)


def two_sites() -> tuple[onnx.ModelProto, Array]:
    """Return a weight used on inputs of mean 1 and of mean −2: two biases, not one."""
    weight = normal(24, 20, seed=1)
    nodes = [
        helper.make_node("Add", ["x", "up"], ["one"]),
        helper.make_node("Sub", ["x", "down"], ["two"]),
        helper.make_node("MatMul", ["one", "W"], ["y"], name="layer"),
        helper.make_node("MatMul", ["two", "W"], ["h"]),
        helper.make_node("Add", ["h", "c"], ["z"]),
    ]
    constants = {
        "W": weight,
        "up": np.full(24, 1, np.float32),
        "down": np.full(24, 2, np.float32),
        "c": normal(20, seed=2),
    }
    model = open_batch(model_of(nodes, {"x": normal(8, 24)}, ["y", "z"], constants))
    return model, weight.astype(np.float64)


def corrected(rank: int, metric: str = "activation") -> Choice:
    return Choice("svd", SvdOptions(rank=rank), metric, bias_correction=True)


@pytest.mark.parametrize("metric", ["activation", "frobenius"])
def test_every_site_gets_the_bias_that_its_mean_lacks(metric: str, tmp_path: Path) -> None:
    model, weight = two_sites()
    x = normal(80, 24, seed=5)
    plan = Plan({"layer": corrected(4, metric)}, None, "onnx", 0, "test")
    _, done = rewritten(model, tmp_path / "o.onnx", plan=plan, calibration={"x": x}, holdout=0)
    lacking = weight - product(done, "layer")
    means = [x.astype(np.float64).mean(axis=0) + shift for shift in (1, -2)]
    one, two = (mean @ lacking for mean in means)
    np.testing.assert_allclose(initializer(done, "layer.correction"), one, atol=1e-5)
    moved = initializer(done, "layer.bias") - normal(20, seed=2)
    np.testing.assert_allclose(moved, two, atol=1e-5)
    assert np.linalg.norm(one - two) > 0.1 * np.linalg.norm(one)
    assert sum(node.op_type == "Add" for node in done.graph.node) == 3


def test_a_convolution_gets_it_into_its_bias(tmp_path: Path) -> None:
    kernel, bias = normal(8, 4, 3, 3, seed=1), normal(8, seed=2)
    node = helper.make_node("Conv", ["x", "W", "c"], ["y"], name="layer")
    data = normal(8, 4, 6, 6)
    model = open_batch(model_of([node], {"x": data}, ["y"], {"W": kernel, "c": bias}))
    x = normal(40, 4, 6, 6, seed=3) + 1
    options = SvdOptions(rank=3, form="channel")
    plan = Plan({"layer": Choice("svd", options, bias_correction=True)}, None, "onnx", 0, "test")
    _, done = rewritten(model, tmp_path / "o.onnx", plan=plan, calibration={"x": x}, holdout=0)
    assert {n.op_type for n in done.graph.node} == {"Conv"}
    dense = truncated(kernel.reshape(8, -1), 3).reshape(kernel.shape)
    patches = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (3, 3), (2, 3))
    mean = patches.mean(axis=(0, 2, 3))  # (inputs, 3, 3)
    expected = bias + np.einsum("ikl,oikl->o", mean, kernel - dense)
    np.testing.assert_allclose(initializer(done, "layer.bias"), expected, atol=1e-4)


def shifted() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"], name="layer")]
    return open_batch(model_of(nodes, {"x": normal(8, 24)}, ["y"], {"W": normal(24, 24, seed=1)}))


@pytest.mark.parametrize("metric", [None, "frobenius"])
def test_held_out_inputs_say_whether_it_pays(metric: str | None, tmp_path: Path) -> None:
    directions = normal(24, seed=8)
    centred, moved = normal(160, 24, seed=5), normal(160, 24, seed=6) + 3 * directions
    for x, pays in ((centred, False), (moved, True)):
        known: dict[str, Any] = {"calibration": {"x": x}, "rank": 4, "metric": metric}
        result, _ = rewritten(shifted(), tmp_path / "o.onnx", **known)
        assert result.plan.layers["layer"].bias_correction is pays
        result, done = rewritten(shifted(), tmp_path / "o.onnx", bias_correction=False, **known)
        assert not result.plan.layers["layer"].bias_correction
        assert [node.op_type for node in done.graph.node] == ["MatMul", "MatMul"]
    result, _ = rewritten(shifted(), tmp_path / "o.onnx", holdout=0, **known)
    assert not result.plan.layers["layer"].bias_correction  # nothing to judge by


def test_a_mean_that_the_held_out_inputs_do_not_share_is_not_corrected(tmp_path: Path) -> None:
    directions = 3 * normal(24, seed=8)
    known: dict[str, Any] = {
        "calibration": {"x": normal(160, 24, seed=5) + directions},
        "holdout": {"x": normal(160, 24, seed=6) - directions},
    }
    for metric in (None, "frobenius"):
        result, _ = rewritten(shifted(), tmp_path / "o.onnx", rank=4, metric=metric, **known)
        assert not result.plan.layers["layer"].bias_correction


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("sequential", [False, True])
def test_a_site_that_uses_the_transpose_gets_none(
    sequential: bool, flipped: bool, tmp_path: Path
) -> None:
    """Its data are not the layer's inputs, and its outputs have another number."""
    stored = normal(24, 20, seed=1) if not flipped else normal(20, 24, seed=1)
    names = ["V", "W"] if flipped else ["W", "V"]
    nodes = [
        helper.make_node("Transpose", ["W"], ["V"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", names[0]], ["h"], name="down"),
        helper.make_node("Tanh", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", names[1]], ["y"], name="up"),
    ]
    model = open_batch(model_of(nodes, {"x": normal(8, 24)}, ["y"], {"W": stored}))
    plan = Plan({"down": corrected(5)}, None, "onnx", 0, "test", sequential=sequential)
    x = normal(80, 24, seed=3) + 1
    _, done = rewritten(model, tmp_path / "o.onnx", plan=plan, calibration={"x": x})
    adds = [node for node in done.graph.node if node.op_type == "Add"]
    assert [node.output[0] for node in adds] == ["h"]


def branches() -> onnx.ModelProto:
    """Return a model that multiplies by one weight in both branches of an If."""

    def branch(name: str, operator: str) -> onnx.GraphProto:
        return helper.make_graph(
            [
                helper.make_node("MatMul", ["x", "W"], [f"{name}.h"], name=name),
                helper.make_node(operator, [f"{name}.h"], [f"{name}.y"]),
            ],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, None)],
        )

    node = helper.make_node(
        "If",
        ["on"],
        ["y"],
        then_branch=branch("yes", "Tanh"),
        else_branch=branch("no", "Neg"),
    )
    inputs = {"x": normal(8, 24), "on": np.array(True)}
    return model_of([node], inputs, ["y"], {"W": normal(24, 20, seed=1)})


@pytest.mark.parametrize("on", [True, False])
def test_a_branch_that_calibration_never_took_gets_none(on: bool, tmp_path: Path) -> None:
    feeds = [{"x": normal(8, 24, seed=i) + 1, "on": np.array(on)} for i in range(6)]
    found = onnxlr.inspect(branches()).layers
    layer = next(la.name for la in found if la.skip is None)
    plan = Plan({layer: corrected(5)}, None, "onnx", 0, "test")
    _, done = rewritten(branches(), tmp_path / "o.onnx", plan=plan, calibration=feeds)
    graphs = {a.name: a.g for a in done.graph.node[0].attribute}
    adds = {
        name: sum(node.op_type == "Add" for node in graph.node) for name, graph in graphs.items()
    }
    assert adds == {"then_branch": int(on), "else_branch": int(not on)}


# --- the same again ------------------------------------------------------------------------------


IMPORTANCE = {
    "w1": np.random.default_rng(1).random((24, 32)),
    "w2": np.random.default_rng(2).random((32, 32)),
    "w3": np.random.default_rng(3).random((32, 10)),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "activation": {"ratio": 0.5},
    "error": {"max_error": 0.2},
    "energy": {"energy": 0.95},
    "bits": {"bits": 12, "format": "float16"},
    "gptq": {"method": "quantize", "format": "int4", "rounding": "gptq"},
    "low rank gptq": {"ratio": 0.6, "format": "int8", "rounding": "gptq", "group_size": 0},
    "int2": {"method": "quantize", "format": "int2", "correction_rank": 2},
    "dynamic": {"ratio": 0.5, "format": "int8", "activations": "dynamic_int8"},
    "static": {"ratio": 0.5, "format": "int8", "activations": "static_int8"},
    "fisher-rows": {"ratio": 0.5, "metric": "fisher-rows", "importance": IMPORTANCE},
    "fisher": {"ratio": 0.5, "metric": "fisher", "importance": IMPORTANCE},
    "em": {"ratio": 0.5, "metric": "fisher", "solver": "em", "importance": IMPORTANCE},
    "global": {"ratio": 0.5, "allocate": "global"},
    "sequential": {"ratio": 0.5, "sequential": True},
    "sequential gptq": {
        "method": "quantize",
        "format": "int4",
        "rounding": "gptq",
        "sequential": True,
    },
    "sequential static": {
        "method": "quantize",
        "format": "int8",
        "activations": "static_int8",
        "sequential": True,
    },
    "global sequential": {"ratio": 0.5, "allocate": "global", "sequential": True},
    "uncorrected": {"ratio": 0.5, "bias_correction": False},
    "ort": {"method": "quantize", "format": "int4", "target": "ort", "rounding": "gptq"},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_the_same_plan_and_data_give_the_same_bytes(case: str, tmp_path: Path) -> None:
    onnx.save(classifier(), tmp_path / "m.onnx")
    settings = SETTINGS[case]
    data: dict[str, Any] = {"calibration": {"x": samples(80) + np.float32(0.5)}}
    importance = {k: settings[k] for k in ("importance",) if k in settings}
    common: dict[str, Any] = {"tolerance": ANY, "isolate": False, **data}
    files = [tmp_path / f"{i}.onnx" for i in range(4)]
    result = onnxlr.rewrite(tmp_path / "m.onnx", files[0], **settings, **common)
    assert not result.plan.is_empty
    onnxlr.rewrite(tmp_path / "m.onnx", files[1], **settings, **common)
    onnxlr.rewrite(tmp_path / "m.onnx", files[2], plan=result.plan, **importance, **common)
    # through a file, as a person would
    made = onnxlr.plan(tmp_path / "m.onnx", isolate=False, **settings, **data)
    assert made == result.plan
    (tmp_path / "p.json").write_text(made.dumps())
    onnxlr.rewrite(tmp_path / "m.onnx", files[3], plan=tmp_path / "p.json", **importance, **common)
    first, *others = (file.read_bytes() for file in files)
    assert [other == first for other in others] == [True] * 3
    report = onnxlr.verify(
        tmp_path / "m.onnx", files[0], **importance, **{**common, "tolerance": ANY}
    )
    assert report.passed
    assert any(check.proof == "emission" for check in report.checks)


def test_statistics_from_a_file_give_the_same_bytes_as_their_data(tmp_path: Path) -> None:
    onnx.save(classifier(), tmp_path / "m.onnx")
    x = {"x": samples(80)}
    common: dict[str, Any] = {"tolerance": ANY, "isolate": False, "ratio": 0.5}
    onnxlr.observe(tmp_path / "m.onnx", x, tmp_path / "s.npz", isolate=False)
    onnxlr.rewrite(tmp_path / "m.onnx", tmp_path / "1.onnx", calibration=x, **common)
    onnxlr.rewrite(
        tmp_path / "m.onnx", tmp_path / "2.onnx", statistics=tmp_path / "s.npz", **common
    )
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()


def test_a_plan_of_some_layers_takes_statistics_or_the_data_they_were_made_of(
    tmp_path: Path,
) -> None:
    """The file is of all layers, so that the data is to be observed at all of them, too."""
    onnx.save(classifier(), tmp_path / "m.onnx")
    x = {"x": samples(80)}
    onnxlr.observe(tmp_path / "m.onnx", x, tmp_path / "s.npz", isolate=False)
    plan = onnxlr.plan(
        tmp_path / "m.onnx", layers=["second"], ratio=0.5, statistics=tmp_path / "s.npz"
    )
    assert [name for name, choice in plan.layers.items() if not choice.keeps] == ["second"]
    files = [tmp_path / "1.onnx", tmp_path / "2.onnx"]
    known: list[dict[str, Any]] = [{"statistics": tmp_path / "s.npz"}, {"calibration": x}]
    for file, given in zip(files, known, strict=True):
        onnxlr.rewrite(tmp_path / "m.onnx", file, plan=plan, tolerance=ANY, isolate=False, **given)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_edited_plan_is_followed(tmp_path: Path) -> None:
    """One layer is kept, another's rank is changed; the third is what it was."""
    x = {"x": samples(80)}
    statistics = onnxlr.observe(classifier(), x, isolate=False)
    known: dict[str, Any] = {"statistics": statistics}
    plan = onnxlr.plan(classifier(), ratio=0.5, isolate=False, **known)
    values = json.loads(plan.dumps())
    values["layers"]["first"] = {"method": "keep"}
    values["layers"]["second"]["options"] = {"rank": 3}
    edited = Plan.loads(json.dumps(values))
    _, done = rewritten(classifier(), tmp_path / "1.onnx", plan=edited, **known)
    _, whole = rewritten(classifier(), tmp_path / "2.onnx", plan=plan, **known)
    np.testing.assert_array_equal(product(done, "head"), product(whole, "head"))
    assert initializer(done, "second.weight").shape == (32, 3)
    np.testing.assert_array_equal(initializer(done, "w1"), weights()["w1"])


def test_a_plan_with_other_statistics_or_none_is_refused(tmp_path: Path) -> None:
    plan = onnxlr.plan(classifier(), ratio=0.5, calibration={"x": samples(80)}, isolate=False)
    common: dict[str, Any] = {"plan": plan, "tolerance": ANY, "isolate": False}
    with pytest.raises(PlanError, match=r"made with statistics .* give the same ones"):
        onnxlr.rewrite(classifier(), tmp_path / "o.onnx", **common)
    with pytest.raises(PlanError, match=r"of sha256 .*, these have .*make a new plan"):
        onnxlr.rewrite(
            classifier(), tmp_path / "o.onnx", calibration={"x": samples(80, seed=1)}, **common
        )
    assert not list(tmp_path.iterdir())
    free = replace(plan, statistics_sha256=None)
    rewritten(
        classifier(),
        tmp_path / "o.onnx",
        plan=free,
        calibration={"x": samples(80, seed=1)},
    )
    with pytest.raises(PlanError, match=r"layer 'second' cannot be followed: .* needs statistics"):
        onnxlr.rewrite(classifier(), tmp_path / "p.onnx", plan=free, isolate=False)


def test_a_plan_that_needs_no_statistics_is_followed_without(tmp_path: Path) -> None:
    plan = onnxlr.plan(
        classifier(),
        ratio=0.5,
        metric="frobenius",
        bias_correction=False,
        calibration={"x": samples(80)},
        isolate=False,
    )
    assert not plan.needs_statistics
    rewritten(classifier(), tmp_path / "o.onnx", plan=plan)


@pytest.mark.parametrize("chosen", [{"layers": ["second"]}, {"skip": ["head"]}])
def test_a_plan_for_some_layers_is_followed_with_the_same_data(
    chosen: dict[str, Any], tmp_path: Path
) -> None:
    x = {"x": samples(80)}
    plan = onnxlr.plan(classifier(), ratio=0.5, calibration=x, isolate=False, **chosen)
    rewritten(classifier(), tmp_path / "o.onnx", plan=plan, calibration=x)


# --- verify --------------------------------------------------------------------------------------


def emission_of(report: onnxlr.Report) -> bool:
    return any(check.proof == "emission" for check in report.checks)


def test_verify_proves_the_emission_with_the_statistics_alone(tmp_path: Path) -> None:
    onnx.save(classifier(), tmp_path / "m.onnx")
    x = {"x": samples(80)}
    statistics = onnxlr.observe(tmp_path / "m.onnx", x, isolate=False)
    file = tmp_path / "o.onnx"
    onnxlr.rewrite(
        tmp_path / "m.onnx", file, ratio=0.5, statistics=statistics, tolerance=ANY, isolate=False
    )
    common: dict[str, Any] = {"tolerance": ANY, "isolate": False}
    report = onnxlr.verify(tmp_path / "m.onnx", file, **common)
    assert not emission_of(report)
    assert any("its plan needs the statistics" in note for note in report.notes)
    for known in ({"statistics": statistics}, {"calibration": x}):
        assert emission_of(onnxlr.verify(tmp_path / "m.onnx", file, **known, **common))
    with pytest.raises(PlanError, match="was made with statistics of sha256"):
        onnxlr.verify(tmp_path / "m.onnx", file, calibration={"x": samples(16)}, **common)


@pytest.mark.parametrize("metric", ["fisher-rows", "fisher", "kfac"])
def test_verify_without_the_importance_says_so(metric: str, tmp_path: Path) -> None:
    onnx.save(classifier(), tmp_path / "m.onnx")
    arrays = {f"{k}/output_covariance": np.eye(v.shape[1]) for k, v in IMPORTANCE.items()}
    known: dict[str, Any] = {"calibration": {"x": samples(80)}} if metric == "kfac" else {}
    common: dict[str, Any] = {"tolerance": ANY, "isolate": False, **known}
    file, importance = tmp_path / "o.onnx", arrays if metric == "kfac" else IMPORTANCE
    onnxlr.rewrite(
        tmp_path / "m.onnx", file, ratio=0.5, metric=metric, importance=importance, **common
    )
    assert emission_of(onnxlr.verify(tmp_path / "m.onnx", file, importance=importance, **common))
    report = onnxlr.verify(tmp_path / "m.onnx", file, **common)
    assert not emission_of(report)
    assert any("importance" in note for note in report.notes)
