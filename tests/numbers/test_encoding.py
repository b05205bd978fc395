"""Rounding to a format, against the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxlr.errors import UsageError
from onnxlr.numbers import Format, encode

matrices = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=3, max_side=8),
    elements=st.floats(-1e4, 1e4, allow_subnormal=False),
)


@settings(deadline=None)
@given(matrices, st.sampled_from(["float16", "float32", "float64"]))
def test_int8_is_within_half_a_step_of_every_entry(matrix, compute):
    encoded = encode(matrix, Format("int8"), compute)
    assert encoded.codes.dtype == np.int8
    assert encoded.scales.dtype == compute
    assert encoded.codes.min() >= -127
    step = np.abs(matrix).max(axis=-2, keepdims=True) / 127
    # a float16 scale is itself rounded, by up to 2**-11 of the largest entry
    slack = 127 * step * (2**-10 if compute == "float16" else 1e-6) + 127 * np.finfo(compute).tiny
    assert (np.abs(encoded.decode() - matrix) <= step / 2 + slack).all()
    assert encoded.nbytes == matrix.size + encoded.scales.size * np.dtype(compute).itemsize


@given(matrices, st.sampled_from(["float16", "float32", "float64"]))
def test_float_formats_are_a_cast(matrix, kind):
    encoded = encode(matrix, Format(kind))
    assert np.array_equal(encoded.decode(), matrix.astype(kind).astype(np.float64))
    assert encoded.nbytes == matrix.size * np.dtype(kind).itemsize


def test_float16_saturates_instead_of_overflowing():
    encoded = encode(np.array([[1e6, -1e6]]), Format("float16"))
    assert encoded.codes.tolist() == [[65504.0, -65504.0]]


def test_zero_columns_stay_zero():
    encoded = encode(np.array([[0.0, 1.0], [0.0, -2.0]]), Format("int8"), np.float16)
    assert encoded.decode()[:, 0].tolist() == [0.0, 0.0]
    assert (encoded.scales > 0).all()


def test_unknown_formats_are_refused():
    with pytest.raises(UsageError, match="int9"):
        Format.parse("int9")
