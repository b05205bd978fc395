"""Error feedback over tiles: against GPTQ number by number, and least errors of what is left."""

from __future__ import annotations

import numpy as np
import pytest

from onnxlr.methods.atoms.codes import Codes
from onnxlr.methods.atoms.feedback import descend, feed_forward
from onnxlr.methods.atoms.form import Form
from onnxlr.methods.atoms.tiles import Part


def _part(seed, inputs, outputs, width, known=True):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((4 * inputs, inputs)) @ (
        np.eye(inputs) + rng.standard_normal((inputs, inputs)) / np.sqrt(inputs)
    )
    covariance = mixed.T @ mixed / len(mixed)
    weight = rng.standard_normal((inputs, outputs))
    return Part.of(weight, covariance if known else None, width), weight, covariance


def _gptq(numbers, hessian, levels):
    """Round number by number: each error is made up for by all that follow, by least squares."""
    left, kept = numbers.astype(float).copy(), np.empty(numbers.shape)
    for row in range(len(left)):
        kept[row] = levels[np.abs(left[row][:, None] - levels).argmin(axis=1)]
        behind = slice(row + 1, None)
        if row + 1 < len(left):
            # the change of later numbers of least error for a fixed error of this one
            change = np.linalg.solve(hessian[behind, behind], hessian[behind, row])
            left[behind] += np.outer(change, left[row] - kept[row])
    return kept


@pytest.mark.parametrize("inputs", [40, 240])  # 96 are treated before others are told
def test_tiles_of_one_number_are_gptq(inputs):
    part, _, _ = _part(0, inputs, 7, 1)
    levels = np.linspace(-2, 2, 9)
    form = Form(1, 9, 1, 0, 32)
    codes = feed_forward(part, np.ones(7, np.float32), levels[:, None].astype(np.float32), form)
    made = codes.combine(levels[:, None].astype(np.float32))[:, :, 0]
    expected = _gptq(part.flat, part.hessian, levels)
    # float32 may decide a tie the other way, and what follows then differs
    assert np.mean(made != expected) < 0.02


def test_what_a_tile_still_costs_is_its_schur_complement():
    part, _, _ = _part(1, 24, 3, 4)
    for tile in range(6):
        own, behind = slice(4 * tile, 4 * tile + 4), slice(4 * tile + 4, None)
        hessian = part.hessian
        schur = hessian[own, own] - hessian[own, behind] @ np.linalg.solve(
            hessian[behind, behind], hessian[behind, own]
        )
        assert np.allclose(part.left[tile], schur, rtol=1e-6)


@pytest.mark.parametrize(
    "form",
    [
        Form(3, 16, 1, 0, 32),
        Form(3, 16, 2, 0, 32),
        Form(3, 5, 2, 3, 32),
        Form(3, 3, 3, 3, 32),
        Form(3, 2, 2, 32, 32),
        Form(3, 5, 1, 16, 32),
    ],
)
@pytest.mark.parametrize("inputs", [31, 310])
def test_feedback_and_descent_lower_the_error(form, inputs):
    part, _, _ = _part(2, inputs, 20, 3)
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((form.atoms, 3)).astype(np.float32)
    ones = np.ones(20, np.float32)
    plain, _, _ = _part(2, inputs, 20, 3, known=False)
    order = np.argsort(plain.order)[part.order]
    apart = feed_forward(plain, ones, atoms, form)
    values = None if apart.values is None else apart.values[order]
    apart = Codes(form.atoms, apart.indices[order], values)

    def error(codes):
        made = codes.combine(atoms).swapaxes(1, 2).reshape(part.flat.shape)
        wrong = (part.flat - made).astype(float)
        return float(np.sum(wrong * (part.hessian @ wrong)))

    codes = feed_forward(part, ones, atoms, form)
    fed = error(codes)
    assert fed < error(apart)
    for _ in range(3):
        descend(part, ones, atoms, form, codes)
        assert error(codes) <= fed * (1 + 1e-5)
        fed = error(codes)


def test_without_a_covariance_each_tile_takes_its_nearest_atom():
    part, weight, _ = _part(3, 10, 6, 2, known=False)
    atoms = np.random.default_rng(1).standard_normal((8, 2)).astype(np.float32)
    scales = np.linspace(0.5, 2, 6).astype(np.float32)
    codes = feed_forward(part, scales, atoms, Form(2, 8, 1, 0, 32))
    for place, tile in enumerate(part.order):
        own = (weight[2 * tile : 2 * tile + 2] / scales).T
        distances = np.square(own[:, None] - atoms).sum(axis=2)
        assert np.array_equal(codes.indices[place, :, 0], distances.argmin(axis=1))


def test_one_tile_of_all_inputs_is_measured_as_it_is():
    """No tile is behind it that would have to make up for it, however singular the covariance."""
    covariance = np.array([[4.0, 2, 0], [2, 1, 0], [0, 0, 1]])
    part = Part.of(np.ones((3, 2)), covariance, 3)
    assert np.allclose(part.left[0], covariance / 2)
    assert np.allclose(part.hessian, covariance / 2)
    assert part.unit == 2
    nothing = Part.of(np.ones((3, 2)), np.zeros((3, 3)), 3)
    assert np.linalg.cholesky(nothing.left[0]).shape == (3, 3)


def test_tiles_of_large_inputs_come_first():
    covariance = np.diag([1.0, 1, 9, 9, 4, 4, 2])
    part = Part.of(np.ones((7, 2)), covariance, 2)
    assert list(part.order) == [1, 2, 3, 0] or list(part.order) == [1, 2, 0, 3]
    assert list(part.is_whole) == [tile != 3 for tile in part.order]
    assert (part.numbers[~part.is_whole][0, 1] == 0).all()
