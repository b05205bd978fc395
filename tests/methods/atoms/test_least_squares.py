"""The dictionary for given coefficients, against dense least squares."""

from __future__ import annotations

import numpy as np
import pytest

from onnxlr.methods.atoms.codes import Codes
from onnxlr.methods.atoms.least_squares import solve_dictionary
from onnxlr.methods.atoms.tiles import Tiles
from onnxlr.metrics import Activation, FisherRows, Frobenius


def _metric(kind, rng, groups, patch, weight):
    if kind == "frobenius":
        return Frobenius()
    if kind == "fisher-rows":
        return FisherRows(rng.random(weight.shape))
    x = rng.standard_normal((groups or 1, 200, patch)) * np.linspace(0.5, 2, patch)
    return Activation(x.swapaxes(1, 2) @ x / 200)


@pytest.mark.parametrize("kind", ["frobenius", "activation", "fisher-rows"])
@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize("valued", [False, True])
def test_it_is_the_least_squares_solution(kind, groups, valued):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((7, 12) if groups is None else (12, 2, 2, 2))
    patch = 7 if groups is None else 8
    metric = _metric(kind, rng, groups, patch, weight)
    tiles = Tiles.of(weight, metric, groups, 3, np.dtype(np.float64))
    codes, scales = [], []
    for part in tiles.parts:
        shape = (len(part.numbers), part.numbers.shape[2], 2)
        values = rng.integers(1, 4, shape).astype(np.float32) if valued else None
        codes.append(Codes(4, rng.integers(0, 4, shape), values))
        scales.append((0.5 + rng.random(shape[1])).astype(np.float32))
    start = rng.standard_normal((4, 3)).astype(np.float32)
    found = start
    for _ in range(20):
        found = solve_dictionary(tiles, scales, codes, found)
    rows, wanted = [], []
    for part, own, shares, code in zip(tiles.parts, scales, tiles.shares, codes, strict=True):
        hessian = part.hessian if part.hessian.ndim == 2 else np.diag(part.hessian)
        root = np.linalg.cholesky(hessian).T
        for output in range(len(own)):
            taken = np.zeros((len(part.numbers), 4))
            for entry in range(2):
                value = 1 if code.values is None else code.values[:, output, entry]
                np.add.at(taken, (np.arange(len(taken)), code.indices[:, output, entry]), value)
            size = own[output] * np.sqrt(shares[output])
            rows.append(size * root @ np.kron(taken, np.eye(3)))
            target = part.flat[:, output] / own[output]
            wanted.append(size * root @ target)
    system, right = np.concatenate(rows), np.concatenate(wanted)
    best = np.linalg.lstsq(system, right, rcond=None)[0]

    def error(atoms):
        return np.linalg.norm(right - system @ np.asarray(atoms, float).reshape(-1))

    assert error(found) <= error(best) * (1 + 1e-4)
    assert error(found) < error(start)


def test_an_atom_that_nothing_takes_stays():
    weight = np.random.default_rng(1).standard_normal((6, 5))
    tiles = Tiles.of(weight, Frobenius(), None, 2, np.dtype(np.float32))
    codes = [Codes(3, np.zeros((3, 5, 1), np.int64), None)]
    start = np.array([[1, 1], [2, 3], [4, 5]], np.float32)
    found = solve_dictionary(tiles, [np.ones(5, np.float32)], codes, start)
    assert np.array_equal(found[1:], start[1:])
    mean = tiles.parts[0].points().reshape(3, 5, 2)
    # each output counts by the square of its scale
    expected = np.average(mean.mean(axis=0), axis=0, weights=tiles.shares[0])
    assert np.allclose(found[0], expected, atol=1e-4)
