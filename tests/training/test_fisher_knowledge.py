"""Covariances of inputs that lie in an importance file: what metric kfac takes without statistics.

None of this needs torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnxlr.calibration.importance import load_importance
from onnxlr.errors import DataError, UsageError
from onnxlr.evidence import Evidence, Knowledge
from onnxlr.layers import find_layers
from onnxlr.metrics import Kfac
from onnxlr.model import open_model
from onnxlr.statistics import Moments
from tests.classifier import classifier
from tests.onelayer import model_of

Array = np.ndarray[Any, Any]


def covariance(size: int, seed: int = 0) -> Array:
    root = np.random.default_rng(seed).standard_normal((2 * size, size))
    return np.asarray(root.T @ root / (2 * size))


def load(arrays: dict[str, Array], groups: int = 0) -> Any:
    return load_importance(arrays, find_layers(open_model(model(groups))))


def model(groups: int) -> Any:
    """Return the classifier, or a convolution of 4 to 6 channels with a window of 3×2."""
    if not groups:
        return classifier()
    node = helper.make_node("Conv", ["x", "k"], ["y"], name="conv", group=groups)
    kernel = np.ones((6, 4 // groups, 3, 2), np.float32)
    return model_of([node], {"x": np.zeros((1, 4, 5, 5), np.float32)}, ["y"], {"k": kernel})


def test_it_is_taken_by_the_weights_name() -> None:
    known = load({"w2/input_covariance": covariance(32).astype(np.float32)})
    assert (known.entries, known.gradients) == ({}, {})
    assert known.inputs["second"].shape == (1, 32, 32)
    assert np.allclose(known.inputs["second"][0], covariance(32), rtol=1e-6)


@pytest.mark.parametrize(("groups", "size"), [(1, 24), (2, 12)])
def test_that_of_patches_has_one_matrix_for_each_group(groups: int, size: int) -> None:
    each = np.stack([covariance(size, seed) for seed in range(groups)])
    known = load({"k/input_covariance": each}, groups)
    assert np.array_equal(known.inputs["conv"], each)
    if groups == 1:
        assert np.array_equal(load({"k/input_covariance": each[0]}, 1).inputs["conv"], each)


@pytest.mark.parametrize(
    ("groups", "name", "values", "words"),
    [
        (0, "w2", np.eye(10), r"shape \[10, 10\], expected \[32, 32\]: .* inputs"),
        (0, "w3", np.eye(10), r"expected \[32, 32\]"),
        (2, "k", np.eye(12), r"expected \[2, 12, 12\]: .* inputs in each group"),
        (0, "w2", np.triu(np.ones((32, 32))), "must be symmetric"),
        (0, "w2", -np.eye(32), "must be symmetric with a diagonal of squares"),
        (0, "w2", np.full((32, 32), np.nan), "1,024 entries that are NaN"),
        (0, "w22", np.eye(32), "did you mean 'w2'"),
    ],
)
def test_what_is_none_is_refused(groups: int, name: str, values: Array, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load({f"{name}/input_covariance": values}, groups)


def moments(size: int) -> Moments:
    one = np.ones(1)
    covariances = covariance(size, 9)[None]
    return Moments(np.array([9]), np.zeros((1, 1, size)), covariances, -one, one, -one, one)


def test_kfac_takes_it_where_there_are_no_statistics() -> None:
    inputs, gradients = covariance(5)[None], covariance(3, 1)
    alone = Evidence(output_covariance=gradients, input_covariance=inputs).metric("kfac")
    expected = Kfac(inputs, gradients)
    assert np.array_equal(np.asarray(alone.covariance), np.asarray(expected.covariance))
    seen = moments(5)
    both = Evidence(seen, None, None, gradients, inputs).metric("kfac")
    assert np.array_equal(
        np.asarray(both.covariance), np.asarray(Kfac(seen.covariance, gradients).covariance)
    )


def test_no_other_metric_takes_it() -> None:
    known = Evidence(output_covariance=np.eye(3), input_covariance=covariance(5)[None])
    with pytest.raises(UsageError, match="metric activation needs statistics"):
        known.metric("activation")
    assert known.default_metric == "frobenius"


def test_knowledge_hands_it_to_its_layer() -> None:
    layers = find_layers(open_model(classifier()))
    known = Knowledge(input_covariance={"second": covariance(32)[None]})
    found = {layer.name: known.of(layer).input_covariance for layer in layers if layer.sites}
    assert found.pop("second") is not None
    assert set(found.values()) == {None}
