"""Forms within a number of bytes, what is expected of them, and which is taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlr.methods.atoms import Asked, Form, Weight, candidates, promising, search
from onnxlr.metrics import Activation, Frobenius, relative_error
from onnxlr.numbers.atoms import Atoms


def _weight(seed, *shape, groups=None, known=False, dtype="float32"):
    rng = np.random.default_rng([seed, *shape])
    numbers = rng.standard_normal(shape).astype(dtype)
    metric = Frobenius()
    if known:
        patch = shape[0] if groups is None else int(np.prod(shape[1:]))
        x = rng.standard_normal((groups or 1, 8 * patch, patch)) @ (
            np.eye(patch) + rng.standard_normal((patch, patch)) / np.sqrt(patch)
        )
        metric = Activation(x.swapaxes(1, 2) @ x / (8 * patch))
    return Weight(numbers, metric, groups, np.dtype(dtype))


def _atoms(weight, fitted):
    scales = fitted.scales.astype(weight.compute)
    kernel = weight.groups is not None
    return Atoms(weight.numbers.shape, fitted.dictionary, fitted.coefficients, scales, kernel)


@pytest.mark.parametrize("bits", [1.5, 2, 3, 4, 6])
@pytest.mark.parametrize("shape", [(64, 96), (300, 20), (20, 300)])
def test_all_forms_are_within_the_bytes_and_cannot_grow(bits, shape):
    weight = _weight(0, *shape)
    limit = bits * weight.numbers.size / 8
    forms = candidates(weight, limit, Asked())
    assert len(forms) == len(set(forms))
    for form in forms:
        assert weight.bytes(form) <= limit
        more = Form(form.tile, form.atoms + 1, form.nonzeros, form.value_bits, form.dictionary_bits)
        columns = -(-shape[0] // form.tile) * shape[1]
        full = form.atoms >= min(4096, columns // 4) or form.atoms >= form.tile > 8
        assert form.value_bits or full or weight.bytes(more) > limit


@settings(deadline=None, max_examples=25)
@given(
    form=st.sampled_from(
        [
            Form(3, 17, 1, 0, 8),
            Form(2, 8, 1, 0, 16),
            Form(4, 9, 2, 0, 32),
            Form(1, 3, 1, 0, 4),
            Form(5, 5, 2, 3, 0),
            Form(5, 5, 5, 4, 8),
            Form(6, 3, 3, 5, 16),
            Form(4, 11, 2, 4, 8),
            Form(6, 6, 3, 16, 0),
            Form(5, 4, 2, 32, 8),
            Form(6, 5, 5, 32, 32),
            Form(4, 7, 1, 16, 16),
        ]
    ),
    shape=st.sampled_from([(24, 10), (7, 33), (6, 6)]),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
)
def test_what_a_form_says_is_what_is_stored(form, shape, dtype):
    weight = _weight(1, *shape, dtype=dtype)
    fitted = weight.fitted(form)
    stored = _atoms(weight, fitted)
    assert stored.nbytes <= weight.bytes(form)
    if form.value_bits == 0:
        assert stored.nbytes == weight.bytes(form)
    found = stored.decode()
    assert found.shape == shape
    exact = relative_error(weight.metric, weight.numbers.astype(float), found, None)
    assert fitted.error == pytest.approx(exact, rel=5e-3, abs=1e-4)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    "form",
    [
        Form(3, 64, 1, 0, 8),
        Form(2, 16, 1, 0, 16),
        Form(16, 16, 8, 4, 0),
        Form(16, 16, 16, 3, 8),
        Form(16, 16, 8, 32, 0),
        Form(96, 20, 20, 16, 16),
        Form(8, 20, 2, 16, 16),
    ],
)
def test_what_is_expected_is_near_what_is_lost(known, form):
    weight = _weight(2, 96, 128, known=known)
    expected = np.sqrt(weight.estimate().error(form))
    assert weight.fitted(form).error == pytest.approx(expected, rel=0.25)


def test_no_whole_form_loses_less_than_expected():
    weight = _weight(3, 40, 30, known=True)
    form = Form(40, 6, 6, 8, 32)
    assert weight.fitted(form).error >= 0.98 * np.sqrt(weight.estimate().error(form))


@pytest.mark.parametrize("known", [False, True])
def test_groups_share_a_dictionary_and_count_by_their_inputs(known):
    """A dictionary of each group would lose next to nothing: they have four outputs each."""
    weight = _weight(9, 12, 4, 3, groups=3, known=known)
    if known:
        sizes = np.array([1, 30, 0.1])[:, None, None]
        metric = Activation(np.asarray(weight.metric.covariance) * sizes)
        weight = Weight(weight.numbers, metric, 3, weight.compute)
    for form in (Form(12, 4, 4, 32, 32), Form(12, 6, 3, 8, 32), Form(3, 16, 1, 0, 8)):
        fitted = weight.fitted(form)
        made = _atoms(weight, fitted).decode()
        exact = relative_error(weight.metric, weight.numbers.astype(float), made, 3)
        assert fitted.error == pytest.approx(exact, rel=0.02)
        if form.tile == 12:
            assert np.sqrt(weight.estimate().error(form)) == pytest.approx(exact, rel=0.3)


def test_groups_of_inputs_that_correlate_alike_are_expected_to_lose_what_they_do():
    rng = np.random.default_rng(12)
    x = rng.standard_normal((300, 12)) @ (rng.standard_normal((12, 12)) * np.geomspace(0.1, 9, 12))
    covariance = x.T @ x / 300 * np.array([1, 5, 0.2])[:, None, None]
    numbers = rng.standard_normal((30, 4, 3)).astype(np.float32)
    weight = Weight(numbers, Activation(covariance), 3, np.dtype(np.float32))
    form = Form(12, 4, 4, 32, 32)
    assert np.sqrt(weight.estimate().error(form)) == pytest.approx(weight.fitted(form).error, 1e-3)


def test_floats_leave_scales_at_the_size_of_outputs():
    weight = _weight(11, 24, 10, known=True)
    sizes = np.sqrt(np.square(weight.numbers.astype(float)).mean(axis=0))
    for form in (Form(24, 3, 3, 32, 32), Form(4, 4, 2, 16, 8)):
        assert np.allclose(weight.fitted(form).scales, sizes, rtol=1e-6)


def test_floats_are_offered_if_they_are_asked_for():
    weight = _weight(10, 64, 96)
    limit = 6 * weight.numbers.size / 8
    assert not any(form.takes_floats for form in candidates(weight, limit, Asked()))
    for bits in (16, 32):
        forms = candidates(weight, limit, Asked(value_bits=bits))
        assert {form.value_bits for form in forms} == {bits}
        assert {form.dictionary_bits for form in forms} == {0, bits}
        assert any(form.is_dense and form.tile == 64 for form in forms)
        own = candidates(weight, limit, Asked(value_bits=bits, dictionary_bits=8))
        assert {form.dictionary_bits for form in own} == {8}


def test_what_is_asked_of_a_form_is_heeded():
    weight = _weight(4, 64, 64)
    limit = 4 * weight.numbers.size / 8
    for asked in (Asked(tile=2), Asked(nonzeros=2), Asked(value_bits=4), Asked(dictionary_bits=0)):
        forms = candidates(weight, limit, asked)
        assert forms
        assert all(asked.allows(form) for form in forms)


def test_the_search_takes_low_rank_where_that_is_all_there_is():
    rng = np.random.default_rng(5)
    numbers = (rng.standard_normal((96, 3)) @ rng.standard_normal((3, 96))).astype(np.float32)
    weight = Weight(numbers, Frobenius(), None, np.dtype(np.float32))
    found = search(weight, candidates(weight, 2 * numbers.size / 8, Asked()))
    assert found.form.tile == 96
    assert found.error < 0.05


def test_the_search_takes_clusters_where_numbers_are_alike():
    weight = _weight(6, 96, 128)
    forms = candidates(weight, 3 * weight.numbers.size / 8, Asked())
    (best, expected), *_ = promising(weight, forms)
    assert (best.nonzeros, best.value_bits) == (1, 0)
    estimate = weight.estimate()
    assert expected <= 1.01 * min(estimate.error(form) for form in forms)
    assert search(weight, forms).error == pytest.approx(np.sqrt(expected), rel=0.1)


def test_one_huge_number_does_not_cost_the_others():
    weight = _weight(7, 96, 64, known=True)
    numbers = weight.numbers.copy()
    numbers[40, 11] = 200
    huge = Weight(numbers, weight.metric, None, weight.compute)
    form = Form(2, 64, 1, 0, 16)
    ordinary = _atoms(weight, weight.fitted(form)).decode() - weight.numbers
    wrong = _atoms(huge, huge.fitted(form)).decode() - numbers
    others = np.arange(64) != 11
    assert np.linalg.norm(wrong[:, others]) < 1.5 * np.linalg.norm(ordinary[:, others])
    assert abs(wrong[40, 11]) < 2


def test_sparse_sums_of_whole_columns_are_expected_to_lose_more_than_dense_ones():
    weight = _weight(8, 40, 30, known=True)
    estimate = weight.estimate()
    dense, sparse = (estimate.error(Form(40, 8, entries, 8, 32)) for entries in (8, 3))
    values = np.linalg.svd(
        np.linalg.cholesky(np.asarray(weight.metric.covariance)[0]).T @ weight.numbers,
        compute_uv=False,
    )
    tail = np.sum(values[8:] ** 2) / np.sum(values**2)
    assert estimate.error(Form(40, 8, 8, 32, 32)) == pytest.approx(tail, rel=1e-6)
    assert tail < dense < 1.001 * tail  # eight bits are next to no grid
    assert sparse > 1.05 * dense
    assert estimate.error(Form(40, 8, 3, 8, 32), enough=dense / 2) == pytest.approx(tail, rel=1e-6)
    assert weight.fitted(Form(40, 8, 3, 8, 32)).error == pytest.approx(np.sqrt(sparse), rel=0.1)


def test_few_bits_of_coefficients_are_expected_to_cost_what_they_do():
    generator = np.random.default_rng(9)
    factors = [generator.standard_normal(shape) for shape in ((48, 24), (24, 60))]
    spread = np.geomspace(1, 0.02, 24)
    numbers = ((factors[0] * spread) @ factors[1]).astype(np.float32)
    weight = Weight(numbers, Frobenius(), None, np.dtype(np.float32))
    form = Form(48, 24, 24, 4, 8)
    expected = np.sqrt(weight.estimate().error(form))
    assert expected > 0.03  # without the grid nothing would be lost
    assert weight.fitted(form).error == pytest.approx(expected, rel=0.5)
