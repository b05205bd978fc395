"""What methods offer: requests that hold, each another one, that a layer of the kind can take."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import onnxlr
from onnxlr.errors import UsageError
from onnxlr.evidence import Knowledge
from onnxlr.layers import find_layers, layer_keys
from onnxlr.methods import METHODS, Setting, find_method
from onnxlr.methods.offering import Occasion, Offer, Offering
from onnxlr.metrics import Activation
from onnxlr.model import open_model
from onnxlr.planning import Request
from onnxlr.planning.uniform import propose_one
from tests.onelayer import model_of

TARGETS = ("onnx", "ort", "onnxlr")
MATRIX, STACK, TABLE = (384, 1536), (4, 32, 48), (1000, 64)
KERNEL, POINT, DEPTHWISE = (64, 64, 3, 3), (96, 64, 1, 1), (64, 1, 3, 3)
BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
FORMATS = {"float16": 16, "int8": 8, "int4": 4, "int2": 2}


def occasion(shape, groups=None, is_table=False, stored="float32", observed=True, target="onnx"):
    """Return what a method is told of such a layer."""
    return Occasion(shape, groups, is_table, stored, observed, target)


def offers_of(asked: Occasion) -> list[tuple[str, Offer]]:
    """Return all offers with the names of their methods."""
    return [
        (name, offer)
        for name, method in METHODS.items()
        if isinstance(method, Offering)
        for offer in method.offers(asked)
    ]


def request_of(name: str, offer: Offer, target: str) -> Request:
    """Return the request that an offer stands for."""
    return Request(
        method=name,
        options=offer.options,
        format=offer.format,
        group_size=offer.group_size,
        rounding=offer.rounding,
        activations=offer.activations,
        target=target,
    )


def named(asked: Occasion, method: str) -> list[Offer]:
    """Return the offers of one method."""
    return [offer for name, offer in offers_of(asked) if name == method]


def covariance_of(generator, shape, groups):
    """Return a covariance of the inputs of a layer, `(parts, inputs, inputs)`."""
    inputs = shape[-2] if groups is None else prod(shape[1:])
    data = generator.standard_normal((groups or 1, 2 * inputs + 8, inputs))
    return data.swapaxes(1, 2) @ data / data.shape[1]


def fitted(name: str, offer: Offer, asked: Occasion, generator):
    """Return the chain that an offer makes of a random weight."""
    request = request_of(name, offer, asked.target)
    dtype = np.dtype(asked.stored)
    weight = generator.standard_normal(asked.shape).astype(dtype)
    metric = Activation(covariance_of(generator, asked.shape, asked.groups))
    setting = Setting.for_array(weight, groups=asked.groups)
    setting = Setting(
        request.encoding or setting.format,
        dtype,
        metric if asked.observed and not asked.is_table else setting.metric,
        groups=asked.groups,
        is_table=asked.is_table,
        stored=asked.stored,
    )
    return find_method(name).factorize(weight, offer.options, setting)


@st.composite
def occasions(draw, most=200):
    """Return any layer: matrices, stacks, kernels of 0 to 3 axes, tables."""
    size = st.integers(1, most)
    kind = draw(st.sampled_from(("matrix", "stack", "kernel", "table")))
    groups = None
    if kind == "kernel":
        groups = draw(st.sampled_from((1, 1, 2, 8)))
        window = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
        outputs = groups * draw(st.integers(1, max(most // groups, 1)))
        shape = (outputs, draw(size), *window)
    else:
        batch = draw(st.lists(st.integers(1, 4), min_size=1, max_size=2))
        shape = (*(batch if kind == "stack" else ()), draw(size), draw(size))
    return Occasion(
        shape,
        groups,
        kind == "table",
        draw(st.sampled_from(tuple(BITS))),
        draw(st.booleans()),
        draw(st.sampled_from(TARGETS)),
    )


@given(occasions())
def test_every_offer_is_a_valid_request_and_another_one(asked):
    offers = offers_of(asked)
    assert len(set(offers)) == len(offers)
    for name, offer in offers:
        assert isinstance(offer.options, find_method(name).options)
        request_of(name, offer, asked.target).check()


@given(occasions())
def test_offers_heed_what_is_known_and_what_can_be_written(asked):
    for name, offer in offers_of(asked):
        if not asked.observed:
            assert offer.rounding != "gptq"
            assert offer.activations != "static_int8"
        if asked.is_table:
            assert name == "quantize"
            assert offer.activations in (None, "float")
            assert offer.rounding != "gptq"
        if asked.groups is not None and not name.startswith("ternary"):
            assert offer.activations != "dynamic_int8"
        if asked.target == "onnx":
            assert not name.startswith("ternary")
            assert offer.format != "int4" or offer.activations in (None, "float")
        if asked.stored != "float32":
            assert offer.activations in (None, "float")
        if offer.format is not None:
            assert FORMATS[offer.format] < BITS[asked.stored]


@given(occasions(), st.sampled_from(TARGETS))
def test_what_is_safe_needs_no_data(asked, target):
    for name, offer in offers_of(asked):
        if offer.safe:
            assert (name, offer.format) in (("quantize", "int8"), ("quantize", "float16"))
            assert offer.activations in (None, "float")
    blind = Occasion(asked.shape, asked.groups, asked.is_table, asked.stored, False, target)
    assert any(offer.safe and offer.format == "int8" for _, offer in offers_of(blind))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("shape", "groups", "is_table"),
    [
        (MATRIX, None, False),
        (KERNEL, 1, False),
        (POINT, 1, False),
        (STACK, None, False),
        (TABLE, None, True),
    ],
)
def test_offers_are_enough_to_choose_from_and_few_enough_to_fit(shape, groups, is_table, target):
    count = len(offers_of(occasion(shape, groups, is_table, target=target)))
    assert 5 <= count <= (20 if target == "onnxlr" else 16)


def test_a_matrix_is_offered_bytes_bits_ranks_and_atoms():
    offers = offers_of(occasion(MATRIX))
    kinds = {(name, offer.format, offer.activations) for name, offer in offers}
    assert {
        ("quantize", "int8", None),
        ("quantize", "int8", "dynamic_int8"),
        ("quantize", "int8", "static_int8"),
        ("quantize", "int4", None),
        ("svd", "int8", None),
        ("svd", "int8", "dynamic_int8"),
        ("sparse_quantized", None, None),
    } <= kinds


def test_operators_of_targets_are_offered_where_they_are():
    by_target = {target: offers_of(occasion(MATRIX, target=target)) for target in TARGETS}
    nbits = {
        target: {o.group_size for n, o in offers if o.format == "int4" and o.activations}
        for target, offers in by_target.items()
    }
    assert nbits == {"onnx": set(), "ort": {32, 128}, "onnxlr": {32, 128}}
    terms = {
        target: [o.options.count for n, o in offers if n == "ternary"]
        for target, offers in by_target.items()
    }
    assert terms == {"onnx": [], "ort": [1], "onnxlr": [1, 2, 3]}
    kernels = offers_of(occasion(KERNEL, groups=1, target="onnxlr"))
    assert [n for n, _ in kernels].count("ternary_svd") == 1
    assert "ternary_svd" not in [n for n, _ in by_target["onnxlr"]]


def test_ternary_kernels_have_one_scale_for_their_window():
    own = named(occasion(KERNEL, 1, target="onnxlr"), "ternary")
    assert {offer.group_size for offer in own} == {0}
    assert {o.group_size for o in named(occasion(POINT, 1, target="onnxlr"), "ternary")} == {None}
    assert not named(occasion(KERNEL, 1, target="ort"), "ternary")
    assert not named(occasion(DEPTHWISE, 64, target="onnxlr"), "ternary")


def test_group_sizes_that_make_the_same_groups_are_offered_once():
    narrow = [o.group_size for o in named(occasion((500, 24), is_table=True), "quantize")]
    wide = [o.group_size for o in named(occasion((500, 384), is_table=True), "quantize")]
    assert (narrow.count(32), narrow.count(128)) == (2, 0)  # int4 and int2
    assert (wide.count(32), wide.count(128)) == (2, 1)


def test_ranks_are_offered_from_rank_one_on():
    # rank 1 of a 3×4 matrix has 7 of 12 numbers, of a 5×5 window of one channel 10 of 25
    assert not named(occasion((3, 4)), "svd")
    assert not named(occasion((64, 1, 3), 64), "svd")
    ratios = {offer.options.ratio for offer in named(occasion((64, 1, 5, 5), 64), "svd")}
    assert ratios == {0.5, 0.75}
    # two outputs: 1×1 from 64 to 1, then 3×3 from 1 to 2, has 82 of 1152 numbers; the other 578
    assert 0.25 in {offer.options.ratio for offer in named(occasion((2, 64, 3, 3), 1), "svd")}


def test_tensor_decompositions_are_offered_for_windows_of_many_channels():
    def both(*asked, **more):
        offers = offers_of(occasion(*asked, **more))
        return [(n, o.options.ratio, o.options.form) for n, o in offers if n in ("tucker", "cp")]

    assert both(KERNEL, 1) == [("tucker", 0.25, "full"), ("cp", 0.25, "joint")]
    assert both((64, 64, 1, 3), 1)[:2] == [("tucker", 0.25, "full"), ("tucker", 0.5, "full")]
    # a transposed convolution is never observed, and may have to move its whole window at once
    assert both(KERNEL, 1, observed=False)[0] == ("tucker", 0.25, None)
    for shape, groups in ((POINT, 1), (DEPTHWISE, 64), (MATRIX, None)):
        assert not both(shape, groups)
    assert not both((2048, 2048, 3, 3), 1)


def test_small_weights_and_stacks_are_not_offered_as_sums_of_atoms():
    assert [o.options.bits for o in named(occasion(MATRIX), "sparse_quantized")] == [2, 3, 4]
    # the scale of an output is 4 bytes, half a byte for each of 8 inputs
    assert not named(occasion((8, 256)), "sparse_quantized")
    for asked in (occasion((8, 4)), occasion(STACK), occasion(TABLE, is_table=True)):
        assert not named(asked, "sparse_quantized")


@pytest.mark.parametrize(
    ("shape", "groups", "is_table"),
    [
        ((48, 64), None, False),
        ((64, 48), None, False),
        ((2, 24, 32), None, False),
        ((16, 12, 3, 3), 1, False),
        ((16, 12, 1, 3), 1, False),
        ((48, 32, 1, 1), 1, False),
        ((32, 1, 3, 3), 32, False),
        ((32, 1, 5, 5), 32, False),
        ((32, 16, 3, 3), 2, False),
        ((24, 16, 5), 1, False),
        ((8, 6, 3, 3, 3), 1, False),
        ((60, 40), None, True),
    ],
)
@pytest.mark.parametrize(("stored", "observed"), [("float32", True), ("float16", False)])
def test_every_offer_for_a_common_layer_can_be_fitted(shape, groups, is_table, stored, observed):
    generator = np.random.default_rng(3)
    asked = occasion(shape, groups, is_table, stored, observed, "onnxlr")
    for name, offer in offers_of(asked):
        chain = fitted(name, offer, asked, generator)
        assert chain.reconstruct().shape == shape
        assert chain.cost.bytes < prod(shape) * BITS[stored] // 8


@settings(max_examples=40, deadline=None)
@given(occasions(most=12), st.integers(0, 2**20))
def test_small_layers_are_fitted_or_refused_with_a_reason(asked, seed):
    generator = np.random.default_rng(seed)
    if asked.stored == "bfloat16":
        asked = occasion(asked.shape, asked.groups, asked.is_table, observed=asked.observed)
    refused = {
        name for name, offer in offers_of(asked) if is_refused(name, offer, asked, generator)
    }
    assert refused <= {"cp", "sparse_quantized"}  # whose forms depend on more than sizes say


def is_refused(name: str, offer: Offer, asked: Occasion, generator) -> bool:
    """Return whether a fit is refused by name; else it has to be one of the weight."""
    try:
        chain = fitted(name, offer, asked, generator)
    except UsageError:
        return True
    assert chain.reconstruct().shape == asked.shape
    return False


def test_every_offer_for_an_observed_layer_can_be_written(tmp_path):
    generator = np.random.default_rng(5)
    weights = {"m": (64, 96), "k": (32, 24, 3, 3), "p": (48, 32, 1, 1), "t": (200, 64)}
    constants = {k: generator.standard_normal(v).astype(np.float32) for k, v in weights.items()}
    feeds = [
        {
            "x": generator.standard_normal((80, 64)).astype(np.float32),
            "i": generator.standard_normal((2, 24, 9, 9)).astype(np.float32),
            "rows": generator.integers(0, 200, 7),
        }
        for _ in range(5)
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "m"], ["a"], "m"),
        helper.make_node("Conv", ["i", "k"], ["b"], "k"),
        helper.make_node("Conv", ["b", "p"], ["c"], "p"),
        helper.make_node("Gather", ["t", "rows"], ["d"], "t"),
    ]
    path = tmp_path / "model.onnx"
    onnx.save(model_of(nodes, feeds[0], ["a", "c", "d"], constants), path)
    model = open_model(path)
    layers = find_layers(model)
    known = Knowledge(onnxlr.observe(path, feeds), layer_keys(model, layers))
    assert {layer.name for layer in layers} == set(weights)
    for layer in layers:
        observed = known.of(layer).fit is not None
        assert observed != layer.is_table
        for target in TARGETS:
            asked = Occasion(
                layer.shape, layer.groups, layer.is_table, layer.stored, observed, target
            )
            for name, offer in offers_of(asked):
                proposal = propose_one(model, layer, request_of(name, offer, target), known)
                assert proposal.chain is not None, (layer.name, name, offer, proposal.choice.reason)
                if offer.activations is not None:
                    assert proposal.choice.activations == offer.activations
