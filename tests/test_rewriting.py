"""What a fit becomes at the sites of a layer, and what a rewritten model says of itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxlr
from onnxlr.layers import find_layers
from onnxlr.methods import Fit, Recipe, SvdOptions
from onnxlr.model import open_model
from onnxlr.numbers import Format
from onnxlr.plan import Choice, Plan, Proposal
from onnxlr.rewriting import METADATA_KEY, Rewriting, adjusted
from onnxlr.stages import Adjustment, Chain
from onnxlr.statistics import Moments
from tests.classifier import classifier
from tests.lowering.written import stage_of
from tests.onelayer import model_of

SIZE = 6


def moments() -> Moments:
    vector = np.array([-1.0, np.nan])
    return Moments(
        np.array([9, 0]),
        np.zeros((2, 1, SIZE)),
        np.eye(SIZE)[None],
        vector,
        -vector,
        vector,
        -vector,
    )


@pytest.mark.parametrize("activations", ["float", "dynamic_int8", "static_int8"])
def test_sites_that_use_the_transpose_get_nothing(activations: str) -> None:
    """What was seen is of the others, and a square weight would not tell."""
    weight = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="layer"),
        helper.make_node("Gemm", ["h", "W"], ["y"], name="back", transB=1),
    ]
    model = open_model(model_of(nodes, {"x": weight}, ["y"], {"W": weight}))
    (layer,) = find_layers(model)
    assert [site.transposed for site in layer.sites] == [False, True]
    correction = np.arange(1.0, 1.0 + SIZE)
    chain = Chain((stage_of(weight, Format.parse("int8")),))
    fit = Fit(chain, SvdOptions(rank=1), Recipe(), correction[None])
    plain, transposed = adjusted(layer, fit, activations, moments())
    np.testing.assert_array_equal(plain.correction, correction)
    ranges = ((-1.0, 1.0), (-1.0, 1.0)) if activations == "static_int8" else None
    assert plain.ranges == ranges
    assert transposed.correction is None
    assert transposed.ranges is None


def test_a_corrected_layer_is_looked_at_behind_the_constant_that_took_the_correction() -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((SIZE, SIZE)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="layer"),
        helper.make_node("Add", ["h", "c"], ["y"]),
    ]
    proto = model_of(nodes, {"x": weight}, ["y"], {"W": weight, "c": weight[0]})
    model = open_model(proto)
    (layer,) = find_layers(model)
    chain = Chain((stage_of(weight, Format.parse("int8")),))
    for correction, output in ((None, "h"), (np.ones(SIZE), "y")):
        work = Rewriting(model, open_model(proto), "onnx")
        choice = Choice("quantize", format="int8", activations="dynamic_int8")
        work.add(Proposal(layer, choice, chain, (Adjustment(correction),)))
        assert [piece.output for piece in work.pieces] == [output]


def test_a_model_that_is_rewritten_again_and_again_keeps_all_its_plans(tmp_path: Path) -> None:
    source: Path | onnx.ModelProto = classifier()
    for name in ("first", "second", "head"):
        file = tmp_path / f"{name}.onnx"
        onnxlr.rewrite(source, file, layers=[name], rank=4, isolate=False)
        source = file
    plans = {e.key: Plan.loads(e.value) for e in onnx.load(tmp_path / "head.onnx").metadata_props}
    written = {
        key: [name for name, choice in plan.layers.items() if not choice.keeps]
        for key, plan in plans.items()
    }
    keys = [METADATA_KEY, f"{METADATA_KEY}.2", f"{METADATA_KEY}.3"]
    assert written == dict(zip(keys, (["first"], ["second"], ["head"]), strict=True))
