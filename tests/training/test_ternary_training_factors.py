"""Ternary factors under training, against the formulas of the scheme written out in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.methods.semidiscrete import Published, Terms  # noqa: E402
from onnxlr.training.placement import Placement  # noqa: E402
from onnxlr.training.ternary.factors import (  # noqa: E402
    Renewal,
    TernaryFactors,
    renewed,
    survivors,
)

Array = np.ndarray[Any, Any]


def placed(*shape: int) -> Placement:
    """Return the placement of a stack that is stored as it is."""
    return Placement(None, shape, np.arange(np.prod(shape)), shape)  # type: ignore[arg-type]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def factors(
    matrix: Array, tolerance: float | None = 0.3, eta: float = 3.0, fit: str = "published"
) -> TernaryFactors:
    """Return a matrix as ternary factors within a spectral error of .3."""
    whole = np.linalg.norm(matrix, 2)
    terms = Published(matrix).until(
        lambda terms: float(np.linalg.norm(dense(matrix.shape, terms) - matrix, 2) / whole), 0.3, 99
    )
    rule = Renewal(eta, tolerance, fit, 99)
    return TernaryFactors(matrix[None], [terms], placed(1, *matrix.shape), rule)


def dense(shape: tuple[int, ...], terms: Terms) -> Array:
    """Return the sum of terms, one after the other."""
    total = np.zeros(shape)
    for u, v, s in zip(terms.left, terms.right, terms.strengths, strict=True):
        total += s * np.outer(u, v)
    return total


def solved(matrix: Array, terms: Terms) -> Array:
    """Return the strengths by the published normal equations."""
    u, v = terms.left.astype(np.float64).T, terms.right.astype(np.float64).T
    gram = (u.T @ u) * (v.T @ v)
    ridge = 1e-5 * np.sqrt(np.sum(gram**2) / gram.shape[0])
    wanted = np.array([u[:, k] @ matrix @ v[:, k] for k in range(u.shape[1])])
    return np.asarray(np.linalg.solve(gram + ridge * np.eye(len(gram)), wanted))


def moved(module: TernaryFactors, by: Array) -> None:
    """Do what a step of an optimizer does."""
    with torch.no_grad():
        module.weight += torch.from_numpy(by)


def numpy_of(tensor: Any) -> Array:
    return np.asarray(tensor.detach().numpy())


class TestStep:
    @settings(max_examples=15, deadline=None)
    @given(rows=st.integers(3, 12), columns=st.integers(3, 12), seed=st.integers(0, 99))
    def test_one_step_by_the_formulas(self, rows: int, columns: int, seed: int) -> None:
        module = factors(normal(rows, columns, seed=seed))
        before, error = numpy_of(module.weight)[0], numpy_of(module.error)[0].copy()
        old = module.parts[0]
        step = 0.1 * normal(rows, columns, seed=seed + 1)
        latent = (before + step).astype(np.float64) + error
        moved(module, step[None])
        module.settle()
        strengths = solved(latent, old)
        product = dense((rows, columns), Terms(old.left, old.right, strengths))
        scale = np.abs(latent).max()
        np.testing.assert_array_equal(module.parts[0].left, old.left)
        np.testing.assert_array_equal(module.parts[0].right, old.right)
        np.testing.assert_allclose(module.parts[0].strengths, strengths, atol=1e-4 * scale)
        np.testing.assert_allclose(numpy_of(module.weight)[0], product, atol=1e-4 * scale)
        np.testing.assert_allclose(numpy_of(module.error)[0], latent - product, atol=1e-4 * scale)

    @pytest.mark.parametrize("fit", ["published", "alternating"])
    def test_weight_and_error_together_lose_nothing(self, fit: str) -> None:
        module = factors(normal(9, 14), fit=fit)
        total = normal(9, 14).astype(np.float64)
        for place in range(6):
            step = 0.05 * normal(1, 9, 14, seed=place)
            total += step[0]
            moved(module, step)
            if place % 3 == 2:
                module.renew()
            else:
                module.settle()
            kept = numpy_of(module.weight).astype(np.float64) + numpy_of(module.error)
            np.testing.assert_allclose(kept[0], total, atol=1e-5)
            product = dense((9, 14), module.parts[0])
            np.testing.assert_allclose(numpy_of(module.weight)[0], product, atol=1e-5)

    @pytest.mark.parametrize("feedback", [0.0, 0.25])
    def test_a_part_of_what_the_terms_cannot_follow_is_fed_back(self, feedback: float) -> None:
        whole, part = factors(normal(9, 14)), factors(normal(9, 14))
        part.rule = Renewal(3.0, 0.3, "published", 99, 0, feedback)
        before = numpy_of(whole.error).copy()
        for module in (whole, part):
            moved(module, 0.1 * normal(1, 9, 14, seed=3))
            module.settle()
        np.testing.assert_array_equal(numpy_of(part.weight), numpy_of(whole.weight))
        expected = before + feedback * (numpy_of(whole.error) - before)
        np.testing.assert_allclose(numpy_of(part.error), expected, atol=1e-6)
        assert np.abs(numpy_of(whole.error) - before).max() > 0.01

    def test_it_begins_as_the_terms_with_the_rest_as_error(self) -> None:
        matrix = normal(8, 8)
        module = factors(matrix)
        product = dense((8, 8), module.parts[0])
        np.testing.assert_allclose(numpy_of(module())[0], product, atol=1e-6)
        np.testing.assert_allclose(numpy_of(module.error)[0], matrix - product, atol=1e-6)

    def test_the_gradient_goes_straight_to_the_product(self) -> None:
        module = factors(normal(5, 7))
        wanted = torch.from_numpy(normal(1, 5, 7, seed=3))
        (module() * wanted).sum().backward()
        np.testing.assert_array_equal(numpy_of(module.weight.grad), numpy_of(wanted))

    def test_entries_lie_where_the_constant_has_them(self) -> None:
        stack = normal(2, 4, 3)
        order = np.random.default_rng(5).permutation(24)
        placement = Placement(None, (2, 4, 3), order, (6, 4))
        parts = [Published(matrix).of_count(5) for matrix in stack]
        module = TernaryFactors(stack, parts, placement, Renewal(3.0, None, "published", 9))
        products = np.stack([dense((4, 3), terms) for terms in parts])
        expected = products.reshape(-1)[order].reshape(6, 4)
        np.testing.assert_allclose(numpy_of(module()), expected, atol=1e-6)


class TestRenewal:
    def test_survivors_are_as_strong_as_asked(self) -> None:
        terms = Terms(
            np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, -1, 1, -1]], np.float32),
            np.array([[1, 1], [0, 1], [1, 1]], np.float32),
            np.array([1.5, 6.0, -1.0]),
        )
        # norms 1.5·√4 = 3, 6·√1 = 6, 1·√8 = 2.83; the best of the others has .5·√4 = 1
        other = Terms(np.array([[1, 1, 0, 0]], "f4"), np.array([[1, -1]], "f4"), np.array([0.5]))
        assert survivors(terms, other, 2.9).tolist() == [True, True, False]
        assert survivors(terms, other, 2.8).tolist() == [True, True, True]
        assert survivors(terms, other, 3.1).tolist() == [False, True, False]
        assert survivors(terms, Terms.none(4, 2), 3.0).all()

    @pytest.mark.parametrize("fit", ["published", "alternating"])
    @pytest.mark.parametrize("size", [0.05, 0.5])
    def test_the_tolerance_holds_and_strong_terms_stay(self, fit: str, size: float) -> None:
        matrix = 0.05 * normal(20, 30) * np.exp(-0.2 * np.arange(20, dtype=np.float32))[:, None]
        module = factors(matrix, tolerance=0.1, fit=fit)
        size *= 0.05
        rule = module.rule
        moved(module, size * normal(1, 20, 30, seed=8))
        latent = numpy_of(module.weight)[0] + numpy_of(module.error)[0]
        old = module.parts[0]
        strengths = solved(latent.astype(np.float64), old)
        old = Terms(old.left, old.right, strengths)
        rest = (latent - dense(latent.shape, old)).astype(np.float32)
        alive = survivors(old, rule.found(rest, 1), rule.eta)
        module.renew()
        found = module.parts[0]
        left = numpy_of(module.error)[0]
        assert np.linalg.norm(left, 2) <= 0.1 * np.linalg.norm(latent, 2) * (1 + 1e-4)
        if fit == "published":
            kept = old.left[alive]
            np.testing.assert_array_equal(found.left[: len(kept)], kept)
            np.testing.assert_array_equal(found.right[: len(kept)], old.right[alive])
            if not alive.all():
                gone = np.flatnonzero(~alive)[0]
                rows = {row.tobytes() for row in np.hstack([kept, old.right[alive]])}
                assert np.hstack([old.left[gone], old.right[gone]]).tobytes() not in rows

    def test_a_number_of_terms_stays_what_it_is(self) -> None:
        module = factors(normal(12, 10), tolerance=None)
        count = module.parts[0].count
        moved(module, 0.4 * normal(1, 12, 10, seed=2))
        module.renew()
        assert module.parts[0].count == count

    def test_new_terms_are_better_than_those_that_went(self) -> None:
        matrix, other = normal(16, 16), normal(16, 16, seed=1)
        terms = Published(matrix).of_count(20)
        rule = Renewal(3.0, None, "published", 99)
        found = renewed(other, terms, rule)
        alone = Terms(terms.left, terms.right, solved(other.astype(np.float64), terms))
        assert found.count == 20
        after, before = (np.linalg.norm(other - dense((16, 16), one)) for one in (found, alone))
        assert after < 0.8 * before

    def test_nothing_is_left_to_find(self) -> None:
        matrix = np.outer([1, -1, 0, 1], [1, 1, 0]).astype(np.float32)
        module = factors(matrix)
        module.renew()
        np.testing.assert_allclose(numpy_of(module())[0], matrix, atol=1e-4)

    def test_zeros(self) -> None:
        stack = np.zeros((1, 4, 3), np.float32)
        rule = Renewal(3.0, 0.1, "published", 9)
        module = TernaryFactors(stack, [Terms.none(4, 3)], placed(1, 4, 3), rule)
        module.settle()
        module.renew()
        assert not numpy_of(module()).any()


def test_a_state_is_all_that_there_is() -> None:
    module = factors(normal(10, 12))
    for place in range(2):
        moved(module, 0.3 * normal(1, 10, 12, seed=place))
        module.renew()
    state = {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in module.state().items()
    }
    other = factors(normal(10, 12))
    other.restore(state)
    for one in (module, other):
        moved(one, 0.1 * normal(1, 10, 12, seed=7))
        one.settle()
        moved(one, 0.1 * normal(1, 10, 12, seed=8))
        one.renew()
    np.testing.assert_array_equal(numpy_of(other.weight), numpy_of(module.weight))
    np.testing.assert_array_equal(numpy_of(other.error), numpy_of(module.error))
