"""The plan: what is written is what is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnxlr
from onnxlr.errors import PlanError
from onnxlr.methods import METHODS
from onnxlr.plan import SCHEMA, Choice, Plan
from tests.classifier import classifier

Budget = METHODS["svd"].options
Ranks = METHODS["tucker"].options

budgets = st.one_of(
    st.integers(1, 10_000).map(lambda rank: Budget(rank=rank)),
    st.floats(1e-6, 1).map(lambda ratio: Budget(ratio=ratio)),
    st.floats(1e-6, 64).map(lambda bits: Budget(bits=bits)),
    st.floats(1e-6, 1).map(lambda energy: Budget(energy=energy)),
    st.floats(0, 0.999).map(lambda error: Budget(max_error=error)),
    st.just(Budget()),
)
sizes = st.lists(st.integers(1, 2**31 - 1), min_size=1, max_size=6).map(tuple)
ranks = st.one_of(
    st.builds(
        Ranks, rank=st.integers(1, 10_000) | sizes, modes=st.none() | st.tuples(sizes, sizes)
    ),
    st.builds(Ranks, ratio=st.floats(1e-6, 1), form=st.sampled_from([None, "channels", "full"])),
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
choices = st.one_of(
    st.builds(Choice, st.just("keep"), reason=st.none() | texts),
    st.builds(
        Choice,
        st.just("svd"),
        budgets,
        format=st.sampled_from([None, "float32", "float16", "int8"]),
        activations=st.sampled_from(["float", "dynamic_int8"]),
        reason=st.none() | texts,
    ),
    st.builds(Choice, st.just("tucker"), ranks),
)
plans = st.builds(
    Plan,
    st.dictionaries(texts, choices, max_size=4),
    st.none() | st.text("0123456789abcdef", min_size=64, max_size=64),
    st.just("onnx"),
    st.integers(0, 2**40),
    texts,
)


@given(plans, st.sampled_from([None, 2]))
def test_a_plan_reads_as_it_was_written(plan: Plan, indent: int | None) -> None:
    text = plan.dumps(indent)
    again = Plan.loads(text)
    assert again == plan
    assert list(again.layers) == list(plan.layers)
    assert again.dumps(indent) == text
    assert json.loads(text)["schema"] == SCHEMA
    assert ("\n" in text) is (indent is not None)


def test_the_compact_form_has_no_spaces_between() -> None:
    plan = Plan({"a": Choice("svd", Budget(rank=3))}, None, "onnx", 0, "1")
    assert plan.dumps(None) == (
        '{"schema":"onnxlr.plan/1","onnxlr":"1","source":{},"target":"onnx","seed":0,"layers":'
        '{"a":{"method":"svd","options":{"rank":3},"metric":"frobenius","activations":"float"}}}'
    )


@pytest.mark.parametrize(
    ("choices", "empty"),
    [
        ({}, True),
        ({"a": Choice("keep")}, True),
        ({"a": Choice("keep"), "b": Choice("svd", Budget(rank=1))}, False),
    ],
)
def test_empty_means_that_all_is_kept(choices: dict[str, Choice], empty: bool) -> None:
    assert Plan(choices, None, "onnx", 0, "1").is_empty is empty


def test_what_is_left_out_has_its_default() -> None:
    text = '{"schema": "onnxlr.plan/1", "layers": {"a": {"method": "svd"}}}'
    assert Plan.loads(text) == Plan({"a": Choice("svd", Budget())}, None, "onnx", 0, "")


def test_the_message_has_the_place_once() -> None:
    text = (
        '{"schema": "onnxlr.plan/1", "layers": {"a": {"method": "svd", "options": {"rank": []}}}}'
    )
    with pytest.raises(PlanError) as error:
        Plan.loads(text, "my.json")
    assert str(error.value) == (
        "my.json: layers['a'].options.rank: found [], expected a whole number"
    )


@pytest.mark.parametrize(
    ("given", "written"),
    [(12, 12), ("12", 12), ("8x12", "8x12"), ((8, 12), "8x12"), ("08x12", "8x12")],
)
def test_ranks_are_written_as_a_number_or_a_text(given: object, written: object) -> None:
    plan = Plan({"a": Choice("tucker", Ranks(rank=given))}, None, "onnx", 0, "1")
    assert json.loads(plan.dumps())["layers"]["a"]["options"] == {"rank": written}
    assert Plan.loads(plan.dumps()) == plan


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('{"rank": "8y"}', ": rank 8y is not a whole number of at least 1, nor several as in 8x12"),
        ('{"rank": 1.5}', ".rank: found 1.5, expected a whole number or a string"),
        ('{"rank": "2", "ratio": 0.5}', ": rank and ratio are both given, expected one budget"),
    ],
)
def test_ranks_that_are_none_are_refused_with_their_place(options: str, message: str) -> None:
    text = (
        '{"schema": "onnxlr.plan/1", "layers": {"a": {"method": "tucker", "options": '
        + options
        + "}}}"
    )
    with pytest.raises(PlanError) as error:
        Plan.loads(text, "my.json")
    assert str(error.value) == f"my.json: layers['a'].options{message}"


def test_a_plan_can_be_given_as_an_object_or_a_file(tmp_path: Path) -> None:
    plan = onnxlr.plan(classifier(), rank=4)
    file = tmp_path / "p.json"
    file.write_text(plan.dumps(), encoding="utf-8")
    assert Plan.read(file) == plan
    for name, given_plan in (("a", plan), ("b", file)):
        onnxlr.rewrite(classifier(), tmp_path / name, plan=given_plan, isolate=False)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
