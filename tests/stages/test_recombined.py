"""Stages made of atoms: dense stages of what plain loops add up, and what they cost by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxlr.numbers import Format
from onnxlr.stages import (
    Chain,
    Convolution,
    Cost,
    Linear,
    RecombinedConvolution,
    RecombinedLinear,
    recombined,
)
from tests.onelayer import distance
from tests.sums_of_atoms import forms, sums_of


@given(data=st.data(), inputs=st.integers(1, 20), outputs=st.integers(1, 6))
def test_a_matrix_is_its_sums(data, inputs, outputs):
    sums = sums_of((inputs, outputs), **data.draw(forms(inputs)))
    stage = recombined(sums.atoms, None, ())
    assert isinstance(stage, RecombinedLinear)
    assert stage.shape == (inputs, outputs)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, 3, inputs))
    assert distance(stage.dense(), sums.dense) < 1e-12
    assert distance(stage.apply(x), x @ sums.dense) < 1e-12
    before = generator.standard_normal((4, inputs))
    chain = Chain((Linear.of(before), stage))
    assert distance(chain.reconstruct(), before @ sums.dense) < 1e-12


def test_a_kernel_is_its_sums():
    sums = sums_of((6, 4, 3, 2), kernel=True, width=5, size=7, entries=2, bits=3)
    stage = recombined(sums.atoms, 2, (0, 1))
    assert isinstance(stage, RecombinedConvolution)
    dense = Convolution.of(sums.dense, 2, (0, 1))
    assert (stage.shape, stage.groups, stage.window) == (dense.shape, 2, (0, 1))
    x = np.random.default_rng(0).standard_normal((2, 8, 5, 6))
    assert distance(stage.apply(x), dense.apply(x)) < 1e-12
    first = np.random.default_rng(1).standard_normal((8, 3, 1, 1))
    assert distance(stage.after(first), dense.after(first)) < 1e-12


def test_numbers_are_those_stored_and_arithmetic_that_of_the_product():
    atoms = sums_of((64, 40), width=4, size=32, kind="int8").atoms
    assert recombined(atoms, None, ()).cost == Cost(
        128 + 640 + 40, 128 + 16 + 640 * 5 // 8 + 40 * 4, 2560, 2560
    )
    kernel = sums_of((8, 4, 3, 3), kernel=True, width=9, size=16, entries=None, bits=4).atoms
    stage = recombined(kernel, 1, (0, 1))
    assert stage.cost == Cost(stage.parameters, stage.nbytes, 288, 288)
    assert stage.parameters == 16 * 9 + np.count_nonzero(kernel.coefficients.values) + 8
    assert stage.format == Format("float32")


@pytest.mark.parametrize("each_run", [False, True])
def test_their_own_grids_are_kept(each_run):
    matrix = recombined(sums_of((6, 4)).atoms, None, (), each_run)
    kernel = recombined(sums_of((6, 4, 1), kernel=True).atoms, 1, (0,), each_run)
    for stage in (matrix, kernel):
        assert stage.encoded(Format("int8"), np.float32) is stage
        assert stage.each_run == each_run
    chain = Chain((matrix,)).encoded(Format("float16"))
    assert chain.stages == (matrix,)


@pytest.mark.parametrize("kernel", [False, True])
def test_matrices_are_no_kernels(kernel):
    atoms = sums_of((6, 4), kernel=kernel).atoms
    with pytest.raises(ValueError, match="kernels are for convolutions"):
        recombined(atoms, None if kernel else 1, ())
