"""The order in which layers are fitted, and what each is told of its inputs."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnxlr.calibration import Sources
from onnxlr.evidence import UNKNOWN, Evidence
from onnxlr.layers import Layer, find_layers
from onnxlr.methods import SvdOptions
from onnxlr.model import Model, open_model
from onnxlr.plan import Proposal
from onnxlr.planning import Request
from onnxlr.planning.sequential import SequentialTask, fit_in_sequence
from onnxlr.planning.uniform import propose_one
from onnxlr.progress import silent
from onnxlr.statistics import PairMoments
from tests.onelayer import model_of


@pytest.mark.parametrize("deep_first", [True, False])
def test_a_shared_weight_waits_for_all_that_is_before_any_of_its_nodes(deep_first: bool) -> None:
    """It is used on the model's input and behind another layer, in either order of the file."""
    random = np.random.default_rng(0)
    x = random.standard_normal((8, 24)).astype(np.float32)
    constants = {k: random.standard_normal((24, 24)).astype(np.float32) for k in ("A", "T")}
    before = helper.make_node("MatMul", ["x", "A"], ["a"], name="before")
    deep = helper.make_node("MatMul", ["a", "T"], ["b"], name="deep")
    shallow = helper.make_node("MatMul", ["x", "T"], ["c"], name="shallow")
    both = helper.make_node("Add", ["b", "c"], ["y"])
    nodes = [before, deep, shallow] if deep_first else [before, shallow, deep]
    proto = model_of([*nodes, both], {"x": x}, ["y"], constants)

    def reopen() -> Model:
        return open_model(proto)

    model = reopen()
    layers = find_layers(model)
    seen: list[tuple[str, Evidence | None]] = []

    def fit(layer: Layer, evidence: Evidence | None) -> Proposal:
        seen.append((layer.name, evidence))
        return propose_one(model, layer, Request(options=SvdOptions(rank=2)), UNKNOWN)

    feeds = [{"x": random.standard_normal((8, 24)).astype(np.float32)} for _ in range(5)]
    work = SequentialTask(
        model, layers, Sources(calibration=feeds, holdout=0), reopen, False, silent
    )
    proposals = list(fit_in_sequence(work, fit))
    assert [proposal.layer.name for proposal in proposals] == [layer.name for layer in layers]
    (first, nothing), (second, evidence) = seen
    assert (first, second) == ("before", nodes[1].name)
    assert nothing is None
    assert evidence is not None
    assert isinstance(evidence.fit, PairMoments)
    # rows of the original: those behind the layer before, and those of the input itself
    inputs = np.concatenate([feed["x"] for feed in feeds]).astype(np.float64)
    rows = np.concatenate([inputs @ constants["A"], inputs])
    np.testing.assert_allclose(
        evidence.fit.target[0], rows.T @ rows / len(rows), rtol=1e-3, atol=1e-3
    )
