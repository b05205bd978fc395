"""Atoms to start from."""

from __future__ import annotations

import numpy as np
import pytest

from onnxlr.methods.atoms import Form, Tiles
from onnxlr.methods.atoms.start import dictionary
from onnxlr.metrics import Activation, Frobenius


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("size", "entries"), [(7, 7), (7, 3), (20, 4)])
def test_whole_columns_start_from_atoms_that_are_orthonormal_in_the_metric(size, entries, known):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 20)) * np.linspace(0.3, 3, 20)
    metric = Activation(x.T @ x / 300) if known else Frobenius()
    weight = rng.standard_normal((20, 50))
    tiles = Tiles.of(weight, metric, None, 20, np.dtype(np.float32))
    atoms = dictionary(tiles, Form(20, size, entries, 32, 32), 0).astype(float)
    cost = np.asarray(metric.covariance)[0] if known else np.eye(20)
    products = atoms @ cost @ atoms.T
    assert np.allclose(products, np.eye(size) * np.trace(products) / size, atol=1e-4 * cost.max())


def test_dense_columns_start_from_the_singular_vectors():
    weight = np.random.default_rng(1).standard_normal((12, 30)) * np.linspace(0.01, 5, 30)
    tiles = Tiles.of(weight, Frobenius(), None, 12, np.dtype(np.float64))
    atoms = dictionary(tiles, Form(12, 4, 4, 32, 32), 0).astype(float)
    vectors = np.linalg.svd(weight)[0][:, :4]
    assert np.allclose(np.linalg.svd(atoms @ vectors)[1], 1, atol=1e-5)
