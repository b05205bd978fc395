"""The published recipe: its own figures, and the recipe followed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from onnxlr.methods.semidiscrete import Goal, Published, spectral_norm


def _normal(seed, inputs, outputs):
    shape = (inputs, outputs)
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def _sum(terms):
    return np.einsum("ki,kj->ij", terms.strengths[:, None] * terms.left, terms.right)


def _ternary(vector):
    sizes = np.sort(np.abs(vector))[::-1]
    cosines = np.cumsum(sizes) / np.sqrt(np.arange(1, len(sizes) + 1))
    enough = np.flatnonzero(cosines >= 0.8386)
    count = (enough[0] if len(enough) else np.argmax(cosines)) + 1
    return np.where(np.abs(vector) >= sizes[count - 1], np.sign(vector), 0.0)


def _by_hand(matrix, count):
    """Return the approximation by `methods.md`'s four steps, in float64 throughout."""
    inputs, outputs = matrix.shape
    stride = max(1, inputs * outputs // (inputs + outputs) // 20)
    exact = matrix.astype(np.float64)
    residual, left, right = exact, np.zeros((inputs, 0)), np.zeros((outputs, 0))
    while left.shape[1] < count:
        u, _, vt = np.linalg.svd(residual, full_matrices=False)
        for k in range(min(stride, count - left.shape[1])):
            left = np.column_stack([left, _ternary(u[:, k])])
            right = np.column_stack([right, _ternary(vt[k])])
        gram = (left.T @ left) * (right.T @ right)
        ridge = 1e-5 * np.sqrt((gram**2).sum() / len(gram))
        wanted = np.diagonal(left.T @ exact @ right)
        strengths = np.linalg.solve(gram + ridge * np.eye(len(gram)), wanted)
        residual = exact - (left * strengths) @ right.T
    return exact - residual


@pytest.mark.parametrize(("trits", "error"), [(1, 0.684), (2, 0.476), (3, 0.337), (4, 0.238)])
def test_the_published_recipe_leaves_what_it_is_known_to_leave(trits, error):
    matrix = _normal(0, 384, 384)
    terms = Published(matrix).of_count(192 * trits)
    assert terms.count == 192 * trits
    found = np.linalg.norm(matrix - _sum(terms)) / np.linalg.norm(matrix)
    assert found == pytest.approx(error, rel=0.05)


@pytest.mark.parametrize(("inputs", "outputs", "count"), [(12, 9, 7), (60, 50, 11), (5, 30, 4)])
def test_it_is_the_recipe_followed_by_hand(inputs, outputs, count):
    matrix = _normal(1, inputs, outputs)
    terms = Published(matrix).of_count(count)
    assert terms.count == count
    assert np.allclose(_sum(terms), _by_hand(matrix, count), atol=1e-4)


def test_until_a_spectral_error_and_the_same_again():
    matrix = _normal(2, 70, 90)
    whole = np.linalg.norm(matrix, 2)

    def error(terms):
        return float(np.linalg.norm(matrix - _sum(terms), 2) / whole)

    fitter = Published(matrix)
    terms = fitter.until(error, 0.2, 5000)
    assert error(terms) <= 0.2
    again = fitter.of_count(terms.count)
    assert again.strengths.tobytes() == terms.strengths.tobytes()
    assert again.left.tobytes() == terms.left.tobytes()
    stride = 70 * 90 // 160 // 20
    assert error(fitter.of_count(terms.count - stride)) > 0.2
    assert fitter.until(error, 0.0, 40).count == 40


def test_large_matrices_by_randomised_vectors_are_the_same_twice():
    matrix = _normal(3, 1100, 1000)
    one, other = (Published(matrix, seed=1).of_count(30) for _ in range(2))
    assert one.left.tobytes() == other.left.tobytes()
    assert one.strengths.tobytes() == other.strengths.tobytes()
    exact = Published(matrix[:, :900], seed=1).of_count(30)
    # The first vectors of normal numbers are alike: what they leave is near what exact ones leave
    left = [
        np.linalg.norm(part - _sum(terms)) / np.linalg.norm(part)
        for part, terms in ((matrix, one), (matrix[:, :900], exact))
    ]
    assert left[0] == pytest.approx(left[1], rel=0.01)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (3, 200), (8, 8)])
def test_thin_matrices_and_zeros(shape):
    matrix = _normal(4, *shape)
    terms = Published(matrix).of_count(6)
    assert terms.count <= 6
    assert Goal(matrix).error(terms) < 1
    assert Published(np.zeros(shape, np.float32)).of_count(6).count == 0


@pytest.mark.parametrize("shape", [(1, 1), (20, 30), (65, 80), (200, 100)])
def test_spectral_norms(shape):
    matrix = _normal(5, *shape)
    assert spectral_norm(matrix) == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-5)
    assert spectral_norm(matrix * np.float32(1e-12)) == pytest.approx(
        1e-12 * np.linalg.norm(matrix, 2), rel=1e-5
    )
    assert spectral_norm(np.zeros(shape, np.float32)) == 0.0


def test_a_spectral_norm_whose_vector_is_orthogonal_to_the_start():
    matrix = np.zeros((80, 80), np.float32)
    matrix[0, 0], matrix[0, 1] = 3.0, -3.0
    matrix[5, 5] = 1.0
    assert spectral_norm(matrix) == pytest.approx(18**0.5, rel=1e-5)
    assert spectral_norm(matrix.T) == pytest.approx(18**0.5, rel=1e-5)
