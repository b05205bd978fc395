"""Steps along one mode, against Kronecker products and numpy's einsum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlr.numbers import Format
from onnxlr.stages import Chain, Convolution, Linear, ModeProduct, along

sizes = st.integers(1, 4)


def _normal(seed, *shape):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def _kron(before, matrix, behind):
    return np.kron(np.kron(np.eye(before), matrix), np.eye(behind))


@given(
    inputs=sizes,
    outputs=sizes,
    before=sizes,
    behind=sizes,
    seed=st.integers(0, 99),
    lead=st.lists(st.integers(1, 3), max_size=2),
)
def test_rows(inputs, outputs, before, behind, seed, lead):
    matrix = _normal(seed, inputs, outputs)
    mode, dense = ModeProduct(Linear.of(matrix), before, behind), _kron(before, matrix, behind)
    x = _normal(seed + 1, *lead, dense.shape[0])
    assert mode.shape == dense.shape
    np.testing.assert_allclose(mode.dense(), dense, atol=1e-12)
    np.testing.assert_allclose(mode.apply(x), x @ dense, atol=1e-12)
    first = _normal(seed + 2, 3, dense.shape[0])
    np.testing.assert_allclose(mode.after(first), first @ dense, atol=1e-12)
    chain = Chain((Linear.of(first), mode))
    np.testing.assert_allclose(chain.reconstruct(), first @ dense, atol=1e-12)


@settings(deadline=None)
@given(
    inputs=sizes,
    outputs=sizes,
    before=sizes,
    behind=sizes,
    axes=st.integers(1, 2),
    extent=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_channels(inputs, outputs, before, behind, axes, extent, seed):
    """A dense kernel's block for each channel of the other modes is the factor, or nothing."""
    kernel = _normal(seed, outputs, inputs, *[extent] * axes)
    mode = ModeProduct(Convolution.of(kernel, 1, tuple(range(axes))), before, behind)
    flat = kernel.reshape(outputs, inputs, -1)
    taps = [_kron(before, flat[..., tap], behind) for tap in range(flat.shape[2])]
    dense = np.stack(taps, -1).reshape(*taps[0].shape, *kernel.shape[2:])
    assert mode.shape == (before * inputs * behind, before * outputs * behind)
    np.testing.assert_allclose(mode.dense(), dense, atol=1e-12)
    x = _normal(seed + 1, 2, mode.shape[0], *[4] * axes)
    expected = Convolution.of(dense, 1, tuple(range(axes))).apply(x)
    np.testing.assert_allclose(mode.apply(x), expected, atol=1e-10)
    ones = [1] * axes
    first = _normal(seed + 2, mode.shape[0], 3, *ones)
    after = np.einsum("or...,ri...->oi...", dense, first)
    np.testing.assert_allclose(mode.after(first), after, atol=1e-10)


@pytest.mark.parametrize("behind", [1, 3])
def test_channels_in_groups(behind):
    kernel = _normal(0, 4, 3, 2)  # 2 groups of 3 inputs and 2 outputs
    mode = ModeProduct(Convolution.of(kernel, 2, (0,)), 1, behind)
    taps = [
        np.concatenate([np.kron(part[..., tap], np.eye(behind)) for part in np.split(kernel, 2)])
        for tap in range(2)
    ]
    dense = np.stack(taps, -1)
    assert (mode.shape, dense.shape) == ((6 * behind, 4 * behind), (4 * behind, 3 * behind, 2))
    np.testing.assert_allclose(mode.dense(), dense)
    x = _normal(1, 2, 6 * behind, 5)
    np.testing.assert_allclose(mode.apply(x), Convolution.of(dense, 2, (0,)).apply(x))


def test_groups_behind_another_mode_are_no_kernel_in_groups():
    mode = ModeProduct(Convolution.of(_normal(0, 4, 3, 2), 2, (0,)), before=2)
    with pytest.raises(ValueError, match="no convolution in groups"):
        mode.dense()
    x = _normal(1, 2, 12, 5)
    halves = [mode.stage.apply(half) for half in np.split(x, 2, axis=1)]
    np.testing.assert_allclose(mode.apply(x), np.concatenate(halves, axis=1))


def test_two_modes_are_a_kronecker_product():
    """`(A ⊗ I)(I ⊗ B) = A ⊗ B` (Van Loan 2000)."""
    a, b = _normal(0, 3, 4), _normal(1, 2, 5)
    chain = Chain((along(Linear.of(a), behind=2), along(Linear.of(b), before=4)))
    np.testing.assert_allclose(chain.reconstruct(), np.kron(a, b))


def test_the_matrix_of_many_inputs_needs_no_identity_of_their_size():
    column = _normal(0, 60_000, 1)  # an identity of 120 000 inputs would take 115 GB
    dense = ModeProduct(Linear.of(column), 1, 2).dense()
    assert dense.shape == (120_000, 2)
    np.testing.assert_array_equal(dense[::2, :1], column)
    np.testing.assert_array_equal(dense[1::2, 1:], column)
    assert not dense[::2, 1].any()
    assert not dense[1::2, 0].any()


def test_numbers_are_stored_once_and_multiplied_for_each_copy():
    matrix = Linear.of(_normal(0, 3, 4))
    mode = ModeProduct(matrix, 2, 5)
    assert mode.copies == 10
    assert (mode.parameters, mode.nbytes) == (12, 12 * 8)
    assert (mode.cost.parameters, mode.cost.bytes) == (12, 12 * 8)
    assert mode.cost.multiplications == 10 * matrix.cost.multiplications == 120
    assert mode.cost.additions == 10 * matrix.cost.additions


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_the_factor_is_encoded(kind):
    matrix = _normal(0, 6, 4)
    mode = ModeProduct(Linear.of(matrix), 2, 3).encoded(Format(kind), np.float32)
    factor = Linear.of(matrix).encoded(Format(kind), np.float32)
    assert (mode.before, mode.behind, mode.nbytes) == (2, 3, factor.nbytes)
    np.testing.assert_array_equal(mode.dense(), _kron(2, factor.dense(), 3))


def test_the_axes_and_the_window_are_the_factors():
    assert ModeProduct(Linear.of(_normal(0, 2, 2)), 2).axes is None
    assert ModeProduct(Linear.of(_normal(0, 2, 2)), 2).window == ()
    mode = ModeProduct(Convolution.of(_normal(0, 2, 2, 3, 1), 1, (0,)), 2)
    assert (mode.axes, mode.window) == (2, (0,))


def test_a_step_along_the_only_mode_is_the_bare_step():
    matrix = Linear.of(_normal(0, 2, 3))
    assert along(matrix) is matrix
    assert along(matrix, behind=2) == ModeProduct(matrix, 1, 2)


def test_a_stack_of_matrices_is_refused():
    with pytest.raises(ValueError, match="stack of matrices"):
        ModeProduct(Linear.of(_normal(0, 2, 3, 4)), 2)
