"""What tuning refuses, before any work."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

import onnxlr  # noqa: E402
from onnxlr.errors import (  # noqa: E402
    DataError,
    ModelError,
    OnnxlrWarning,
    OutputError,
    TrainingError,
    UsageError,
)
from tests.training.tuning_case import Array, Case, labelled, samples, two_layers  # noqa: E402


@pytest.mark.parametrize("labels", [np.zeros(100, np.int64), np.zeros((160, 3), np.int64)])
def test_labels_of_the_wrong_shape(case: Case, losses: ModuleType, labels: Array) -> None:
    with pytest.raises((DataError, TrainingError), match=r"label' (has shape )?\[1"):
        case.tune({"x": samples(), "label": labels}, loss="my_losses:loss")
    assert not case.output.exists()


def test_labels_that_are_missing(case: Case, losses: ModuleType) -> None:
    with pytest.raises(TrainingError, match="my_losses:loss: failed with KeyError: 'label'"):
        case.tune(loss="my_losses:loss")


@pytest.mark.parametrize("holdout", [0.0, 1.0])
def test_without_held_out_data(case: Case, holdout: float) -> None:
    with pytest.raises(DataError, match="holdout"):
        case.tune(holdout=holdout)
    with pytest.raises(DataError, match="number of samples is 1"):
        case.tune({"x": samples(1)})


def test_operators_that_torch_has_not_are_named_before_any_work(tmp_path: Path) -> None:
    model = two_layers(last="Erf")
    for name, kind in (("an odd one", "Bernoulli"), ("another", "RandomNormalLike")):
        model.graph.node.insert(0, helper.make_node(kind, ["x"], [name], name))
    case = Case(tmp_path, model, rank=4, seed=1, data={"x": samples(4)})
    with pytest.raises(ModelError, match=r"cannot be run in torch: .*'another'.*'an odd one'"):
        case.tune("no such data")
    assert not case.output.exists()


def test_outputs_that_do_not_match(tmp_path: Path) -> None:
    case = Case(tmp_path, two_layers(), rank=4)
    other = onnx.load(case.rewritten)
    other.graph.output[0].name = "h2"
    onnx.save(other, case.rewritten)
    with pytest.raises(ModelError, match=r"its outputs are \['h2'\], expected .*\['y'\]"):
        case.tune()
    narrow = two_layers()
    for tensor in narrow.graph.initializer:
        if tensor.name in ("w2", "b2"):
            array = numpy_helper.to_array(tensor)[..., :5]
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    narrow.graph.output[0].type.tensor_type.shape.dim[1].ClearField("dim_value")
    onnx.save(narrow, case.rewritten)
    with pytest.raises(ModelError, match=r"output 'y' has shape \[16, 5\], that of .*\[16, 16\]"):
        case.tune()


def test_a_rewritten_model_of_another_original_is_said_to_be_one(tmp_path: Path) -> None:
    case = Case(tmp_path, two_layers(), rank=4)
    onnx.save(two_layers(seed=50), case.original)
    with pytest.warns(OnnxlrWarning, match=r"r\.onnx was made out of another model than .*m\.onnx"):
        case.tune(steps=20)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"train": "weights"}, UsageError, "train is 'weights', expected one of scales, factors"),
        ({"mask": "m"}, UsageError, "no input 'm' for a mask; it has 'x'"),
        ({"hidden": -1.0}, UsageError, "hidden is -1, expected a weight of 0 or more"),
        ({"hidden": 0.0, "distill": 0.0}, UsageError, "nothing is left to learn"),
        ({"device": "abacus"}, UsageError, "device 'abacus' cannot be used"),
        ({"tolerance": "z:cosine>=0"}, UsageError, "no output 'z'"),
        ({"batch": 0}, DataError, "a batch of 0"),
        ({"rate": float("nan")}, TrainingError, "rate nan"),
        ({"minutes": 0.0}, TrainingError, "minutes 0"),
        ({"loss": "nowhere:loss"}, DataError, "nowhere"),
        ({"checkpoint": "no/such/folder"}, OutputError, "does not exist"),
    ],
)
def test_what_cannot_be_followed(
    case: Case, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        case.tune(**options)
    assert not case.output.exists()


def test_inputs_are_never_written_over(case: Case) -> None:
    for name in ("original", "rewritten"):
        for argument in ("output", "checkpoint"):
            asked = {"output": case.output, "checkpoint": None, argument: getattr(case, name)}
            with pytest.raises(OutputError, match="is the input"):
                onnxlr.tune(case.original, case.rewritten, {"x": samples()}, **asked)


def test_a_loss_given_as_a_function_is_refused_like_one_that_is_named(case: Case) -> None:
    with pytest.raises(TrainingError, match="returned float, expected a torch tensor of one"):
        case.tune(labelled(), loss=lambda *_: 0.5)
    with pytest.raises(TrainingError, match="does not depend on what is trained"):
        case.tune(labelled(), loss=lambda outputs, _: outputs["y"].detach().sum())


def test_what_is_written_lies_in_different_places(case: Case) -> None:
    with pytest.raises(OutputError, match="expected different files for what is written"):
        case.tune(checkpoint=case.output)
