"""Tests of `tools/minilm.py`: the graph against numpy, the real model against its publisher."""

from __future__ import annotations

import json
from math import erf

import numpy as np
import onnxruntime as ort
import pytest
from onnx import checker

from tools.fetch_models import Unavailable
from tools.minilm import Architecture, build_encoder, minilm_model, read_safetensors, tokenize

WIDTH, WIDE, HEADS, LAYERS = 12, 20, 3, 2
EPSILON = 1e-5


def _weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = {
        "embeddings.word_embeddings.weight": (17, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "embeddings.position_embeddings.weight": (9, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
    }
    linears = {
        "attention.self.query": (WIDTH, WIDTH),
        "attention.self.key": (WIDTH, WIDTH),
        "attention.self.value": (WIDTH, WIDTH),
        "attention.output.dense": (WIDTH, WIDTH),
        "intermediate.dense": (WIDE, WIDTH),
        "output.dense": (WIDTH, WIDE),
        "attention.output.LayerNorm": (WIDTH,),
        "output.LayerNorm": (WIDTH,),
    }
    for layer in range(LAYERS):
        for name, shape in linears.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{name}.bias"] = shape[:1]
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def _norm(x, weights, name):
    x = x - x.mean()
    x = x / np.sqrt((x * x).mean() + EPSILON)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _encode_one(weights, ids, types):
    """Encode one unpadded sentence in float64: no batch, no mask, one head at a time."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    x = np.array(
        [
            _norm(
                w["embeddings.word_embeddings.weight"][i]
                + w["embeddings.position_embeddings.weight"][place]
                + w["embeddings.token_type_embeddings.weight"][t],
                w,
                "embeddings.LayerNorm",
            )
            for place, (i, t) in enumerate(zip(ids, types, strict=True))
        ]
    )
    size = WIDTH // HEADS
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"

        def linear(data, name, at=at):
            return data @ w[f"{at}.{name}.weight"].T + w[f"{at}.{name}.bias"]

        q, k, v = (linear(x, f"attention.self.{name}") for name in ("query", "key", "value"))
        context = np.empty_like(x)
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            shares = np.exp(q[:, part] @ k[:, part].T / np.sqrt(size))
            context[:, part] = shares / shares.sum(axis=1, keepdims=True) @ v[:, part]
        found = linear(context, "attention.output.dense") + x
        found = np.array([_norm(row, w, f"{at}.attention.output.LayerNorm") for row in found])
        wide = linear(found, "intermediate.dense")
        wide = wide * 0.5 * (1 + np.vectorize(erf)(wide / np.sqrt(2)))
        x = linear(wide, "output.dense") + found
        x = np.array([_norm(row, w, f"{at}.output.LayerNorm") for row in x])
    mean = x.mean(axis=0)
    return mean / np.linalg.norm(mean), x


@pytest.mark.parametrize("opset", [17, 21])
def test_encoder_computes_each_sentence_as_if_it_were_alone(opset):
    rng = np.random.default_rng(5)
    weights = _weights(rng)
    model = build_encoder(weights, Architecture(LAYERS, HEADS, EPSILON), opset)
    assert model.opset_import[0].version == opset
    checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    lengths = [9, 4, 1]
    ids = rng.integers(0, 17, (3, 9))
    types = rng.integers(0, 2, (3, 9))
    mask = (np.arange(9) < np.array(lengths)[:, None]).astype(np.int64)
    embedding, hidden = session.run(
        ["sentence_embedding", "last_hidden_state"],
        {"input_ids": ids, "attention_mask": mask, "token_type_ids": types},
    )
    for row, length in enumerate(lengths):
        expected, states = _encode_one(weights, ids[row, :length], types[row, :length])
        np.testing.assert_allclose(embedding[row], expected, atol=2e-6)
        np.testing.assert_allclose(hidden[row, :length], states, atol=2e-5)


def test_matrices_are_initializers_and_nodes_bear_their_names():
    weights = _weights(np.random.default_rng(0))
    graph = build_encoder(weights, Architecture(LAYERS, HEADS, EPSILON)).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    constant = [n for n in graph.node if n.op_type == "MatMul" and n.input[1] in shapes]
    assert len(constant) == 6 * LAYERS
    assert all(f"{node.name}.weight" == node.input[1] for node in constant)
    assert shapes["encoder.layer.1.intermediate.dense.weight"] == (WIDTH, WIDE)
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)


def test_safetensors_are_read_by_their_offsets(tmp_path):
    a = np.arange(6, dtype="<f4").reshape(2, 3)
    b = np.array([-1, 2**40], "<i8")
    header = {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "I64", "shape": [2], "data_offsets": [24, 40]},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    }
    text = json.dumps(header).encode()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + a.tobytes() + b.tobytes())
    found = read_safetensors(path)
    assert set(found) == {"a", "b"}
    np.testing.assert_array_equal(found["a"], a)
    np.testing.assert_array_equal(found["b"], b)


SENTENCES = ["This is an example sentence", "Each sentence is converted"]
IDS = [[101, 2023, 2003, 2019, 2742, 6251, 102], [101, 2169, 6251, 2003, 4991, 102, 0]]
EXPECTED = [
    [0.067656897, 0.063495941, 0.048713163, 0.079305001, 0.037448034, 0.002652826],
    [0.086438566, 0.102762672, 0.005394563, 0.002044405, -0.009963383, 0.025385462],
]
"""Begins of the embeddings, by transformers 5.23 and torch 2.13 with the package's weights."""


@pytest.mark.models
def test_embeddings_are_those_of_the_published_implementation():
    pytest.importorskip("tokenizers", reason="sentences are tokenized with the package tokenizers")
    try:
        model = minilm_model()
    except Unavailable as reason:
        pytest.skip(f"the weights cannot be had: {reason}")
    feeds = tokenize(SENTENCES)
    assert feeds["input_ids"].tolist() == IDS
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    embedding = session.run(["sentence_embedding"], feeds)[0]
    np.testing.assert_allclose(embedding[:, : len(EXPECTED[0])], EXPECTED, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-6)
