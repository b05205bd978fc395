"""Tensor trains: against trains by hand, bounds of an own sweep of SVDs, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import onnxlr
from onnxlr.errors import UsageError
from onnxlr.methods import METHODS, Ordered, Setting
from onnxlr.methods.tensors.orders import TrainOptions
from onnxlr.metrics import Frobenius, relative_error
from onnxlr.plan import Choice
from onnxlr.stages import Convolution
from tests.onelayer import distance, model_of, rewritten, run
from tests.trains import (
    check_applied,
    cores,
    count_folds,
    covariance,
    drawn,
    kernel_of,
    metrics_of,
    product,
    taken,
    unpaired,
)

TRAIN = METHODS["tensor_train"]
modes = st.lists(st.integers(1, 4), min_size=2, max_size=3)


def _matrix(seed, inputs, outputs, ranks):
    """Return a matrix that is a train of pairs of modes."""
    pairs = [a * b for a, b in zip(inputs, outputs, strict=True)]
    return unpaired(product(cores(seed, pairs, (1, *ranks, 1))), inputs, outputs)


def _text(*sides):
    return ",".join("x".join(map(str, side)) for side in sides)


@pytest.mark.parametrize("order", [None, "forward", "backward"])
def test_matrices_of_known_ranks_are_recovered(order):
    inputs, outputs, ranks = (4, 3, 5), (3, 6, 4), (5, 7)
    weight = _matrix(0, inputs, outputs, ranks)
    chain = onnxlr.decompose(
        weight, "tensor_train", rank=ranks, modes=_text(inputs, outputs), order=order
    )
    assert distance(chain.reconstruct(), weight) < 1e-12
    assert chain.ranks == ranks
    assert chain.cost.parameters == 12 * 5 + 5 * 18 * 7 + 7 * 20
    assert [stage.stage.shape for stage in chain.stages] == (
        [(5, 7 * 4), (3 * 7, 6 * 5), (4 * 5, 3)]
        if order == "backward"
        else [(4, 3 * 5), (5 * 3, 6 * 7), (7 * 5, 4)]
    )
    check_applied(chain, weight, None)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("window", [(3,), (3, 2), (5, 1), (3, 2, 3)])
def test_kernels_of_known_ranks_are_recovered(window, groups):
    wide = [size for size in window if size > 1]
    ranks = (3, 4, 5, 4)[: len(wide) + 1]
    parts = [
        kernel_of(product(cores(g, (6, *wide, 7), (1, *ranks, 1))), 6, 7, window)
        for g in range(groups)
    ]
    kernel = np.concatenate(parts)
    chain = onnxlr.decompose(kernel, "tensor_train", rank=ranks, groups=groups)
    assert distance(chain.reconstruct(), kernel) < 1e-12
    sizes = zip((1, *ranks), (6, *wide, 7), (*ranks, 1), strict=True)
    assert chain.cost.parameters == groups * sum(a * n * b for a, n, b in sizes)
    assert all(isinstance(stage, Convolution) for stage in chain.stages)
    assert len(chain.stages) == 2 + len(wide)
    check_applied(chain, kernel, groups)


def _cut(tensor, ranks):
    """Return the energy that each unfolding loses at a rank."""
    lost = []
    for position, rank in enumerate(ranks, 1):
        rows = int(np.prod(tensor.shape[:position]))
        values = np.linalg.svd(tensor.reshape(rows, -1), compute_uv=False)
        lost.append(float(np.sum(values[rank:] ** 2)))
    return lost


def _swept(tensor, ranks):
    """Return the squared error of an own sweep of SVDs from the first axis on."""
    rest, left, basis = tensor, 1, np.ones((1, 1))
    for position, rank in enumerate(ranks):
        u, s, vt = np.linalg.svd(rest.reshape(left * tensor.shape[position], -1), False)
        basis = np.kron(basis, np.eye(tensor.shape[position])) @ u[:, :rank]
        rest, left = s[:rank, None] * vt[:rank], rank
    return float(np.sum((basis @ rest - tensor.reshape(len(basis), -1)) ** 2))


@settings(deadline=None, max_examples=30)
@given(data=st.data(), seed=st.integers(0, 99))
def test_the_error_is_within_the_bounds_of_what_is_cut_off(data, seed):
    shape = (5, 4, 3, 6)
    first, last = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    least = max(-(-first // 4), -(-last // 3))
    ranks = (first, data.draw(st.integers(least, min(4 * first, 3 * last))), last)
    tensor = drawn(seed, *shape)
    kernel = kernel_of(tensor, 5, 6, (4, 3))
    chain = onnxlr.decompose(kernel, "tensor_train", rank=ranks, groups=1)
    error = float(np.sum((chain.reconstruct() - kernel) ** 2))
    lost, slack = _cut(tensor, ranks), 1e-9 * float(np.sum(tensor**2))
    assert max(lost) - slack <= error <= sum(lost) + slack
    # The sweep of SVDs is the start; alternating least squares behind it only lower the error.
    assert error <= _swept(tensor, ranks) + slack


def test_what_is_built_from_singular_values_is_best_for_one_bond():
    weight = drawn(3, 24, 30)
    chain = onnxlr.decompose(weight, "tensor_train", rank=6, modes="4x6,5x6")
    pairs = weight.reshape(4, 6, 5, 6).transpose(0, 2, 1, 3).reshape(20, 36)
    best = np.sqrt(_cut(pairs, (6,))[0])
    assert np.linalg.norm(chain.reconstruct() - weight) == pytest.approx(best)


@settings(deadline=None, max_examples=30)
@given(inputs=modes, outputs=modes, rank=st.integers(1, 9), seed=st.integers(0, 99))
def test_both_orders_of_a_matrix_are_one_weight(inputs, outputs, rank, seed):
    weight = drawn(seed, int(np.prod(inputs)), int(np.prod(outputs)))
    first, last = (
        onnxlr.decompose(
            weight, "tensor_train", rank=rank, modes=_text(inputs, outputs), order=order
        )
        for order in ("forward", "backward")
    )
    assert np.allclose(first.reconstruct(), last.reconstruct(), atol=1e-12)
    assert first.cost.parameters == last.cost.parameters
    assert count_folds(first) == count_folds(last) == 0
    for chain in (first, last):
        check_applied(chain, weight, None)


@settings(deadline=None, max_examples=25)
@given(
    inputs=modes,
    outputs=modes,
    window=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    groups=st.integers(1, 3),
    rank=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_the_steps_of_a_convolution_are_what_they_reconstruct(
    inputs, outputs, window, groups, rank, seed
):
    inputs, outputs = [2, *inputs], [*outputs, 2]
    shape = (groups * int(np.prod(outputs)), int(np.prod(inputs)), *window)
    kernel = drawn(seed, *shape)
    chain = onnxlr.decompose(
        kernel, "tensor_train", rank=rank, modes=_text(inputs, outputs), groups=groups
    )
    check_applied(chain, kernel, groups, seed)
    wide = sum(size > 1 for size in window)
    assert len(chain.ranks) == len(inputs) + wide + len(outputs) - 1
    if groups == 1:
        assert count_folds(chain) == 0


def test_a_window_that_has_to_stay_whole_is_in_one_step():
    kernel = drawn(5, 6, 5, 3, 1, 2)
    setting = replace(Setting.for_array(kernel, groups=1), whole_window=True)
    chain = TRAIN.factorize(kernel, TrainOptions(rank="4x5"), setting)
    assert [stage.window for stage in chain.stages] == [(), (0, 1, 2), ()]
    check_applied(chain, kernel, 1)
    apart = TRAIN.factorize(kernel, TrainOptions(rank="4x5x5"), Setting.for_array(kernel, groups=1))
    assert [stage.window for stage in apart.stages] == [(), (0, 1), (2,), ()]


def test_sides_of_unequal_numbers_of_modes():
    weight = drawn(6, 24, 7)
    chain = onnxlr.decompose(weight, "tensor_train", rank="2x4", modes="2x3x4,7")
    assert [stage.shape for stage in chain.stages] == [(24, 24), (24, 16), (16, 7)]
    check_applied(chain, weight, None)
    other = onnxlr.decompose(weight.T, "tensor_train", rank="2x4", modes="7,2x3x4")
    check_applied(other, weight.T, None)


@settings(deadline=None, max_examples=15)
@given(ratio=st.floats(0.2, 1.0), groups=st.integers(1, 2), seed=st.integers(0, 99))
def test_the_ratio_is_kept_and_nearly_used_up(ratio, groups, seed):
    kernel = drawn(seed, 10 * groups, 8, 3, 3)
    chain = onnxlr.decompose(kernel, "tensor_train", ratio=ratio, groups=groups)
    assert ratio - 0.15 < chain.cost.parameters / kernel.size <= ratio


@pytest.mark.parametrize("shape", [(10, 8, 3, 3), (24, 36)])
@pytest.mark.parametrize("limit", [0.6, 0.4, 0.3])
def test_the_error_asked_for_is_reached(shape, limit):
    weight = drawn(7, *shape) ** 3
    groups = None if len(shape) == 2 else 1
    chain = onnxlr.decompose(weight, "tensor_train", max_error=limit, groups=groups)
    assert 0.6 * limit < distance(chain.reconstruct(), weight) <= limit
    by_energy = onnxlr.decompose(weight, "tensor_train", energy=1 - limit**2, groups=groups)
    assert by_energy.ranks == chain.ranks


def test_bits_are_kept():
    weight = drawn(8, 48, 36).astype(np.float32)
    wide = onnxlr.decompose(weight, "tensor_train", bits=16)
    small = onnxlr.decompose(weight, "tensor_train", bits=16, format="int8")
    for chain in (wide, small):
        assert 10 * weight.size < 8 * chain.cost.bytes <= 16 * weight.size
    assert small.cost.parameters > 2 * wide.cost.parameters


@pytest.mark.parametrize("budget", [{"ratio": 0.6}, {"max_error": 0.3}, {"bits": 20}])
@pytest.mark.parametrize("shape", [(10, 8, 3, 3), (24, 36)])
def test_settled_options_give_the_very_same_numbers(budget, shape):
    weight = drawn(9, *shape).astype(np.float32)
    setting = Setting.for_array(weight, groups=1 if len(shape) > 2 else None)
    options = TrainOptions(**budget, order="backward")
    chain = TRAIN.factorize(weight, options, setting)
    settled = TRAIN.settle(options, chain)
    assert settled == TrainOptions(rank="x".join(map(str, chain.ranks)), order="backward")
    again = TRAIN.factorize(weight, settled, setting)
    assert np.array_equal(again.reconstruct(), chain.reconstruct())


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("shape", [(10, 6, 3, 3), (18, 20)])
def test_the_metric_is_what_is_minimised(number, shape):
    weight = drawn(12, *shape)
    groups = 1 if len(shape) > 2 else None
    metric = metrics_of(weight)[number]
    errors = []
    for used in (Frobenius(), metric):
        setting = Setting.for_array(weight, metric=used, groups=groups)
        chain = TRAIN.factorize(weight, TrainOptions(rank=5), setting)
        errors.append(relative_error(metric, weight, chain.reconstruct(), groups))
    assert errors[1] < 0.99 * errors[0]


def test_each_group_has_its_own_covariance():
    kernel = drawn(13, 8, 3, 3, 3)
    known = covariance(14, 27, parts=2)
    plain, aware = (
        onnxlr.decompose(kernel, "tensor_train", rank=2, groups=2, covariance=given)
        for given in (None, known)
    )
    for g in range(2):
        errors = []
        for chain in (plain, aware):
            gap = (chain.reconstruct() - kernel)[4 * g : 4 * g + 4].reshape(4, 27)
            errors.append(np.einsum("oi,ij,oj->", gap, known[g], gap))
        assert errors[1] < errors[0]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_float_types(dtype):
    weight = (1000 * drawn(15, 16, 18)).astype(dtype)
    exact = onnxlr.decompose(weight.astype(np.float64), "tensor_train", rank=6)
    chain = onnxlr.decompose(weight, "tensor_train", rank=6)
    assert chain.cost.bytes == np.dtype(dtype).itemsize * chain.cost.parameters
    limit = 50 * float(np.finfo(dtype).eps)
    assert distance(chain.reconstruct(), exact.reconstruct()) < limit


def test_weights_that_are_zero_or_constant():
    kernel = np.zeros((4, 3, 3, 3))
    assert not onnxlr.decompose(kernel, "tensor_train", rank=2, groups=1).reconstruct().any()
    ones = onnxlr.decompose(kernel + 1, "tensor_train", max_error=1e-6, groups=1)
    assert ones.ranks == (1, 1, 1)
    assert np.allclose(ones.reconstruct(), 1)


def test_there_are_two_orders_of_a_matrix_and_one_of_a_kernel():
    assert isinstance(TRAIN, Ordered)
    matrix, kernel = Setting.for_array(np.ones((4, 4))), Setting.for_array(np.ones(1), groups=1)
    options = TrainOptions(rank="3x4")
    orders = TRAIN.orders(options, matrix)
    assert [order.order for order in orders] == ["forward", "backward"]
    assert {replace(order, order=None) for order in orders} == {options}
    assert TRAIN.orders(options, kernel) == TRAIN.orders(orders[1], matrix) == ()


MATRIX, KERNEL = np.ones((12, 20)), np.ones((8, 6, 3, 3))
REFUSED = [
    (MATRIX, {"order": "inward"}, r"order 'inward' is unknown; did you mean 'forward'"),
    (MATRIX, {"modes": "3x4,5x5"}, r"modes 5x5 multiply to 25, but the weight has 20 outputs"),
    (MATRIX, {"modes": "12,20"}, r"one mode of 12 inputs and one of 20 outputs.*method svd"),
    (np.ones((7, 13)), {}, r"one mode of 7 inputs and one of 13 outputs"),
    (MATRIX, {"modes": "3x4,4x5", "rank": "13x2"}, r"rank 13x2 has 2 numbers, expected 1: bond 1"),
    (MATRIX, {"modes": "3x4,4x5", "rank": 13}, None),
    (KERNEL, {"rank": "7x3x3"}, r"rank 7 of bond 1 is above that of the weight's unfolding, 6"),
    (KERNEL, {"rank": "2x7x3"}, r"rank 7 of bond 2 is more than those beside it leave, 6"),
    (KERNEL, {"rank": "2x2x7"}, r"rank 7 of bond 3 is more than those beside it leave, 6"),
    (np.ones((8, 1, 3, 3)), {}, r"has one input channel: a tensor train decomposition"),
    (np.ones((1, 8, 3, 3)), {}, r"has one output channel"),
    (np.ones((8, 6, 1, 1)), {}, r"a 1×1 kernel has no window"),
    (np.ones((2, 8, 6)), {}, r"the weight is a stack of matrices"),
]


@pytest.mark.parametrize(("weight", "options", "message"), REFUSED)
def test_what_cannot_be_is_said_in_a_sentence(weight, options, message):
    groups = 1 if weight.ndim > 3 else None
    if message is None:
        assert onnxlr.decompose(weight, "tensor_train", groups=groups, **options).ranks == (12,)
        return
    with pytest.raises(UsageError, match=message):
        onnxlr.decompose(weight, "tensor_train", groups=groups, **options)


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_a_matrix_of_a_model(order):
    x, weight = drawn(1, 2, 5, 24).astype(np.float32), drawn(2, 24, 36).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = model_of([node], {"x": x}, ["y"], {"w": weight})
    modes = "4x3x2,4x3x3"
    options = TrainOptions(rank="5x6", modes=modes, order=order)
    changed, _ = rewritten(model, Choice("tensor_train", options))
    expected = x @ onnxlr.decompose(weight, "tensor_train", rank="5x6", modes=modes).reconstruct()
    assert distance(run(changed, {"x": x})[0], expected) < 1e-5


def test_a_convolution_of_a_model():
    x, weight = drawn(1, 2, 6, 9, 8).astype(np.float32), drawn(2, 8, 3, 3, 3).astype(np.float32)
    window = {"strides": [2, 1], "pads": [1, 0, 1, 2], "dilations": [1, 2]}
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, **window)
    model = model_of([node], {"x": x}, ["y"], {"w": weight})
    changed, reference = rewritten(model, Choice("tensor_train", TrainOptions(rank=3)))
    assert distance(run(changed, {"x": x})[0], run(reference, {"x": x})[0]) < 1e-5
    assert taken(onnxlr.decompose(weight, "tensor_train", rank=3, groups=2)) == [0, 1]
