"""What a model's metadata says of training, and whether its plan still gives it."""

from __future__ import annotations

import json

import onnx
import pytest

from onnxlr.plan import TRAINED_KEY, record_training, trained_after
from onnxlr.version import VERSION


def model(*keys: str) -> onnx.ModelProto:
    found = onnx.ModelProto()
    for key in keys:
        if key == "trained":
            record_training(found, "tune", {"steps": 3})
        else:
            found.metadata_props.add(key=key, value="{}")
    return found


def test_each_training_has_an_entry_of_its_own() -> None:
    found = model("other")
    record_training(found, "tune", {"steps": 3, "data": "ä"})
    record_training(found, "train-ternary", {"steps": 4})
    entries = {entry.key: entry.value for entry in found.metadata_props}
    assert list(entries) == ["other", TRAINED_KEY, f"{TRAINED_KEY}.2"]
    assert json.loads(entries[TRAINED_KEY]) == {
        "schema": "onnxlr.tuned/1",
        "by": "tune",
        "onnxlr": VERSION,
        "steps": 3,
        "data": "ä",
    }
    assert "train-ternary" in str(trained_after(found, None))


@pytest.mark.parametrize(
    ("keys", "plan", "expected"),
    [
        (["onnxlr.plan"], "onnxlr.plan", False),
        (["onnxlr.plan", "trained"], "onnxlr.plan", True),
        (["trained", "onnxlr.plan"], "onnxlr.plan", False),
        (["onnxlr.plan", "trained", "onnxlr.plan.2"], "onnxlr.plan.2", False),
        (["onnxlr.plan", "trained", "onnxlr.plan.2"], "onnxlr.plan", True),
        (["onnxlr.plan", "trained", "onnxlr.plan.2", "trained"], "onnxlr.plan.2", True),
        (["trained"], None, True),
        (["onnxlr.tuned.by.hand", "onnxlr.tuning"], None, False),
        ([], None, False),
    ],
)
def test_training_counts_after_the_plan(keys: list[str], plan: str | None, expected: bool) -> None:
    assert (trained_after(model(*keys), plan) is not None) is expected


def test_an_entry_that_cannot_be_read_still_counts() -> None:
    for value in ("", "[]", "{}", "no JSON"):
        found = model("onnxlr.plan")
        found.metadata_props.add(key=TRAINED_KEY, value=value)
        assert "trained by onnxlr after" in str(trained_after(found, "onnxlr.plan"))
