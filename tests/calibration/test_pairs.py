"""Pairs of inputs: of a model and of its rewritten form, against numpy on both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxlr.calibration import observe_pairs
from onnxlr.errors import DataError, RuntimeFailureError, UsageError
from onnxlr.layers import Layer, find_layers
from onnxlr.model import Model, open_model
from onnxlr.statistics import PairMoments
from tests.classifier import classifier, samples, weights
from tests.onelayer import model_of

Array = np.ndarray[Any, Any]


def files(
    folder: Path, original: onnx.ModelProto, rewritten: onnx.ModelProto
) -> tuple[Model, Path, Path, list[Layer]]:
    paths = folder / "original.onnx", folder / "rewritten.onnx"
    for path, model in zip(paths, (original, rewritten), strict=True):
        onnx.save(model, path)
    opened = open_model(paths[0])
    return opened, *paths, find_layers(opened)


def check(found: PairMoments, changed: Array, x: Array, rtol: float = 1e-4) -> None:
    """Compare with rows `(groups, rows, inputs)` of x̂ and x."""
    count = x.shape[1]
    assert found.count == count

    def mean(one: Array, other: Array) -> Array:
        return np.einsum("gri,grj->gij", one, other) / count

    np.testing.assert_allclose(found.covariance, mean(changed, changed), rtol, atol=1e-6)
    np.testing.assert_allclose(found.cross, mean(changed, x), rtol, atol=1e-6)
    np.testing.assert_allclose(found.target, mean(x, x), rtol, atol=1e-6)
    np.testing.assert_allclose(found.mean, changed.mean(axis=1), rtol, atol=1e-6)
    np.testing.assert_allclose(found.original_mean, x.mean(axis=1), rtol, atol=1e-6)


def hidden(x: Array, w1: Array) -> Array:
    return np.maximum(x.astype(np.float64) @ w1.astype(np.float64), 0)[None]


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("memory", [1 << 30, 1])
def test_a_layer_behind_a_changed_one(tmp_path: Path, isolate: bool, memory: int) -> None:
    w1 = weights()["w1"]
    model, one, other, layers = files(tmp_path, classifier(), classifier(w1=w1 * 0.9 + 0.01))
    x = samples(64)
    pairs = observe_pairs(
        model, one, other, layers, {"x": x}, holdout=0.25, isolate=isolate, memory=memory
    )
    assert list(pairs) == ["first", "second", "head"]
    fit, holdout = pairs["second"]
    runs = x.reshape(8, 8, 24)
    for found, chosen in ((fit, [0, 1, 2, 4, 5, 6]), (holdout, [3, 7])):
        part = runs[chosen].reshape(-1, 24)
        assert found is not None
        check(found, hidden(part, w1 * 0.9 + 0.01), hidden(part, w1))
    first, _ = pairs["first"]
    np.testing.assert_array_equal(first.covariance, first.target)
    np.testing.assert_allclose(first.cross, first.target, rtol=1e-12)


def test_names_in_the_rewritten_model(tmp_path: Path) -> None:
    changed = classifier()
    changed.graph.node[2].input[0] = "r"  # `second` is fed by a node that the original has not
    changed.graph.node.insert(2, helper.make_node("Neg", ["b"], ["r"]))
    model, one, other, layers = files(tmp_path, classifier(), changed)
    x = samples(16)
    options: Any = {"holdout": 0, "isolate": False, "names": {"second": ["r"]}}
    pairs = observe_pairs(model, one, other, layers[1:2], {"x": x}, **options)
    rows = hidden(x, weights()["w1"])
    check(pairs["second"][0], -rows, rows)
    assert pairs["second"][1] is None
    options["names"] = {"second": ["r", "b"]}
    with pytest.raises(UsageError, match="'second' has 1 sites, but 2 names"):
        observe_pairs(model, one, other, layers, {"x": x}, **options)
    options["names"] = {"second": ["nowhere"]}
    with pytest.raises(RuntimeFailureError, match="cannot load it"):
        observe_pairs(model, one, other, layers, {"x": x}, **options)


def test_convolutions_of_several_sites(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((3, 4, 5)).astype(np.float32)
    kernel = random.standard_normal((4, 2, 3)).astype(np.float32)

    def twice(factor: float) -> onnx.ModelProto:
        node = {"group": 2, "pads": [1, 1]}
        return model_of(
            [
                helper.make_node("Mul", ["x", "factor"], ["a"]),
                helper.make_node("Conv", ["a", "k"], ["b"], "l", **node),
                helper.make_node("Conv", ["x", "k"], ["y"], "m", **node),
                helper.make_node("Add", ["b", "y"], ["z"]),
            ],
            {"x": x},
            ["z"],
            {"k": kernel, "factor": np.float32(factor)},
        )

    model, one, other, layers = files(tmp_path, twice(1), twice(-2))
    pairs = observe_pairs(model, one, other, layers, {"x": x}, isolate=False)
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), (1, 1)])
    patches = np.stack([padded[:, :, i : i + 5] for i in range(3)], axis=2)
    patches = patches.reshape(3, 2, 6, 5).transpose(1, 0, 3, 2).reshape(2, 15, 6)
    both = np.concatenate([patches, patches], axis=1)
    check(pairs["l"][0], np.concatenate([-2 * patches, patches], axis=1), both)


def test_masked_rows_do_not_count(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x, w = (random.standard_normal(s).astype(np.float32) for s in ((4, 3, 6), (6, 6)))
    mask = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]])

    def model(factor: float) -> onnx.ModelProto:
        nodes = [
            helper.make_node("MatMul", ["x", "v"], ["a"], "before"),
            helper.make_node("MatMul", ["a", "w"], ["y"], "l"),
        ]
        constants = {"v": np.eye(6, dtype=np.float32) * np.float32(factor), "w": w}
        return model_of(nodes, {"x": x, "mask": mask}, ["y"], constants)

    opened, one, other, layers = files(tmp_path, model(1), model(3))
    data = {"x": x, "mask": mask}
    pairs = observe_pairs(opened, one, other, layers, data, mask="mask", isolate=False)
    rows = x[mask != 0][None].astype(np.float64)
    check(pairs["l"][0], 3 * rows, rows)


def test_activations_that_are_no_numbers(tmp_path: Path) -> None:
    changed = classifier(w1=np.full((24, 32), np.inf, np.float32))
    model, one, other, layers = files(tmp_path, classifier(), changed)
    with pytest.raises(DataError, match="layer 'second': its data 'b' has"):
        observe_pairs(model, one, other, layers, {"x": samples(4)}, isolate=False)
