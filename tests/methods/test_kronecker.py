"""Sums of Kronecker products: against numpy's, Van Loan's optimum, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import onnxlr
from onnxlr.errors import UsageError
from onnxlr.methods import METHODS, Setting
from onnxlr.methods.tensors.orders import TrainOptions
from onnxlr.metrics import Frobenius, relative_error
from onnxlr.plan import Choice
from tests.onelayer import distance, model_of, rewritten, run
from tests.trains import check_applied, count_folds, drawn, metrics_of

KRONECKER = METHODS["kronecker"]


def _terms(seed, count, a, b):
    generator = np.random.default_rng([seed, *a, *b])
    return [(generator.standard_normal(a), generator.standard_normal(b)) for _ in range(count)]


def _rearranged(weight, a, b):
    """Return the matrix whose rows are the blocks of a weight (Van Loan and Pitsianis 1993)."""
    rows = []
    for i in range(a[0]):
        for j in range(a[1]):
            block = weight[i * b[0] : (i + 1) * b[0], j * b[1] : (j + 1) * b[1]]
            rows.append(block.reshape(-1))
    return np.stack(rows)


@pytest.mark.parametrize("order", [None, "forward", "backward"])
def test_sums_of_products_of_matrices_are_recovered(order):
    weight = sum(np.kron(a, b) for a, b in _terms(0, 3, (4, 6), (5, 3)))
    chain = onnxlr.decompose(weight, "kronecker", rank=3, modes="4x5,6x3", order=order)
    assert distance(chain.reconstruct(), weight) < 1e-12
    assert chain.cost.parameters == 3 * (4 * 6 + 5 * 3)
    assert len(chain.stages) == 2
    check_applied(chain, weight, None)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("order", [None, "backward"])
@pytest.mark.parametrize("window", [(3,), (3, 2), (1, 3, 2)])
def test_sums_of_products_of_kernels_are_recovered(window, order, groups):
    parts = []
    for g in range(groups):
        kernel = np.zeros((12, 10, *window))
        for a, b in _terms(g, 2, (3, 2, *window), (4, 5)):
            for place in np.ndindex(*window):
                kernel[(..., *place)] += np.kron(a[(..., *place)], b)
        parts.append(kernel)
    kernel = np.concatenate(parts)
    chain = onnxlr.decompose(
        kernel, "kronecker", rank=2, modes="2x5,3x4", groups=groups, order=order
    )
    assert distance(chain.reconstruct(), kernel) < 1e-12
    assert chain.cost.parameters == groups * 2 * (6 * int(np.prod(window)) + 20)
    assert len(chain.stages) - count_folds(chain) == 2
    check_applied(chain, kernel, groups)


@settings(deadline=None, max_examples=20)
@given(
    a=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    b=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    rank=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_no_sum_of_as_many_products_is_nearer(a, b, rank, seed):
    weight = drawn(seed, a[0] * b[0], a[1] * b[1])
    sides = f"{a[0]}x{b[0]},{a[1]}x{b[1]}"
    chain = onnxlr.decompose(weight, "kronecker", rank=rank, modes=sides)
    values = np.linalg.svd(_rearranged(weight, a, b), compute_uv=False)
    best = np.sqrt(np.sum(values[rank:] ** 2))
    assert np.linalg.norm(chain.reconstruct() - weight) == pytest.approx(best, abs=1e-10)
    assert chain.ranks == (min(rank, len(values)),)


@settings(deadline=None, max_examples=20)
@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 4),
    window=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    groups=st.integers(1, 3),
    rank=st.integers(1, 9),
    order=st.sampled_from([None, "forward", "backward"]),
    seed=st.integers(0, 99),
)
def test_the_steps_of_a_convolution_are_what_they_reconstruct(
    sizes, window, groups, rank, order, seed
):
    i1, i2, o1, o2 = (sizes[0] + 1, sizes[1], sizes[2], sizes[3] + 1)
    kernel = drawn(seed, groups * o1 * o2, i1 * i2, *window)
    chain = onnxlr.decompose(
        kernel, "kronecker", rank=rank, modes=f"{i1}x{i2},{o1}x{o2}", groups=groups, order=order
    )
    check_applied(chain, kernel, groups, seed)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((384, 384), (384, 384)), ((64, 64, 3, 3), (144, 256)), ((384, 1536), (768, 768))],
)
def test_sizes_are_chosen_so_that_both_factors_are_about_as_large(shape, sizes):
    weight = np.zeros(shape, np.float32)
    chain = onnxlr.decompose(weight, "kronecker", rank=1, groups=1 if len(shape) > 2 else None)
    assert tuple(stage.parameters for stage in chain.stages) == sizes


@settings(deadline=None, max_examples=15)
@given(ratio=st.floats(0.1, 1.0), groups=st.integers(1, 2), seed=st.integers(0, 99))
def test_the_ratio_is_kept_and_used_up(ratio, groups, seed):
    kernel = drawn(seed, 12 * groups, 8, 3, 3)
    chain = onnxlr.decompose(kernel, "kronecker", ratio=ratio, groups=groups)
    one = chain.cost.parameters / chain.ranks[0] / kernel.size
    assert chain.cost.parameters / kernel.size <= ratio < (chain.ranks[0] + 1) * one + 1e-9


@pytest.mark.parametrize("limit", [0.5, 0.3])
@pytest.mark.parametrize("shape", [(12, 8, 3, 3), (24, 36)])
def test_the_error_asked_for_is_reached_with_few_terms(shape, limit):
    weight = drawn(7, *shape)
    groups = None if len(shape) == 2 else 1
    chain = onnxlr.decompose(weight, "kronecker", max_error=limit, groups=groups)
    assert distance(chain.reconstruct(), weight) <= limit
    fewer = onnxlr.decompose(weight, "kronecker", rank=chain.ranks[0] - 1, groups=groups)
    assert distance(fewer.reconstruct(), weight) > limit


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(12, 8, 3, 3), (24, 36)])
def test_settled_options_give_the_very_same_numbers(shape, dtype):
    weight = drawn(9, *shape).astype(dtype)
    setting = Setting.for_array(weight, groups=1 if len(shape) > 2 else None)
    limit = 6 * weight.itemsize
    options = TrainOptions(bits=limit)
    chain = KRONECKER.factorize(weight, options, setting)
    assert 0.8 * limit * weight.size < 8 * chain.cost.bytes <= limit * weight.size
    settled = KRONECKER.settle(options, chain)
    assert settled == TrainOptions(rank=chain.ranks[0])
    again = KRONECKER.factorize(weight, settled, setting)
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
        chain = KRONECKER.factorize(weight, TrainOptions(rank=3), setting)
        errors.append(relative_error(metric, weight, chain.reconstruct(), groups))
    assert errors[1] < errors[0]


def test_both_orders_are_measured_of_matrices_and_kernels():
    options = TrainOptions(rank=3)
    for groups in (None, 1):
        setting = Setting.for_array(np.ones(1), groups=groups)
        orders = KRONECKER.orders(options, setting)
        assert [order.order for order in orders] == ["forward", "backward"]


MATRIX, KERNEL = np.ones((12, 20)), np.ones((8, 6, 3, 3))
REFUSED = [
    (MATRIX, {"modes": "2x2x3,4x5"}, r"are 3 of the inputs and 2 of the outputs.*two of each.*\dx"),
    (MATRIX, {"modes": "12,20"}, r"are 1 of the inputs and 1 of the outputs"),
    (MATRIX, {"modes": "3x4,5x5"}, r"modes 5x5 multiply to 25, but the weight has 20 outputs"),
    (MATRIX, {"modes": "3x4,4x5", "rank": "2x2"}, r"rank 2x2 has 2 numbers, expected 1"),
    (MATRIX, {"order": "up"}, r"order 'up' is unknown; expected one of forward, backward"),
    (KERNEL, {"ratio": 0.01}, r"ratio 0.01.* is less than the smallest form"),
    (np.ones((8, 1, 3, 3)), {}, r"has one input channel: a Kronecker decomposition"),
    (np.ones((2, 8, 6)), {}, r"the weight is a stack of matrices"),
]


@pytest.mark.parametrize(("weight", "options", "message"), REFUSED)
def test_what_cannot_be_is_said_in_a_sentence(weight, options, message):
    groups = 1 if weight.ndim > 3 else None
    with pytest.raises(UsageError, match=message):
        onnxlr.decompose(weight, "kronecker", groups=groups, **options)


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_layers_of_models(order):
    x, weight = drawn(1, 2, 5, 24).astype(np.float32), drawn(2, 24, 36).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = model_of([node], {"x": x}, ["y"], {"w": weight})
    image, kernel = drawn(1, 2, 8, 9, 8).astype(np.float32), drawn(2, 8, 4, 3, 3).astype(np.float32)
    window = {"strides": [2, 1], "pads": [1, 0, 1, 2], "dilations": [1, 2]}
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, **window)
    other = model_of([node], {"x": image}, ["y"], {"w": kernel})
    for proto, data in ((model, x), (other, image)):
        options = TrainOptions(rank=2, order=order)
        changed, reference = rewritten(proto, Choice("kronecker", options))
        assert distance(run(changed, {"x": data})[0], run(reference, {"x": data})[0]) < 1e-5
