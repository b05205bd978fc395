"""A rounded weight and what rounding lost, beside each other."""

from __future__ import annotations

import numpy as np
import pytest

import onnxlr
from onnxlr.errors import UsageError
from onnxlr.methods import Quantize, QuantizeOptions, Setting
from onnxlr.numbers import Format
from onnxlr.stages import Linear, Sum
from tests.onelayer import distance, truncated


def _normal(seed, *shape):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def _inputs(seed, size, rows=500):
    """Return inputs whose directions differ much in size."""
    generator = np.random.default_rng([seed, size])
    basis, _ = np.linalg.qr(generator.standard_normal((size, size)))
    return generator.standard_normal((rows, size)) * np.exp(-0.1 * np.arange(size)) @ basis


def _second(x):
    return x.T @ x / len(x)


@pytest.mark.parametrize("kind", ["int4", "int2", "int8"])
@pytest.mark.parametrize("correction", [None, "int8", "float16"])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_a_corrected_weight_is_the_sum_of_its_parts(kind, correction, batch):
    weight = _normal(0, *batch, 64, 48)
    chain = onnxlr.decompose(
        weight, "quantize", format=kind, correction_rank=5, correction_format=correction
    )
    (stage,) = chain.stages
    assert isinstance(stage, Sum)
    base, beside = stage.branches
    assert [s.weight.format.kind for s in base.stages] == [kind]
    assert [s.weight.format.kind for s in beside.stages] == [correction or "int8"] * 2
    assert [s.shape for s in beside.stages] == [(*batch, 64, 5), (*batch, 5, 48)]
    left, right = (s.weight.decode() for s in beside.stages)
    whole = base.stages[0].weight.decode() + left @ right
    assert distance(chain.reconstruct(), whole) < 1e-12
    x = _normal(1, *batch, 7, 64)
    assert distance(chain.apply(x), x.astype(np.float64) @ whole) < 1e-12


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("kind", ["int4", "int2"])
@pytest.mark.parametrize("rank", [1, 8, 200])
def test_outputs_are_closer_with_a_correction(kind, rounding, rank):
    weight, x = _normal(0, 64, 96), _inputs(0, 64)
    arguments = {"covariance": _second(x), "format": kind, "rounding": rounding}
    plain, corrected = (
        onnxlr.decompose(weight, "quantize", **arguments, **options).reconstruct()
        for options in ({}, {"correction_rank": rank})
    )
    error, other = (np.linalg.norm(x @ (w - weight)) for w in (corrected, plain))
    assert error < (1.0 if rank == 1 else 0.7) * other


@pytest.mark.parametrize("kind", ["int4", "int2"])
def test_entries_are_closer_with_a_correction(kind):
    weight = _normal(0, 64, 96)
    plain = onnxlr.decompose(weight, "quantize", format=kind).reconstruct()
    once = plain + truncated(weight - plain, 8)
    corrected = onnxlr.decompose(
        weight, "quantize", format=kind, correction_rank=8, correction_format="float32"
    ).reconstruct()
    # repeating what is rounded and what is corrected loses nothing against doing so once
    error, single, none = (np.linalg.norm(w - weight) for w in (corrected, once, plain))
    assert error <= single * (1 + 1e-6)
    assert single < none


@pytest.mark.parametrize("groups", [1, 2])
def test_a_kernel_is_corrected_in_its_channel_form(groups):
    kernel = _normal(0, 12, 8 // groups, 3, 3)
    size = kernel[0].size
    x = [_inputs(group, size) for group in range(groups)]
    arguments = {
        "format": "int4", "groups": groups, "covariance": np.stack([_second(one) for one in x]),
    }  # fmt: skip
    chain = onnxlr.decompose(kernel, "quantize", correction_rank=4, **arguments)
    plain = onnxlr.decompose(kernel, "quantize", **arguments).reconstruct()
    (stage,) = chain.stages
    (base,), (first, second) = (branch.stages for branch in stage.branches)
    assert (base.window, first.window, second.window) == ((0, 1), (0, 1), ())
    assert first.weight.shape == (4 * groups, 8 // groups, 3, 3)
    assert second.weight.shape == (12, 4, 1, 1)
    found = chain.reconstruct()
    expected = base.dense().copy()
    for group in range(groups):
        own, middle = (slice(group * n, (group + 1) * n) for n in (12 // groups, 4))
        expected[own] += np.einsum(
            "or,rihw->oihw", second.dense()[own, :, 0, 0], first.dense()[middle]
        )
    assert distance(found, expected) < 1e-12

    def error(weight):
        parts = np.split((weight - kernel).reshape(12, -1), groups)
        return sum(np.sum((one @ part.T) ** 2) for one, part in zip(x, parts, strict=True))

    assert error(found) < 0.7 * error(plain)


def test_the_same_options_give_the_same_chain_again():
    weight, x = _normal(0, 40, 30), _inputs(0, 40)
    options = {"format": "int4", "correction_rank": 3, "covariance": _second(x)}
    chains = [onnxlr.decompose(weight, "quantize", **options) for _ in range(2)]
    codes = [
        [s.weight.codes.tobytes() for branch in c.stages[0].branches for s in branch.stages]
        for c in chains
    ]
    assert codes[0] == codes[1]


def test_without_a_correction_there_is_one_stage():
    (stage,) = onnxlr.decompose(_normal(0, 8, 8), "quantize", format="int4").stages
    assert isinstance(stage, Linear)


def test_what_depends_on_the_metric_is_known():
    method = Quantize()
    nearest, fed = (
        Setting.for_array(_normal(0, 4, 4), Format.parse("int4", 32, rounding))
        for rounding in ("nearest", "gptq")
    )
    assert not method.heeds_metric(QuantizeOptions(), nearest)
    assert method.heeds_metric(QuantizeOptions(), fed)
    assert method.heeds_metric(QuantizeOptions(correction_rank=2), nearest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correction_rank": 0}, "at least 1"),
        ({"correction_rank": 1.5}, "whole number"),
        ({"correction_format": "int8"}, "but no correction_rank"),
        ({"correction_rank": 2, "correction_format": "int3"}, "format 'int3' is unknown"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        QuantizeOptions(**options)


def test_a_table_has_no_correction():
    table = _normal(0, 6, 4)
    setting = Setting(Format("int8"), np.dtype("float32"), is_table=True, stored="float32")
    with pytest.raises(UsageError, match="no product that a correction could be added to"):
        Quantize().factorize(table, QuantizeOptions(correction_rank=2), setting)


def test_options_say_what_comes_beside():
    assert str(QuantizeOptions()) == ""
    assert str(QuantizeOptions(correction_rank=3)) == "+ rank 3 int8"
    assert str(QuantizeOptions(3, "float16")) == "+ rank 3 float16"
