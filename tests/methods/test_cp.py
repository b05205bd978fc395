"""Sums of components: what they reach, beside tensorly, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import tensorly
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal
from tensorly.cp_tensor import cp_to_tensor
from tensorly.decomposition import parafac

import onnxlr
from onnxlr.errors import UsageError
from onnxlr.methods import METHODS, Setting
from onnxlr.methods.cp import CpOptions, CpStructure
from onnxlr.methods.tensors import Modes, Network
from onnxlr.methods.tensors.components import Components, fit_components, khatri_rao, spread
from onnxlr.metrics import Activation, Fisher, FisherRows, Frobenius, Kfac, relative_error
from tests.onelayer import distance, truncated

CP = METHODS["cp"]
sizes = st.integers(2, 6)


def _factors(seed, shape, rank):
    generator = np.random.default_rng([seed, rank, *shape])
    return [generator.standard_normal((size, rank)) for size in shape]


def _tensor(seed, shape, rank):
    """Return a tensor of known components, by tensorly."""
    return np.asarray(cp_to_tensor((np.ones(rank), _factors(seed, shape, rank))))


def _kernel(seed, outputs, inputs, window, rank, groups=1, separable=False):
    """Return a kernel of known components in each group."""
    extent = window if separable else (int(np.prod(window)),)
    parts = [_tensor(seed + g, (outputs, inputs, *extent), rank) for g in range(groups)]
    return np.concatenate(parts).reshape(groups * outputs, inputs, *window)


def _falling(seed, *shape):
    """Return a random kernel or matrix whose outputs and inputs fall off in size."""
    weight = np.random.default_rng([seed, *shape]).standard_normal(shape)
    scales = np.exp(-0.2 * np.arange(shape[0]))
    other = np.exp(-0.1 * np.arange(shape[1])).reshape(-1, *[1] * (len(shape) - 2))
    return weight * scales.reshape(-1, *[1] * (len(shape) - 1)) * other


def _covariance(seed, size, parts=None):
    generator = np.random.default_rng([seed, size])
    shape = (size, size) if parts is None else (parts, size, size)
    root = generator.standard_normal(shape) * np.exp(-0.1 * np.arange(size))
    return root @ np.swapaxes(root, -1, -2) / size


@pytest.mark.parametrize("tensor_shape", [(7, 9, 6), (5, 4, 3, 6), (8, 10)])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_tensors_of_a_known_number_of_components_are_recovered(tensor_shape, rank):
    tensor = _tensor(0, tensor_shape, rank)
    found = fit_components(tensor, len(tensor_shape) - 1, rank, 0)
    whole = np.asarray(cp_to_tensor((np.ones(rank), list(found.factors))))
    assert distance(whole, tensor) < 1e-6
    by_product = khatri_rao(found.factors).sum(axis=1).reshape(tensor_shape)
    assert distance(by_product, whole) < 1e-12


@settings(deadline=None, max_examples=25)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    rank=st.integers(1, 12),
    split=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_every_shape_and_rank_gives_finite_components_nearer_than_nothing(shape, rank, split, seed):
    tensor = np.random.default_rng([seed, *shape]).standard_normal(shape)
    found = fit_components(tensor, min(split, len(shape) - 1), rank, seed)
    whole = np.asarray(cp_to_tensor((np.ones(rank), list(found.factors))))
    assert [factor.shape for factor in found.factors] == [(size, rank) for size in shape]
    assert np.isfinite(whole).all()
    assert distance(whole, tensor) < 1
    if rank >= np.prod(shape) // max(shape):
        assert distance(whole, tensor) < 1e-5


def test_it_is_at_least_as_near_as_tensorly_from_its_own_starts():
    tensor = _falling(2, 12, 10, 9)
    for rank in (4, 8, 16):
        ours = fit_components(tensor, 2, rank, 0)
        own = distance(np.asarray(cp_to_tensor((np.ones(rank), list(ours.factors)))), tensor)
        theirs = []
        for start in ("svd", "random"):
            found = parafac(tensor, rank, n_iter_max=100, init=start, random_state=0)
            theirs.append(distance(np.asarray(cp_to_tensor(found)), tensor))
        assert own < 1.02 * min(theirs)


def test_a_matrix_of_two_modes_is_its_singular_value_decomposition():
    matrix = _falling(3, 11, 13)
    found = fit_components(matrix, 1, 4, 0)
    best = distance(truncated(matrix, 4), matrix)
    assert best <= distance(found.factors[0] @ found.factors[1].T, matrix) < 1.001 * best


def test_a_zero_tensor_has_zero_components():
    found = fit_components(np.zeros((3, 4, 5)), 2, 2, 0)
    assert not any(factor.any() for factor in found.factors)
    assert spread(found, 0.0) == 0


def test_components_of_one_norm_and_their_spread_by_hand():
    factors = (np.array([[3.0, 0], [4, 2]]), np.array([[0.0, 1], [2, 0]]))
    components = Components(factors)
    assert np.allclose(components.norms, [10, 2])
    assert spread(components, 2.0) == pytest.approx(np.sqrt(104) / 2)
    even = components.balanced().factors
    assert np.allclose([np.linalg.norm(f, axis=0) for f in even], np.sqrt([[10, 2], [10, 2]]))
    assert np.allclose(even[0] @ even[1].T, factors[0] @ factors[1].T)


def _border():
    """Return a tensor of rank 3 that is the limit of ones of rank 2 (de Silva and Lim 2008)."""
    a, b = np.eye(2)
    terms = [(a, a, b), (a, b, a), (b, a, a)]
    return sum(np.einsum("i,j,k->ijk", *term) for term in terms)


def test_components_that_would_grow_forever_are_held_back(monkeypatch):
    tensor = _border()
    held = fit_components(tensor, 2, 2, 0)
    assert spread(held, np.linalg.norm(tensor)) < 30
    whole = cp_to_tensor((np.ones(2), list(held.factors)))
    assert distance(np.asarray(whole), tensor) < 0.05
    base = "onnxlr.methods.tensors.components."
    monkeypatch.setattr(f"{base}_SETTLED", 0)
    monkeypatch.setattr(f"{base}_SWEEPS", 2000)
    grown = fit_components(tensor, 2, 2, 0)
    assert spread(grown, np.linalg.norm(tensor)) > 20
    monkeypatch.setattr(f"{base}_SPREAD_LIMIT", 10.0)
    pulled = fit_components(tensor, 2, 2, 0)
    assert spread(pulled, np.linalg.norm(tensor)) < 10


def test_components_that_cancel_each_other_are_refused():
    a, b = np.eye(2)
    step = 1e-3
    inputs, window, outputs = (
        np.stack([a + step * b, -a if last else a], axis=1) for last in (False, False, True)
    )
    structure = CpStructure(Modes((2,), (2,), (2,), 1))
    labels = ((0, 3), (1, 3), (2, 3))
    network = Network((inputs, window, outputs), labels, (0, 1, 2))
    with pytest.raises(UsageError, match=r"2 components of cp cancel each other"):
        structure.chain([network])


@settings(deadline=None, max_examples=20)
@given(
    outputs=sizes,
    inputs=sizes,
    window=st.lists(st.integers(1, 3), min_size=1, max_size=3).filter(lambda w: max(w) > 1),
    groups=st.integers(1, 3),
    rank=st.integers(1, 5),
    form=st.sampled_from(["joint", "separable"]),
    seed=st.integers(0, 99),
)
def test_the_steps_of_a_convolution_are_what_they_reconstruct(
    outputs, inputs, window, groups, rank, form, seed
):
    kernel = _falling(seed, groups * outputs, inputs, *window)
    chain = onnxlr.decompose(kernel, "cp", rank=rank, form=form, groups=groups)
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
    taken = sorted(axis for stage in chain.stages for axis in stage.window)
    assert taken == list(range(len(window)))
    wide = sum(size > 1 for size in window)
    assert len(chain.stages) == (2 + wide if form == "separable" else 3)
    extent = [size for size in window if size > 1]
    sides = sum(extent) if form == "separable" else int(np.prod(extent))
    assert chain.cost.parameters == groups * chain.ranks[0] * (inputs + outputs + sides)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("window", [(3,), (3, 3), (1, 5), (3, 2, 3)])
def test_kernels_of_known_components_are_recovered(window, separable, groups):
    kernel = _kernel(1, 8, 6, window, 3, groups, separable)
    form = "separable" if separable else None
    chain = onnxlr.decompose(kernel, "cp", rank=3, form=form, groups=groups)
    assert distance(chain.reconstruct(), kernel) < 1e-6


def test_the_stages_of_a_convolution():
    kernel = _falling(4, 8, 4, 3, 5)
    joint = onnxlr.decompose(kernel, "cp", rank=6, groups=2)
    assert [stage.weight.shape for stage in joint.stages] == [
        (12, 4, 1, 1),
        (12, 1, 3, 5),
        (8, 6, 1, 1),
    ]
    assert [stage.groups for stage in joint.stages] == [2, 12, 2]
    apart = onnxlr.decompose(kernel, "cp", rank=6, form="separable", groups=2)
    assert [stage.weight.shape for stage in apart.stages] == [
        (12, 4, 1, 1),
        (12, 1, 3, 1),
        (12, 1, 1, 5),
        (8, 6, 1, 1),
    ]


@settings(deadline=None, max_examples=20)
@given(
    inputs=st.sampled_from([4, 6, 7, 12, 15]),
    outputs=st.sampled_from([4, 5, 8, 18]),
    rank=st.integers(1, 9),
    modes=st.booleans(),
    seed=st.integers(0, 99),
)
def test_matrices_are_two_products_of_factors(inputs, outputs, rank, modes, seed):
    weight = np.random.default_rng(seed).standard_normal((inputs, outputs))
    given_modes = f"1x{inputs},{outputs}" if modes else None
    chain = onnxlr.decompose(weight, "cp", rank=rank, modes=given_modes)
    assert [stage.shape for stage in chain.stages] == [
        (inputs, chain.ranks[0]),
        (chain.ranks[0], outputs),
    ]
    x = np.random.default_rng(seed + 1).standard_normal((3, inputs))
    assert distance(chain.apply(x), x @ chain.reconstruct()) < 1e-9


def test_matrices_of_known_components_are_recovered():
    factors = _factors(5, (4, 6, 8, 3), 5)
    weight = np.asarray(cp_to_tensor((np.ones(5), factors))).reshape(24, 24)
    chain = onnxlr.decompose(weight, "cp", rank=5, modes="4x6,8x3")
    assert distance(chain.reconstruct(), weight) < 1e-6
    assert chain.cost.parameters == 5 * (4 + 6 + 8 + 3)
    assert chain.cost.bytes == 8 * chain.cost.parameters
    # Nearly equal sizes are found where none are given.
    assert onnxlr.decompose(weight, "cp", rank=5).cost.parameters == 5 * (6 + 4 + 6 + 4)


@settings(deadline=None, max_examples=15)
@given(ratio=st.floats(0.15, 1.0), groups=st.integers(1, 2), seed=st.integers(0, 99))
def test_the_ratio_is_kept_and_used_up(ratio, groups, seed):
    kernel = _falling(seed, 8 * groups, 7, 3, 3)
    chain = onnxlr.decompose(kernel, "cp", ratio=ratio, form="joint", groups=groups)
    one = groups * (8 + 7 + 9)
    achieved = chain.cost.parameters / kernel.size
    assert achieved <= ratio
    assert achieved + one / kernel.size > ratio or chain.ranks == (56,)


@pytest.mark.parametrize("limit", [0.5, 0.3, 0.15])
def test_the_error_asked_for_is_reached_with_few_components(limit):
    kernel = _falling(6, 10, 8, 3, 3)
    chain = onnxlr.decompose(kernel, "cp", max_error=limit, groups=1)
    assert distance(chain.reconstruct(), kernel) <= limit
    fewer = onnxlr.decompose(kernel, "cp", rank=chain.ranks[0] - 1, form=chain.form, groups=1)
    assert distance(fewer.reconstruct(), kernel) > limit
    by_energy = onnxlr.decompose(kernel, "cp", energy=1 - limit**2, groups=1)
    assert by_energy.ranks == chain.ranks


def test_bits_are_kept():
    kernel = _falling(7, 8, 8, 3, 3).astype(np.float32)
    chain = onnxlr.decompose(kernel, "cp", bits=16, groups=1)
    assert 8 * chain.cost.bytes <= 16 * kernel.size < 8 * (chain.cost.bytes + 4 * (8 + 8 + 9))
    small = onnxlr.decompose(kernel, "cp", bits=16, format="int8", groups=1)
    assert 8 * small.cost.bytes <= 16 * kernel.size
    assert small.ranks > chain.ranks


def test_the_better_form_is_taken():
    apart = _kernel(8, 8, 8, (5, 5), 4, separable=True)
    joint = _kernel(8, 8, 8, (5, 5), 3)
    chain = onnxlr.decompose(apart, "cp", max_error=1e-3, groups=1)
    assert (chain.form, chain.ranks) == ("separable", (4,))
    assert onnxlr.decompose(joint, "cp", max_error=1e-3, groups=1).form == "joint"
    size = 4 * (8 + 8 + 5 + 5) / apart.size
    assert onnxlr.decompose(apart, "cp", ratio=size, groups=1).form == "separable"
    assert onnxlr.decompose(apart, "cp", ratio=size, form="joint", groups=1).form == "joint"
    assert onnxlr.decompose(apart, "cp", rank=4, groups=1).form == "joint"


@pytest.mark.parametrize("budget", [{"ratio": 0.6}, {"max_error": 0.3}, {"bits": 20}])
@pytest.mark.parametrize("shape", [(10, 8, 5, 5), (12, 18)])
def test_settled_options_give_the_very_same_numbers(budget, shape):
    weight = _falling(9, *shape).astype(np.float32)
    setting = Setting.for_array(weight, groups=1 if len(shape) > 2 else None)
    options = CpOptions(**budget)
    chain = CP.factorize(weight, options, setting)
    settled = CP.settle(options, chain)
    assert isinstance(settled.rank, int)
    assert (settled.ratio, settled.bits, settled.max_error) == (None, None, None)
    assert settled.form == getattr(chain, "form", None)
    assert (settled.form is None) == (len(shape) == 2)
    again = CP.factorize(weight, settled, setting)
    assert np.array_equal(again.reconstruct(), chain.reconstruct())
    assert CP.settle(settled, again) == settled


def _metrics(kernel):
    patch = int(np.prod(kernel.shape[1:]))
    generator = np.random.default_rng(0)
    importance = generator.random(kernel.shape) * np.exp(-generator.random(kernel.shape[1:]) * 5)
    covariance = _covariance(10, patch)
    return [
        Activation(covariance),
        Kfac(covariance, _covariance(11, kernel.shape[0])),
        FisherRows(importance),
        Fisher(importance),
    ]


@pytest.mark.parametrize("number", range(4))
def test_the_metric_is_what_is_minimised(number):
    kernel = _falling(12, 10, 6, 3, 3)
    metric = _metrics(kernel)[number]
    options = CpOptions(rank=12)
    errors = []
    for used in (Frobenius(), metric):
        setting = Setting.for_array(kernel, metric=used, groups=1)
        chain = CP.factorize(kernel, options, setting)
        errors.append(relative_error(metric, kernel, chain.reconstruct(), 1))
    assert errors[1] < 0.95 * errors[0]


def test_each_group_has_its_own_covariance():
    kernel = _falling(13, 8, 3, 3, 3)
    covariance = _covariance(14, 27, parts=2)
    plain, aware = (
        onnxlr.decompose(kernel, "cp", rank=5, groups=2, covariance=known)
        for known in (None, covariance)
    )
    for g in range(2):
        errors = []
        for chain in (plain, aware):
            gap = (chain.reconstruct() - kernel)[4 * g : 4 * g + 4].reshape(4, 27)
            errors.append(np.einsum("oi,ij,oj->", gap, covariance[g], gap))
        assert errors[1] < errors[0]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(9, 8, 3, 3), (12, 16)])
def test_float_types(dtype, shape):
    weight = (1000 * _falling(15, *shape)).astype(dtype)
    groups = 1 if len(shape) > 2 else None
    exact = onnxlr.decompose(weight.astype(np.float64), "cp", rank=10, groups=groups)
    chain = onnxlr.decompose(weight, "cp", rank=10, groups=groups)
    kept = {
        part.codes.dtype.name
        for stage in chain.stages
        for part in (getattr(stage, "factors", None) or (stage.weight,))
    }
    assert kept == {dtype}
    assert chain.cost.bytes == np.dtype(dtype).itemsize * chain.cost.parameters
    limit = 50 * float(np.finfo(dtype).eps)
    assert distance(chain.reconstruct(), exact.reconstruct()) < limit


def test_kernels_can_be_kept_in_few_bits():
    kernel = _falling(16, 12, 10, 3, 3).astype(np.float32)
    plain = onnxlr.decompose(kernel, "cp", rank=20, groups=1)
    rounded = onnxlr.decompose(kernel, "cp", rank=20, format="int8", groups=1)
    assert rounded.cost.bytes < plain.cost.bytes / 2
    assert distance(rounded.reconstruct(), plain.reconstruct()) < 0.05


def test_progress_is_told():
    told = []

    def tell(task, done, total):
        told.append((task, done, total))

    kernel = _falling(17, 6, 5, 3, 3)
    structure = CpStructure(Modes((5,), (6,), (3, 3), 1), progress=tell)
    structure.decompose(kernel.reshape(6, 5, 9).transpose(1, 2, 0), (4,), 0)
    assert len(told) > 3
    assert told[0][:2] == ("fitting components", 0)
    assert all(done < total for _, done, total in told)


def test_weights_that_are_zero_or_constant():
    kernel = np.zeros((4, 3, 3, 3))
    assert not onnxlr.decompose(kernel, "cp", rank=2, groups=1).reconstruct().any()
    ones = onnxlr.decompose(kernel + 1, "cp", max_error=1e-4, groups=1)
    assert ones.ranks == (1,)
    assert np.allclose(ones.reconstruct(), 1)


KERNEL = np.ones((8, 6, 3, 3))
REFUSED = [
    (KERNEL, {"form": "full"}, r"form 'full' is unknown; expected one of auto, joint"),
    (KERNEL, {"rank": 55}, None),
    (KERNEL, {"rank": "4x5"}, r"rank 4x5 has 2 numbers, expected 1: components \(at most 48\)"),
    (KERNEL, {"modes": "2x3,8"}, r"modes 2x3,8 split the channels .* take tucker"),
    (KERNEL, {"modes": "6,9"}, r"modes 9 multiply to 9, but the weight has 8 outputs"),
    (KERNEL, {"ratio": 0.01}, r"ratio 0.01, separable is less than .* ranks of 1 have 0.0463 of"),
    (np.ones((8, 1, 3, 3)), {}, r"has one input channel: a CP decomposition"),
    (np.ones((1, 8, 3, 3)), {}, r"has one output channel: a CP decomposition"),
    (np.ones((8, 6, 1, 1)), {}, r"a 1×1 kernel has no window"),
]


@pytest.mark.parametrize(("weight", "options", "message"), REFUSED)
def test_what_a_convolution_refuses(weight, options, message):
    if message is None:  # more than makes the weight exact is what makes it exact
        assert onnxlr.decompose(weight, "cp", groups=1, **options).ranks == (48,)
        return
    with pytest.raises(UsageError, match=message):
        onnxlr.decompose(weight, "cp", groups=1, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "separable"}, r"form 'separable' is for convolutions, the weight is a matrix"),
        ({"format": "int8"}, r"cp of a matrix .* found format 'int8': leave it out"),
        ({"modes": "2x3,8"}, r"modes 2x3 multiply to 6, but the weight has 8 inputs"),
    ],
)
def test_what_a_matrix_refuses(options, message):
    with pytest.raises(UsageError, match=message):
        onnxlr.decompose(np.ones((8, 6)), "cp", **{"rank": 2, **options})
    with pytest.raises(UsageError, match=r"a stack of matrices of shape \(2, 8, 6\)"):
        onnxlr.decompose(np.ones((2, 8, 6)), "cp", rank=2)


def test_a_node_that_states_its_output_shape_takes_the_window_at_once():
    setting = Setting.for_array(KERNEL, groups=1)
    stating = Setting(setting.format, setting.compute, groups=1, whole_window=True)
    with pytest.raises(UsageError, match=r"states its output_shape.* only form joint can"):
        CP.factorize(KERNEL, CpOptions(rank=2, form="separable"), stating)
    wide = np.ones((8, 6, 7, 7))
    assert CP.factorize(wide, CpOptions(ratio=0.5), stating).form == "joint"
    line = np.ones((8, 6, 1, 7))  # the window has one axis: both forms are one
    assert len(CP.factorize(line, CpOptions(rank=1, form="separable"), stating).stages) == 3


def test_tensorly_is_the_one_compared_with():
    assert tensorly.get_backend() == "numpy"
