"""Knowledge from each source, and sources that contradict each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxlr.calibration import Sources, gather
from onnxlr.errors import DataError, ModelError, UsageError
from onnxlr.layers import find_layers
from onnxlr.model import open_model
from onnxlr.statistics import Moments
from tests.classifier import classifier, samples, weights
from tests.onelayer import model_of

Array = np.ndarray[Any, Any]


def known(**sources: Any) -> tuple[Any, dict[str, Any]]:
    """Return what is known of the classifier, and its layers by name."""
    model = open_model(classifier())
    layers = find_layers(model)
    return gather(model, layers, Sources(**sources), isolate=False), {la.name: la for la in layers}


def hidden(x: Array) -> Array:
    return np.maximum(x.astype(np.float64) @ weights()["w1"], 0)


def test_nothing_is_known_without_sources() -> None:
    knowledge, layers = known()
    for layer in layers.values():
        evidence = knowledge.of(layer)
        assert (evidence.fit, evidence.holdout) == (None, None)
        assert (evidence.importance, evidence.output_covariance) == (None, None)
        assert "give --calibration or --statistics" in knowledge.why_unobserved(layer)
    assert not Sources().knows_inputs


def check(knowledge: Any, layers: dict[str, Any], x: Array, runs: list[int]) -> None:
    """Compare the second layer's moments with numpy's; runs of 8, of which some are held out."""
    evidence = knowledge.of(layers["second"])
    parts = [hidden(part) for part in np.split(x, len(x) // 8)]
    fit = np.concatenate([p for i, p in enumerate(parts) if i not in runs])
    assert isinstance(evidence.fit, Moments)
    np.testing.assert_allclose(evidence.fit.covariance[0], fit.T @ fit / len(fit), rtol=1e-4)
    np.testing.assert_allclose(evidence.fit.mean[0], fit.mean(axis=0), rtol=1e-4)
    if not runs:
        assert evidence.holdout is None
        return
    held = np.concatenate([parts[i] for i in runs])
    assert isinstance(evidence.holdout, Moments)
    np.testing.assert_allclose(evidence.holdout.covariance[0], held.T @ held / len(held), rtol=1e-4)


def test_calibration_with_part_of_it_held_out() -> None:
    x = samples(80)
    check(*known(calibration={"x": x}), x, [4, 9])  # a fifth of ten runs
    check(*known(calibration={"x": x}, holdout=0), x, [])
    check(*known(calibration={"x": x[:40]}, holdout={"x": x[40:]}), x, [5, 6, 7, 8, 9])


def test_data_that_can_be_read_only_once() -> None:
    """Statistics, sequence and sensitivity all read the data: it is kept."""
    x = samples(80)
    feeds = ({"x": part} for part in np.split(x, 10))
    sources = Sources(calibration=feeds, holdout=({"x": part} for part in np.split(x, 10)))
    model = open_model(classifier())
    first, second = (
        gather(model, find_layers(model), sources, isolate=False).statistics for _ in range(2)
    )
    assert first is not None
    assert second is not None
    assert first.sha256 == second.sha256


def test_statistics_made_before_are_the_same_as_their_data(tmp_path: Path) -> None:
    x = samples(80)
    fresh, _ = known(calibration={"x": x})
    fresh.statistics.save(tmp_path / "s.npz")
    for given in (fresh.statistics, tmp_path / "s.npz", str(tmp_path / "s.npz")):
        knowledge, layers = known(statistics=given)
        check(knowledge, layers, x, [4, 9])
        assert knowledge.statistics.sha256 == fresh.statistics.sha256


def test_importance_beside_statistics() -> None:
    entries = np.arange(24 * 32, dtype=np.float64).reshape(24, 32)
    gradients = np.diag(np.arange(1.0, 33.0))
    arrays = {"w1": entries, "w2/output_covariance": gradients}
    knowledge, layers = known(calibration={"x": samples(80)}, importance=arrays)
    first, second = knowledge.of(layers["first"]), knowledge.of(layers["second"])
    np.testing.assert_array_equal(first.importance, entries)
    assert first.output_covariance is None
    assert first.fit is not None
    np.testing.assert_array_equal(second.output_covariance, gradients)
    assert second.importance is None


def test_statistics_count_more_than_data_beside_them() -> None:
    """The data is then there to run the model on, not to observe it."""
    x = samples(80)
    statistics = known(calibration={"x": x})[0].statistics
    check(*known(statistics=statistics, calibration={"x": samples(16, seed=5)}), x, [4, 9])


def test_sources_that_contradict_each_other() -> None:
    statistics = known(calibration={"x": samples(16)})[0].statistics
    with pytest.raises(UsageError, match="mask 'x' is for calibration data, and there is none"):
        known(mask="x")
    with pytest.raises(UsageError, match="mask 'x' is for calibration data, and there is none"):
        known(mask="x", statistics=statistics)


def test_statistics_of_another_model() -> None:
    statistics = known(calibration={"x": samples(16)})[0].statistics
    other = open_model(classifier(w2=weights()["w2"] + np.float32(1)))
    with pytest.raises(DataError, match=r"made for another model: layer 'second' .* calibrate"):
        gather(other, find_layers(other), Sources(statistics=statistics))


def test_statistics_know_layers_by_their_weight_not_by_their_name() -> None:
    statistics = known(calibration={"x": samples(16)})[0].statistics
    renamed = onnx.ModelProto()
    renamed.CopyFrom(classifier())
    for node in renamed.graph.node:
        node.name = f"new {node.name}"
    model = open_model(renamed)
    layers = find_layers(model)
    knowledge = gather(model, layers, Sources(statistics=statistics))
    assert [la.name for la in layers if knowledge.of(la).fit is not None] == [
        "new first",
        "new second",
        "new head",
    ]


def twice_the_same(x: Array) -> tuple[onnx.ModelProto, Array]:
    """Return `y = tanh(x W) W`, W twice in the file, and what the second layer sees."""
    weight = np.random.default_rng(1).standard_normal((24, 24)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "W1"], ["a"], name="first"),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "W2"], ["y"], name="second"),
    ]
    model = model_of(nodes, {"x": x[:8]}, ["y"], {"W1": weight, "W2": weight})
    return model, np.tanh(x.astype(np.float64) @ weight)


@pytest.mark.parametrize("from_file", [True, False])
@pytest.mark.parametrize("name", ["first", "second"])
def test_a_selection_does_not_mix_up_layers_of_equal_weight(
    name: str, from_file: bool, tmp_path: Path
) -> None:
    x = samples(80)
    proto, behind = twice_the_same(x)
    model = open_model(proto)
    layers = find_layers(model)
    source: dict[str, Any] = {"calibration": {"x": x}, "holdout": 0}
    if from_file:
        whole = gather(model, layers, Sources(**source), isolate=False).statistics
        assert whole is not None
        whole.save(tmp_path / "s.npz")
        source = {"statistics": tmp_path / "s.npz"}
    meant = [layer for layer in layers if layer.name == name]
    knowledge = gather(model, layers, Sources(**source), isolate=False, meant=meant)
    seen = knowledge.of(meant[0]).fit
    rows = x.astype(np.float64) if name == "first" else behind
    assert seen is not None
    np.testing.assert_allclose(seen.covariance[0], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-6)


def test_a_weight_that_cannot_be_read_only_matters_where_it_is_meant() -> None:
    broken = weights()["w3"].copy()
    broken[3, 4] = np.nan
    model = open_model(classifier(w3=broken))
    layers = find_layers(model)
    x = samples(80)
    sources = Sources(calibration={"x": x})
    knowledge = gather(model, layers, sources, isolate=False, meant=layers[:2])
    check(knowledge, {la.name: la for la in layers}, x, [4, 9])
    assert knowledge.of(layers[2]).fit is None
    with pytest.raises(ModelError, match=r"node 'head' .* 1 entries that are NaN"):
        gather(model, layers, sources, isolate=False)
