"""Every model that can be fetched: what is found, what is left alone and whether that is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

import onnxlr
from tools.fetch_models import Unavailable, fetch

pytestmark = pytest.mark.models

ANY = "cosine>=-1"
DEPTHWISE = "depthwise: no factorization is smaller"
TWO_COMPUTED = "neither operand is constant: it multiplies two computed tensors"
QUANTISED = "its weight is already quantised (DequantizeLinear)"
RECURRENT = "a recurrent operator: its weights are not handled"


@dataclass(frozen=True)
class Expected:
    """What is known of a model.

    Rewritable layers by operator, skipped nodes by reason, layers that a ratio of .8 and int8 pay
    for, and the size of the int8 file as a fraction that it must not exceed.
    """

    found: Mapping[str, int]
    skipped: Mapping[str, int]
    by_ratio: int = 0
    by_int8: int = 0
    int8_size: float = 1.0
    slow: bool = False


MODELS = {
    "ppocr-v4-det": Expected({"Conv": 48, "ConvTranspose": 2}, {DEPTHWISE: 14}, 47, 49, 0.31),
    "ppocr-v4-rec": Expected(
        {"Conv": 24, "MatMul": 9}, {DEPTHWISE: 14, TWO_COMPUTED: 4}, 33, 33, 0.29, slow=True
    ),
    "ppocr-cls": Expected({"Conv": 42, "MatMul": 1}, {DEPTHWISE: 11}, 39, 39, 0.52),
    "open-nsfw": Expected({"Conv": 53, "MatMul": 1}, {}, 54, 54, 0.26, slow=True),
    "pp-lcnet-orientation": Expected(
        {"Conv": 19, "MatMul": 1}, {DEPTHWISE: 13}, 20, 20, 0.30, slow=True
    ),
    "magika-v3.3": Expected({"Conv": 1, "MatMul": 2}, {}, 3, 3, 0.27),
    "silero-vad": Expected({"Conv": 12}, {RECURRENT: 4}, 10, 10, 0.65),
    "silero-vad-16k-op15": Expected({"Conv": 6}, {RECURRENT: 2}, 5, 5, 0.60),
    "silero-vad-16k-sequence": Expected({"Conv": 6}, {RECURRENT: 1}, 5, 6, 0.59),
    "silero-vad-half": Expected({"Conv": 6}, {RECURRENT: 2}, 5, 5, 0.60, slow=True),
    "silero-vad-op18-ifless": Expected({"Conv": 12, "Gemm": 4}, {}, 14, 16, 0.44),
    "silero-vad-openvino-16k": Expected({"Conv": 6}, {RECURRENT: 1}, 5, 5, 0.60, slow=True),
    "minilm-l3": Expected({"MatMul": 18, "Gather": 3}, {TWO_COMPUTED: 6}, 18, 21, 0.26, slow=True),
    "gector-distilbert-int8": Expected({}, {QUANTISED: 37, TWO_COMPUTED: 12}),
}
REWRITTEN = [
    pytest.param(name, marks=pytest.mark.slow if expected.slow else ())
    for name, expected in MODELS.items()
    if expected.found
]


def path_of(name: str) -> Path:
    try:
        return fetch(name)
    except Unavailable as reason:
        pytest.skip(f"{name} cannot be had: {reason}")


# -- Inputs ------------------------------------------------------------------------------------


def _speech(samples: int, frames: int = 1) -> np.ndarray:
    """Return voiced sound and noise, each frame at another pitch."""
    random, time = np.random.default_rng(0), np.arange(samples) / 16000
    voices = [np.sin(2 * np.pi * 180 * (1 + frame) * time) for frame in range(frames)]
    return (0.3 * np.stack(voices) + 0.1 * random.standard_normal((frames, samples))).astype(
        np.float32
    )


def _vad(*rates: int, names_rate: bool = True) -> list[dict[str, np.ndarray]]:
    feeds = []
    for rate in rates:
        for state in (0.0, 0.1):
            noise = np.random.default_rng(1).standard_normal((2, 1, 128))
            feed = {
                "input": _speech(576 * rate // 16000),  # 64 samples of context, 512 new ones
                "state": (state * noise).astype(np.float32),
            }
            feeds.append(feed | ({"sr": np.array(rate)} if names_rate else {}))
    return feeds


def _page(height: int = 160, width: int = 320) -> np.ndarray:
    """Return lines of glyph-like strokes, dark on light, normalised as PP-OCR does it."""
    random = np.random.default_rng(0)
    image = np.full((3, height, width), 0.95)
    for top in range(16, height - 24, 40):
        left = 16
        while left < width - 24:
            image[:, top : top + 18, left : left + 3] = 0.05
            image[:, top + 7 : top + 10, left : left + 9] = 0.05
            if random.integers(3):
                image[:, top : top + 4, left : left + 10] = 0.05
            left += 14 if random.random() < 0.8 else 28
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normalised = (image - np.reshape(mean, (3, 1, 1))) / np.reshape(deviation, (3, 1, 1))
    return normalised[None].astype(np.float32)


def data_of(name: str) -> Any:
    """Return proper inputs where random ones do not fit or mean nothing, else None."""
    state = np.zeros((1, 1, 128), np.float32)
    return {
        "silero-vad": _vad(16000, 8000),
        "silero-vad-16k-op15": _vad(16000),
        "silero-vad-half": _vad(16000, names_rate=False),
        "silero-vad-op18-ifless": _vad(16000, 8000),
        "silero-vad-16k-sequence": [{"input": _speech(576, 5), "h": state, "c": state}],
        "ppocr-v4-det": [{"x": _page()}],  # on noise its output is nothing but float noise
    }.get(name)


# -- What the file says ------------------------------------------------------------------------


class Truth:
    """A model's nodes and constants, read from the proto by other code than onnxlr's."""

    def __init__(self, path: Path) -> None:
        self.model = onnx.load(path)
        self.nodes = list(_all_nodes(self.model.graph))
        self.makers = {output: node for node in self.nodes for output in node.output}
        self.constants = {tensor.name: tensor for tensor in self.model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                held = [a.t for a in node.attribute if a.name == "value"]
                self.constants |= dict(zip(node.output, held, strict=False))

    def depends_on_inputs(self, name: str) -> bool:
        """Whether a tensor is computed from an input of the model."""
        seen, pending = set(), [name]
        inputs = {value.name for value in self.model.graph.input} - self.constants.keys()
        while pending:
            current = pending.pop()
            if current in inputs:
                return True
            if current not in seen and current in self.makers:
                seen.add(current)
                pending.extend(self.makers[current].input)
        return False

    def confirms(self, reason: str, node: onnx.NodeProto) -> bool:
        """Whether a reason is what the proto says."""
        if reason == RECURRENT:
            return node.op_type == "LSTM"
        if reason == TWO_COMPUTED:
            return all(self.depends_on_inputs(name) for name in node.input[:2])
        if reason == DEPTHWISE:
            groups = next(a.i for a in node.attribute if a.name == "group")
            outputs, inputs, *_ = self.constants[node.input[1]].dims
            return groups > 1 and inputs == 1 and outputs == groups
        maker = self.makers[node.input[1]]
        while maker.op_type in ("Transpose", "Reshape"):
            maker = self.makers[maker.input[0]]
        codes = self.constants[maker.input[0]]
        integers = (TensorProto.INT8, TensorProto.UINT8)
        return maker.op_type == "DequantizeLinear" and codes.data_type in integers


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _all_nodes(attribute.g)


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_is_found_or_left_alone_for_the_right_reason(name: str) -> None:
    path, expected = path_of(name), MODELS[name]
    layers = onnxlr.inspect(path).layers
    found = [layer for layer in layers if layer.skip is None]
    assert Counter(layer.operator for layer in found) == expected.found
    skipped = [layer for layer in layers if layer.skip is not None]
    assert Counter(layer.skip for layer in skipped) == expected.skipped

    truth = Truth(path)
    for layer in skipped:
        name_of_node = layer.nodes[0].partition(" in ")[0]
        named = [node for node in truth.nodes if name_of_node in (node.name, *node.output)]
        assert named
        assert all(truth.confirms(str(layer.skip), node) for node in named)
    linear = Counter(node.op_type for node in truth.nodes)
    told = Counter(layer.operator for layer in skipped)
    for layer in found:
        told[layer.operator] += layer.sites
    for operator in ("MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM"):
        assert told[operator] == linear[operator], operator
    weights = {layer.weight for layer in found}
    assert weights <= truth.constants.keys()
    if expected.found:
        assert len(weights) == len(found) or name.startswith("silero")  # names of two branches


def test_layers_of_silero_are_deep_in_branches() -> None:
    """Six kernels for each rate, each in the branch of its rate."""
    layers = [e for e in onnxlr.inspect(path_of("silero-vad")).layers if e.skip is None]
    branches = Counter(layer.nodes[0].partition(" in ")[2] for layer in layers)
    (one, other) = branches
    assert sorted(x.partition(" ")[0] for x in (one, other)) == ["else_branch", "then_branch"]
    assert branches == {one: 6, other: 6}


# -- Rewriting ---------------------------------------------------------------------------------


@cache
def _outputs(path: Path, name: str) -> list[np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [out for feed in data_of(name) for out in session.run(None, feed)]


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_fixed_ratio_is_proved(name: str, tmp_path: Path) -> None:
    path, expected, output = path_of(name), MODELS[name], tmp_path / "out.onnx"
    before = path.read_bytes()
    data = data_of(name)
    result = onnxlr.rewrite(path, output, ratio=0.8, tolerance=ANY, data=data, isolate=False)
    changed = [record for record in result.layers if not record.choice.keeps]
    assert len(changed) == expected.by_ratio
    assert output.stat().st_size < 0.95 * path.stat().st_size
    assert path.read_bytes() == before
    onnx.checker.check_model(onnx.load(output), full_check=True)
    report = onnxlr.verify(path, output, tolerance=ANY, data=data, isolate=False)
    graph = onnx.load(path, load_external_data=False).graph
    for proof in (result.report, report):
        assert proof is not None
        assert proof.passed
        emission = [check for check in proof.checks if check.proof == "emission"]
        compared = [c for check in emission for c in check.comparisons]
        assert len(compared) == 2 * len(graph.output)
        assert all(c.relative_l2 <= 1e-4 for c in compared if c.is_float)
        assert all(c.agreement == 1 for c in compared if not c.is_float)
    approximation = [c for c in report.checks[-1].comparisons if c.is_float]
    assert any(c.relative_l2 > 1e-3 for c in approximation)  # it is not the model itself


@pytest.mark.parametrize("name", REWRITTEN)
def test_int8_weights_keep_the_outputs(name: str, tmp_path: Path) -> None:
    path, expected, output = path_of(name), MODELS[name], tmp_path / "out.onnx"
    result = onnxlr.rewrite(
        path,
        output,
        method="quantize",
        format="int8",
        tolerance="cosine>=0.98",
        data=data_of(name),
        isolate=False,
    )
    assert sum(not record.choice.keeps for record in result.layers) == expected.by_int8
    size = output.stat().st_size / path.stat().st_size
    print(f"{name}: int8 takes {size:.3f} of the file")
    assert expected.int8_size - 0.03 < size < expected.int8_size
    assert result.report is not None
    emission = [check for check in result.report.checks if check.proof == "emission"]
    assert all(c.relative_l2 <= 1e-4 for check in emission for c in check.comparisons)


def test_text_is_still_detected(tmp_path: Path) -> None:
    """The map of a page has text in it, before and after, in the same places."""
    path, output = path_of("ppocr-v4-det"), tmp_path / "out.onnx"
    onnxlr.rewrite(
        path,
        output,
        method="quantize",
        format="int8",
        tolerance=ANY,
        data=data_of("ppocr-v4-det"),
        isolate=False,
    )
    before, after = (_outputs(p, "ppocr-v4-det")[0] > 0.3 for p in (path, output))
    assert 0.05 < before.mean() < 0.5
    assert (before & after).sum() > 0.95 * (before | after).sum()


def test_a_quantised_model_comes_out_as_it_is(tmp_path: Path) -> None:
    path, output = path_of("gector-distilbert-int8"), tmp_path / "out.onnx"
    for options in ({"ratio": 0.8}, {"method": "quantize", "format": "int8"}):
        result = onnxlr.rewrite(path, output, **options)
        assert output.read_bytes() == path.read_bytes()
        assert result.report is None
        assert all(record.choice.keeps for record in result.layers)
        reasons = Counter(record.choice.reason for record in result.layers)
        assert reasons == {QUANTISED: 37, TWO_COMPUTED: 12}
    with pytest.raises(onnxlr.NothingRewrittenError):
        onnxlr.rewrite(path, output, ratio=0.8, require_change=True)


def test_an_embedding_table_as_int8(tmp_path: Path) -> None:
    """Tables alone save 30 MB, and sentences stay where they were.

    The table of the two token types is left out: its rows of 384 have one scale each, for 3 kB.
    """
    path, output = path_of("minilm-l3"), tmp_path / "out.onnx"
    found = [e for e in onnxlr.inspect(path).layers if e.operator == "Gather"]
    assert [e.shape for e in found] == [(30522, 384), (2, 384), (512, 384)]
    tables = [e.name for e in found if e.shape != (2, 384)]
    result = onnxlr.rewrite(
        path,
        output,
        method="quantize",
        format="int8",
        layers=tables,
        tolerance="461:cosine>=0.999",
        isolate=False,
    )
    changed = [record for record in result.layers if not record.choice.keeps]
    assert {record.operator for record in changed} == {"Gather"}
    assert path.stat().st_size - output.stat().st_size > 30e6
    ids = np.random.default_rng(0).integers(0, 30522, (4, 24))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    one, two = (
        ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(["461"], feed)[0]
        for p in (path, output)
    )
    assert one.shape == (4, 384)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    assert ((one * two).sum(axis=1) / norms).min() > 0.999
