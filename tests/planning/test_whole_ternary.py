"""Versions of ternary SVD, judged by whole models: by the files that are written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

import onnxlr
from onnxlr.methods import METHODS, Setting, TernarySvdOptions
from tests.onelayer import Array, distance, model_of, run

ANY = "cosine>=-1"


def test_the_published_fit_and_one_without_sweeps_have_no_plainer_version() -> None:
    method = METHODS["ternary_svd"]
    setting = Setting.for_array(np.zeros((4, 4), np.float32))
    assert method.plainer(TernarySvdOptions(rank=3, fit="published"), setting) is None
    assert method.plainer(TernarySvdOptions(rank=3, sweeps=0), setting) is None
    for fit in (None, "alternating"):
        options = TernarySvdOptions(rank=3, fit=fit, form="spatial")
        plainer = TernarySvdOptions(rank=3, fit=fit, form="spatial", sweeps=0)
        assert method.plainer(options, setting) == plainer


def two_ternary_layers(seed: int) -> tuple[onnx.ModelProto, list[dict[str, Array]]]:
    """Return a model that only heeds two features of its first layer, and its inputs.

    Whether coordinate descent, which lowers the sum over all features, mends these is an accident.
    """
    random = np.random.default_rng(seed)
    size = 40
    constants = {
        "a": random.standard_normal((size, size)).astype(np.float32),
        "g": np.where(np.arange(size) < 2, 1.0, 0.02).astype(np.float32),
        "b": random.standard_normal((size, 24)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Mul", ["h", "g"], ["p"]),
        helper.make_node("Tanh", ["p"], ["t"]),
        helper.make_node("MatMul", ["t", "b"], ["y"], name="second"),
    ]
    feeds = [{"x": random.standard_normal((32, size)).astype(np.float32)} for _ in range(8)]
    return model_of(nodes, feeds[0], ["y"], constants), feeds


def test_ternary_svd_has_the_version_that_the_written_model_is_better_with(tmp_path: Path) -> None:
    """By the files that are written, of which those with sweeps are made by a changed plan."""
    seen = []
    for seed in range(8):
        model, feeds = two_ternary_layers(seed)
        known = {"calibration": feeds[:6], "holdout": feeds[6:], "isolate": False, "tolerance": ANY}
        made = onnxlr.rewrite(
            model, tmp_path / "made.onnx", method="ternary_svd", ratio=2.0, **known
        )
        again = onnxlr.rewrite(model, tmp_path / "again.onnx", plan=made.plan, **known)
        assert again.plan == made.plan
        assert (tmp_path / "made.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
        swept = {
            name: replace(choice, options=replace(choice.options, sweeps=None))
            for name, choice in made.plan.layers.items()
        }
        plan = replace(made.plan, layers=swept)
        onnxlr.rewrite(model, tmp_path / "swept.onnx", plan=plan, **known)
        expected = np.concatenate([run(model, feed)[0] for feed in feeds[6:]])
        errors = [
            distance(np.concatenate([run(onnx.load(file), f)[0] for f in feeds[6:]]), expected)
            for file in (tmp_path / "made.onnx", tmp_path / "swept.onnx")
        ]
        seen.append(any(choice.options.sweeps == 0 for choice in made.plan.layers.values()))
        assert errors[0] < errors[1] if seen[-1] else errors[0] == errors[1]
    assert set(seen) == {True, False}
