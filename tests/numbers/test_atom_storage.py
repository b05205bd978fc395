"""Planes of bits against numpy's own bits, and what coefficients take in bytes, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxlr.numbers import Encoded, Format
from onnxlr.numbers.atom_storage import (
    FORMS,
    Planes,
    coefficient_bytes,
    index_bits,
    packed_bytes,
)
from onnxlr.numbers.atoms import Atoms, Coefficients
from tests.sums_of_atoms import coefficients_of, forms, summed, sums_of

seeds = st.integers(0, 2**16)


@given(count=st.integers(1, 200), bits=st.integers(1, 16), seed=seeds)
def test_planes_hold_the_bits_of_numbers(count, bits, seed):
    numbers = np.random.default_rng(seed).integers(0, 1 << bits, count)
    numbers[0] = (1 << bits) - 1
    planes = Planes.of(numbers, bits)
    assert np.array_equal(planes.numbers(), numbers)
    assert sum(planes.digits) == bits
    assert planes.nbytes == packed_bytes(count, bits) == -(-count // 8) * bits
    whole = b"".join(plane.tobytes() for plane in planes.planes)
    ones = sum(bin(number).count("1") for number in numbers.tolist())
    assert int(np.unpackbits(np.frombuffer(whole, np.uint8)).sum()) == ones


def test_nine_bits_are_a_byte_and_a_bit():
    numbers = np.arange(16) * 33  # 0 … 495
    low, high = Planes.of(numbers, 9).planes
    assert np.array_equal(low.reshape(-1), numbers % 256)
    bits = (numbers // 256).reshape(8, 2)  # number `2 i + j` has its bit in byte j, at place i
    expected = [sum(int(bit) << place for place, bit in enumerate(column)) for column in bits.T]
    assert high.reshape(-1).tolist() == expected


@pytest.mark.parametrize("numbers", [[], [-1], [8]])
def test_numbers_of_more_bits_are_refused(numbers):
    with pytest.raises(ValueError, match=r"from 0 to below 2\^3"):
        Planes.of(np.array(numbers, np.int64), 3)


def test_bytes_of_the_forms_by_hand():
    """80 columns of 30 atoms: 5 bits an index, 2 entries, 150 of the 160 not 0, of 3 bits."""
    found = coefficient_bytes(80, 30, 2, 150, 3)
    assert found == {
        "indices": (160 * 5 + 160 * 3) // 8,
        "mask": 80 * 30 // 8 + 19 * 3,  # 151 numbers are 19 times 8
        "values": 80 * 30 * 3 // 8,
    }
    assert coefficient_bytes(80, 30, 2, 160, 0) == {"indices": 100, "mask": 300}
    assert coefficient_bytes(80, 30, 2, 150, 16) == {
        "indices": 160 * 5 // 8 + 160 * 2,
        "mask": 80 * 30 // 8 + 151 * 2,  # floats are not packed in eights
        "values": 80 * 30 * 2,
    }
    assert coefficient_bytes(7, 3, 1, 5, 32) == {"indices": 2 + 28, "mask": 3 + 24, "values": 84}
    assert [index_bits(count) for count in (1, 2, 3, 256, 257)] == [0, 1, 2, 8, 9]


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.integers(1, 40),
    entries=st.none() | st.integers(1, 4),
    bits=st.sampled_from([*range(2, 9), 16, 32]),
    plain=st.booleans(),
    seed=seeds,
)
def test_every_form_is_the_same_sums(shape, size, entries, bits, plain, seed):
    generator = np.random.default_rng(seed)
    entries = None if entries is None else min(entries, size)
    bits = 0 if plain and entries is not None else bits
    kept = coefficients_of(generator, shape, size, entries, bits)
    atoms = generator.standard_normal((size, 3))
    expected = summed(kept, atoms)
    whole = kept.matrix()
    assert whole.shape == (*shape, size)
    assert np.allclose(summed(Coefficients(size, None, whole, bits), atoms), expected)
    indices, values = kept.entries()
    again = Coefficients(size, indices, values, bits)
    assert np.allclose(summed(again, atoms), expected)
    assert indices.shape[2] == kept.most
    assert not again.repeats
    assert kept.nonzeros == np.count_nonzero(whole)


@given(
    seed=seeds,
    entries=st.none() | st.integers(1, 6),
    bits=st.sampled_from([*range(2, 9), 16, 32]),
)
def test_the_form_is_the_cheapest(seed, entries, bits):
    kept = coefficients_of(np.random.default_rng(seed), (3, 8), 24, entries, bits)
    sizes = coefficient_bytes(24, 24, kept.most, np.count_nonzero(kept.matrix()), bits)
    assert kept.nbytes == min(sizes.values()) == sizes[kept.form()]
    assert kept.form(["values"]) == "values"


def test_atoms_that_repeat_are_kept_as_indices():
    """Twice the same atom has no place in a mask, though that would be smaller."""
    indices = np.zeros((4, 8, 3), np.int64)
    repeated = Coefficients(6, indices, np.ones((4, 8, 3), np.int8), 4)
    apart = Coefficients(6, indices + np.arange(3), np.ones((4, 8, 3), np.int8), 4)
    assert repeated.repeats
    assert (repeated.form(), apart.form()) == ("indices", "mask")
    assert repeated.nbytes == 96 * 3 // 8 + 96 * 4 // 8
    assert apart.nbytes == 32 * 6 // 8 + 13 * 4  # 97 numbers are 13 times 8


@given(data=st.data(), inputs=st.integers(1, 30), outputs=st.integers(1, 6), kernel=st.booleans())
def test_atoms_decode_to_the_sums(data, inputs, outputs, kernel):
    dims = (outputs, inputs, 1) if kernel else (inputs, outputs)
    sums = sums_of(dims, kernel=kernel, **data.draw(forms(inputs)))
    assert sums.atoms.decode().shape == sums.dense.shape
    assert np.allclose(sums.atoms.decode(), sums.dense, rtol=1e-12, atol=1e-12)
    assert (sums.atoms.inputs, sums.atoms.outputs) == (inputs, outputs)


def test_bytes_of_atoms_by_hand():
    """64×40 in tiles of 4, of 32 atoms: 640 indices of 5 bits, 40 scales."""
    beside = 640 * 5 // 8 + 40 * 4
    expected = {"float32": 512, "float16": 256, "int8": 128 + 16, "int4": 64 + 16 + 4}
    for kind, size in expected.items():
        atoms = sums_of((64, 40), width=4, size=32, kind=kind).atoms
        assert atoms.nbytes == size + beside
        assert atoms.parameters == 128 + 640 + 40
    bare = sums_of((64, 40), width=4, size=32, scaled=False).atoms
    assert (bare.nbytes, bare.parameters) == (512 + 400, 128 + 640)


def test_an_identity_takes_no_bytes():
    values = np.array([[[0, 3, 0, -1], [2, 0, 0, 0]]], np.int8)
    kept = Coefficients(4, None, values, 3)
    eye = Encoded(Format("float32"), np.eye(4, dtype=np.float32))
    atoms = Atoms((4, 2), eye, kept)
    assert atoms.is_plain
    assert np.array_equal(atoms.decode(), values[0].T)
    assert atoms.nbytes == min(coefficient_bytes(2, 4, 2, 3, 3).values())
    assert atoms.parameters == 3
    other = replace(atoms, dictionary=replace(eye, codes=eye.codes * 2))
    assert not other.is_plain
    assert (other.nbytes, other.parameters) == (atoms.nbytes + 64, 3 + 16)


def test_forms_are_named():
    assert set(coefficient_bytes(1, 2, 1, 1, 2)) == set(FORMS)
