"""The packed format: its bytes, what is refused, and files of it that never change."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxlr.errors import ModelError, UsageError
from onnxlr.operators.packing import pack, pack_kernel, unpack, unpack_kernel
from tests.operators import reference

GOLDEN = Path(__file__).parent / "golden"
DIGESTS = {
    "matrix": "f487d419996e324752ed23bc6b34467acab056850e7606935ee9432cfb2a4c0e",
    "kernel": "07b7abfd5b9b417db8e7e5040668f86f6c9b4b8eb82892035c67a5f09d7364ac",
}
VALUES = st.integers(-1, 1)


def _ternary(*shape: int) -> np.ndarray:
    """Return values that follow from their positions alone, without a generator of any library."""
    index = np.arange(np.prod(shape), dtype=np.int64)
    return ((index * index * 7 + index // 5) % 11 % 3 - 1).astype(np.int8).reshape(shape)


@given(hnp.arrays(np.int8, st.tuples(*[st.integers(1, n) for n in (3, 40, 40)]), elements=VALUES))
def test_matrices_come_back(ternary):
    terms, inputs, outputs = ternary.shape
    codes = pack(ternary)
    assert codes.shape == (terms, -(-outputs // 16), -(-inputs // 16), 64)
    np.testing.assert_array_equal(unpack(codes, inputs, outputs), ternary)


@given(
    st.integers(1, 3),
    hnp.array_shapes(min_dims=1, max_dims=2, max_side=4),
    st.tuples(*[st.integers(1, n) for n in (3, 18, 9)]),
)
def test_kernels_come_back(group, kernel, sizes):
    terms, outputs, channels = sizes
    ternary = _ternary(terms, outputs * group, channels, *kernel)
    codes = pack_kernel(ternary, group)
    blocks = -(-channels * int(np.prod(kernel)) // 16)
    assert codes.shape == (terms, group, -(-outputs // 16), blocks, 64)
    np.testing.assert_array_equal(unpack_kernel(codes, ternary.shape[1:]), ternary)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 16, 16), (1, 17, 33), (3, 37, 5)])
def test_every_byte_is_where_the_document_says(shape):
    ternary = _ternary(*shape)
    np.testing.assert_array_equal(pack(ternary), reference.codes_of(ternary))


@pytest.mark.parametrize("k", range(16))
@pytest.mark.parametrize("n", [0, 1, 15])
def test_one_entry_changes_two_bits_of_its_byte(k, n):
    ternary = np.zeros((1, 16, 16), np.int8)
    zeros = pack(ternary).ravel()
    assert (zeros == 0b01010101).all()
    ternary[0, k, n] = 1
    changed = np.flatnonzero(pack(ternary).ravel() != zeros)
    assert changed.tolist() == [4 * n + k % 4]
    assert pack(ternary).ravel()[changed[0]] ^ zeros[0] == 0b11 << (2 * (k // 4))


def test_a_word_holds_a_column():
    """Input 4g + j at bits 8j + 2g of little-endian word c."""
    ternary = _ternary(1, 16, 16)
    words = pack(ternary).view("<u4").ravel()
    for c, k in np.ndindex(16, 16):
        g, j = divmod(k, 4)
        assert int(words[c]) >> (8 * j + 2 * g) & 3 == ternary[0, k, c] + 1


def test_patches_are_ordered_by_position_then_channel():
    ternary = _ternary(2, 6, 5, 3, 2)
    codes = pack_kernel(ternary, 2)
    for t, g, n, c, h, w in np.ndindex(2, 2, 3, 5, 3, 2):
        matrix = unpack(codes[:, g], 30, 3)
        assert matrix[t, (h * 2 + w) * 5 + c, n] == ternary[t, 3 * g + n, c, h, w]


def test_one_term_needs_no_axis():
    ternary = _ternary(20, 30)
    np.testing.assert_array_equal(pack(ternary), pack(ternary[None]))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64])
def test_views_and_wider_integers(dtype):
    ternary = _ternary(2, 33, 20).astype(dtype)
    expected = reference.codes_of(ternary.transpose(0, 2, 1))
    np.testing.assert_array_equal(pack(ternary.transpose(0, 2, 1)), expected)


@pytest.mark.parametrize("value", [-2, 2, 127, -128])
def test_other_values_are_refused(value):
    ternary = _ternary(1, 20, 20)
    ternary[0, 19, 3] = value
    with pytest.raises(UsageError, match=rf"{value}.*expected -1, 0 and 1 only"):
        pack(ternary)
    with pytest.raises(UsageError, match="expected -1, 0 and 1 only"):
        pack_kernel(ternary[..., None], 1)


@pytest.mark.parametrize(
    ("ternary", "message"),
    [
        (np.zeros(3, np.int8), r"shape \(3,\)"),
        (np.zeros((1, 2, 3, 4), np.int8), "expected .terms, inputs, outputs"),
        (np.zeros((2, 3), np.float32), "float32; expected int8"),
        (np.zeros((2, 3), np.uint8), "uint8; expected int8"),
        (np.zeros((1, 0, 3), np.int8), "at least one"),
    ],
)
def test_other_arrays_are_refused(ternary, message):
    with pytest.raises(UsageError, match=message):
        pack(ternary)


def test_groups_divide_the_outputs():
    with pytest.raises(UsageError, match="6 outputs cannot have 4 groups"):
        pack_kernel(np.zeros((1, 6, 2, 3), np.int8), 4)
    with pytest.raises(UsageError, match="a ternary kernel has the shape"):
        pack_kernel(np.zeros((1, 6, 2), np.int8), 1)
    with pytest.raises(ModelError, match="groups that divide the outputs"):
        unpack_kernel(np.full((1, 4, 1, 1, 64), 85, np.uint8), (6, 2, 3))


@pytest.mark.parametrize("k", [0, 3, 15, 16, 21])
def test_the_code_3_is_refused_with_its_place(k):
    codes = pack(_ternary(1, 22, 17))
    codes[0, 1, k // 16, k % 4] |= np.uint8(3 << (2 * (k % 16 // 4)))
    with pytest.raises(ModelError, match=rf"a 3 at input {k} and output 16"):
        unpack(codes, 22, 17)


@pytest.mark.parametrize(("k", "n"), [(15, 0), (0, 15), (15, 15)])
def test_what_lies_beyond_the_matrix_is_zero(k, n):
    codes = pack(np.zeros((15, 15), np.int8))
    codes[0, 0, 0, 4 * n + k % 4] ^= np.uint8(0b11 << (2 * (k // 4)))
    with pytest.raises(ModelError, match="not all 1 beyond input 15 and output 15"):
        unpack(codes, 15, 15)


@pytest.mark.parametrize(
    "codes",
    [
        np.full((1, 1, 2, 64), 85, np.int8),
        np.full((1, 1, 1, 64), 85, np.uint8),
        np.full((1, 2, 2, 64), 85, np.uint8),
        np.full((1, 1, 2, 32), 85, np.uint8),
        np.full((1, 2, 64), 85, np.uint8),
    ],
)
def test_codes_of_another_shape_are_refused(codes):
    with pytest.raises(ModelError, match="expected"):
        unpack(codes, 17, 16)


@pytest.mark.parametrize("name", DIGESTS)
def test_files_of_layout_1_never_change(name):
    stored = (GOLDEN / f"layout1_{name}.bin").read_bytes()
    assert sha256(stored).hexdigest() == DIGESTS[name]
    if name == "matrix":
        ternary = _ternary(2, 37, 21)
        codes = pack(ternary)
        found = unpack(np.frombuffer(stored, np.uint8).reshape(2, 2, 3, 64), 37, 21)
    else:
        ternary = _ternary(1, 36, 3, 3, 2)
        codes = pack_kernel(ternary, 2)
        found = unpack_kernel(
            np.frombuffer(stored, np.uint8).reshape(1, 2, 2, 2, 64), (36, 3, 3, 2)
        )
    assert codes.tobytes() == stored
    np.testing.assert_array_equal(found, ternary)
