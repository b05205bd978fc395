"""Every real model in torch: outputs beside ONNX Runtime's, and gradients that are finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

import torch

from onnxlr.training import TrainableModel
from tests.onelayer import distance
from tools.fetch_models import Unavailable, fetch
from tools.minilm import minilm_model

pytestmark = pytest.mark.models

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def tokens(batch: int, length: int) -> dict[str, Array]:
    mask = np.ones((batch, length), np.int64)
    mask[-1, length // 2 :] = 0
    ids = RANDOM.integers(1000, 20000, (batch, length))
    return {"input_ids": ids, "attention_mask": mask}


def speech(batch: int, *shape: int, **more: Any) -> dict[str, Array]:
    return {"input": 0.3 * normal(batch, *shape), **more}


def states(batch: int) -> dict[str, Array]:
    return {"state": 0.1 * normal(2, batch, 128)}


RATE = np.array(16000)
LOW_RATE = np.array(8000)
SMALL = {name: 0.1 * normal(1, 1, 128) for name in "hc"}

FEEDS: dict[str, list[dict[str, Array]]] = {
    "magika-v3.3": [{"bytes": RANDOM.integers(0, 257, (n, 2048)).astype(np.int32)} for n in (1, 3)],
    "open-nsfw": [{"input:0": 40 * normal(n, 224, 224, 3)} for n in (1, 2)],
    "pp-lcnet-orientation": [{"x": normal(n, 3, 224, 224)} for n in (1, 2)],
    "ppocr-cls": [{"x": normal(n, 3, 48, 192)} for n in (1, 2)],
    "ppocr-v4-det": [{"x": normal(1, 3, 96, 128)}, {"x": normal(2, 3, 160, 64)}],
    "ppocr-v4-rec": [{"x": normal(1, 3, 48, 160)}, {"x": normal(2, 3, 48, 247)}],
    "minilm-l6": [
        {**feed, "token_type_ids": 0 * feed["input_ids"]} for feed in (tokens(1, 12), tokens(3, 29))
    ],
    "minilm-l3": [tokens(1, 12), tokens(3, 29)],
    "silero-vad": [
        {**speech(1, 576), **states(1), "sr": RATE},
        {**speech(2, 288), **states(2), "sr": LOW_RATE},
    ],
    "silero-vad-16k-op15": [{**speech(n, 576), **states(n), "sr": RATE} for n in (1, 2)],
    "silero-vad-half": [{**speech(n, 576), **states(n)} for n in (1, 2)],
    "silero-vad-op18-ifless": [
        {**speech(1, 576), **states(1), "sr": RATE},
        {**speech(1, 288), **states(1), "sr": LOW_RATE},
    ],
    "silero-vad-16k-sequence": [speech(n, 576, **SMALL) for n in (3, 5)],
    "silero-vad-openvino-16k": [{**speech(1, 576), **states(1)}],
}

BEFORE = {"ppocr-v4-det": "Sigmoid"}
"""Operators at the end whose input is compared: ONNX Runtime's sigmoid is coarse near 0."""

EXACT = 1e-4
"""Largest relative distance of an output."""

ROUNDED = 0.1
"""The same where data is rounded to int8: a code that falls the other way moves it by .04."""


def path_of(name: str) -> Path:
    try:
        return minilm_model() if name == "minilm-l6" else fetch(name)
    except Unavailable as reason:
        pytest.skip(f"{name} cannot be had: {reason}")


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def compare(model: onnx.ModelProto, feeds: list[dict[str, Array]], most: float) -> None:
    trainable = TrainableModel(model)
    for feed in feeds:
        found, expected = trainable(feed), run(model, feed)
        for name, value in expected.items():
            assert found[name].shape == value.shape
            assert distance(found[name].detach().numpy(), value) < most, name
        loss = sum(value.square().sum() for value in found.values() if value.requires_grad)
        trainable.zero_grad()
        loss.backward()
        slopes = [p.grad for p in trainable.parameters() if p.dim() > 0 and p.grad is not None]
        assert sum(bool(slope.abs().max() > 0) for slope in slopes) > len(slopes) // 2
        assert all(bool(torch.isfinite(slope).all()) for slope in slopes)


@pytest.mark.parametrize("name", sorted(FEEDS))
def test_outputs_agree_at_several_shapes(name: str) -> None:
    model = onnx.load(path_of(name))
    if name in BEFORE:
        last = next(n for n in model.graph.node if model.graph.output[0].name in n.output)
        assert last.op_type == BEFORE[name]
        model.graph.output[0].name = last.input[0]
        model.graph.node.remove(last)
    compare(model, FEEDS[name], EXACT)


def test_a_model_of_codes() -> None:
    compare(onnx.load(path_of("gector-distilbert-int8")), [tokens(1, 9), tokens(2, 21)], ROUNDED)
