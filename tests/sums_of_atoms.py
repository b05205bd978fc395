"""Weights that are sums of atoms, with the numbers that they stand for by plain loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from hypothesis import strategies as st

from onnxlr.numbers import Encoded, Format
from onnxlr.numbers.atoms import Atoms, Coefficients
from tests.onelayer import Array

KINDS = ("float32", "float16", "int8", "int4")
CHOICES = ("one", "few", "all")
"""How many atoms a column takes."""


@dataclass(frozen=True)
class Sums:
    """Atoms, and the weight they are."""

    atoms: Atoms
    dense: Array


def dictionary_of(
    generator: np.random.Generator, size: int, width: int, kind: str, dtype: str = "float32"
) -> tuple[Encoded, Array]:
    """Return atoms in a format, and their numbers."""
    kept = Format(kind)
    if kept.is_float:
        codes = generator.standard_normal((size, width)).astype(kind)
        return Encoded(kept, codes), codes.astype(np.float64)
    scales = generator.uniform(0.5, 2, (1, width)).astype(dtype)
    low, high = (-127, 128) if kind == "int8" else (0, 16)
    codes = generator.integers(low, high, (size, width)).astype(kept.dtype)
    if kind == "int8":
        return Encoded(kept, codes, scales), codes.astype(np.float64) * scales
    zeros = generator.integers(0, 16, (1, width)).astype(np.uint8)
    numbers = (codes.astype(np.float64) - zeros) * scales
    return Encoded(kept, codes, scales, zeros), numbers


def coefficients_of(
    generator: np.random.Generator,
    shape: tuple[int, int],
    size: int,
    entries: int | None,
    bits: int,
    repeats: bool = False,
) -> Coefficients:
    """Return coefficients of `(tiles, outputs)`; without a number of entries, of all atoms."""
    if entries is None:
        values = _values(generator, (*shape, size), bits)
        values[generator.random(values.shape) < 0.5] = 0
        return Coefficients(size, None, values, bits)
    if repeats:
        indices = generator.integers(0, size, (*shape, entries))
    else:
        indices = np.argsort(generator.random((*shape, size)), axis=2)[..., :entries]
    indices = indices.astype(np.int64)
    if not bits:
        return Coefficients(size, indices, None)
    return Coefficients(size, indices, _values(generator, indices.shape, bits), bits)


def _values(generator: np.random.Generator, shape: Sequence[int], bits: int) -> Array:
    """Return whole numbers of up to 8 bits, or floats of 16 or 32."""
    if bits > 8:
        return generator.standard_normal(shape).astype(f"float{bits}")
    limit = (1 << bits - 1) - 1
    return generator.integers(-limit, limit + 1, shape).astype(np.int8)


def summed(coefficients: Coefficients, atoms: Array) -> Array:
    """Return `(outputs, tiles · width)`, one coefficient after the other."""
    tiles, outputs, entries = coefficients.shape
    width = atoms.shape[1]
    rows = np.zeros((outputs, tiles, width))
    for tile in range(tiles):
        for output in range(outputs):
            for entry in range(entries):
                at = (tile, output, entry)
                atom = entry if coefficients.indices is None else coefficients.indices[at]
                value = 1 if coefficients.values is None else float(coefficients.values[at])
                rows[output, tile] += value * atoms[atom]
    return rows.reshape(outputs, tiles * width)


def sums_of(
    dims: Sequence[int],
    seed: int = 0,
    *,
    kernel: bool = False,
    width: int = 3,
    size: int = 8,
    entries: int | None = 1,
    bits: int = 0,
    kind: str = "float32",
    scaled: bool = True,
    repeats: bool = False,
    dtype: str = "float32",
) -> Sums:
    """Return a random weight of a shape."""
    generator = np.random.default_rng([seed, size, width])
    outputs = dims[0 if kernel else -1]
    inputs = prod(dims) // outputs
    shape = (-(-inputs // width), outputs)
    dictionary, numbers = dictionary_of(generator, size, width, kind, dtype)
    coefficients = coefficients_of(generator, shape, size, entries, bits, repeats)
    scales = generator.uniform(0.5, 2, outputs).astype(dtype) if scaled else None
    rows = summed(coefficients, numbers)[:, :inputs]
    if scales is not None:
        rows *= scales[:, None]
    dense = rows.reshape(dims) if kernel else np.ascontiguousarray(rows.T)
    return Sums(Atoms(tuple(dims), dictionary, coefficients, scales, kernel), dense)


@st.composite
def forms(draw: st.DrawFn, inputs: int) -> dict[str, Any]:
    """Return what `sums_of` takes beside a shape, of a weight of so many inputs."""
    width = draw(st.integers(1, min(inputs, 9)) | st.just(inputs))
    size = draw(st.integers(1, 20) | st.sampled_from([64, 91, 300]))
    choice = draw(st.sampled_from(CHOICES))
    entries = {"one": 1, "all": None}.get(choice) if choice != "few" else min(size, 3)
    bits = draw(st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16, 32, *([] if choice == "all" else [0])]))
    return {
        "width": width,
        "size": size,
        "entries": entries,
        "bits": bits,
        "kind": draw(st.sampled_from(KINDS)),
        "scaled": draw(st.booleans()),
        "repeats": draw(st.booleans()) and entries is not None,
        "seed": draw(st.integers(0, 2**16)),
    }
