"""A factor for each input: alone, before and behind other steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxlr.numbers import Format
from onnxlr.stages import Chain, Convolution, Linear, Scale

sizes = st.integers(1, 6)


def _normal(seed, *shape):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


@given(inputs=sizes, rank=sizes, outputs=sizes, behind=st.booleans(), seed=st.integers(0, 99))
def test_rows(inputs, rank, outputs, behind, seed):
    left, right = _normal(seed, inputs, rank), _normal(seed + 1, rank, outputs)
    first, last = _normal(seed + 2, inputs), _normal(seed + 3, outputs)
    stages = [Scale(first), Linear.of(left), Linear.of(right)]
    dense = first[:, None] * (left @ right)
    if behind:
        stages, dense = [*stages, Scale(last)], dense * last
    chain, x = Chain(tuple(stages)), _normal(seed + 4, 3, inputs)
    np.testing.assert_allclose(chain.reconstruct(), dense)
    np.testing.assert_allclose(chain.apply(x), x @ dense, atol=1e-12)


@given(
    groups=st.integers(1, 3),
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
    axes=st.integers(1, 3),
    behind=st.booleans(),
    seed=st.integers(0, 99),
)
def test_channels(groups, inputs, outputs, axes, behind, seed):
    """A scaled convolution is the convolution of scaled data, in every group of channels."""
    kernel = _normal(seed, outputs * groups, inputs, *[2] * axes)
    before, after = _normal(seed + 1, inputs * groups), _normal(seed + 2, outputs * groups)
    convolution = Convolution.of(kernel, groups, tuple(range(axes)))
    x = _normal(seed + 3, 2, inputs * groups, *[3] * axes)
    ones = [1] * axes
    stages = [Scale(before, axes, groups), convolution]
    expected = convolution.apply(x * before.reshape(-1, *ones))
    if behind:
        stages.append(Scale(after, axes, groups))
        expected = expected * after.reshape(-1, *ones)
    chain = Chain(tuple(stages))
    np.testing.assert_allclose(chain.apply(x), expected, atol=1e-12)
    whole = Convolution.of(chain.reconstruct(), groups, tuple(range(axes)))
    assert chain.reconstruct().shape == kernel.shape
    np.testing.assert_allclose(whole.apply(x), expected, atol=1e-12)


@given(count=st.integers(1, 12), axes=st.integers(1, 2), data=st.data())
def test_the_kernel_of_factors_alone(count, axes, data):
    groups = data.draw(st.sampled_from([g for g in range(1, count + 1) if count % g == 0]))
    factors = _normal(0, count)
    kernel = Scale(factors, axes, groups).dense()
    assert kernel.shape == (count, count // groups, *[1] * axes)
    x = _normal(1, 2, count, *[3] * axes)
    found = Convolution.of(kernel, groups, tuple(range(axes))).apply(x)
    np.testing.assert_allclose(found, x * factors.reshape(-1, *[1] * axes))


def test_rows_of_factors_alone():
    factors = _normal(0, 4)
    np.testing.assert_array_equal(Scale(factors).dense(), np.diag(factors))


def test_cost():
    scale = Scale(np.ones(7, np.float32))
    assert (scale.shape, scale.parameters, scale.nbytes) == ((7, 7), 7, 28)
    assert (scale.cost.multiplications, scale.cost.additions) == (7, 0)


@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_factors_are_kept_in_the_models_type(kind):
    scale = Scale(_normal(0, 4), 2, 2).encoded(Format(kind), np.float32)
    assert scale.factors.dtype == np.float32
    assert (scale.axes, scale.groups) == (2, 2)


def test_stages_must_fit():
    with pytest.raises(ValueError, match="do not fit together"):
        Chain((Scale(np.ones(3)), Linear.of(np.ones((4, 2)))))
