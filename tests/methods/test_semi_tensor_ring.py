"""Semi-tensor rings: against Kronecker products by hand, the plain ring, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

import onnxlr
from onnxlr.errors import UsageError
from onnxlr.methods import METHODS, Setting
from onnxlr.methods.tensors import ring_fitting
from onnxlr.methods.tensors.blocks import SemiOptions
from onnxlr.metrics import Frobenius, relative_error
from onnxlr.plan import Choice
from tests.onelayer import distance, model_of, rewritten, run
from tests.trains import check_applied, count_folds, drawn, kernel_of, metrics_of, ring

SEMI = METHODS["semi_tensor_ring"]
FIXTURE = [HealthCheck.function_scoped_fixture]


@pytest.fixture
def one_start(monkeypatch):
    """Let small tensors have one start only, as large ones do."""
    monkeypatch.setattr(ring_fitting, "_STARTS", 1)


def _semi(seed, sizes, ranks, identities):
    """Return the ring of cores whose slices are `F[:, :, γ] ⊗ I`, by numpy's Kronecker product."""
    generator = np.random.default_rng([seed, *sizes, *ranks])
    whole = []
    for k, (size, t) in enumerate(zip(sizes, identities, strict=True)):
        left, right = ranks[k], ranks[(k + 1) % len(ranks)]
        small = generator.standard_normal((left // t, size // t, right))
        slices = [np.kron(small[:, :, g], np.eye(t)) for g in range(right)]
        whole.append(np.stack(slices, axis=2))
    return ring(whole)


def _entries(sizes, ranks, identities):
    following = (*ranks[1:], ranks[0])
    rows = zip(ranks, sizes, following, identities, strict=True)
    return sum(left * size * right // t**2 for left, size, right, t in rows)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("t", [1, 2, 3])
def test_matrices_of_known_structure_are_recovered(t, seed):
    sizes, ranks = (6, 12, 6, 6), tuple(t * rank for rank in (2, 3, 2, 2))
    weight = _semi(seed, sizes, ranks, [t] * 4).reshape(72, 36)
    chain = onnxlr.decompose(weight, "semi_tensor_ring", rank=ranks, t=t, modes="6x12,6x6")
    assert distance(chain.reconstruct(), weight) < 1e-5
    assert chain.ranks == ranks
    assert chain.cost.parameters == _entries(sizes, ranks, [t] * 4)
    assert count_folds(chain) == (3 if t > 1 else 1)
    check_applied(chain, weight, None)


@pytest.mark.parametrize("t", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("window", [(3,), (3, 2), (1, 3)])
def test_kernels_of_known_structure_are_recovered(window, groups, t):
    wide = [size for size in window if size > 1]
    sizes, identities = (8, *wide, 12), (t, *[1] * len(wide), t)
    ranks = (2 * t, *[3] * len(wide), 2 * t)
    parts = [kernel_of(_semi(g, sizes, ranks, identities), 8, 12, window) for g in range(groups)]
    kernel = np.concatenate(parts)
    chain = onnxlr.decompose(kernel, "semi_tensor_ring", rank=ranks, t=t, groups=groups)
    assert distance(chain.reconstruct(), kernel) < 1e-5
    assert chain.cost.parameters == groups * _entries(sizes, ranks, identities)
    if groups == 1:
        assert count_folds(chain) == (t > 1)
    check_applied(chain, kernel, groups)


@pytest.mark.usefixtures("one_start")
@pytest.mark.parametrize("shape", [(12, 8, 3, 3), (24, 36)])
@pytest.mark.parametrize("budget", [{"ratio": 0.5}, {"max_error": 0.5}])
def test_without_an_identity_it_is_the_plain_ring(shape, budget):
    weight = drawn(1, *shape).astype(np.float32)
    groups = 2 if len(shape) > 2 else None
    semi = onnxlr.decompose(weight, "semi_tensor_ring", t=1, groups=groups, **budget)
    plain = onnxlr.decompose(weight, "tensor_ring", groups=groups, **budget)
    assert semi.ranks == plain.ranks
    assert [stage.shape for stage in semi.stages] == [stage.shape for stage in plain.stages]
    assert semi.reconstruct().tobytes() == plain.reconstruct().tobytes()
    assert [stage.nbytes for stage in semi.stages] == [stage.nbytes for stage in plain.stages]


@pytest.mark.usefixtures("one_start")
@settings(deadline=None, max_examples=25, suppress_health_check=FIXTURE)
@given(
    inputs=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    outputs=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    window=st.lists(st.integers(1, 3), min_size=0, max_size=3).filter(lambda w: max([2, *w]) > 1),
    groups=st.integers(1, 2),
    t=st.integers(1, 3),
    rank=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_the_steps_are_what_they_reconstruct(inputs, outputs, window, groups, t, rank, seed):
    inputs, outputs = [2 * t, *(t * n for n in inputs)], [*(t * n for n in outputs), 2 * t]
    sides = ",".join("x".join(map(str, side)) for side in (inputs, outputs))
    options = {"t": t, "rank": rank, "modes": sides}
    if not window:
        weight = drawn(seed, int(np.prod(inputs)), int(np.prod(outputs)))
        check_applied(onnxlr.decompose(weight, "semi_tensor_ring", **options), weight, None)
        return
    kernel = drawn(seed, groups * int(np.prod(outputs[-1:])), inputs[0], *window)
    options["modes"] = f"{inputs[0]},{outputs[-1]}"
    if max(window) > 1:
        chain = onnxlr.decompose(kernel, "semi_tensor_ring", groups=groups, **options)
        check_applied(chain, kernel, groups, seed)


@pytest.mark.usefixtures("one_start")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("sides", ["4x2,2x6", "8,2x6", "4x2,12", "2x2x2,2x2x2"])
def test_channels_can_be_split(sides, groups):
    outputs = int(np.prod([int(size) for size in sides.split(",")[1].split("x")]))
    kernel = drawn(3, groups * outputs, 8, 3, 2)
    chain = onnxlr.decompose(kernel, "semi_tensor_ring", rank=4, modes=sides, groups=groups)
    check_applied(chain, kernel, groups)


@pytest.mark.usefixtures("one_start")
@settings(deadline=None, max_examples=8, suppress_health_check=FIXTURE)
@given(ratio=st.floats(0.3, 1.0), t=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_ratio_is_kept_and_ranks_are_multiples(ratio, t, seed):
    kernel = drawn(seed, 12, 6, 3, 3)
    chain = onnxlr.decompose(kernel, "semi_tensor_ring", ratio=ratio, t=t, groups=1)
    assert ratio - 0.25 < chain.cost.parameters / kernel.size <= ratio
    # Left of a mode of the window a rank is not split.
    assert chain.ranks[0] % t == chain.ranks[3] % t == 0


@pytest.mark.parametrize("shape", [(12, 8, 3, 3), (24, 36)])
def test_settled_options_give_the_very_same_numbers(shape):
    weight = drawn(9, *shape).astype(np.float16)
    setting = Setting.for_array(weight, groups=1 if len(shape) > 2 else None)
    options = SemiOptions(bits=9, t=2)
    chain = SEMI.factorize(weight, options, setting)
    assert 8 * chain.cost.bytes <= 9 * weight.size
    settled = SEMI.settle(options, chain)
    assert settled == SemiOptions(rank="x".join(map(str, chain.ranks)), t=2)
    again = SEMI.factorize(weight, settled, setting)
    assert np.array_equal(again.reconstruct(), chain.reconstruct())


@pytest.mark.parametrize("number", range(4))
def test_the_metric_is_what_is_minimised(number):
    weight = drawn(12, 18 * 2, 20)
    metric = metrics_of(weight)[number]
    errors = []
    for used in (Frobenius(), metric):
        setting = Setting.for_array(weight, metric=used)
        chain = SEMI.factorize(weight, SemiOptions(rank=6), setting)
        errors.append(relative_error(metric, weight, chain.reconstruct(), None))
    assert errors[1] < errors[0]


MATRIX, KERNEL = np.ones((12, 20)), np.ones((8, 6, 3, 3))
REFUSED = [
    (MATRIX, {"t": -1}, r"t -1 is not a whole number of at least 1"),
    (MATRIX, {"modes": "3x4,4x5"}, r"t = 2 does not divide mode 3 of 3x4 of the inputs"),
    (MATRIX, {"modes": "2x6,4x5"}, r"t = 2 does not divide mode 5 of 4x5 of the outputs"),
    (np.ones((15, 16)), {}, r"t = 2 does not divide mode 5 of 5x3 of the inputs"),
    (KERNEL, {"t": 4}, r"t = 4 does not divide mode 6 of the inputs"),
    (KERNEL, {"rank": "3x4x4x4"}, r"rank 3 of bond 0 is not a multiple of t = 2: take 2"),
    (KERNEL, {"rank": "4x4x4"}, r"rank 4x4x4 has 3 numbers, expected 4"),
    (np.ones((8, 1, 3, 3)), {"t": 1}, r"has one input channel: a tensor ring decomposition"),
    (np.ones((8, 6, 1, 1)), {}, r"a 1×1 kernel has no window"),
]


@pytest.mark.parametrize(("weight", "options", "message"), REFUSED)
def test_what_cannot_be_is_said_in_a_sentence(weight, options, message):
    groups = 1 if weight.ndim > 3 else None
    with pytest.raises(UsageError, match=message):
        onnxlr.decompose(weight, "semi_tensor_ring", groups=groups, **options)


def test_layers_of_models():
    x, weight = drawn(1, 2, 5, 24).astype(np.float32), drawn(2, 24, 36).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = model_of([node], {"x": x}, ["y"], {"w": weight})
    image, kernel = drawn(1, 2, 8, 9, 8).astype(np.float32), drawn(2, 8, 4, 3, 3).astype(np.float32)
    window = {"strides": [2, 1], "pads": [1, 0, 1, 2], "dilations": [1, 2]}
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, **window)
    other = model_of([node], {"x": image}, ["y"], {"w": kernel})
    for proto, data in ((model, x), (other, image)):
        changed, reference = rewritten(proto, Choice("semi_tensor_ring", SemiOptions(rank=4)))
        assert distance(run(changed, {"x": data})[0], run(reference, {"x": data})[0]) < 1e-5
