"""Tolerances: read as they are written, judged as they are read."""

from __future__ import annotations

import operator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnxlr.errors import UsageError
from onnxlr.verification.comparison import METRICS, Comparison, compare
from onnxlr.verification.tolerance import DEFAULT_TOLERANCE, Tolerance

PERFECT = compare("logits", [(np.array([[1.0, 2.0]]), np.array([[1.0, 2.0]]))])
SIGNS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


def floats(output: str = "logits", **measures: float) -> Comparison:
    return replace(PERFECT, output=output, **measures)


def integers(output: str, agreement: float) -> Comparison:
    size = 100
    y = np.zeros(size, np.int64)
    return compare(output, [(y, np.where(np.arange(size) < agreement * size, 0, 1))])


def holds(tolerance: str, *comparisons: Comparison) -> bool:
    return not Tolerance.parse(tolerance).failures(comparisons)


@given(
    st.sampled_from(METRICS),
    st.sampled_from(list(SIGNS)),
    st.floats(-1e3, 1e3),
    st.floats(-1e3, 1e3),
    st.sampled_from(["", " ", "  "]),
)
def test_one_condition_is_the_comparison_it_says(
    metric: str, sign: str, limit: float, value: float, space: str
) -> None:
    text = f"{space}{metric}{space}{sign}{space}{limit!r}{space}"
    assert holds(text, floats(**{metric: value})) is SIGNS[sign](value, limit)


NAMES = st.text(st.characters(exclude_characters=",", exclude_categories=["Cc", "Cs"]), min_size=1)


@given(NAMES.map(str.strip), NAMES.map(str.strip))
def test_names_of_outputs_may_hold_anything_but_commas(name: str, other: str) -> None:
    assume(name and other and name != other and not other.startswith(f"{name}["))
    tolerance = Tolerance.parse(f"{name}:cosine>=0.9")
    tolerance.check_outputs([other, name])
    assert tolerance.failures([floats(name, cosine=0.8)])
    assert not tolerance.failures([floats(name, cosine=0.95), floats(other, cosine=0.8)])


@pytest.mark.parametrize("name", ["a:b", "a/b:0", ":", "model/out:cosine>=1", "x>=y", "out [0]"])
def test_names_that_look_like_conditions(name: str) -> None:
    assert holds(f"{name}:max_abs<=1", floats(name, max_abs=0.5), floats("z", max_abs=9))
    assert not holds(f"{name}:max_abs<=1", floats(name, max_abs=2))


def test_all_conditions_must_hold() -> None:
    text = "logits:top1>=0.98, max_abs<=0.1"
    good = floats(top1=0.99, max_abs=0.05)
    assert holds(text, good)
    assert not holds(text, replace(good, top1=0.9))
    assert not holds(text, replace(good, max_abs=0.2))
    both = Tolerance.parse(text).failures([replace(good, top1=0.9, max_abs=0.2)])
    assert both == [
        "output 'logits': top1 is 0.9, expected >=0.98",
        "output 'logits': max_abs is 0.2, expected <=0.1",
    ]


def test_without_a_name_every_float_output_counts() -> None:
    fine, poor, other = floats("a"), floats("b", cosine=0.5), integers("c", 0)
    failures = Tolerance.parse(DEFAULT_TOLERANCE).failures([fine, poor, other])
    assert failures == ["output 'b': cosine is 0.5, expected >=0.99"]


def test_agreement_is_about_every_output() -> None:
    found = Tolerance.parse("agreement>=0.9").failures([floats("a"), integers("c", 0.5)])
    assert found == ["output 'c': agreement is 0.5, expected >=0.9"]


def test_a_measure_that_is_nan_does_not_hold() -> None:
    for sign in SIGNS:
        assert not holds(f"cosine{sign}0", floats(cosine=float("nan")))


def test_top1_of_outputs_without_rows() -> None:
    flat = replace(floats("a"), top1=None)
    assert not holds("top1>=0.5", flat)
    assert holds("top1>=0.5", flat, floats("b", top1=1))
    assert Tolerance.parse("a:top1>=0.5").failures([flat]) == ["output 'a' has no top1"]


@pytest.mark.parametrize(
    ("text", "agreement", "expected"),
    [
        ("cosine>=0.99", 1, True),
        ("cosine>=0.99", 0.98, False),
        ("cosine>=0.97", 0.98, True),
        ("top1>=0.99", 0.98, False),
        ("agreement>=0.5", 0.6, True),
        ("relative_l2<=0.0001", 1, True),
        ("relative_l2<=0.0001", 0.99, False),
        ("max_abs<=0.1", 0.95, True),
        ("max_abs<=0.1", 0.85, False),
        ("sqnr>=30", 1, True),
        ("sqnr>=30", 0.98, True),
        ("sqnr>=30", 0.95, False),
        ("c:relative_l2<=0.1", 0.95, True),
    ],
)
def test_models_of_integers_alone_are_judged_by_equal_entries(
    text: str, agreement: float, expected: bool
) -> None:
    assert holds(text, integers("c", agreement)) is expected


def test_the_name_of_a_sequence_means_all_its_parts() -> None:
    parts = [floats("s[0]"), floats("s[1]", cosine=0.5)]
    assert Tolerance.parse("s:cosine>=0.9").failures(parts) == [
        "output 's[1]': cosine is 0.5, expected >=0.9"
    ]


@pytest.mark.parametrize("limit", ["inf", "-inf", "1e3", "-1", "+.5", "1_0"])
def test_limits_are_read_as_python_does(limit: str) -> None:
    value = float(limit)
    assert holds(f"max_abs<={limit}", floats(max_abs=value))
    assert holds(f"max_abs>={limit}", floats(max_abs=value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "tolerance '' cannot be understood"),
        ("cosine", "tolerance 'cosine' cannot be understood"),
        ("cosine>=0.9;max_abs<=1", "cannot be understood"),
        ("cosine>=0.9,,max_abs<=1", "tolerance 'cosine>=0.9,,max_abs<=1' cannot be understood"),
        ("cosine==1", "cannot be understood"),
        ("cosine>=nan", "'nan' is not a number"),
        ("cosine>=0x1", "'0x1' is not a number"),
        ("Cosine>=1", "unknown measure 'Cosine'; did you mean 'cosine'?"),
        ("maxabs<=1", "did you mean 'max_abs'?"),
        ("loss<=1", "unknown measure 'loss'; expected one of cosine,"),
    ],
)
def test_what_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        Tolerance.parse(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "hint"), [("logit", "did you mean 'logits'?"), ("zzz", "it has logits, boxes")]
)
def test_outputs_the_model_has_not(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        Tolerance.parse(f"{name}:cosine>=0").check_outputs(["logits", "boxes"])
    assert f"no output '{name}'; {hint}" in str(error.value)
