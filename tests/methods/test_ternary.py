"""Direct ternary: what each term leaves, what is refused, and whole models by statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxlr
from onnxlr.errors import PlanError, UsageError
from onnxlr.methods import Setting, Ternary, TernaryOptions
from onnxlr.plan import Choice
from onnxlr.planning import Request
from tests.classifier import classifier, samples, weights
from tests.onelayer import run

ANY = "cosine>=-1"


def _weight(seed, *shape):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def _inputs(seed, rows, size):
    generator = np.random.default_rng([seed, rows, size])
    return generator.standard_normal((rows, size)) @ (
        generator.standard_normal((size, size)) / np.sqrt(size) + np.eye(size) / 2
    )


def _distance(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.sampled_from([(1, 1), (1, 7), (7, 1), (5, 3), (130, 4), (2, 40, 3)]),
    terms=st.integers(1, 3),
    group=st.sampled_from([None, 0, 32, 64]),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    known=st.booleans(),
)
def test_a_chain_is_the_sum_of_scaled_trits(shape, terms, group, dtype, known):
    weight = _weight(0, *shape).astype(dtype)
    x = _inputs(1, 300, shape[-2])
    covariance = x.T @ x / len(x) if known else None
    chain = onnxlr.decompose(
        weight, "ternary", terms=terms, group_size=group, covariance=covariance
    )
    (stage,) = chain.stages
    assert stage.shape == shape
    kept = stage.weight
    assert (kept.format.kind, kept.format.terms) == ("ternary", terms)
    assert kept.format.group == (128 if group is None else group or None)
    assert kept.format.rounding == ("gptq" if known else "nearest")
    assert set(np.unique(kept.trits)) <= {-1, 0, 1}
    size = kept.format.group or shape[-2]
    groups = np.arange(shape[-2]) // size
    scales = kept.scales.astype(np.float64)[..., groups, :]
    expected = np.moveaxis(kept.trits, 0, -3) * scales
    assert np.allclose(chain.reconstruct(), expected.sum(axis=-3), rtol=1e-12)
    assert kept.scales.dtype == dtype


def test_outputs_are_closer_with_every_term_and_with_the_covariance():
    weight = _weight(2, 128, 64)
    x, others = np.split(_inputs(3, 4000, 128), 2)
    covariance = x.T @ x / len(x)
    found = []
    for terms in (1, 2, 3):
        known = onnxlr.decompose(weight, "ternary", terms=terms, covariance=covariance)
        plain = onnxlr.decompose(weight, "ternary", terms=terms)
        errors = [_distance(others @ c.reconstruct(), others @ weight) for c in (known, plain)]
        assert errors[0] < 0.8 * errors[1]
        found.append(errors[0])
    assert found[1] < 0.45 * found[0]
    assert found[2] < 0.45 * found[1]


def test_two_terms_if_not_given():
    (stage,) = onnxlr.decompose(_weight(4, 20, 3), "ternary").stages
    assert stage.weight.format.terms == 2
    chain = onnxlr.decompose(_weight(4, 20, 3), "ternary")
    assert Ternary().settle(TernaryOptions(), chain) == TernaryOptions(2)


def test_kernels_have_groups_of_their_patches():
    kernel = _weight(5, 6, 4, 3, 3)
    chain = onnxlr.decompose(kernel, "ternary", terms=2, groups=2, group_size=32)
    (stage,) = chain.stages
    assert stage.weight.scales.shape == (6, 2, 2)
    matrix = onnxlr.decompose(kernel.reshape(6, 36).T, "ternary", terms=2, group_size=32)
    assert np.allclose(chain.reconstruct().reshape(6, 36).T, matrix.reconstruct())


@pytest.mark.parametrize("terms", [0, 4, -1])
def test_other_numbers_of_terms_are_refused(terms):
    with pytest.raises(UsageError, match=f"terms {terms} is not 1, 2 or 3"):
        TernaryOptions(terms)


def test_other_formats_are_refused_by_name():
    with pytest.raises(UsageError, match="makes ternary numbers, found format 'int4'"):
        onnxlr.decompose(_weight(6, 4, 4), "ternary", format="int4")
    with pytest.raises(UsageError, match="makes ternary numbers, found format 'int8'"):
        Request("ternary", TernaryOptions(), format="int8").check()
    with pytest.raises(PlanError, match="layer: method 'ternary' makes ternary numbers"):
        Choice.from_json({"method": "ternary", "format": "float16"}, "layer")
    with pytest.raises(UsageError, match="group size 48"):
        Request("ternary", TernaryOptions(), group_size=48).check()


def test_tables_are_refused():
    setting = Setting.for_array(_weight(7, 5, 4), "ternary")
    table = Setting(setting.format, setting.compute, is_table=True)
    with pytest.raises(UsageError, match="table of rows has no product"):
        Ternary().factorize(_weight(7, 5, 4), TernaryOptions(), table)


def test_data_is_rounded_only_where_operators_take_ternary_numbers():
    asked = {
        ("ternary", None, "onnx"): ("float",),
        ("ternary", None, "ort"): ("dynamic_int8", "float"),
        ("ternary", None, "onnxlr"): ("dynamic_int8", "float"),
        ("quantize", "int4", "onnxlr"): ("float",),
        ("quantize", "ternary", "onnxlr"): ("dynamic_int8", "float"),
    }
    for (method, kind, target), expected in asked.items():
        assert Request(method, TernaryOptions(), kind, target=target).data == expected
    told = Request("ternary", TernaryOptions(), activations="float", target="onnxlr")
    assert told.data == ("float",)


def test_rounding_is_gptq_where_the_metric_knows_the_inputs():
    request = Request("ternary", TernaryOptions())
    assert request.recipe("activation").rounding == "gptq"
    assert request.recipe("frobenius").rounding == "nearest"
    assert Request("quantize", format="int4").recipe("activation").rounding == "nearest"


@pytest.mark.parametrize("target", ["onnx", "onnxlr"])
@pytest.mark.parametrize("terms", [1, 2])
def test_a_plan_says_it_all_and_gives_the_same_bytes(
    target: str, terms: int, tmp_path: Path
) -> None:
    onnx.save(classifier(), tmp_path / "m.onnx")
    data: dict[str, Any] = {"calibration": {"x": samples(120) + np.float32(0.5)}}
    common: dict[str, Any] = {"tolerance": ANY, "isolate": False, **data}
    files = [tmp_path / f"{i}.onnx" for i in range(2)]
    result = onnxlr.rewrite(
        tmp_path / "m.onnx", files[0], method="ternary", terms=terms, target=target, **common
    )
    choices = [choice for choice in result.plan.layers.values() if not choice.keeps]
    assert choices
    for choice in choices:
        assert choice.to_json()["format"] == "ternary"
        assert choice.to_json()["options"] == {"terms": terms}
        assert choice.group_size == 128
        assert choice.activations == ("float" if target == "onnx" else "dynamic_int8")
    (tmp_path / "p.json").write_text(result.plan.dumps())
    onnxlr.rewrite(tmp_path / "m.onnx", files[1], plan=tmp_path / "p.json", **common)
    assert files[0].read_bytes() == files[1].read_bytes()
    x = samples(40, seed=5) + np.float32(0.5)
    wanted, found = (run(onnx.load(f), {"x": x})[0] for f in (tmp_path / "m.onnx", files[0]))
    assert _distance(found, wanted) < (0.6 if terms == 1 else 0.25)
    assert len(weights()) >= len(choices)


def test_quantize_has_one_term(tmp_path: Path) -> None:
    result = onnxlr.rewrite(
        classifier(),
        tmp_path / "o.onnx",
        method="quantize",
        format="ternary",
        tolerance=ANY,
        isolate=False,
    )
    assert {c.kept_as for c in result.plan.layers.values() if not c.keeps} == {
        "ternary in groups of 128"
    }
