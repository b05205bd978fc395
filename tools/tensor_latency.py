"""Times of single layers written as chains, in ONNX Runtime beside the original."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import onnxlr
from onnxlr.errors import OnnxlrError
from onnxlr.methods import Setting, find_method
from tools.timing import compare_latency

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from onnxlr.plan import Choice
    from onnxlr.runtime.latency import Latency
    from onnxlr.stages import Chain
    from tools.tensor_figures import Approximation

    Array = npt.NDArray[Any]

__all__ = ["ORIGINAL", "ChainTime", "Product", "time_chains"]

ORIGINAL = "original"
"""Name of the row of a second session of the original: what two sessions of one file differ by."""

_ANY = "cosine>=0"
"""The tolerance of rewritten layers: how far they differ is a figure of its own."""

_RUNS = 8
"""Runs of a model in one round of timing: one takes less than a millisecond."""


@dataclass(frozen=True)
class ChainTime:
    """A chain in place of a layer that is a model by itself, and its time beside the original's."""

    product: str
    """The layer."""
    data: tuple[int, ...]
    """Shape of what it ran on."""
    name: str
    """What became of it."""
    budget: float
    """Stored numbers for each entry of the weight, as asked."""
    ratio: float | None = None
    """The same, as they are."""
    operations: float | None = None
    """Multiplications of the chain for each of the original's. They are counts, and no time."""
    weight_error: float | None = None
    """Relative, of the weight; the fit knows nothing of the data."""
    milliseconds: float | None = None
    latency: float | None = None
    """Median over rounds of the time by the original's in the same round."""
    low: float | None = None
    high: float | None = None
    """Quartiles."""
    nodes: str | None = None
    """Operators of the file in their order."""
    problem: str | None = None
    """Why there is no time."""

    def timed(self, latency: Latency) -> ChainTime:
        """Return the row with its time."""
        return replace(
            self,
            milliseconds=latency.milliseconds / _RUNS,
            latency=latency.ratio,
            low=latency.low,
            high=latency.high,
        )


@dataclass(frozen=True)
class Product:
    """A layer to time by itself.

    Attributes
    ----------
    name
        For tables.
    weight
        `(inputs, outputs)` of a MatMul, or `(outputs, inputs, k, k)` of a Conv of stride 1 that
        keeps the size of images.
    data
        Shapes of data to run it on, which differ in their first size.
    """

    name: str
    weight: Array
    data: tuple[tuple[int, ...], ...]

    def model(self) -> onnx.ModelProto:
        """Return the layer as a model, for any batch or number of rows."""
        rest = self.data[0][1:]
        if self.weight.ndim == 2:
            node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
            made = (self.weight.shape[1],)
        else:
            pads = [size // 2 for size in self.weight.shape[2:]] * 2
            node = helper.make_node("Conv", ["x", "w"], ["y"], name="layer", pads=pads)
            made = (self.weight.shape[0], *rest[1:])
        x, y = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])
            for name, shape in (("x", rest), ("y", made))
        )
        weight = numpy_helper.from_array(self.weight, "w")
        graph = helper.make_graph([node], "layer", [x], [y], [weight])
        opset = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8)


def time_chains(
    product: Product,
    approximations: Sequence[Approximation],
    ratio: float,
    folder: Path,
    rounds: int,
) -> Iterator[ChainTime]:
    """Yield the times of chains, all of which ran in turn with the original.

    Parameters
    ----------
    product
        The layer.
    approximations
        What to make of it, by its weight alone.
    ratio
        Of stored numbers to entries of the weight, at most.
    folder
        Where files may be written.
    rounds
        Of timing.
    """
    original = folder / "original.onnx"
    onnx.save(product.model(), original)
    first = ChainTime(product.name, (), ORIGINAL, ratio, 1.0, 1.0, 0.0, nodes=_operators(original))
    made = [(first, original)]
    for number, wanted in enumerate(approximations):
        row = ChainTime(product.name, (), wanted.name, ratio)
        path = folder / f"{number:02}.onnx"
        made.append((_made(product, original, wanted, row, path), path))
    yield from (row for row, _ in made if row.problem is not None)
    running = [(row, path) for row, path in made if row.problem is None]
    for shape in product.data:
        data = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        paths = [original, *(path for _, path in running)]
        taken = compare_latency(paths, [{"x": data}] * _RUNS, rounds)[1:]
        for (row, _), latency in zip(running, taken, strict=True):
            yield replace(row, data=shape).timed(latency)


def _made(
    product: Product, original: Path, wanted: Approximation, row: ChainTime, path: Path
) -> ChainTime:
    """Write the layer as a chain, and count what it stores and multiplies."""
    try:
        done = onnxlr.rewrite(
            original,
            path,
            method=wanted.method,
            tolerance=_ANY,
            keep=True,
            ratio=row.budget,
            **wanted.options,
        )
    except OnnxlrError as error:
        return replace(row, problem=str(error))
    (record,) = done.layers
    if record.choice.method == "keep":
        return replace(row, problem=record.choice.reason or "it was kept")
    cost, size = _chain_of(product.weight, record.choice).cost, product.weight.size
    return replace(
        row,
        ratio=cost.parameters / size,
        operations=cost.multiplications / size,
        weight_error=record.error,
        nodes=_operators(path),
    )


def _chain_of(weight: Array, choice: Choice) -> Chain:
    """Return the chain of a plan's entry again."""
    groups = None if weight.ndim == 2 else 1
    setting = Setting.for_array(weight, choice.format, groups=groups)
    return find_method(choice.method).factorize(weight, choice.options, setting)


def _operators(path: Path) -> str:
    return " ".join(node.op_type for node in onnx.load(path).graph.node)
