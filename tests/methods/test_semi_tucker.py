"""Semi-tensor Tucker forms: against Kronecker products by hand, and the plain form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import onnxlr
from onnxlr.errors import UsageError
from onnxlr.methods import METHODS, Setting
from onnxlr.methods.semi_tucker import SemiTuckerOptions
from onnxlr.metrics import Frobenius, relative_error
from onnxlr.plan import Choice
from tests.onelayer import distance, model_of, rewritten, run
from tests.trains import check_applied, drawn, kernel_of, metrics_of

SEMI = METHODS["semi_tucker"]


def _semi(seed, sizes, ranks, identities):
    """Return `G ×ₙ (U_n ⊗ I)` along all axes; no factor where the identity is None."""
    generator = np.random.default_rng([seed, *sizes, *ranks])
    result = generator.standard_normal(ranks)
    for axis, (size, rank, t) in enumerate(zip(sizes, ranks, identities, strict=True)):
        if t is None:
            continue
        factor = np.kron(generator.standard_normal((size // t, rank // t)), np.eye(t))
        result = np.moveaxis(np.tensordot(factor, result, (1, axis)), 0, axis)
    return result


@pytest.mark.parametrize("t", [1, 2, 3])
def test_matrices_of_known_structure_are_recovered(t):
    sizes, ranks = (12, 12, 12, 18), tuple(t * rank for rank in (1, 2, 2, 3))
    weight = _semi(0, sizes, ranks, [t] * 4).reshape(144, 216)
    chain = onnxlr.decompose(weight, "semi_tucker", rank=ranks, t=t, modes="12x12,12x18")
    assert distance(chain.reconstruct(), weight) < 1e-6
    factors = sum(size * rank for size, rank in zip(sizes, ranks, strict=True)) // t**2
    assert chain.cost.parameters == int(np.prod(ranks)) + factors
    check_applied(chain, weight, None)


@pytest.mark.parametrize("t", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("form", ["channels", "full"])
def test_kernels_of_known_structure_are_recovered(form, groups, t):
    sizes, ranks = (8, 3, 5, 12), (2 * t, 2, 3, 3 * t)
    if form == "channels":
        ranks, identities = (2 * t, 3, 5, 3 * t), (t, None, None, t)
    else:
        identities = (t, 1, 1, t)
    parts = [kernel_of(_semi(g, sizes, ranks, identities), 8, 12, (3, 5)) for g in range(groups)]
    kernel = np.concatenate(parts)
    asked = (ranks[0], ranks[3]) if form == "channels" else ranks
    chain = onnxlr.decompose(kernel, "semi_tucker", rank=asked, t=t, form=form, groups=groups)
    assert distance(chain.reconstruct(), kernel) < 1e-6
    rows = zip(sizes, ranks, identities, strict=True)
    factors = sum(size * rank // k**2 for size, rank, k in rows if k is not None)
    assert chain.cost.parameters == groups * (int(np.prod(ranks)) + factors)
    check_applied(chain, kernel, groups)


@pytest.mark.parametrize("shape", [(12, 8, 3, 3), (24, 36)])
@pytest.mark.parametrize("budget", [{"ratio": 0.5}, {"max_error": 0.5}])
def test_without_an_identity_it_is_the_plain_form(shape, budget):
    weight = drawn(1, *shape).astype(np.float32)
    groups = 2 if len(shape) > 2 else None
    semi = onnxlr.decompose(weight, "semi_tucker", t=1, groups=groups, **budget)
    plain = onnxlr.decompose(weight, "tucker", groups=groups, **budget)
    assert semi.ranks == plain.ranks
    assert [stage.shape for stage in semi.stages] == [stage.shape for stage in plain.stages]
    assert [stage.nbytes for stage in semi.stages] == [stage.nbytes for stage in plain.stages]
    assert semi.reconstruct().tobytes() == plain.reconstruct().tobytes()


@settings(deadline=None, max_examples=20)
@given(
    inputs=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    outputs=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    window=st.lists(st.integers(1, 3), min_size=0, max_size=3),
    groups=st.integers(1, 2),
    t=st.integers(1, 3),
    rank=st.integers(1, 6),
    form=st.sampled_from([None, "channels", "full"]),
    seed=st.integers(0, 99),
)
def test_the_steps_are_what_they_reconstruct(inputs, outputs, window, groups, t, rank, form, seed):
    inputs, outputs = [2 * t, *(t * n for n in inputs)], [*(t * n for n in outputs), 2 * t]
    sides = ",".join("x".join(map(str, side)) for side in (inputs, outputs))
    options = {"t": t, "rank": rank, "modes": sides, "form": form}
    if not window:
        weight = drawn(seed, int(np.prod(inputs)), int(np.prod(outputs)))
        check_applied(onnxlr.decompose(weight, "semi_tucker", **options), weight, None)
        return
    kernel = drawn(seed, groups * int(np.prod(outputs)), int(np.prod(inputs)), *window)
    chain = onnxlr.decompose(kernel, "semi_tucker", groups=groups, **options)
    check_applied(chain, kernel, groups, seed)


@settings(deadline=None, max_examples=10)
@given(ratio=st.floats(0.3, 1.0), t=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_ratio_is_kept_and_ranks_are_multiples(ratio, t, seed):
    kernel = drawn(seed, 12, 6, 3, 3)
    chain = onnxlr.decompose(kernel, "semi_tucker", ratio=ratio, t=t, groups=1)
    assert chain.cost.parameters / kernel.size <= ratio
    assert all(rank % t == 0 for rank in chain.ranks)


@pytest.mark.parametrize("budget", [{"ratio": 0.6}, {"bits": 9}, {"max_error": 0.5}])
def test_settled_options_give_the_very_same_numbers(budget):
    weight = drawn(9, 12, 8, 3, 3).astype(np.float16)
    setting = Setting.for_array(weight, groups=1)
    options = SemiTuckerOptions(**budget, t=2)
    chain = SEMI.factorize(weight, options, setting)
    settled = SEMI.settle(options, chain)
    assert settled == SemiTuckerOptions(rank="x".join(map(str, chain.ranks)), t=2)
    again = SEMI.factorize(weight, settled, setting)
    assert np.array_equal(again.reconstruct(), chain.reconstruct())


@pytest.mark.parametrize("number", range(4))
def test_the_metric_is_what_is_minimised(number):
    weight = drawn(12, 36, 20)
    metric = metrics_of(weight)[number]
    errors = []
    for used in (Frobenius(), metric):
        setting = Setting.for_array(weight, metric=used)
        chain = SEMI.factorize(weight, SemiTuckerOptions(rank=2), setting)
        errors.append(relative_error(metric, weight, chain.reconstruct(), None))
    assert errors[1] < errors[0]


@pytest.mark.parametrize(("size", "t"), [(24, 2), (20, 2), (30, 2), (36, 3), (8, 4), (4, 4)])
def test_sizes_are_chosen_so_that_the_identity_divides_them(size, t):
    weight = drawn(13, size, size)
    chain = onnxlr.decompose(weight, "semi_tucker", rank=t, t=t)
    check_applied(chain, weight, None)


MATRIX, KERNEL = np.ones((12, 20)), np.ones((8, 6, 3, 3))
REFUSED = [
    (MATRIX, {"t": "2"}, r"t 2 is not a whole number of at least 1"),
    (MATRIX, {"t": True}, r"t True is not a whole number"),
    (MATRIX, {"modes": "3x4,4x5"}, r"t = 2 does not divide mode 3 of 3x4 of the inputs"),
    (KERNEL, {"t": 4}, r"t = 4 does not divide mode 6 of the inputs"),
    (KERNEL, {"rank": "3x4"}, r"rank 3 of inputs is not a multiple of t = 2: take 2"),
    (KERNEL, {"rank": "8x4"}, r"rank 8 of inputs is above that of the weight's unfolding, 6"),
    (KERNEL, {"form": "half"}, r"form 'half' is unknown"),
    (np.ones((1, 8, 3, 3)), {"t": 1}, r"has one output channel: a Tucker decomposition"),
    (np.ones((8, 6, 1, 1)), {}, r"a 1×1 kernel has no window"),
]


@pytest.mark.parametrize(("weight", "options", "message"), REFUSED)
def test_what_cannot_be_is_said_in_a_sentence(weight, options, message):
    groups = 1 if weight.ndim > 3 else None
    with pytest.raises(UsageError, match=message):
        onnxlr.decompose(weight, "semi_tucker", groups=groups, **options)


def test_layers_of_models():
    x, weight = drawn(1, 2, 5, 24).astype(np.float32), drawn(2, 24, 36).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = model_of([node], {"x": x}, ["y"], {"w": weight})
    image, kernel = drawn(1, 2, 8, 9, 8).astype(np.float32), drawn(2, 8, 4, 3, 3).astype(np.float32)
    window = {"strides": [2, 1], "pads": [1, 0, 1, 2], "dilations": [1, 2]}
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, **window)
    other = model_of([node], {"x": image}, ["y"], {"w": kernel})
    for proto, data in ((model, x), (other, image)):
        changed, reference = rewritten(proto, Choice("semi_tucker", SemiTuckerOptions(rank=2)))
        assert distance(run(changed, {"x": data})[0], run(reference, {"x": data})[0]) < 1e-5
