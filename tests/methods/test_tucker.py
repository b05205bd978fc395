"""Tucker decompositions: against HOSVD, bounds and tensorly's product, and what is refused."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal
from tensorly.tucker_tensor import tucker_to_tensor

import onnxlr
from onnxlr.errors import UsageError
from onnxlr.methods import METHODS, Setting
from onnxlr.methods.tucker import TuckerOptions
from onnxlr.metrics import Activation, Fisher, FisherRows, Frobenius, Kfac, relative_error
from onnxlr.stages import Convolution, Fold, Linear
from tests.onelayer import distance, truncated

TUCKER = METHODS["tucker"]
sizes = st.integers(2, 6)
seeds = st.integers(0, 99)


def _falling(seed, *shape):
    """Return a random weight whose outputs and inputs fall off in size."""
    weight = np.random.default_rng([seed, *shape]).standard_normal(shape)
    scales = np.exp(-0.3 * np.arange(shape[0])).reshape(-1, *[1] * (len(shape) - 1))
    return weight * scales * np.exp(-0.2 * np.arange(shape[1])).reshape(-1, *[1] * (len(shape) - 2))


def _of_ranks(seed, shape, ranks):
    """Return a tensor of given ranks, by tensorly."""
    generator = np.random.default_rng([seed, *shape])
    core = generator.standard_normal(ranks)
    factors = [generator.standard_normal(pair) for pair in zip(shape, ranks, strict=True)]
    return np.asarray(tucker_to_tensor((core, factors)))


def _covariance(seed, size, parts=None):
    generator = np.random.default_rng([seed, size])
    shape = (size, size) if parts is None else (parts, size, size)
    root = generator.standard_normal(shape) * np.exp(-0.1 * np.arange(size))
    return root @ np.swapaxes(root, -1, -2) / size


def _hosvd(tensor, ranks):
    """Return the truncated higher-order SVD of the axes given, by numpy alone."""
    result = tensor
    for axis, rank in ranks.items():
        unfolding = np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
        u = np.linalg.svd(unfolding, full_matrices=False)[0][:, :rank]
        result = np.moveaxis(np.tensordot(u @ u.T, result, (1, axis)), 0, axis)
    return result


def _cut(tensor, ranks):
    """Return the energy cut off from each unfolding: no error is below the largest."""
    found = []
    for axis, rank in ranks.items():
        unfolding = np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
        found.append(float(np.sum(np.linalg.svd(unfolding, compute_uv=False)[rank:] ** 2)))
    return found


@settings(deadline=None, max_examples=30)
@given(
    outputs=sizes,
    inputs=sizes,
    window=st.lists(st.integers(1, 3), min_size=1, max_size=3).filter(lambda w: max(w) > 1),
    ranks=st.tuples(sizes, sizes),
    seed=seeds,
)
def test_the_error_is_between_the_bounds_of_the_singular_values(
    outputs, inputs, window, ranks, seed
):
    kernel = _falling(seed, outputs, inputs, *window)
    first = min(ranks[0], inputs, outputs * prod(window))
    last = min(ranks[1], outputs, first * prod(window))
    used = min(first, last * prod(window)), last
    chain = onnxlr.decompose(kernel, "tucker", rank=used, groups=1)
    error = float(np.sum((chain.reconstruct() - kernel) ** 2))
    by_axis = {1: used[0], 0: used[1]}
    cut = _cut(kernel, by_axis)
    assert max(cut) - 1e-9 <= error <= sum(cut) + 1e-9
    start = float(np.sum((_hosvd(kernel, by_axis) - kernel) ** 2))
    assert error <= start * (1 + 1e-9) + 1e-9


@settings(deadline=None, max_examples=30)
@given(
    outputs=sizes,
    inputs=sizes,
    window=st.lists(st.integers(1, 3), min_size=1, max_size=3).filter(lambda w: max(w) > 1),
    groups=st.integers(1, 3),
    rank=sizes,
    form=st.sampled_from([None, "channels", "full"]),
    seed=seeds,
)
def test_the_steps_of_a_convolution_are_what_they_reconstruct(
    outputs, inputs, window, groups, rank, form, seed
):
    kernel = _falling(seed, groups * outputs, inputs, *window)
    chain = onnxlr.decompose(kernel, "tucker", rank=rank, form=form, groups=groups)
    dense = chain.reconstruct()
    assert dense.shape == kernel.shape
    x = np.random.default_rng(seed).standard_normal((2, groups * inputs, *(w + 2 for w in window)))
    expected = [
        [
            sum(
                signal.correlate(sample[g * inputs + i], dense[g * outputs + o, i], "valid")
                for i in range(inputs)
            )
            for g in range(groups)
            for o in range(outputs)
        ]
        for sample in x
    ]
    assert distance(chain.apply(x), np.asarray(expected)) < 1e-9
    moved = [axis for stage in chain.stages for axis in getattr(stage, "window", ())]
    assert sorted(moved) == list(range(len(window)))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("form", ["channels", "full"])
@pytest.mark.parametrize("window", [(3,), (3, 4), (3, 2, 3)])
def test_kernels_of_known_ranks_are_recovered(window, form, groups):
    inner = tuple(2 for _ in window) if form == "full" else window
    parts = [_of_ranks(seed, (7, 6, *window), (3, 4, *inner)) for seed in range(groups)]
    kernel = np.concatenate(parts)
    ranks = (4, *inner, 3) if form == "full" else (4, 3)
    chain = onnxlr.decompose(kernel, "tucker", rank=ranks, form=form, groups=groups)
    assert distance(chain.reconstruct(), kernel) < 1e-9
    assert chain.ranks == ranks
    # A factor of full rank is part of the core.
    core = 3 * 4 * prod(inner)
    factors = [(7, 3), (6, 4), *zip(window, inner, strict=True)]
    stored = sum(size * rank for size, rank in factors if rank < size)
    assert chain.cost.parameters == groups * (core + stored)


def test_the_stages_of_a_convolution():
    kernel = _falling(1, 12, 6, 3, 5)
    chain = onnxlr.decompose(kernel, "tucker", rank=(4, 3), groups=2)
    assert [stage.weight.shape for stage in chain.stages] == [
        (8, 6, 1, 1),
        (6, 4, 3, 5),
        (12, 3, 1, 1),
    ]
    assert [stage.groups for stage in chain.stages] == [2, 2, 2]
    assert [stage.window for stage in chain.stages] == [(), (0, 1), ()]


@pytest.mark.parametrize("form", ["channels", "full"])
@pytest.mark.parametrize("groups", [1, 2])
def test_full_ranks_are_exact(form, groups):
    kernel = _falling(2, 8, 5, 3, 3)
    ranks = (5, 3, 3, 8 // groups) if form == "full" else (5, 8 // groups)
    chain = onnxlr.decompose(kernel, "tucker", rank=ranks, form=form, groups=groups)
    assert distance(chain.reconstruct(), kernel) < 1e-12
    assert chain.cost.parameters == kernel.size
    assert len(chain.stages) == 1
    one_side = onnxlr.decompose(kernel, "tucker", rank=(3, 8 // groups), groups=groups)
    assert len(one_side.stages) == 2


@settings(deadline=None, max_examples=30)
@given(
    shape=st.tuples(st.sampled_from([4, 6, 7, 12]), st.sampled_from([4, 9, 10])),
    rank=st.integers(1, 6),
    seed=seeds,
)
def test_matrices_of_two_modes_a_side(shape, rank, seed):
    weight = _falling(seed, *shape)
    chain = onnxlr.decompose(weight, "tucker", rank=rank)
    x = np.random.default_rng(seed).standard_normal((3, shape[0]))
    assert distance(chain.apply(x), x @ chain.reconstruct()) < 1e-10
    assert chain.reconstruct().shape == shape
    assert len(chain.ranks) == (3 if shape[0] == 7 else 4)  # 7 has no factors


def test_a_matrix_of_one_mode_a_side_is_its_singular_value_decomposition():
    weight = _falling(3, 11, 13)
    chain = onnxlr.decompose(weight, "tucker", rank=4, modes="11,13")
    assert distance(chain.reconstruct(), truncated(weight, 4)) < 1e-6
    assert all(isinstance(stage, Linear) for stage in chain.stages)


def test_matrices_of_known_ranks_are_recovered():
    tensor = _of_ranks(4, (4, 6, 8, 3), (2, 3, 4, 2))
    weight = tensor.reshape(24, 24)
    chain = onnxlr.decompose(weight, "tucker", rank="2x3x4x2", modes="4x6,8x3")
    assert distance(chain.reconstruct(), weight) < 1e-9
    assert chain.cost.parameters == 2 * 3 * 4 * 2 + 4 * 2 + 6 * 3 + 8 * 4 + 3 * 2


@pytest.mark.parametrize("groups", [1, 2])
def test_channels_that_are_split(groups):
    parts = [_of_ranks(seed, (2, 3, 4, 2, 3, 3), (2, 2, 3, 2, 3, 3)) for seed in range(groups)]
    # (O1, O2, I1, I2, 3, 3): outputs first, as kernels have them
    kernel = np.concatenate([part.reshape(6, 8, 3, 3) for part in parts])
    chain = onnxlr.decompose(kernel, "tucker", rank="3x2x2x2", modes="4x2,2x3", groups=groups)
    assert distance(chain.reconstruct(), kernel) < 1e-9
    folds = [stage for stage in chain.stages if isinstance(stage, Fold)]
    assert bool(folds) == (groups > 1)
    x = np.random.default_rng(0).standard_normal((2, 8 * groups, 5, 6))
    whole = Convolution.of(kernel, groups, (0, 1)).apply(x)
    assert distance(chain.apply(x), whole) < 1e-9
    one = onnxlr.decompose(kernel[:, :, :1, :1], "tucker", rank=9, modes="4x2,2x3", groups=groups)
    assert distance(one.reconstruct(), kernel[:, :, :1, :1]) < 1e-9


@settings(deadline=None, max_examples=20)
@given(
    ratio=st.floats(0.15, 1.0),
    groups=st.integers(1, 2),
    form=st.sampled_from(["channels", "full"]),
    seed=seeds,
)
def test_the_ratio_is_kept(ratio, groups, form, seed):
    kernel = _falling(seed, 8 * groups, 7, 3, 3)
    chain = onnxlr.decompose(kernel, "tucker", ratio=ratio, form=form, groups=groups)
    assert chain.cost.parameters <= ratio * kernel.size
    if ratio >= 1:
        assert distance(chain.reconstruct(), kernel) < 1e-12


def test_most_of_the_ratio_is_used():
    kernel = _falling(5, 24, 20, 3, 3)
    for ratio in (0.2, 0.4, 0.6):
        chain = onnxlr.decompose(kernel, "tucker", ratio=ratio, groups=1)
        assert chain.cost.parameters > 0.93 * ratio * kernel.size


def test_more_numbers_are_nearer():
    kernel = _falling(6, 16, 12, 3, 3)
    errors = [
        distance(onnxlr.decompose(kernel, "tucker", ratio=r, groups=1).reconstruct(), kernel)
        for r in (0.1, 0.2, 0.4, 0.8)
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("limit", [0.5, 0.2, 0.1])
@pytest.mark.parametrize("shape", [(16, 12, 3, 3), (24, 20)])
def test_the_error_asked_for_is_reached(limit, shape):
    weight = _falling(7, *shape)
    groups = 1 if len(shape) > 2 else None
    chain = onnxlr.decompose(weight, "tucker", max_error=limit, groups=groups)
    assert distance(chain.reconstruct(), weight) <= limit
    assert chain.cost.parameters < weight.size
    by_energy = onnxlr.decompose(weight, "tucker", energy=1 - limit**2, groups=groups)
    assert by_energy.ranks == chain.ranks


@pytest.mark.parametrize("budget", [{"ratio": 0.4}, {"max_error": 0.2}, {"bits": 12}, {"rank": 3}])
@pytest.mark.parametrize("shape", [(10, 8, 3, 3), (12, 18)])
@pytest.mark.parametrize("form", [None, "full"])
def test_settled_options_give_the_very_same_numbers(budget, shape, form):
    weight = _falling(8, *shape).astype(np.float32)
    setting = Setting.for_array(weight, groups=1 if len(shape) > 2 else None)
    chain = TUCKER.factorize(weight, TuckerOptions(**budget, form=form), setting)
    settled = TUCKER.settle(TuckerOptions(**budget, form=form), chain)
    assert settled.ranks == chain.ranks
    again = TUCKER.factorize(weight, settled, setting)
    assert np.array_equal(again.reconstruct(), chain.reconstruct())
    assert TUCKER.settle(settled, again) == settled


@pytest.mark.parametrize("name", ["activation", "kfac", "fisher-rows", "fisher"])
@pytest.mark.parametrize("shape", [(10, 6, 3, 3), (54, 10)])
def test_the_metric_is_what_is_minimised(name, shape):
    weight = _falling(9, *shape)
    groups = 1 if len(shape) > 2 else None
    patch = prod(shape[1:]) if groups else shape[0]
    generator = np.random.default_rng(0)
    per_patch = np.exp(-5 * generator.random(shape[1:] if groups else (shape[0], 1)))
    importance = generator.random(shape) * per_patch
    covariance = _covariance(10, patch)
    metric = {
        "activation": Activation(covariance),
        "kfac": Kfac(covariance, _covariance(11, 10)),
        "fisher-rows": FisherRows(importance),
        "fisher": Fisher(importance),
    }[name]
    ranks = (4, 5) if groups else (4, 3, 3, 2)
    errors = []
    for used in (Frobenius(), metric):
        setting = Setting.for_array(weight, metric=used, groups=groups)
        chain = TUCKER.factorize(weight, TuckerOptions(rank=ranks), setting)
        errors.append(relative_error(metric, weight, chain.reconstruct(), groups))
    assert errors[1] < 0.97 * errors[0]


def test_each_group_has_its_own_covariance():
    kernel = _falling(12, 8, 3, 3, 3)
    covariance = _covariance(13, 27, parts=2)
    plain, aware = (
        onnxlr.decompose(kernel, "tucker", rank=2, groups=2, covariance=known)
        for known in (None, covariance)
    )
    for g in range(2):
        errors = []
        for chain in (plain, aware):
            gap = (chain.reconstruct() - kernel)[4 * g : 4 * g + 4].reshape(4, 27)
            errors.append(np.einsum("oi,ij,oj->", gap, covariance[g], gap))
        assert errors[1] < errors[0]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_float_types(dtype):
    kernel = (100 * _falling(14, 9, 8, 3, 3)).astype(dtype)
    exact = onnxlr.decompose(kernel.astype(np.float64), "tucker", rank=4, groups=1)
    chain = onnxlr.decompose(kernel, "tucker", rank=4, groups=1)
    assert {stage.weight.codes.dtype.name for stage in chain.stages} == {dtype}
    limit = 10 * float(np.finfo(dtype).eps)
    assert distance(chain.reconstruct(), exact.reconstruct()) < limit
    assert chain.cost.bytes == np.dtype(dtype).itemsize * chain.cost.parameters


def test_few_bits():
    kernel = _falling(15, 16, 12, 3, 3).astype(np.float32)
    plain = onnxlr.decompose(kernel, "tucker", rank=6, groups=1)
    rounded = onnxlr.decompose(kernel, "tucker", rank=6, format="int8", groups=1)
    assert rounded.cost.bytes < plain.cost.bytes / 2
    assert distance(rounded.reconstruct(), plain.reconstruct()) < 0.05


KERNEL = np.ones((8, 6, 3, 3))
AT_MOST = r"inputs \(at most 6\), outputs \(at most 8\)"


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (KERNEL, {"form": "joint"}, r"form 'joint' is unknown; expected one of channels, full"),
        (KERNEL, {"rank": "4x5x6"}, rf"rank 4x5x6 has 3 numbers, expected 2: {AT_MOST}"),
        (KERNEL, {"rank": "7x8"}, rf"rank 7 of inputs is above .*, 6: the largest are {AT_MOST}"),
        (KERNEL, {"rank": "6x9"}, r"rank 9 of outputs is above that of the weight's unfolding, 8"),
        (KERNEL, {"rank": "2x2", "form": "full"}, r"expected 4: .*, window \(at most 3\), window"),
        (KERNEL, {"rank": "2x4x3x2", "form": "full"}, r"rank 4 of window is above .*, 3"),
        (KERNEL, {"modes": "2x4,8", "rank": 2}, r"modes 2x4 multiply to 8, .* has 6 inputs"),
        (KERNEL, {"rank": "4x1x1x2", "form": "full"}, r"rank 4 of inputs is above 2, which is all"),
        (KERNEL, {"ratio": 0.01}, r"ratio 0.01 is less than .* 1x1 have 0.0532 of"),
        (np.ones((8, 1, 3, 3)), {"rank": 2}, r"has one input channel: a Tucker decomposition"),
        (np.ones((8, 6, 1, 1)), {"rank": 2}, r"a 1×1 kernel has no window"),
    ],
)
def test_what_a_convolution_refuses(weight, options, message):
    with pytest.raises(UsageError, match=message):
        onnxlr.decompose(weight, "tucker", groups=1, **options)


def test_what_else_is_refused():
    with pytest.raises(UsageError, match=r"a stack of matrices of shape \(2, 8, 6\)"):
        onnxlr.decompose(np.ones((2, 8, 6)), "tucker", rank=2)
    setting = Setting.for_array(KERNEL, groups=1)
    stating = Setting(setting.format, setting.compute, groups=1, whole_window=True)
    with pytest.raises(UsageError, match=r"states its output_shape.* only form channels can"):
        TUCKER.factorize(KERNEL, TuckerOptions(rank=2, form="full"), stating)
    table = Setting(setting.format, setting.compute, is_table=True)
    with pytest.raises(UsageError, match=r"a table of rows has no product to factorize"):
        TUCKER.factorize(np.ones((8, 6)), TuckerOptions(rank=2), table)


def test_no_error_at_all_is_the_weight_itself():
    kernel = _falling(16, 8, 6, 3, 3)
    chain = onnxlr.decompose(kernel, "tucker", max_error=0, groups=1)
    assert np.array_equal(chain.reconstruct(), kernel)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(4, 12), st.integers(4, 12)),
    rank=st.integers(1, 12),
    ratio=st.floats(0.6, 1),
    seed=seeds,
)
def test_no_rank_is_above_what_the_others_leave_to_it(shape, rank, ratio, seed):
    weight = np.random.default_rng(seed).standard_normal(shape)
    for options in ({"rank": rank}, {"ratio": ratio}):
        chain = onnxlr.decompose(weight, "tucker", **options)
        for position, own in enumerate(chain.ranks):
            assert own <= prod(chain.ranks) // own, position
        again = onnxlr.decompose(weight, "tucker", rank=chain.ranks)
        assert np.array_equal(again.reconstruct(), chain.reconstruct())


def test_weights_of_zeros():
    chain = onnxlr.decompose(np.zeros((8, 6, 3, 3)), "tucker", rank=2, groups=1)
    assert not chain.reconstruct().any()
