"""Spreading one budget: against every combination, and against models built by hand."""

from __future__ import annotations

from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

import onnxlr
from onnxlr.errors import UsageError
from onnxlr.planning.allocation import Curve, spread
from tests.onelayer import Array, model_of, run

ANY = "cosine>=-1"
SIZE = 48
"""Inputs and outputs of the layers that count and do not."""


# --- the choice itself ---------------------------------------------------------------------------


def cost(curves: list[Curve], chosen: Any) -> tuple[float, float]:
    """Return the parameters and the damage of a combination."""
    pairs = list(zip(curves, chosen, strict=True))
    return sum(c.parameters[i] for c, i in pairs), sum(c.damages[i] for c, i in pairs)


def best_of_all(curves: list[Curve], budget: float) -> float:
    """Return the least damage of all combinations within a budget."""
    all_of_them = product(*(range(len(c.parameters)) for c in curves))
    return min(
        damage
        for parameters, damage in (cost(curves, chosen) for chosen in all_of_them)
        if parameters <= budget
    )


def random_curve(random: np.random.Generator, convex: bool, unit: int | None = None) -> Curve:
    """Return a falling curve of up to 5 ranks; a convex one mends less with every parameter."""
    count = int(random.integers(1, 6))
    step = unit or int(random.integers(3, 20))
    parameters = np.append(np.arange(1, count + 1) * step, (count + 1) * step).astype(float)
    drops = random.random(count + 1)
    if convex:
        drops = np.sort(drops)[::-1]
    damages = np.append(np.cumsum(drops[::-1])[::-1][1:], 0.0)
    return Curve(parameters, damages)


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
def test_convex_curves_of_equal_steps_are_spread_best(seed: int, part: float) -> None:
    """Marginal gains fall and all cost the same, so that the best are taken first: no gap."""
    random = np.random.default_rng(seed)
    curves = [random_curve(random, convex=True, unit=7) for _ in range(int(random.integers(1, 5)))]
    least = sum(c.parameters[0] for c in curves)
    budget = least + part * (sum(c.parameters[-1] for c in curves) - least)
    parameters, damage = cost(curves, spread(curves, budget))
    assert parameters <= budget
    assert damage == pytest.approx(best_of_all(curves, budget), abs=1e-9)


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0), st.booleans())
def test_any_curves_stay_within_the_budget_and_the_duality_gap(
    seed: int, part: float, convex: bool
) -> None:
    """What a common price leaves unspent is less than one step: no more than the largest is lost.

    Along the lower convex hulls of the curves the optimum lies between two prices that differ in
    one step of one curve, so that the damage is above the optimum by at most that step's.
    """
    random = np.random.default_rng(seed)
    curves = [random_curve(random, convex) for _ in range(int(random.integers(1, 5)))]
    least = sum(c.parameters[0] for c in curves)
    budget = least + part * (sum(c.parameters[-1] for c in curves) - least)
    parameters, damage = cost(curves, spread(curves, budget))
    assert parameters <= budget
    step = max(float(c.damages[0] - c.damages[-1]) for c in curves)
    assert damage <= best_of_all(curves, budget) + step + 1e-9


def test_all_that_fits_is_kept_whole() -> None:
    random = np.random.default_rng(0)
    curves = [random_curve(random, convex=True) for _ in range(3)]
    whole = sum(c.parameters[-1] for c in curves)
    assert spread(curves, whole) == [len(c.parameters) - 1 for c in curves]
    assert spread([], 0.0) == []


def test_what_hurts_not_is_cut_first() -> None:
    parameters = np.arange(1, 6) * 10.0
    sensitive = Curve(parameters, np.array([8.0, 4.0, 2.0, 1.0, 0.0]))
    insensitive = Curve(parameters, sensitive.damages / 1000)
    assert spread([sensitive, insensitive], 60.0) == [4, 0]
    assert spread([insensitive, sensitive], 60.0) == [0, 4]
    assert spread([sensitive, insensitive], 20.0) == [0, 0]


def test_a_budget_below_the_least_is_refused() -> None:
    curve = Curve(np.array([10.0, 20.0]), np.array([1.0, 0.0]))
    with pytest.raises(UsageError, match="less than rank 1 of every layer"):
        spread([curve, curve], 19.9)


# --- whole models --------------------------------------------------------------------------------


def two_branches() -> tuple[onnx.ModelProto, Array]:
    """Return `y = Relu(x A) A₂ + 0.001 · Relu(x B) B₂`: layers that count, and two that do not."""
    random = np.random.default_rng(3)
    constants = {
        name: random.standard_normal((SIZE, SIZE)).astype(np.float32)
        for name in ("A", "A2", "B", "B2")
    }
    x = random.standard_normal((96, SIZE)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["a"], name="loud"),
        helper.make_node("Relu", ["a"], ["ar"]),
        helper.make_node("MatMul", ["ar", "A2"], ["a2"], name="loud2"),
        helper.make_node("MatMul", ["x", "B"], ["b"], name="quiet"),
        helper.make_node("Relu", ["b"], ["br"]),
        helper.make_node("MatMul", ["br", "B2"], ["b2"], name="quiet2"),
        helper.make_node("Mul", ["b2", "tiny"], ["b3"]),
        helper.make_node("Add", ["a2", "b3"], ["y"]),
    ]
    constants["tiny"] = np.array(0.001, np.float32)
    model = model_of(nodes, {"x": x}, ["y"], constants)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    return model, x


def parameters_of(plan: onnxlr.Plan, shapes: dict[str, tuple[int, ...]]) -> int:
    """Return the parameters that a plan of SVDs of matrices leaves."""
    total = 0
    for name, choice in plan.layers.items():
        rank = None if choice.keeps else choice.options.rank
        total += prod(shapes[name]) if rank is None else rank * sum(shapes[name])
    return total


def rank_of(plan: onnxlr.Plan, name: str) -> int:
    choice = plan.layers[name]
    return SIZE if choice.keeps else choice.options.rank


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("metric", [None, "frobenius"])
def test_layers_that_do_not_matter_are_cut_more(
    ratio: float, metric: str | None, tmp_path: Path
) -> None:
    model, x = two_branches()
    known: dict[str, Any] = {"calibration": {"x": x}, "isolate": False}
    plan = onnxlr.plan(model, ratio=ratio, allocate="global", metric=metric, **known)
    shapes = dict.fromkeys(("loud", "loud2", "quiet", "quiet2"), (SIZE, SIZE))
    assert parameters_of(plan, shapes) <= ratio * 4 * SIZE * SIZE
    quiet, loud = (
        [rank_of(plan, name) for name in names]
        for names in (("quiet", "quiet2"), ("loud", "loud2"))
    )
    assert max(quiet) < min(loud)
    fresh = np.random.default_rng(4).standard_normal((64, SIZE)).astype(np.float32)
    expected = run(model, {"x": fresh})[0]
    damages = []
    for made in (plan, onnxlr.plan(model, ratio=ratio, metric=metric, **known)):
        file = tmp_path / "o.onnx"
        result = onnxlr.rewrite(model, file, plan=made, tolerance=ANY, **known)
        assert result.report is not None
        damages.append(float(np.linalg.norm(run(onnx.load(file), {"x": fresh})[0] - expected)))
    assert damages[0] < 0.9 * damages[1]


@pytest.mark.parametrize("isolate", [True, False])
def test_what_cannot_be_cut_counts_whole(isolate: bool) -> None:
    """A 32×1 weight has no factors smaller than itself; the budget is of both layers."""
    random = np.random.default_rng(0)
    x = random.standard_normal((40, 24)).astype(np.float32)
    constants = {
        "a": random.standard_normal((24, 32)).astype(np.float32),
        "b": random.standard_normal((32, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="wide"),
        helper.make_node("MatMul", ["h", "b"], ["y"], name="thin"),
    ]
    model = model_of(nodes, {"x": x}, ["y"], constants)
    feeds = [{"x": random.standard_normal((40, 24)).astype(np.float32)} for _ in range(6)]
    plan = onnxlr.plan(model, ratio=0.5, allocate="global", calibration=feeds, isolate=isolate)
    assert plan.layers["thin"].keeps
    assert "1" in str(plan.layers["thin"].reason)
    # (24·32 + 32) / 2 = 400, of which 32 are the thin layer's: 6 times 24 + 32 are left.
    assert plan.layers["wide"].options.rank == 6


def test_layers_that_a_metric_says_nothing_of_are_kept() -> None:
    """Importance of one of two layers: the other stays, and stays within the budget."""
    random = np.random.default_rng(1)
    x = random.standard_normal((16, 24)).astype(np.float32)
    constants = {name: random.standard_normal((24, 24)).astype(np.float32) for name in "ab"}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "b"], ["y"], name="second"),
    ]
    model = model_of(nodes, {"x": x}, ["y"], constants)
    plan = onnxlr.plan(
        model,
        ratio=0.75,
        allocate="global",
        metric="fisher-rows",
        importance={"a": random.random((24, 24))},
        calibration=[{"x": x}] * 2,
        isolate=False,
    )
    assert plan.layers["second"].reason == (
        "metric fisher-rows needs the importance of its entries"
    )
    assert plan.layers["first"].options.rank * 48 <= 0.75 * 2 * 576 - 576


def test_it_needs_a_ratio_and_data_to_run() -> None:
    model, x = two_branches()
    with pytest.raises(UsageError, match="give --method svd and --ratio"):
        onnxlr.plan(model, rank=3, allocate="global", calibration={"x": x}, isolate=False)
    with pytest.raises(UsageError, match="give --method svd and --ratio"):
        onnxlr.plan(
            model,
            method="quantize",
            format="int8",
            allocate="global",
            calibration={"x": x},
            isolate=False,
        )
    with pytest.raises(UsageError, match="give --calibration"):
        onnxlr.plan(model, ratio=0.5, allocate="global")
    statistics = onnxlr.observe(model, {"x": x}, isolate=False)
    with pytest.raises(UsageError, match="give --calibration"):
        onnxlr.plan(model, ratio=0.5, allocate="global", statistics=statistics)
    with pytest.raises(UsageError, match="less than rank 1 of every layer"):
        onnxlr.plan(model, ratio=0.04, allocate="global", calibration={"x": x}, isolate=False)
    with pytest.raises(UsageError, match="allocate 'best' is unknown; expected one of uniform"):
        onnxlr.plan(model, ratio=0.5, allocate="best")


def test_convolutions_are_cut_in_the_form_that_fits_best() -> None:
    random = np.random.default_rng(5)
    x = random.standard_normal((12, 6, 8, 8)).astype(np.float32)
    constants = {
        "k1": random.standard_normal((12, 6, 3, 3)).astype(np.float32),
        "k2": random.standard_normal((8, 12, 3, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k1"], ["h"], name="square", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "k2"], ["y"], name="tall"),
    ]
    model = model_of(nodes, {"x": x[:2]}, ["y"], constants)
    feeds = [{"x": x[i : i + 2]} for i in range(0, 12, 2)]
    plan = onnxlr.plan(model, ratio=0.6, allocate="global", calibration=feeds, isolate=False)
    total = 0
    for name, weight in (("square", constants["k1"]), ("tall", constants["k2"])):
        choice = plan.layers[name]
        if choice.keeps:
            total += weight.size
            continue
        chain = onnxlr.decompose(
            weight, rank=choice.options.rank, form=choice.options.form, groups=1
        )
        total += chain.cost.parameters
    assert total <= 0.6 * sum(weight.size for weight in constants.values())
    assert any(not choice.keeps for choice in plan.layers.values())


def test_the_layers_not_meant_have_no_part_in_it() -> None:
    model, x = two_branches()
    plan = onnxlr.plan(
        model,
        ratio=0.5,
        allocate="global",
        layers=["loud*"],
        calibration={"x": x},
        isolate=False,
    )
    assert plan.layers["quiet"].keeps
    assert plan.layers["quiet2"].keeps
    taken = parameters_of(plan, dict.fromkeys(plan.layers, (SIZE, SIZE))) - 2 * SIZE * SIZE
    assert 0.4 * 2 * SIZE * SIZE < taken <= 0.5 * 2 * SIZE * SIZE


def test_a_double_model() -> None:
    """Its outputs are no floats of 32 bits, and count all the same."""
    random = np.random.default_rng(6)
    x = random.standard_normal((48, 24))
    constants = {name: random.standard_normal((24, 24)) for name in ("A", "B")}
    constants["tiny"] = np.array(1e-3)
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["a"], name="loud"),
        helper.make_node("MatMul", ["x", "B"], ["b"], name="quiet"),
        helper.make_node("Mul", ["b", "tiny"], ["c"]),
        helper.make_node("Add", ["a", "c"], ["y"]),
    ]
    model = model_of(nodes, {"x": x[:8]}, ["y"], constants)
    feeds = [{"x": x[i : i + 8]} for i in range(0, 48, 8)]
    plan = onnxlr.plan(model, ratio=0.5, allocate="global", calibration=feeds, isolate=False)
    assert plan.layers["quiet"].options.rank < 4
    assert plan.layers["loud"].keeps or plan.layers["loud"].options.rank > 8


def test_trials_are_run_on_inputs_that_are_held_out() -> None:
    """One branch is loud where factors are fitted, the other on the inputs kept apart."""
    random = np.random.default_rng(7)
    constants = {name: random.standard_normal((SIZE, SIZE)).astype(np.float32) for name in "AB"}
    nodes = [
        helper.make_node("MatMul", ["p", "A"], ["a"], name="fitted"),
        helper.make_node("MatMul", ["q", "B"], ["b"], name="held"),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]

    def feeds(*scales: tuple[float, float]) -> list[dict[str, Array]]:
        return [
            {
                name: (size * random.standard_normal((8, SIZE))).astype(np.float32)
                for name, size in zip("pq", pair, strict=True)
            }
            for pair in scales
        ]

    loud, quiet = (100.0, 1.0), (1.0, 100.0)
    model = model_of(nodes, feeds(loud)[0], ["y"], constants)
    plan = onnxlr.plan(
        model,
        ratio=0.4,
        allocate="global",
        calibration=feeds(*[loud] * 6),
        # all of the runs kept apart count, not the first alone
        holdout=feeds((1.0, 1.0), quiet, quiet),
        isolate=False,
    )
    assert rank_of(plan, "fitted") < 4
    assert rank_of(plan, "held") > 10
