"""Centres of points: nearest ones by comparison with all, means, and what stands out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlr.methods.atoms.clustering import cluster, nearest, sample


def _points(seed, count, width):
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 99),
    count=st.integers(1, 60),
    width=st.integers(1, 6),
    size=st.integers(1, 9),
)
def test_the_nearest_atom_is_the_nearest_of_all(seed, count, width, size):
    points, atoms = _points(seed, count, width), _points(seed + 1, size, width)
    found = nearest(points, atoms)
    distances = np.square(points[:, None].astype(float) - atoms).sum(axis=2)
    own = np.take_along_axis(distances, found[:, None], 1)[:, 0]
    assert np.allclose(own, distances.min(axis=1), atol=1e-5)


def test_centres_settle_at_weighted_means():
    points, rng = _points(0, 300, 2), np.random.default_rng(0)
    weights = rng.random(300) + 0.1
    atoms = cluster(points, weights, 6, rng, rounds=300)
    own = nearest(points, atoms)
    for atom in range(6):
        mean = np.average(points[own == atom], axis=0, weights=weights[own == atom])
        assert np.allclose(atoms[atom], mean, atol=1e-4)


def test_as_many_centres_as_points_are_the_points():
    points = np.concatenate([np.zeros((1, 3), np.float32), _points(1, 15, 3)])
    atoms = cluster(points, np.ones(16), 16, np.random.default_rng(0))
    assert np.allclose(points, atoms[nearest(points, atoms)], atol=1e-6)


def test_one_point_far_off_gets_a_centre():
    points = _points(2, 20000, 2)
    points[777] = (300, -200)
    drawn, weights = sample(points, np.ones(len(points)), 2000, np.random.default_rng(0))
    assert len(drawn) < len(points)
    atoms = cluster(drawn, weights, 16, np.random.default_rng(0))
    assert np.abs(atoms - points[777]).max(axis=1).min() < 1


def test_a_sample_stands_for_all_points():
    points = _points(3, 50000, 3) * 2 + 1
    weights = np.random.default_rng(1).random(50000)
    drawn, own = sample(points, weights, 5000, np.random.default_rng(0))
    assert own.sum() == pytest.approx(weights.sum(), rel=0.05)
    exact = (weights[:, None] * points).sum(axis=0)
    assert np.allclose((own[:, None] * drawn).sum(axis=0), exact, rtol=0.1)


def test_few_points_are_all_taken():
    points = _points(4, 10, 2)
    drawn, weights = sample(points, np.arange(1.0, 11), 10, np.random.default_rng(0))
    assert np.array_equal(drawn, points)
    assert np.array_equal(weights, np.arange(1.0, 11))


def test_points_that_are_all_zero():
    atoms = cluster(np.zeros((9, 2), np.float32), np.ones(9), 4, np.random.default_rng(0))
    assert not atoms.any()
