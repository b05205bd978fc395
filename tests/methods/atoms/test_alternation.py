"""Orthogonal dictionaries: truncated decompositions, and sparse ones that lose less and less."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlr.methods.atoms.alternation import alternate


def _points(seed, width, columns):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((width, width)) @ rng.standard_normal((width, columns))


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 99),
    width=st.integers(1, 12),
    columns=st.integers(1, 30),
    part=st.floats(0, 1),
)
def test_all_entries_and_no_grid_are_the_truncated_svd(seed, width, columns, part):
    points = _points(seed, width, columns)
    size = 1 + int(part * (width - 1))
    atoms, taken = alternate(points, size, size)
    left, values, right = np.linalg.svd(points, full_matrices=False)
    best = (left[:, :size] * values[:size]) @ right[:size]
    assert np.linalg.norm(atoms @ taken - best) <= 1e-6 * np.linalg.norm(points)
    assert np.allclose(atoms.T @ atoms, np.eye(size), atol=1e-9)


@pytest.mark.parametrize(("size", "entries"), [(8, 4), (6, 2), (8, 1)])
def test_sparse_columns_keep_the_largest_entries(size, entries):
    points = _points(3, 8, 200)
    atoms, taken = alternate(points, size, entries)
    assert np.allclose(atoms.T @ atoms, np.eye(size), atol=1e-9)
    assert (np.count_nonzero(taken, axis=0) <= entries).all()
    seen = atoms.T @ points
    kept = np.sort(np.abs(seen), axis=0)[-entries:]
    assert np.allclose(np.sort(np.abs(taken), axis=0)[-entries:], kept)


def test_a_planted_sparse_dictionary_is_found():
    rng = np.random.default_rng(0)
    true = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    columns = np.zeros((8, 2000))
    for column in columns.T:
        chosen = rng.choice(8, 2, replace=False)
        column[chosen] = rng.choice([-1, 1], 2) * (1 + rng.random(2))
    points = true @ columns
    atoms, taken = alternate(points, 8, 2)
    wrong = np.linalg.norm(points - atoms @ taken) / np.linalg.norm(points)
    singular = np.linalg.svd(points)[1]
    assert wrong < 0.7 * np.sqrt(1 - np.sum(singular[:2] ** 2) / np.sum(singular**2))


def test_it_loses_less_than_singular_vectors_with_as_many_entries():
    rng = np.random.default_rng(1)
    points = rng.standard_t(3, (10, 400))
    atoms, taken = alternate(points, 10, 5)
    vectors = np.linalg.svd(points)[0]
    seen = vectors.T @ points
    small = np.argsort(-np.abs(seen), axis=0)[5:]
    np.put_along_axis(seen, small, 0.0, axis=0)
    assert np.linalg.norm(points - atoms @ taken) < np.linalg.norm(points - vectors @ seen)


def test_zeros_stay_zeros():
    atoms, taken = alternate(np.zeros((4, 9)), 3, 2)
    assert not (atoms @ taken).any()
