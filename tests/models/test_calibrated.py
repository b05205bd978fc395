"""Real models by calibration, end to end: better on held-out inputs, and proved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxlr
from tools.fetch_models import Unavailable, fetch

Array = np.ndarray[Any, Any]
Feeds = list[dict[str, Array]]
ANY = "cosine>=-1"


def path_of(name: str) -> Path:
    try:
        return fetch(name)
    except Unavailable as reason:
        pytest.skip(f"{name} cannot be had: {reason}")


def proved(file: Path, output: Path, **arguments: Any) -> onnxlr.RewriteResult:
    """Rewrite, and check that the emission was proved."""
    result = onnxlr.rewrite(file, output, tolerance=ANY, **arguments)
    assert result.report is not None
    emission = [check for check in result.report.checks if check.proof == "emission"]
    assert emission
    assert not any(check.failures for check in emission)
    return result


def outputs(file: Path, feeds: Feeds) -> list[Array]:
    """Return the float outputs of all runs, each flat and in one."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    runs = [session.run(None, feed) for feed in feeds]
    return [
        np.concatenate([np.asarray(run[i], np.float64).ravel() for run in runs])
        for i, value in enumerate(session.get_outputs())
        if "float" in value.type
    ]


def damage(original: Path, changed: Path, feeds: Feeds) -> float:
    """Return the relative distance of all outputs together."""
    one, two = (np.concatenate(outputs(file, feeds)) for file in (original, changed))
    return float(np.linalg.norm(two - one) / np.linalg.norm(one))


def ids(count: int, seed: int) -> dict[str, Array]:
    """Return sentences of random tokens of 5 to 16, and their mask."""
    random = np.random.default_rng(seed)
    lengths = random.integers(5, 17, count)
    mask = (np.arange(16) < lengths[:, None]).astype(np.int64)
    # few of the words there are, as in texts of one kind
    words = np.random.default_rng(0).integers(1000, 20000, 400)
    return {"input_ids": words[random.integers(0, 400, (count, 16))] * mask, "attention_mask": mask}


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.parametrize("sequential", [False, True])
def test_minilm_in_metric_activation(sequential: bool, tmp_path: Path) -> None:
    file, output = path_of("minilm-l3"), tmp_path / "o.onnx"
    known: dict[str, Any] = {"calibration": ids(96, 1), "mask": "attention_mask"}
    fresh = [ids(32, 2)]
    plain = proved(file, output, ratio=0.5, metric="frobenius", bias_correction=False, **known)
    before = damage(file, output, fresh)
    fitted = proved(file, output, ratio=0.5, sequential=sequential, **known)
    after = damage(file, output, fresh)
    assert after < 0.8 * before
    for one, two in zip(plain.layers, fitted.layers, strict=True):
        if two.choice.keeps:
            assert one.choice.keeps
            continue
        assert two.output_error is not None
        if not sequential:  # behind rewritten layers, errors are measured on other inputs
            assert two.output_error <= one.output_error * (1 + 1e-9)
    assert any(record.choice.metric == "activation" for record in fitted.layers)


@pytest.mark.models
@pytest.mark.slow
def test_minilm_in_int4_by_gptq(tmp_path: Path) -> None:
    file, output = path_of("minilm-l3"), tmp_path / "o.onnx"
    known: dict[str, Any] = {"calibration": ids(96, 1), "mask": "attention_mask"}
    fresh, damages = [ids(32, 2)], []
    for rounding in ("nearest", "gptq"):
        result = proved(file, output, method="quantize", format="int4", rounding=rounding, **known)
        damages.append(damage(file, output, fresh))
    assert damages[1] < damages[0]
    chosen = [record.choice for record in result.layers if not record.choice.keeps]
    assert any(choice.rounding == "gptq" for choice in chosen)
    assert result.bytes_after < 0.35 * result.bytes_before


@pytest.mark.models
@pytest.mark.slow
def test_ocr_convolutions_in_metric_activation(tmp_path: Path) -> None:
    file, output = path_of("ppocr-v4-rec"), tmp_path / "o.onnx"

    def pixels(count: int, seed: int) -> dict[str, Array]:
        random = np.random.default_rng(seed)
        smooth = np.cumsum(random.standard_normal((count, 3, 48, 160)), axis=3)
        return {"x": (smooth / np.abs(smooth).max(axis=(1, 2, 3), keepdims=True)).astype("f")}

    known: dict[str, Any] = {"calibration": pixels(16, 1), "data": pixels(2, 3)}
    fresh = [pixels(8, 2)]
    proved(file, output, ratio=0.7, metric="frobenius", bias_correction=False, **known)
    before = damage(file, output, fresh)
    result = proved(file, output, ratio=0.7, **known)
    assert damage(file, output, fresh) < before
    for record in result.layers:
        if record.output_error is not None:
            assert record.output_error <= record.plain_error
    convolutions = [r for r in result.layers if r.operator == "Conv" and not r.choice.keeps]
    assert any(record.choice.metric == "activation" for record in convolutions)
    assert any(record.choice.bias_correction for record in convolutions)


def speech(rate: int, seed: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    size = 576 if rate == 16000 else 288
    tone = np.sin(np.arange(size) * random.uniform(0.02, 0.4, (2, 1)))
    return {
        "input": (0.3 * tone + 0.1 * random.standard_normal((2, size))).astype(np.float32),
        "state": np.zeros((2, 2, 128), np.float32),
        "sr": np.array(rate),
    }


@pytest.mark.models
@pytest.mark.parametrize("rates", [pytest.param((16000,), marks=pytest.mark.slow), (16000, 8000)])
def test_vad_whose_layers_are_in_branches(rates: tuple[int, ...], tmp_path: Path) -> None:
    """What runs is a question of the sampling rate: layers of the other branch are not observed."""
    file, output = path_of("silero-vad"), tmp_path / "o.onnx"
    feeds = [speech(rate, seed) for seed in range(5) for rate in rates]
    statistics = onnxlr.observe(file, feeds, tmp_path / "s.npz")
    assert len(statistics.layers) == 6 * len(rates)
    result = proved(
        file, output, ratio=0.7, statistics=tmp_path / "s.npz", data=[feeds[0], feeds[-1]]
    )
    records = [record for record in result.layers if not record.choice.keeps]
    metrics = {record.name: record.output_error is not None for record in records}
    for name, is_known in metrics.items():
        assert is_known == (len(rates) == 2 or "then_branch" in name)
    assert any(metrics.values())
    again = tmp_path / "again.onnx"
    proved(file, again, plan=result.plan, statistics=statistics, data=[feeds[0]])
    assert again.read_bytes() == output.read_bytes()


@pytest.mark.models
@pytest.mark.parametrize("activations", ["static_int8", "dynamic_int8"])
@pytest.mark.parametrize(
    "sequential", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "sequential"]
)
def test_magika_with_int8_data(sequential: bool, activations: str, tmp_path: Path) -> None:
    file, output = path_of("magika-v3.3"), tmp_path / "o.onnx"
    name = onnx.load(file).graph.input[0].name
    width = onnx.load(file).graph.input[0].type.tensor_type.shape.dim[1].dim_value

    def contents(count: int, seed: int) -> dict[str, Array]:
        random = np.random.default_rng(seed)
        letters = random.integers(32, 127, (count, width))
        return {name: letters.astype(np.int32)}

    result = proved(
        file,
        output,
        method="quantize",
        format="int8",
        activations=activations,
        calibration=contents(24, 1),
        data=contents(8, 3),
        sequential=sequential,
    )
    chosen = [record.choice for record in result.layers if not record.choice.keeps]
    assert chosen
    assert {choice.activations for choice in chosen} == {activations}
    operators = {node.op_type for node in onnx.load(output).graph.node}
    assert ("DynamicQuantizeLinear" in operators) == (activations == "dynamic_int8")
    assert damage(file, output, [contents(8, 2)]) < 0.2
    if activations == "static_int8":  # convolutions have no data that is rounded as it comes
        assert result.bytes_after < 0.5 * result.bytes_before
