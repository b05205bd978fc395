"""Dataclasses of arrays as JSON and arrays, and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import inf, isnan, nan
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from onnxlr.fits.flat import digest, flatten, unflatten


@dataclass(frozen=True)
class Leaf:
    values: Any
    name: str = "leaf"


@dataclass(frozen=True)
class Tree:
    left: Any
    right: Any


CLASSES = (Leaf, Tree)


def through(value: Any) -> Any:
    """Return what becomes of a value on the way to text and arrays, and back."""
    text, arrays = flatten(value)
    return unflatten(text, arrays, CLASSES)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.builds(Leaf, inner),
    )
)
def test_values_are_what_they_were(value: Any) -> None:
    assert through(value) == value


@given(
    arrays_of.arrays(
        st.sampled_from(["f8", "f4", "f2", "i8", "i1", "u1", "?"]),
        arrays_of.array_shapes(min_dims=0, min_side=0),
    )
)
def test_arrays_keep_type_shape_and_bits(array: np.ndarray) -> None:
    found = through(Leaf(array)).values
    assert (found.dtype, found.shape, found.tobytes()) == (
        array.dtype,
        array.shape,
        array.tobytes(),
    )


@pytest.mark.parametrize("name", ["bfloat16", "uint4", "int2"])
def test_types_that_numpy_lacks(name: str) -> None:
    kind = getattr(ml_dtypes, name, None)
    if kind is None:
        pytest.skip(f"this ml_dtypes has no {name}")
    array = np.array([[0, 1], [1, 0]]).astype(kind)
    found = through(array)
    assert found.dtype == kind
    assert found.tobytes() == array.tobytes()
    arrays = flatten(array)[1]
    assert all(each.dtype.kind == "u" for each in arrays.values())


def test_numbers_that_json_lacks() -> None:
    assert through((inf, -inf)) == (inf, -inf)
    assert isnan(through(nan))
    assert through(0.1 + 0.2) == 0.1 + 0.2
    assert through(np.float32(0.1)) == float(np.float32(0.1))
    assert through(np.dtype("float16")) == np.float16


def test_what_is_one_object_stays_one() -> None:
    leaf = Leaf(np.arange(3))
    found = through(Tree(leaf, Tree(leaf, leaf.values)))
    assert found.left is found.right.left
    assert found.right.right is found.left.values
    equal = through(Tree(Leaf((1,)), Leaf((1,))))
    assert equal.left is not equal.right


@pytest.mark.parametrize("value", [{"a": 1}, object(), Leaf, {1}, np.array([object()]), b"raw"])
def test_nothing_else_is_kept(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot be kept"):
        flatten(value)


@pytest.mark.parametrize(
    "change",
    [
        {"class": "Popen", "number": 0, "fields": {"args": "true"}},
        {"class": "Leaf", "number": 0, "fields": {"nonsense": 1}},
        {"class": "Leaf", "number": 0},
        {"array": 7, "dtype": "float64"},
        {"array": 0, "dtype": "float32"},
        {"same": 3},
        {"set": [1]},
        [1, 2],
    ],
)
def test_other_classes_and_damage_are_refused(change: Any) -> None:
    arrays = {"0": np.zeros(3)}
    with pytest.raises((ValueError, KeyError, TypeError)):
        unflatten(json.dumps(change), arrays, CLASSES)


def test_a_digest_is_of_every_bit() -> None:
    values = np.arange(6.0).reshape(2, 3)
    different = {
        digest(values),
        digest(values.astype(np.float32)),
        digest(values.reshape(3, 2)),
        digest(values.ravel()),
        digest(np.nextafter(values, 9)),
        digest(Leaf(values)),
        digest(Leaf(values, "other")),
        digest((values,)),
        digest([values]),
        digest(None),
    }
    assert len(different) == 10
    assert digest(np.asfortranarray(values)) == digest(values.copy())
    assert digest(np.zeros((0, 3))) != digest(np.zeros((3, 0)))
