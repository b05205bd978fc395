"""Semi-tensor trains: against products by hand, the plain train, and what is refused."""

from __future__ import annotations

from itertools import product as every

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import onnxlr
from onnxlr.errors import UsageError
from onnxlr.methods import METHODS, Setting
from onnxlr.methods.semi_tensor_train import SemiTrainOptions
from onnxlr.metrics import Frobenius, relative_error
from onnxlr.plan import Choice
from tests.onelayer import distance, model_of, rewritten, run
from tests.trains import check_applied, count_folds, drawn, kernel_of, metrics_of, unpaired

SEMI = METHODS["semi_tensor_train"]


def _semi(seed, sizes, ranks, t):
    """Return `G₁[i₁] ⋉ G₂[i₂] ⋉ …` for all indices, each product by numpy's Kronecker product.

    `A ⋉ B = A (B ⊗ I_t)`; the last core makes t numbers at once.
    """
    generator = np.random.default_rng([seed, *sizes, *ranks, t])
    first = generator.standard_normal((sizes[0], 1, ranks[0]))
    inner = [
        generator.standard_normal((size, left // t, right // t))
        for size, left, right in zip(sizes[1:-1], ranks, ranks[1:], strict=False)
    ]
    last = generator.standard_normal((sizes[-1] // t, ranks[-1] // t, 1))
    whole = np.zeros((*sizes[:-1], sizes[-1] // t, t))
    for index in every(*(range(size) for size in whole.shape[:-1])):
        row = first[index[0]]
        for core, place in zip([*inner, last], index[1:], strict=True):
            row = row @ np.kron(core[place], np.eye(t))
        whole[index] = row[0]
    return whole.reshape(sizes)


def _entries(sizes, ranks, t):
    inner = zip(ranks, sizes[1:-1], ranks[1:], strict=False)
    return (
        sizes[0] * ranks[0]
        + sum(left * size * right // t**2 for left, size, right in inner)
        + ranks[-1] * sizes[-1] // t**2
    )


@pytest.mark.parametrize("t", [1, 2, 3])
@pytest.mark.parametrize("order", [None, "backward"])
def test_matrices_of_known_structure_are_recovered(t, order):
    inputs, outputs, ranks = (3, 2, 4), (2, 3, 6), (2 * t, 3 * t)
    weight = unpaired(_semi(0, (6, 6, 24), ranks, t), inputs, outputs)
    chain = onnxlr.decompose(
        weight, "semi_tensor_train", rank=ranks, t=t, modes="3x2x4,2x3x6", order=order
    )
    assert distance(chain.reconstruct(), weight) < 1e-12
    assert chain.ranks == ranks
    assert chain.cost.parameters == _entries((6, 6, 24), ranks, t)
    assert count_folds(chain) == (t > 1)
    check_applied(chain, weight, None)


@pytest.mark.parametrize("t", [1, 2, 4])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("window", [(3,), (3, 2), (1, 3)])
def test_kernels_of_known_structure_are_recovered(window, groups, t):
    wide = [size for size in window if size > 1]
    sizes, ranks = (5, *wide, 8), (2 * t, 2 * t, 2 * t)[: len(wide) + 1]
    parts = [kernel_of(_semi(g, sizes, ranks, t), 5, 8, window) for g in range(groups)]
    kernel = np.concatenate(parts)
    chain = onnxlr.decompose(kernel, "semi_tensor_train", rank=ranks, t=t, groups=groups)
    assert distance(chain.reconstruct(), kernel) < 1e-12
    assert chain.cost.parameters == groups * _entries(sizes, ranks, t)
    assert count_folds(chain) == 0
    check_applied(chain, kernel, groups)


@pytest.mark.parametrize("shape", [(12, 8, 3, 3), (24, 36)])
@pytest.mark.parametrize("budget", [{"ratio": 0.5}, {"max_error": 0.5}])
def test_without_an_identity_it_is_the_plain_train(shape, budget):
    weight = drawn(1, *shape).astype(np.float32)
    groups = 2 if len(shape) > 2 else None
    semi = onnxlr.decompose(weight, "semi_tensor_train", t=1, groups=groups, **budget)
    plain = onnxlr.decompose(weight, "tensor_train", groups=groups, **budget)
    assert semi.ranks == plain.ranks
    assert len(semi.stages) == len(plain.stages)
    for one, other in zip(semi.stages, plain.stages, strict=True):
        inner, outer = getattr(one, "stage", one), getattr(other, "stage", other)
        assert inner.weight.codes.tobytes() == outer.weight.codes.tobytes()
        assert one.shape == other.shape


@settings(deadline=None, max_examples=25)
@given(
    inputs=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    outputs=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    window=st.lists(st.integers(1, 3), min_size=0, max_size=3),
    groups=st.integers(1, 3),
    t=st.integers(1, 3),
    rank=st.integers(1, 8),
    order=st.sampled_from([None, "backward"]),
    seed=st.integers(0, 99),
)
def test_the_steps_are_what_they_reconstruct(inputs, outputs, window, groups, t, rank, order, seed):
    inputs, outputs = [2, *inputs], [2, *outputs[:-1], t * outputs[-1]]
    sides = ",".join("x".join(map(str, side)) for side in (inputs, outputs))
    options = {"t": t, "rank": rank, "modes": sides, "order": order}
    if not window:
        weight = drawn(seed, int(np.prod(inputs)), int(np.prod(outputs)))
        check_applied(onnxlr.decompose(weight, "semi_tensor_train", **options), weight, None)
        return
    kernel = drawn(seed, groups * int(np.prod(outputs)), int(np.prod(inputs)), *window)
    chain = onnxlr.decompose(kernel, "semi_tensor_train", groups=groups, **options)
    check_applied(chain, kernel, groups, seed)


@settings(deadline=None, max_examples=10)
@given(ratio=st.floats(0.3, 1.0), t=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_ratio_is_kept_and_ranks_are_multiples(ratio, t, seed):
    kernel = drawn(seed, 12, 8, 3, 3)
    chain = onnxlr.decompose(kernel, "semi_tensor_train", ratio=ratio, t=t, groups=1)
    assert ratio - 0.25 < chain.cost.parameters / kernel.size <= ratio
    assert all(rank % t == 0 for rank in chain.ranks)


def test_one_rank_for_all_is_rounded_down_to_a_multiple():
    kernel = drawn(2, 12, 8, 3, 3)
    chain = onnxlr.decompose(kernel, "semi_tensor_train", rank=9, groups=1)
    assert chain.ranks == (8, 8, 8)


@pytest.mark.parametrize("shape", [(12, 8, 3, 3), (24, 36)])
def test_settled_options_give_the_very_same_numbers(shape):
    weight = drawn(9, *shape).astype(np.float16)
    setting = Setting.for_array(weight, groups=1 if len(shape) > 2 else None)
    options = SemiTrainOptions(max_error=0.5, t=2, order="backward")
    chain = SEMI.factorize(weight, options, setting)
    assert distance(chain.reconstruct(), weight) <= 0.5
    settled = SEMI.settle(options, chain)
    rank = "x".join(map(str, chain.ranks))
    assert settled == SemiTrainOptions(rank=rank, t=2, order="backward")
    again = SEMI.factorize(weight, settled, setting)
    assert np.array_equal(again.reconstruct(), chain.reconstruct())


@pytest.mark.parametrize("number", range(4))
def test_the_metric_is_what_is_minimised(number):
    weight = drawn(12, 18, 20)
    metric = metrics_of(weight)[number]
    errors = []
    for used in (Frobenius(), metric):
        setting = Setting.for_array(weight, metric=used)
        chain = SEMI.factorize(weight, SemiTrainOptions(rank=6), setting)
        errors.append(relative_error(metric, weight, chain.reconstruct(), None))
    assert errors[1] < errors[0]


def test_sizes_are_chosen_so_that_the_identity_divides_the_last():
    weight = drawn(13, 24, 27 * 4)
    chain = onnxlr.decompose(weight, "semi_tensor_train", ratio=0.5, t=4)
    check_applied(chain, weight, None)
    assert chain.stages[-1].dims[0] == 4


MATRIX, KERNEL = np.ones((12, 20)), np.ones((8, 6, 3, 3))
REFUSED = [
    (MATRIX, {"t": 0}, r"t 0 is not a whole number of at least 1"),
    (MATRIX, {"t": 2.0}, r"t 2.0 is not a whole number"),
    (MATRIX, {"modes": "3x4,4x5"}, r"t = 2 does not divide mode 5 of the outputs"),
    (MATRIX, {"t": 3}, r"t = 3 does not divide mode \d+ of the outputs: .* or another t"),
    (KERNEL, {"t": 3}, r"t = 3 does not divide mode 8 of the outputs"),
    (KERNEL, {"rank": "3x4x4"}, r"rank 3 of bond 1 is not a multiple of t = 2: take 2"),
    (KERNEL, {"rank": "26x4x4"}, r"rank 26 of bond 1 is above .* unfolding, 24: the largest"),
    (KERNEL, {"rank": "2x8x4"}, r"rank 8 of bond 2 is more than those beside it leave, 6"),
    (KERNEL, {"modes": "2x3,9"}, r"modes 9 multiply to 9, but the weight has 8 outputs"),
    (np.ones((1, 8, 3, 3)), {}, r"has one output channel: a semi-tensor train"),
    (np.ones((8, 6, 1, 1)), {}, r"a 1×1 kernel has no window"),
]


@pytest.mark.parametrize(("weight", "options", "message"), REFUSED)
def test_what_cannot_be_is_said_in_a_sentence(weight, options, message):
    groups = 1 if weight.ndim > 3 else None
    with pytest.raises(UsageError, match=message):
        onnxlr.decompose(weight, "semi_tensor_train", groups=groups, **options)


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_layers_of_models(order):
    x, weight = drawn(1, 2, 5, 24).astype(np.float32), drawn(2, 24, 36).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = model_of([node], {"x": x}, ["y"], {"w": weight})
    image, kernel = drawn(1, 2, 6, 9, 8).astype(np.float32), drawn(2, 8, 3, 3, 3).astype(np.float32)
    window = {"strides": [2, 1], "pads": [1, 0, 1, 2], "dilations": [1, 2]}
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, **window)
    other = model_of([node], {"x": image}, ["y"], {"w": kernel})
    for proto, data in ((model, x), (other, image)):
        options = SemiTrainOptions(rank=4, order=order)
        changed, reference = rewritten(proto, Choice("semi_tensor_train", options))
        assert distance(run(changed, {"x": data})[0], run(reference, {"x": data})[0]) < 1e-5
