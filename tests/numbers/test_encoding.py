"""Rounding to a format, against the definition."""

from __future__ import annotations

import ml_dtypes
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
computes = st.sampled_from(["float16", "float32", "float64"])
KINDS = ("int8", "int4", "int2")
LEAST = {"int8": -127, "int4": 0, "int2": 0}
MOST = {"int8": 127, "int4": 15, "int2": 3}
BITS = {"int8": 8, "int4": 4, "int2": 2}


@settings(deadline=None)
@given(matrices, computes)
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


@given(matrices, st.sampled_from(["float16", "float32", "float64", "bfloat16"]))
def test_float_formats_are_a_cast_without_subnormal_numbers(matrix, kind):
    encoded = encode(matrix, Format(kind))
    dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    expected = matrix.astype(dtype).astype(np.float64)
    if kind != "float16":
        expected[np.abs(matrix) < float(ml_dtypes.finfo(dtype).tiny)] = 0
    assert np.array_equal(encoded.decode(), expected)
    assert encoded.codes.dtype == dtype
    assert encoded.nbytes == matrix.size * dtype.itemsize


def test_subnormal_numbers_are_zeros_but_in_float16():
    for kind, number, expected in (
        ("float32", 1e-40, 0.0),
        ("bfloat16", 1e-40, 0.0),
        ("float16", 2.0**-20, 2.0**-20),
    ):
        assert encode(np.array([[number, -1.0]]), Format(kind)).decode().tolist() == [
            [expected, -1.0]
        ]


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


# -- groups ----------------------------------------------------------------------------------------


def _entries(array, groups, size, kernel):
    """Return scales or zero points repeated for every entry of `(*batch, inputs, outputs)`."""
    rows = array.T if kernel else array
    inputs = np.arange(size) // (groups or size)
    return np.asarray(rows[..., inputs, :], np.float64)


@st.composite
def _numbers(draw):
    """Return numbers, whether they are a kernel, and a format."""
    group = draw(st.sampled_from([0, 32, 64, 128]))
    inputs = draw(st.sampled_from([1, 2, 31, 32, 33, 63, 64, 65, 128, 129, 200]))
    outputs, seed = draw(st.integers(1, 5)), draw(st.integers(0, 2**16))
    generator = np.random.default_rng([seed, inputs, outputs])
    layout = draw(st.sampled_from(["matrix", "stack", "kernel", "table"]))
    shape = {
        "matrix": (inputs, outputs),
        "stack": (2, inputs, outputs),
        "kernel": (outputs, inputs, 3, 2),
        "table": (outputs, inputs),
    }[layout]
    sizes = np.exp(2 * generator.standard_normal(shape))
    values = generator.standard_normal(shape) * sizes + draw(st.sampled_from([0, 0, 3, -3]))
    values[generator.random(shape) < draw(st.sampled_from([0, 0.5]))] = 0
    kind = draw(st.sampled_from(KINDS))
    return values, layout in ("kernel", "table"), Format.parse(kind, group)


@settings(deadline=None, max_examples=150)
@given(_numbers(), computes)
def test_every_entry_has_the_nearest_code_of_its_group(given_numbers, compute):
    values, kernel, chosen = given_numbers
    encoded = encode(values, chosen, compute, kernel=kernel)
    matrix, codes = (
        a.reshape(len(a), -1).T if kernel else a for a in (values, encoded.codes.astype(int))
    )
    inputs, outputs = matrix.shape[-2:]
    count = -(-inputs // (chosen.group or inputs))
    grid = (outputs, count) if kernel else (*matrix.shape[:-2], count, outputs)
    assert encoded.scales.shape == grid
    assert encoded.scales.dtype == compute
    assert (encoded.scales >= np.finfo(compute).tiny).all()
    scales = _entries(encoded.scales, chosen.group, inputs, kernel)
    zeros = np.zeros_like(scales)
    if chosen.kind == "int8":
        assert encoded.zero_points is None
        assert encoded.codes.dtype == np.int8
    else:
        assert encoded.zero_points.shape == grid
        assert encoded.zero_points.dtype == encoded.codes.dtype == np.uint8
        assert encoded.zero_points.max() <= MOST[chosen.kind]
        zeros = _entries(encoded.zero_points, chosen.group, inputs, kernel)
    assert codes.min() >= LEAST[chosen.kind]
    assert codes.max() <= MOST[chosen.kind]
    found = (codes - zeros) * scales
    decoded = encoded.decode()
    assert np.allclose(
        decoded.reshape(len(decoded), -1).T if kernel else decoded, found, rtol=1e-12, atol=0
    )
    # inside of the range half a scale; outside of it, the code at its end
    off = matrix - found
    above, below = codes == MOST[chosen.kind], codes == LEAST[chosen.kind]
    limit = scales * (0.5 + 1e-9)
    assert (np.abs(off) <= limit)[~above & ~below].all()
    assert (off >= -limit)[above].all()
    assert (off <= limit)[below].all()
    assert (decoded[values == 0] == 0).all()


@settings(deadline=None, max_examples=100)
@given(_numbers(), computes)
def test_bytes_are_those_of_packed_codes_scales_and_zero_points(given_numbers, compute):
    values, kernel, chosen = given_numbers
    encoded = encode(values, chosen, compute, kernel=kernel)
    bits = BITS[chosen.kind]

    def packed(array):
        digits = np.unpackbits(array.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - bits :]
        return len(np.packbits(digits))

    expected = packed(encoded.codes) + encoded.scales.nbytes
    expected += 0 if encoded.zero_points is None else packed(encoded.zero_points)
    assert encoded.nbytes == expected
    *batch, inputs, outputs = values.shape
    if kernel:
        batch, inputs, outputs = [], values[0].size, len(values)
    count = int(np.prod(batch, dtype=int))
    assert chosen.bytes(inputs, count * outputs, np.dtype(compute).itemsize) == expected


def _by_least_and_most(matrix, chosen, compute):
    """Return a matrix rounded between the least and most of each group, and zero."""
    inputs, steps = len(matrix), MOST[chosen.kind]
    found = np.empty_like(matrix)
    for start in range(0, inputs, chosen.group or inputs):
        part = matrix[start : start + (chosen.group or inputs)]
        low, high = np.minimum(part.min(axis=0), 0), np.maximum(part.max(axis=0), 0)
        scale = np.maximum((high - low) / steps, np.finfo(compute).tiny)
        scale = scale.astype(compute).astype(np.float64)
        zero = np.clip(np.rint(-low / scale), 0, steps)
        codes = np.clip(np.rint(part / scale) + zero, 0, steps)
        found[start : start + len(part)] = (codes - zero) * scale
    return found


@settings(deadline=None, max_examples=100)
@given(
    inputs=st.integers(1, 140),
    outputs=st.integers(1, 4),
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(["int4", "int2"]),
    group=st.sampled_from([0, 32, 64, 128]),
    compute=computes,
    tails=st.booleans(),
)
def test_few_bits_lose_no_more_than_between_least_and_most(
    inputs, outputs, seed, kind, group, compute, tails
):
    generator = np.random.default_rng(seed)
    shape = (inputs, outputs)
    matrix = generator.standard_t(2, shape) if tails else generator.standard_normal(shape)
    chosen = Format.parse(kind, group)
    size = chosen.group or inputs
    found = encode(matrix, chosen, compute).decode()
    plain = _by_least_and_most(matrix, chosen, compute)
    for start in range(0, inputs, size):
        part = slice(start, start + size)
        error, most = (np.sum((w[part] - matrix[part]) ** 2, axis=0) for w in (found, plain))
        assert (error <= most * (1 + 1e-12)).all()


def test_giving_up_the_largest_entries_pays_in_few_bits():
    matrix = np.random.default_rng(0).standard_normal((128, 16))
    chosen = Format.parse("int2", 0)
    found = encode(matrix, chosen).decode()
    plain = _by_least_and_most(matrix, chosen, "float32")
    assert np.sum((found - matrix) ** 2) < 0.75 * np.sum((plain - matrix) ** 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compute", ["float16", "float32"])
def test_extremes_stay_finite(kind, compute):
    largest = float(np.finfo(compute).max)
    column = np.array([largest, -largest, 0.0, largest / 3])
    matrix = np.stack([column, np.abs(column), -np.abs(column), column * 1e-38, column * 0], axis=1)
    encoded = encode(matrix, Format.parse(kind), compute)
    assert np.isfinite(encoded.scales).all()
    found = encoded.decode()
    assert np.isfinite(found).all()
    steps = {"int8": 254, "int4": 15, "int2": 3}[kind]
    assert (np.abs(found - matrix)[:, :3] <= 2 * largest / steps).all()
    assert (found[:, 4] == 0).all()


@pytest.mark.parametrize("kind", ["int4", "int2"])
@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_of_one_sign_use_all_codes_and_keep_zero(kind, sign):
    matrix = sign * np.linspace(0, 1, MOST[kind] + 1)[:, None]
    encoded = encode(matrix, Format.parse(kind, 0), np.float64)
    assert np.allclose(encoded.decode(), matrix, atol=1e-12)
    assert encoded.zero_points.item() == (0 if sign > 0 else MOST[kind])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int4", 48), "group size 48 is unknown"),
        (("int8", 0, "up"), "rounding 'up' is unknown"),
        (("float32", 32), "has no groups"),
        (("float16", None, "gptq"), "no rounding but to the nearest"),
    ],
)
def test_formats_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        Format.parse(*arguments)


def test_groups_have_the_size_that_is_usual_for_their_bits():
    found = {kind: Format.parse(kind).group for kind in KINDS}
    assert found == {"int8": None, "int4": 32, "int2": 32}
    assert Format.parse("int4", 0).group is None
    assert [Format.parse("int4").groups(n) for n in (1, 32, 33, 64, 65)] == [1, 1, 2, 2, 3]
