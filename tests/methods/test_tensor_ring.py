"""Tensor rings: against rings by hand, tensorly's recursive SVDs, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper
from tensorly.decomposition import tensor_ring

import onnxlr
from onnxlr.errors import UsageError
from onnxlr.methods import METHODS, Setting
from onnxlr.methods.tensors import TensorOptions, ring_fitting
from onnxlr.methods.tensors.ring_fitting import fit_ring
from onnxlr.metrics import Frobenius, relative_error
from onnxlr.plan import Choice
from tests.onelayer import distance, model_of, rewritten, run
from tests.trains import check_applied, cores, count_folds, drawn, kernel_of, metrics_of, ring

FIXTURE = [HealthCheck.function_scoped_fixture]
RING = METHODS["tensor_ring"]


@pytest.fixture
def one_start(monkeypatch):
    """Let small tensors have one start only, as large ones do."""
    monkeypatch.setattr(ring_fitting, "_STARTS", 1)


def _ring(seed, sizes, ranks):
    return ring(cores(seed, sizes, (*ranks, ranks[0])))


def _text(*sides):
    return ",".join("x".join(map(str, side)) for side in sides)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ranks", [(2, 2, 2, 2), (3, 2, 4, 3), (1, 3, 2, 3), (3, 3, 3, 1)])
def test_kernels_of_known_ranks_are_recovered(ranks, seed):
    kernel = kernel_of(_ring(seed, (16, 3, 3, 12), ranks), 16, 12, (3, 3))
    chain = onnxlr.decompose(kernel, "tensor_ring", rank=ranks, groups=1)
    assert distance(chain.reconstruct(), kernel) < 1e-5
    pairs = zip(ranks, (16, 3, 3, 12), (*ranks[1:], ranks[0]), strict=True)
    assert chain.cost.parameters == sum(a * n * b for a, n, b in pairs)
    check_applied(chain, kernel, 1)


@pytest.mark.parametrize("seed", range(5))
def test_matrices_of_known_ranks_are_recovered(seed):
    weight = _ring(seed, (6, 4, 4, 8), (3, 4, 2, 3)).reshape(24, 32)
    chain = onnxlr.decompose(weight, "tensor_ring", rank="3x4x2x3", modes="6x4,4x8")
    assert distance(chain.reconstruct(), weight) < 1e-5
    assert chain.cost.parameters == 3 * 6 * 4 + 4 * 4 * 2 + 2 * 4 * 3 + 3 * 8 * 3
    # The closing index is moved behind the others, once.
    assert count_folds(chain) == 1
    check_applied(chain, weight, None)


def test_groups_have_rings_of_their_own():
    parts = [kernel_of(_ring(g, (7, 5, 6), (2, 3, 2)), 7, 6, (5,)) for g in range(2)]
    kernel = np.concatenate(parts)
    chain = onnxlr.decompose(kernel, "tensor_ring", rank="2x3x2", groups=2)
    assert distance(chain.reconstruct(), kernel) < 1e-5
    check_applied(chain, kernel, 2)


@pytest.mark.parametrize("shape", [(16, 3, 3, 12), (10, 9, 8), (9, 8, 9, 8)])
def test_the_fit_is_better_than_recursive_decompositions(shape):
    tensor = drawn(1, *shape)
    ranks = [3] * len(shape)
    # Its core k lies between the ranks k and k + 1.
    start = ring([np.asarray(core) for core in tensor_ring(tensor, [*ranks, 3])])
    found = ring(fit_ring(tensor, ranks, 0))
    assert distance(found, tensor) < 0.95 * distance(start, tensor)


@pytest.mark.usefixtures("one_start")
@settings(deadline=None, max_examples=20, suppress_health_check=FIXTURE)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=3, max_size=5),
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_every_shape_and_ranks_give_a_ring_no_worse_than_nothing(sizes, data, seed):
    ranks = [data.draw(st.integers(1, 6)) for _ in sizes]
    tensor = 1e-6 * drawn(seed, *sizes)
    found = fit_ring(tensor, ranks, seed)
    shapes = zip(ranks, sizes, [*ranks[1:], ranks[0]], strict=True)
    assert [core.shape for core in found] == list(shapes)
    assert distance(ring(found), tensor) < 1


def test_the_last_core_of_a_sweep_is_the_least_squares_solution_for_the_others():
    sizes, ranks = (5, 3, 4, 6), (2, 3, 2, 4)
    tensor = drawn(2, *sizes)
    tensor /= np.linalg.norm(tensor)
    swept, squared = ring_fitting._sweep(tensor, cores(3, sizes, (*ranks, 2)), 0.0)
    columns = [
        np.einsum("aib,bjc,ckd,da->ijk", *swept[:3], unit.reshape(4, 2)).reshape(-1)
        for unit in np.eye(8)
    ]
    best = np.linalg.lstsq(np.stack(columns, axis=1), tensor.reshape(60, 6), rcond=None)
    assert squared == pytest.approx(float(best[1].sum()), rel=1e-6)
    assert np.allclose(swept[3].swapaxes(1, 2).reshape(8, 6), best[0])


@pytest.mark.usefixtures("one_start")
@settings(deadline=None, max_examples=20, suppress_health_check=FIXTURE)
@given(
    inputs=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    outputs=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    window=st.lists(st.integers(1, 3), min_size=1, max_size=3).filter(lambda w: max(w) > 1),
    groups=st.integers(1, 3),
    rank=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_the_steps_of_a_convolution_are_what_they_reconstruct(
    inputs, outputs, window, groups, rank, seed
):
    shape = (groups * int(np.prod(outputs)), int(np.prod(inputs)), *window)
    kernel = drawn(seed, *shape)
    chain = onnxlr.decompose(
        kernel, "tensor_ring", rank=rank, modes=_text(inputs, outputs), groups=groups
    )
    check_applied(chain, kernel, groups, seed)
    if groups == 1:
        assert count_folds(chain) == (len(inputs) > 1 and max(chain.ranks) > 1)


@pytest.mark.usefixtures("one_start")
@settings(deadline=None, max_examples=20, suppress_health_check=FIXTURE)
@given(
    inputs=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    outputs=st.lists(st.integers(2, 4), min_size=2, max_size=3),
    rank=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_the_steps_of_a_matrix_are_what_they_reconstruct(inputs, outputs, rank, seed):
    weight = drawn(seed, int(np.prod(inputs)), int(np.prod(outputs)))
    for matrix, sides in ((weight, (inputs, outputs)), (weight.T, (outputs, inputs))):
        chain = onnxlr.decompose(matrix, "tensor_ring", rank=rank, modes=_text(*sides))
        check_applied(chain, matrix, None, seed)


def test_a_window_that_has_to_stay_whole_is_in_one_step():
    kernel = drawn(5, 6, 5, 3, 1, 2)
    setting = replace(Setting.for_array(kernel, groups=1), whole_window=True)
    chain = RING.factorize(kernel, TensorOptions(rank="2x3x3"), setting)
    assert [stage.window for stage in chain.stages] == [(), (0, 1, 2), ()]
    check_applied(chain, kernel, 1)


@pytest.mark.usefixtures("one_start")
@settings(deadline=None, max_examples=15, suppress_health_check=FIXTURE)
@given(ratio=st.floats(0.25, 1.0), groups=st.integers(1, 2), seed=st.integers(0, 99))
def test_the_ratio_is_kept_and_nearly_used_up(ratio, groups, seed):
    kernel = drawn(seed, 10 * groups, 8, 3, 3)
    chain = onnxlr.decompose(kernel, "tensor_ring", ratio=ratio, groups=groups)
    assert ratio - 0.15 < chain.cost.parameters / kernel.size <= ratio
    assert max(chain.ranks) - min(chain.ranks) <= 1


@pytest.mark.usefixtures("one_start")
@pytest.mark.parametrize("limit", [0.6, 0.35])
def test_the_error_asked_for_is_reached(limit):
    kernel = drawn(7, 10, 8, 3, 3)
    chain = onnxlr.decompose(kernel, "tensor_ring", max_error=limit, groups=1)
    assert 0.6 * limit < distance(chain.reconstruct(), kernel) <= limit


@pytest.mark.parametrize("budget", [{"ratio": 0.6}, {"max_error": 0.5}, {"bits": 20}])
@pytest.mark.parametrize("shape", [(10, 8, 3, 3), (24, 36)])
def test_settled_options_give_the_very_same_numbers(budget, shape):
    weight = drawn(9, *shape).astype(np.float32)
    setting = Setting.for_array(weight, groups=1 if len(shape) > 2 else None)
    options = TensorOptions(**budget)
    chain = RING.factorize(weight, options, setting)
    if "bits" in budget:
        assert 8 * chain.cost.bytes <= 20 * weight.size
    settled = RING.settle(options, chain)
    assert settled == TensorOptions(rank="x".join(map(str, chain.ranks)))
    again = RING.factorize(weight, settled, setting)
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
        chain = RING.factorize(weight, TensorOptions(rank=3), setting)
        errors.append(relative_error(metric, weight, chain.reconstruct(), groups))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_float_types(dtype):
    weight = (1000 * drawn(15, 16, 18)).astype(dtype)
    exact = onnxlr.decompose(weight.astype(np.float64), "tensor_ring", rank=3)
    chain = onnxlr.decompose(weight, "tensor_ring", rank=3)
    assert chain.cost.bytes == np.dtype(dtype).itemsize * chain.cost.parameters
    limit = 100 * float(np.finfo(dtype).eps)
    assert distance(chain.reconstruct(), exact.reconstruct()) < limit


def test_cores_do_not_grow_to_cancel_each_other(monkeypatch):
    tensor = drawn(16, 16, 3, 3, 16)
    norms, errors = [], []
    for ridge in (ring_fitting._RIDGE, 0.0):
        monkeypatch.setattr(ring_fitting, "_RIDGE", ridge)
        found = fit_ring(tensor, [5] * 4, 0)
        errors.append(distance(ring(found), tensor))
        norms.append(np.prod([np.linalg.norm(core) for core in found]) / np.linalg.norm(tensor))
    assert norms[0] < norms[1] / 3
    assert errors[0] < 1.02 * errors[1]


def test_large_ranks_are_fitted_by_conjugate_gradients(monkeypatch):
    tensor = drawn(17, 12, 3, 3, 10)
    exact = distance(ring(fit_ring(tensor, [4] * 4, 0)), tensor)
    monkeypatch.setattr(ring_fitting, "_LARGE", 8)
    other = distance(ring(fit_ring(tensor, [4] * 4, 0)), tensor)
    assert exact - 0.02 < other < exact + 0.1


def test_progress_is_told():
    told = []
    tensor = drawn(18, 6, 3, 7)
    fit_ring(tensor, [2] * 3, 0, lambda task, done, total: told.append((task, done, total)))
    assert told[0][:2] == ("fitting a ring", 0)
    assert all(0 <= done < total for _, done, total in told)


def test_weights_that_are_zero_or_constant():
    kernel = np.zeros((4, 3, 3, 3))
    assert not onnxlr.decompose(kernel, "tensor_ring", rank=2, groups=1).reconstruct().any()
    ones = onnxlr.decompose(kernel + 1, "tensor_ring", max_error=1e-4, groups=1)
    assert ones.ranks == (1, 1, 1, 1)
    assert np.allclose(ones.reconstruct(), 1, atol=1e-4)


MATRIX, KERNEL = np.ones((12, 20)), np.ones((8, 6, 3, 3))
REFUSED = [
    (MATRIX, {"modes": "3x4,5x5"}, r"modes 5x5 multiply to 25, but the weight has 20 outputs"),
    (MATRIX, {"modes": "12,20"}, r"one mode of 12 inputs and one of 20 outputs.*method svd"),
    (np.ones((7, 13)), {}, r"one mode of 7 inputs and one of 13 outputs"),
    (KERNEL, {"rank": "2x2x2"}, r"rank 2x2x2 has 3 numbers, expected 4: bond 0 \(at most"),
    (KERNEL, {"rank": "19x2x2x2"}, r"rank 19 of bond 0 is above that of the weight's unfolding"),
    (KERNEL, {"ratio": 0.01}, r"ratio 0.01 is less than the smallest form"),
    (np.ones((8, 1, 3, 3)), {}, r"has one input channel: a tensor ring decomposition"),
    (np.ones((8, 6, 1, 1)), {}, r"a 1×1 kernel has no window"),
    (np.ones((2, 8, 6)), {}, r"the weight is a stack of matrices"),
]


@pytest.mark.parametrize(("weight", "options", "message"), REFUSED)
def test_what_cannot_be_is_said_in_a_sentence(weight, options, message):
    groups = 1 if weight.ndim > 3 else None
    with pytest.raises(UsageError, match=message):
        onnxlr.decompose(weight, "tensor_ring", groups=groups, **options)


def test_layers_of_models():
    x, weight = drawn(1, 2, 5, 24).astype(np.float32), drawn(2, 24, 36).astype(np.float32)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": x}, ["y"], {"w": weight}
    )
    image, kernel = drawn(1, 2, 6, 9, 8).astype(np.float32), drawn(2, 8, 3, 3, 3).astype(np.float32)
    window = {"strides": [2, 1], "pads": [1, 0, 1, 2], "dilations": [1, 2]}
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, **window)
    other = model_of([node], {"x": image}, ["y"], {"w": kernel})
    for proto, data in ((model, x), (other, image)):
        choice = Choice("tensor_ring", TensorOptions(rank=3))
        changed, reference = rewritten(proto, choice)
        assert distance(run(changed, {"x": data})[0], run(reference, {"x": data})[0]) < 1e-5
