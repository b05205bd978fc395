"""Real models: covariances against numpy on tensors that ONNX Runtime hands out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxlr.calibration import observe
from onnxlr.layers import Layout, find_layers, layer_keys
from onnxlr.model import open_model
from tools.fetch_models import Unavailable, fetch

Array = np.ndarray[Any, Any]


def path_of(name: str) -> Path:
    try:
        return fetch(name)
    except Unavailable as reason:
        pytest.skip(f"{name} cannot be had: {reason}")


def tapped(file: Path, names: list[str], runs: list[dict[str, Array]]) -> list[dict[str, Array]]:
    """Return tensors of the main graph, as ONNX Runtime computes them."""
    model = onnx.load(file)
    present = {value.name for value in (*model.graph.output, *model.graph.input)}
    for name in dict.fromkeys(names):
        if name not in present:
            model.graph.output.add(name=name)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    wanted = [name for name in dict.fromkeys(names) if name not in runs[0]]
    return [run | dict(zip(wanted, session.run(wanted, run), strict=True)) for run in runs]


def compare(found: Array, expected: Array) -> None:
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.models
def test_minilm_matrices_with_a_mask() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(3, 17, 24)
    mask = (np.arange(16) < lengths[:, None]).astype(np.int64)
    data = {"input_ids": random.integers(1000, 20000, (24, 16)), "attention_mask": mask}
    file = path_of("minilm-l3")
    model = open_model(file)
    layers = [layer for layer in find_layers(model) if layer.skip is None]
    statistics = observe(model, layers, data, mask="attention_mask", holdout=1 / 3)
    keys = layer_keys(model, layers)
    statistics.check(model.name, keys)
    matrices = [layer for layer in layers if not layer.is_table]
    assert len(matrices) == len(statistics.layers) == 18
    runs = [{k: v[i : i + 8] for k, v in data.items()} for i in range(0, 24, 8)]
    tensors = tapped(file, [layer.sites[0].data for layer in matrices], runs)
    for layer in matrices:
        parts = [run[layer.sites[0].data][run["attention_mask"] != 0] for run in tensors]
        known = statistics.layers[keys[layer.name]]
        assert known.holdout is not None
        for moments, chosen in ((known.fit, parts[:2]), (known.holdout, parts[2:])):
            rows = np.concatenate(chosen).astype(np.float64)
            assert moments.count == len(rows)
            compare(moments.covariance[0], rows.T @ rows / len(rows))
            compare(moments.mean[0], rows.mean(axis=0))


@pytest.mark.models
def test_ocr_convolutions() -> None:
    x = np.random.default_rng(0).standard_normal((6, 3, 48, 160)).astype(np.float32)
    file = path_of("ppocr-v4-rec")
    model = open_model(file)
    layers = [layer for layer in find_layers(model) if layer.skip is None]
    statistics = observe(model, layers, {"x": x}, holdout=0)
    keys = layer_keys(model, layers)
    names = [layer.sites[0].data for layer in layers]
    (tensors,) = tapped(file, names, [{"x": x}])
    for layer in layers:
        site, data = layer.sites[0], tensors[layer.sites[0].data].astype(np.float64)
        moments = statistics.layers[keys[layer.name]].fit
        if site.layout is not Layout.CONVOLUTION:
            rows = data.reshape(-1, data.shape[-1])
            compare(moments.covariance[0], rows.T @ rows / len(rows))
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in site.node.attribute}
        assert attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
        assert (layer.groups, attributes.get("dilations", [1, 1])) == (1, [1, 1])
        patches = two_dimensional(data, layer.shape[2:], attributes)
        compare(moments.covariance[0], patches.T @ patches / len(patches))


def two_dimensional(data: Array, kernel: Any, attributes: dict[str, Any]) -> Array:
    """Return patches `(rows, channels·k1·k2)`, offset by offset."""
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    down, along = attributes.get("strides", [1, 1])
    padded = np.pad(data, [(0, 0), (0, 0), (top, bottom), (left, right)])
    height, width = (
        (padded.shape[2] - kernel[0]) // down + 1,
        (padded.shape[3] - kernel[1]) // along + 1,
    )
    shifted = [
        padded[:, :, i : i + down * height : down, j : j + along * width : along][
            :, :, :height, :width
        ]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    stacked = np.stack(shifted, axis=2)
    return np.moveaxis(stacked.reshape(len(data), -1, height * width), 2, 1).reshape(
        -1, stacked.shape[1] * stacked.shape[2]
    )


@pytest.mark.models
@pytest.mark.parametrize("rate", [16000, 8000])
def test_vad_branches(rate: int) -> None:
    """Which branch runs is a question of the sampling rate; only its layers are observed."""
    model = open_model(path_of("silero-vad"))
    layers = [layer for layer in find_layers(model) if layer.skip is None]
    random = np.random.default_rng(0)
    size = 576 if rate == 16000 else 288
    data = [
        {
            "input": random.standard_normal((2, size)).astype(np.float32),
            "state": np.zeros((2, 2, 128), np.float32),
            "sr": np.array(rate),
        }
        for _ in range(4)
    ]
    statistics = observe(model, layers, data, holdout=0)
    keys = layer_keys(model, layers)
    taken = "then_branch" if rate == 16000 else "else_branch"
    observed = {layer.name for layer in layers if keys[layer.name] in statistics.layers}
    assert observed == {layer.name for layer in layers if taken in layer.name}
    assert len(observed) == len(statistics.unobserved) == 6
    (first,) = (la for la in layers if la.name in observed and "stft" in la.name)
    moments = statistics.layers[keys[first.name]].fit
    # the signal is reflected at its end, then cut into windows
    kernel, stride = first.shape[-1], first.shape[-1] // 2
    rows = []
    for feed in data:
        for signal in np.pad(feed["input"], [(0, 0), (0, kernel // 4)], "reflect"):
            starts = range(0, len(signal) - kernel + 1, stride)
            rows += [signal[start : start + kernel] for start in starts]
    patches = np.stack(rows).astype(np.float64)
    assert moments.count == len(patches)
    compare(moments.covariance[0], patches.T @ patches / len(patches))
