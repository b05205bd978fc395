"""Ternary methods on real models: proved, followed by a plan, and alike on every target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxlr
from tests.lowering.written import RUNTIME
from tests.operators.oplibrary import installed_library
from tools.fetch_models import Unavailable, fetch

Array = np.ndarray[Any, Any]
MODELS = Path(__file__).parents[2] / "models"
TARGETS = ("onnx", "ort", "onnxlr") if RUNTIME >= (1, 24) else ("onnx", "onnxlr")
"""Older runtimes have no MatMulNBits of 2 bits."""

LARGE = ("classifier.hidden", "features.conv3", "features.conv2")
"""Layers of the demo model that take most of its time to fit."""

METHODS: dict[str, dict[str, Any]] = {
    "ternary_svd": {"method": "ternary_svd", "ratio": 3.0},
    "ternary": {"method": "ternary", "terms": 2},
}
ANY = "cosine>=-1"


def images(name: str, count: int) -> dict[str, Array]:
    return {"image": np.load(MODELS / name)["image"][:count]}


def outputs(file: Path, feeds: Mapping[str, Array], library: str | None = None) -> Array:
    """Return all float outputs, flat; by the library's kernels if one is given."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    if library is not None:
        options.register_custom_ops_library(library)
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    found = [np.asarray(value, np.float64).ravel() for value in session.run(None, dict(feeds))]
    return np.concatenate(found)


def distance(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def emitted(report: onnxlr.Report | None) -> bool:
    """Return whether every proof that is not of the approximation was passed; there must be one."""
    assert report is not None
    checks = [check for check in report.checks if check.proof != "approximation"]
    assert any(check.proof == "emission" for check in checks)
    return not any(check.failures for check in checks)


@pytest.fixture(scope="module", params=METHODS)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Return the demo model rewritten for each target, and what the rewrites returned."""
    folder = tmp_path_factory.mktemp(request.param)
    found = {}
    for target in TARGETS:
        file = folder / f"{target}.onnx"
        result = onnxlr.rewrite(
            MODELS / "demo.onnx",
            file,
            **METHODS[request.param],
            target=target,
            calibration=images("demo_calibration.npz", 24),
            data=images("demo_test.npz", 8),
            skip=LARGE,
            tolerance=ANY,
            isolate=False,
        )
        found[target] = (file, result)
    return request.param, found


def test_proofs_pass_and_layers_are_ternary(files) -> None:
    method, found = files
    for target, (file, result) in found.items():
        assert emitted(result.report), target
        choices = [layer.choice for layer in result.layers if not layer.choice.keeps]
        assert len(choices) >= 2
        assert {choice.method for choice in choices} == {method}
        onnx.checker.check_model(onnx.load(file))
        domains = {node.domain for node in onnx.load(file).graph.node}
        assert any("onnxlr" in domain for domain in domains) == (target == "onnxlr")


def test_outputs_are_near_the_original_and_alike_on_all_targets(files) -> None:
    _, found = files
    fresh = images("demo_test.npz", 64)
    wanted = outputs(MODELS / "demo.onnx", fresh)
    results = {target: outputs(file, fresh) for target, (file, _) in found.items()}
    kept = {
        target: {layer.name for layer in result.layers if layer.choice.keeps}
        for target, (_, result) in found.items()
    }
    for target, result in results.items():
        assert distance(result, wanted) < 0.25, target
    for one, other in combinations(TARGETS, 2):
        # Where a target keeps a layer that another rewrites they differ by that, too
        allowed = 0.06 if kept[one] == kept[other] else 0.25
        assert distance(results[one], results[other]) < allowed, (one, other)


def test_kernels_agree_with_functions(files) -> None:
    _, found = files
    file, _ = found["onnxlr"]
    fresh = images("demo_test.npz", 64)
    by_kernels = outputs(file, fresh, installed_library())
    assert distance(by_kernels, outputs(file, fresh)) < 0.02


def test_verify_agrees_and_the_plan_is_followed_to_the_byte(files, tmp_path: Path) -> None:
    _, found = files
    file, result = found["onnxlr"]
    report = onnxlr.verify(
        MODELS / "demo.onnx",
        file,
        tolerance=ANY,
        calibration=images("demo_calibration.npz", 24),
        data=images("demo_test.npz", 8),
        isolate=False,
    )
    assert emitted(report)
    (tmp_path / "p.json").write_text(result.plan.dumps())
    onnxlr.rewrite(
        MODELS / "demo.onnx",
        tmp_path / "o.onnx",
        plan=tmp_path / "p.json",
        calibration=images("demo_calibration.npz", 24),
        data=images("demo_test.npz", 8),
        tolerance=ANY,
        isolate=False,
    )
    assert (tmp_path / "o.onnx").read_bytes() == file.read_bytes()


def test_the_plan_records_ranks(files) -> None:
    method, found = files
    for _, result in found.values():
        layers = json.loads(result.plan.dumps())["layers"]
        options = [layer["options"] for layer in layers.values() if layer["method"] == method]
        assert options
        key = "rank" if method == "ternary_svd" else "terms"
        assert all(values[key] >= 1 for values in options)


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the model had IR version:onnxlr.errors.OnnxlrWarning")
@pytest.mark.parametrize("name", ["ppocr-v4-rec", "ppocr-cls"])
@pytest.mark.parametrize("target", ["onnx", "onnxlr"])
def test_a_convolutional_model(name: str, target: str, tmp_path: Path) -> None:
    try:
        file = fetch(name)
    except Unavailable as reason:
        pytest.skip(f"{name} cannot be had: {reason}")
    result = onnxlr.rewrite(
        file, tmp_path / "o.onnx", method="ternary_svd", ratio=4.0, target=target, tolerance=ANY
    )
    assert emitted(result.report)
    choices = [layer.choice for layer in result.layers if not layer.choice.keeps]
    assert {choice.method for choice in choices} == {"ternary_svd"}
