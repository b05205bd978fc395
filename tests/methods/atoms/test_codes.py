"""Coefficients of columns, compared with all that there are."""

from __future__ import annotations

from itertools import product
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlr.methods.atoms.closest import closest
from onnxlr.methods.atoms.codes import Codes, improve, pursue


def _problem(seed, columns, size, width):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((width, width))
    metric = root @ root.T + np.eye(width)
    atoms, targets = rng.standard_normal((size, width)), 2 * rng.standard_normal((columns, width))
    return targets, atoms, metric


def _seen(targets, atoms, metric):
    seen, gram = targets @ metric @ atoms.T, atoms @ metric @ atoms.T
    return seen.astype(np.float32), gram.astype(np.float32)


def _errors(targets, atoms, metric, indices, values):
    made = Codes(len(atoms), indices, values).combine(atoms.astype(np.float32))
    wrong = targets - made
    return np.einsum("cw,wv,cv->c", wrong, metric, wrong)


def test_combining_is_the_sum_of_atoms():
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((5, 3)).astype(np.float32)
    indices = rng.integers(0, 5, (4, 6, 2))
    values = rng.integers(-3, 4, (4, 6, 2)).astype(np.float32)
    expected = (values[..., None] * atoms[indices]).sum(axis=2)
    assert np.allclose(Codes(5, indices, values).combine(atoms), expected, atol=1e-5)
    assert np.allclose(
        Codes(5, indices, None).combine(atoms), atoms[indices].sum(axis=2), atol=1e-5
    )


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), size=st.integers(1, 9), width=st.integers(1, 4))
def test_one_entry_of_one_is_the_nearest_atom_in_the_metric(seed, size, width):
    targets, atoms, metric = _problem(seed, 12, size, width)
    seen, gram = _seen(targets, atoms, metric)
    indices, values = pursue(seen, gram, 1, None)
    assert values is None
    spread = (metric @ atoms.T).astype(np.float32)
    assert np.array_equal(
        closest(targets.astype(np.float32), spread, np.diagonal(gram)), indices[:, 0]
    )
    wrong = targets[:, None] - atoms
    errors = np.einsum("ckw,wv,ckv->ck", wrong, metric, wrong)
    own = np.take_along_axis(errors, indices, 1)[:, 0]
    assert np.allclose(own, errors.min(axis=1), rtol=1e-4, atol=1e-4)


def test_one_entry_on_a_grid_is_the_best_of_all():
    targets, atoms, metric = _problem(1, 20, 4, 3)
    seen, gram = _seen(targets, atoms, metric)
    indices, values = pursue(seen, gram, 1, 3)
    found = _errors(targets, atoms, metric, indices, values)
    tried = [
        _errors(targets, atoms, metric, np.full((20, 1), atom), np.full((20, 1), value, np.float32))
        for atom, value in product(range(4), range(-3, 4))
    ]
    assert np.allclose(found, np.min(tried, axis=0), rtol=1e-4, atol=1e-4)


def test_orthonormal_atoms_without_a_grid_keep_the_largest_products():
    rng = np.random.default_rng(2)
    atoms = np.linalg.qr(rng.standard_normal((6, 6)))[0].astype(np.float32)
    targets = rng.standard_normal((30, 6)).astype(np.float32)
    seen = targets @ atoms.T
    indices, values = pursue(seen, atoms @ atoms.T, 3, inf)
    expected = np.sort(np.abs(seen), axis=1)[:, 3:]
    assert np.allclose(np.sort(np.abs(values), axis=1), expected, atol=1e-4)
    assert all(len(set(row)) == 3 for row in indices)


@pytest.mark.parametrize("largest", [None, 1, 3, inf])
@pytest.mark.parametrize("entries", [2, 3, 6])
def test_several_entries(largest, entries):
    targets, atoms, metric = _problem(entries, 40, 6, 4)
    seen, gram = _seen(targets, atoms, metric)
    indices, values = pursue(seen, gram, entries, largest)
    if values is not None:
        assert all(len(set(row)) == entries for row in indices)
        assert np.abs(values).max() <= (largest or 1)
        assert largest == inf or (values == np.rint(values)).all()
        nothing = _errors(targets, atoms, metric, indices, np.zeros_like(values))
        assert (_errors(targets, atoms, metric, indices, values) <= nothing + 1e-4).all()
    before = _errors(targets, atoms, metric, indices, values)
    improve(seen, gram, indices, values, largest)
    after = _errors(targets, atoms, metric, indices, values)
    assert (after <= before + 1e-4 * before.max()).all()


@pytest.mark.parametrize(("size", "entries"), [(6, 3), (6, 6), (4, 4), (9, 2)])
@pytest.mark.parametrize("again", [False, True])
def test_amounts_that_no_grid_binds_are_those_of_least_squares(size, entries, again):
    targets, atoms, metric = _problem(7, 40, size, 6)
    seen, gram = _seen(targets, atoms, metric)
    indices, values = pursue(seen, gram, entries, inf)
    if again:
        values = np.zeros_like(values)
        improve(seen, gram, indices, values, inf)
    root = np.linalg.cholesky(metric).T
    least = []
    for target, taken in zip(targets, indices, strict=True):
        own = root @ atoms[taken].T
        amounts = np.linalg.lstsq(own, root @ target, rcond=None)[0]
        least.append(np.sum((own @ amounts - root @ target) ** 2))
    found = _errors(targets, atoms, metric, indices, values)
    size = np.einsum("cw,wv,cv->c", targets, metric, targets).mean()
    assert np.allclose(found, least, rtol=1e-3, atol=1e-4 * size)


def test_atoms_that_are_alike_have_amounts_all_the_same():
    atoms = np.array([[1, 0, 0], [1, 0, 0], [0, 2, 0]], np.float32)
    targets = np.random.default_rng(8).standard_normal((20, 3)).astype(np.float32)
    for entries in (2, 3):
        indices, values = pursue(targets @ atoms.T, atoms @ atoms.T, entries, inf)
        errors = _errors(targets, atoms, np.eye(3), indices, values)
        assert np.isfinite(values).all()
        assert np.allclose(errors, targets[:, 2] ** 2, atol=1e-4)


def test_improving_a_poor_start_reaches_what_one_entry_can():
    targets, atoms, metric = _problem(5, 25, 7, 3)
    seen, gram = _seen(targets, atoms, metric)
    spread = (metric @ atoms.T).astype(np.float32)
    indices = np.zeros((25, 1), np.int64)
    improve(seen, gram, indices, None, None)
    best = closest(targets.astype(np.float32), spread, np.diagonal(gram))[:, None]
    assert np.array_equal(indices, best)


def test_an_atom_of_zeros_is_no_division_by_zero():
    atoms = np.array([[0, 0], [1, 0]], np.float32)
    targets = np.array([[2.0, 1.0]], np.float32)
    indices, values = pursue(targets @ atoms.T, atoms @ atoms.T, 1, 7)
    assert (indices[0, 0], values[0, 0]) == (1, 2)
