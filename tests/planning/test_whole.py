"""The whole model judges: models built so that a layer's own error says otherwise, by numpy."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxlr
from onnxlr.errors import OnnxlrWarning
from onnxlr.methods import METHODS, Options, Setting
from onnxlr.stages import Chain, Linear
from tests.onelayer import Array, model_of, run

ANY = "cosine>=-1"
SIZE, RANK = 32, 12
MANY, FEW = slice(0, RANK), slice(SIZE - RANK, SIZE)
"""Features of the diagonal layers that each of the two versions of `Cut` leaves as they are."""


@dataclass(frozen=True)
class CutOptions:
    """Which singular directions are kept: `largest`, or `least`."""

    rank: int = RANK
    part: str | None = None


@dataclass
class Cut:
    """A method of two versions, whose first always has the lesser error of its own."""

    made: list[tuple[Array, str | None]] = field(default_factory=list)
    name: ClassVar[str] = "cut"
    options: ClassVar[type[Options]] = CutOptions
    default_format: ClassVar[str | None] = None
    is_slow: ClassVar[bool] = False

    def factorize(self, weight: npt.NDArray[Any], options: CutOptions, setting: Setting) -> Chain:
        self.made.append((weight, options.part))
        u, s, v = np.linalg.svd(weight.astype(np.float64))
        taken = slice(-options.rank, None) if options.part else slice(0, options.rank)
        chain = Chain((Linear.of((u * s)[:, taken]), Linear.of(v[taken])))
        return chain.encoded(setting.format, setting.compute)

    def settle(self, options: CutOptions, chain: Chain) -> CutOptions:  # noqa: ARG002
        return options

    def heeds_metric(self, options: CutOptions, setting: Setting) -> bool:  # noqa: ARG002
        return False

    def plainer(self, options: CutOptions, setting: Setting) -> CutOptions | None:  # noqa: ARG002
        return None if options.part else replace(options, part="least")


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Cut:
    method = Cut()
    monkeypatch.setitem(METHODS, "cut", method)
    return method


def falling(largest: float = 3.0) -> Array:
    """Return singular values of a diagonal layer."""
    return np.linspace(largest, 0.5, SIZE).astype(np.float32)


def left_by(values: Array, part: str | None) -> Array:
    """Return the diagonal of what a version makes of a diagonal layer."""
    found = np.zeros_like(values)
    taken = FEW if part else MANY
    found[taken] = values[taken]
    return found


def ones(taken: slice, value: float = 1.0) -> Array:
    gate = np.zeros(SIZE, np.float32)
    gate[taken] = value
    return gate


def gated(gates: Sequence[Array], joined: str = "Concat") -> onnx.ModelProto:
    """Return diagonal layers side by side, their features weighted by gates, then put together."""
    nodes, constants = [], {}
    for number, gate in enumerate(gates):
        constants |= {f"w{number}": np.diag(falling()), f"g{number}": gate}
        nodes += [
            helper.make_node("MatMul", ["x", f"w{number}"], [f"h{number}"], name=f"layer{number}"),
            helper.make_node("Mul", [f"h{number}", f"g{number}"], [f"p{number}"]),
        ]
    names = [f"p{number}" for number in range(len(gates))]
    more = {"axis": -1} if joined == "Concat" else {}
    nodes.append(helper.make_node(joined, names, ["y"], **more))
    return model_of(nodes, {"x": np.zeros((8, SIZE), np.float32)}, ["y"], constants)


def rows(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((8, SIZE)).astype(np.float32)


FEEDS = [{"x": rows(seed)} for seed in range(6)]
HELD = [{"x": rows(seed)} for seed in range(10, 13)]
KNOWN: dict[str, Any] = {"calibration": FEEDS, "holdout": HELD, "isolate": False}
PLAIN: dict[str, Any] = {"method": "cut", "bias_correction": False}


def parts_of(plan: onnxlr.Plan) -> list[str | None]:
    return [choice.options.part for choice in plan.layers.values()]


def off_by(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("isolate", [True, False])
def test_the_model_decides_against_the_layer(cut: Cut, isolate: bool) -> None:
    gate = ones(slice(RANK, SIZE)) + ones(slice(0, RANK), 0.01)
    plan = onnxlr.plan(gated([gate]), **PLAIN, **KNOWN | {"isolate": isolate})
    x, values = np.concatenate([feed["x"] for feed in HELD]), falling()
    own = [off_by(x * left_by(values, part), x * values) for part in (None, "least")]
    whole = [off_by(x * left_by(values, p) * gate, x * values * gate) for p in (None, "least")]
    assert own[0] < own[1]
    assert whole[1] < whole[0]
    (choice,) = plan.layers.values()
    assert choice.options == CutOptions(part="least")
    assert "with this layer alone rewritten" in str(choice.reason)
    said = [float(number) for number in re.findall(r"\d\S*", str(choice.reason))]
    np.testing.assert_allclose(said, whole[::-1], rtol=6e-3)


def test_the_model_agrees_with_the_layer(cut: Cut) -> None:
    (choice,) = onnxlr.plan(gated([ones(slice(None))]), **PLAIN, **KNOWN).layers.values()
    assert choice.options == CutOptions()
    assert choice.reason is None
    assert [part for _, part in cut.made].count("least") == 1


@pytest.mark.parametrize(
    ("loudness", "again"),
    [
        ([1] * 16, 2),  # no more than an eighth
        ([1, 1, 1, 9, 1, 1, 1, 1], 1),  # 81 of 88 are most of the damage
        ([1, 1, 1], 1),  # one at least
        ([0, 0, 0, 0], 0),
    ],
)
def test_only_the_worst_layers_are_fitted_again(
    loudness: list[float], again: int, cut: Cut
) -> None:
    gates = [ones(FEW, loud) + ones(MANY, 0 if loud else 1) for loud in loudness]
    plan = onnxlr.plan(gated(gates), **PLAIN, **KNOWN)
    assert [part for _, part in cut.made].count("least") == again
    assert parts_of(plan).count("least") == again
    if again == 1 and max(loudness) > 1:
        assert parts_of(plan)[3] == "least"


def test_what_is_better_alone_can_be_worse_among_others(cut: Cut) -> None:
    """What two equal layers leave out is lost in their difference, as long as both leave out it."""
    model = gated([ones(slice(RANK, SIZE)), ones(slice(RANK, SIZE), -1)], "Sum")
    model.graph.node[-1].input.append("x")
    plan = onnxlr.plan(model, **PLAIN, **KNOWN)
    assert [part for _, part in cut.made].count("least") == 1
    assert parts_of(plan) == [None, None]


def test_what_is_worse_alone_can_be_better_among_others(cut: Cut) -> None:
    """Errors of both layers add up in the same features; 1.9² is more than 1.1² + .9²."""
    values = falling()
    gates = [ones(FEW) + ones(MANY, 1.1), ones(FEW, 0.9)]
    gates = [(gate / values).astype(np.float32) for gate in gates]
    plan = onnxlr.plan(gated(gates, "Sum"), **PLAIN, **KNOWN)
    x = np.concatenate([feed["x"] for feed in HELD])

    def damage(*parts: str | None) -> float:
        pairs = list(zip(gates, parts, strict=True))
        expected = sum(x * values * gate for gate in gates)
        found = sum(x * (values if p == "whole" else left_by(values, p)) * g for g, p in pairs)
        return off_by(np.asarray(found), np.asarray(expected))

    assert damage(None, "whole") < damage("least", "whole")
    assert damage("whole", None) < damage(None, "whole")
    assert damage("least", None) < damage(None, None)
    assert parts_of(plan) == ["least", None]
    reason = str(plan.layers["layer0"].reason)
    assert "with all layers rewritten" in reason
    said = [float(number) for number in re.findall(r"\d\S*", reason)]
    np.testing.assert_allclose(said, [damage("least", None), damage(None, None)], rtol=6e-3)


def constant_features() -> tuple[onnx.ModelProto, list[dict[str, Array]]]:
    """Return a model, and inputs whose last features are large, but always the same."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"),
        helper.make_node("Add", ["h", "b"], ["y"]),
    ]
    constants = {"w": np.diag(falling()), "b": rows(50)[0]}
    model = model_of(nodes, {"x": rows(0)}, ["y"], constants)
    mean = ones(FEW, 10.0)
    noise = ones(MANY) + ones(FEW, 0.01)
    return model, [{"x": rows(seed) * noise + mean} for seed in range(20)]


@pytest.mark.parametrize("corrects", [True, False])
def test_bias_corrections_are_part_of_a_version(corrects: bool, cut: Cut) -> None:
    """What the first version leaves out is made up for by its correction, and only by that."""
    model, feeds = constant_features()
    known = {"calibration": feeds[:14], "holdout": feeds[14:18], "isolate": False}
    plan = onnxlr.plan(model, method="cut", bias_correction=corrects, **known)
    x, fitted = (
        np.concatenate([feed["x"] for feed in some]).astype(np.float64)
        for some in (feeds[14:18], feeds[:14])
    )
    values = falling().astype(np.float64)
    y = x * values + rows(50)[0]
    damages = {}
    for part in (None, "least"):
        lost = values - left_by(values, part)
        damages[part] = off_by(y - x * lost + corrects * fitted.mean(axis=0) * lost, y)
    assert (damages[None] < damages["least"]) is corrects
    (choice,) = plan.layers.values()
    assert choice.bias_correction is corrects
    assert choice.options.part == (None if corrects else "least")
    assert [part for _, part in cut.made].count("least") == 1


def test_a_plainer_version_has_a_correction_of_its_own(cut: Cut, tmp_path: Path) -> None:
    """Of what it leaves out itself, as the rewritten model shows."""
    model, feeds = constant_features()
    gate = ones(slice(RANK, SIZE)) + ones(MANY, 0.01)
    model.graph.node.append(helper.make_node("Mul", ["y", "g"], ["z"], name="gate"))
    model.graph.output[0].name = "z"
    model.graph.initializer.append(numpy_helper.from_array(gate, "g"))
    feeds = [{"x": feed["x"] + ones(slice(0, SIZE), 2) * rows(60 + i)}
             for i, feed in enumerate(feeds)]  # fmt: skip
    known = {"calibration": feeds[:14], "holdout": feeds[14:18], "isolate": False}
    result = onnxlr.rewrite(model, tmp_path / "o.onnx", method="cut", tolerance=ANY, **known)
    (choice,) = result.plan.layers.values()
    assert choice.options.part == "least"
    assert choice.bias_correction
    fitted = np.concatenate([feed["x"] for feed in feeds[:14]]).astype(np.float64)
    x = feeds[19]["x"].astype(np.float64)
    values = falling().astype(np.float64)
    kept = left_by(values, "least")
    expected = gate * (x * kept + fitted.mean(axis=0) * (values - kept) + rows(50)[0])
    (found,) = run(onnx.load(tmp_path / "o.onnx"), feeds[19])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_plan_that_is_followed_gives_the_same_bytes(cut: Cut, tmp_path: Path) -> None:
    model = gated([ones(FEW), ones(MANY)])
    files = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    made = onnxlr.rewrite(model, files[0], **PLAIN, **KNOWN, tolerance=ANY)
    assert parts_of(made.plan) == ["least", None]
    (tmp_path / "plan.json").write_text(made.plan.dumps(), encoding="utf-8")
    onnxlr.rewrite(model, files[1], plan=tmp_path / "plan.json", **KNOWN, tolerance=ANY)
    assert files[0].read_bytes() == files[1].read_bytes()


# --- what is left as it was fitted ---------------------------------------------------------------


def test_without_data_to_run_it_says_so(cut: Cut) -> None:
    model = gated([ones(FEW), ones(FEW)])
    statistics = onnxlr.observe(model, FEEDS, isolate=False)
    with pytest.warns(OnnxlrWarning, match="give --calibration") as said:
        plan = onnxlr.plan(model, **PLAIN, statistics=statistics, isolate=False)
    assert len(said) == 1
    assert parts_of(plan) == [None, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = onnxlr.plan(model, method="cut", part="least", statistics=statistics)
        blind = onnxlr.plan(model, **PLAIN, isolate=False)
    assert parts_of(done) == ["least", "least"]
    assert parts_of(blind) == [None, None]
    both = onnxlr.plan(model, **PLAIN, **KNOWN, statistics=statistics)
    assert parts_of(both).count("least") == 1


def test_importance_is_not_judged_by_outputs(cut: Cut) -> None:
    importance = {"w0": np.ones((SIZE, SIZE))}
    model = gated([ones(FEW)])
    plan = onnxlr.plan(model, **PLAIN, **KNOWN, metric="fisher-rows", importance=importance)
    assert parts_of(plan) == [None]


def test_fits_in_sequence_are_left(cut: Cut) -> None:
    plan = onnxlr.plan(gated([ones(FEW)]), **PLAIN, **KNOWN, sequential=True)
    assert parts_of(plan) == [None]


def test_layers_in_functions_and_layers_not_meant_are_left(cut: Cut) -> None:
    """The worst layer is in a function, the next one is not meant."""
    model = gated([ones(FEW, 2), ones(FEW)])
    weight = numpy_helper.from_array(np.diag(falling(9.0)), "v")
    body = [
        helper.make_node("Constant", [], ["v"], value=weight),
        helper.make_node("MatMul", ["a", "v"], ["b"], name="inside"),
    ]
    model.functions.append(
        helper.make_function("own", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("F", ["x"], ["z"], domain="own"))
    model.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [8, SIZE]))
    onnx.checker.check_model(model)
    plan = onnxlr.plan(model, **PLAIN, **KNOWN, skip=["layer0"])
    assert plan.layers["layer0"].keeps
    assert plan.layers["layer1"].options.part == "least"
    (inside,) = (c for name, c in plan.layers.items() if not name.startswith("layer"))
    assert inside.options == CutOptions()
