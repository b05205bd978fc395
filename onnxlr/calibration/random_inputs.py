"""Random inputs from a model's signature: proof that a model runs, and little more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from onnxlr.calibration.signature import Feeds, InputSpec, signature
from onnxlr.errors import DataError, UsageError
from onnxlr.model import Model

__all__ = ["random_feeds"]

SIZES = (64, 32, 128, 224, 16, 320, 8, 512, 1)
"""Sizes to try for dimensions that the model leaves open, until it runs."""

_BATCH = 2
_RUNS = 3
_MOST_ENTRIES = 1 << 26
"""Sizes that make more numbers than this for one run are not tried: memory might not do."""
_MOST_AT_LEAST = 1 << 28
"""The same where the model leaves no choice."""
_PASS_ON = {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand"}
"""Operators behind which an id is still an id."""


def random_feeds(model: Model, seed: int) -> Iterator[tuple[str, list[Feeds]]]:
    """Yield attempts at random inputs, each with a description, most usual sizes first.

    Floats are standard normal. Integers that index a table are within it; masks are ones with a
    tail of zeros; other integers are 0 or 1.

    Raises
    ------
    DataError
        If an input is a string or no tensor.
    UsageError
        If the seed is negative.
    """
    if seed < 0:
        raise UsageError(f"seed {seed} is negative, expected a whole number of at least 0")
    specs = signature(model)
    for spec in specs:
        if not spec.elem_type or spec.elem_type == TensorProto.STRING or spec.dims is None:
            raise DataError(
                f"{model.name}: no random values can be made for input {spec}; give --data"
            )
    tables = {spec.name: _table_rows(model, spec.name) for spec in specs}
    tried = False
    for shapes_of in _shapes(specs):
        tried = True
        generator = np.random.default_rng(seed)
        feeds: list[Feeds] = [
            {s.name: _values(s, shapes_of[s.name], tables[s.name], generator) for s in specs}
            for _ in range(_RUNS)
        ]
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds[0].items())
        yield f"{_RUNS} random runs, seed {seed}: {shapes or 'no inputs'}", feeds
    if not tried:
        raise DataError(
            f"{model.name}: its inputs have more entries than random values are made for "
            f"({', '.join(map(str, specs))}); give --data"
        )


def _shapes(specs: Sequence[InputSpec]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield shapes of the inputs to try, none that memory might not do for."""
    open_dims = any(not isinstance(dim, int) for spec in specs for dim in spec.dims or ())
    for size in SIZES if open_dims else (0,):
        for batch in (_BATCH, 1) if open_dims else (0,):
            shapes_of = {spec.name: _shape(spec, batch, size) for spec in specs}
            most = _MOST_ENTRIES if size > 1 else _MOST_AT_LEAST
            if sum(map(prod, shapes_of.values())) <= most:
                yield shapes_of


def _shape(spec: InputSpec, batch: int, size: int) -> tuple[int, ...]:
    return tuple(
        dim if isinstance(dim, int) else (batch if _is_batch(dim, axis) else size)
        for axis, dim in enumerate(spec.dims or ())
    )


def _is_batch(dim: str | None, axis: int) -> bool:
    return "batch" in dim.lower() if dim and "batch" in dim.lower() else axis == 0


def _values(
    spec: InputSpec, shape: tuple[int, ...], rows: int | None, generator: np.random.Generator
) -> npt.NDArray[Any]:
    dtype = spec.dtype
    if dtype.kind not in "iub":  # numpy has no kind of its own for bfloat16 and the like
        return generator.standard_normal(shape).astype(dtype)
    if "mask" in spec.name.lower():
        return _mask(shape, generator).astype(dtype)
    high = rows if rows is not None else 2
    return generator.integers(0, max(high, 1), shape).astype(dtype)


def _mask(shape: tuple[int, ...], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return ones, the last few of each row but the first zeros, as padding is."""
    mask = np.ones(shape, np.int64)
    if len(shape) == 2 and shape[1] > 1:
        for row in range(1, shape[0]):
            mask[row, shape[1] - generator.integers(0, shape[1] // 2 + 1) :] = 0
    return mask


def _table_rows(model: Model, name: str) -> int | None:
    """Return the rows of the smallest constant table that an input indexes, None without one."""
    graph = model.proto.graph
    constants = {
        node.output[0]: list(attribute.t.dims)
        for node in graph.node
        if node.op_type == "Constant" and node.output
        for attribute in node.attribute
        if attribute.HasField("t")
    }
    constants |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    same, rows = {name}, []
    for node in graph.node:  # in topological order
        if node.op_type in _PASS_ON and node.input and node.input[0] in same:
            same.update(node.output)
        if node.op_type == "Gather" and len(node.input) > 1 and node.input[1] in same:
            table = constants.get(node.input[0])
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            if table and -len(table) <= axis < len(table):
                rows.append(table[axis])
    return min(rows) if rows else None
