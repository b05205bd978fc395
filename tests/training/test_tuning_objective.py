"""What is learnt when a rewritten model is tuned: the original's tensors, or labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.errors import (  # noqa: E402
    TrainingError,
    UsageError,
)
from onnxlr.model import open_model  # noqa: E402
from onnxlr.training.data import TrainingData  # noqa: E402
from onnxlr.training.selection import selected  # noqa: E402
from onnxlr.training.trainable import TrainableModel  # noqa: E402
from onnxlr.training.tuning.teacher import Teacher, tensors_behind  # noqa: E402
from onnxlr.training.tuning.trainee import Objective, Tuning  # noqa: E402
from tests.onelayer import run  # noqa: E402
from tests.training.tuning_case import (  # noqa: E402
    INPUTS,
    OUTPUTS,
    Array,
    Case,
    cross_entropy,
    drawn,
    labelled,
    one_layer,
    outputs_of,
    relative,
    samples,
)


def test_tensors_behind_rewritten_layers(case: Case) -> None:
    original, rewritten = open_model(case.original), open_model(case.rewritten)
    assert tensors_behind(original, rewritten) == ["h1", "h2"]
    assert tensors_behind(original, original) == []


def trainee(case: Case, objective: Objective) -> Tuning:
    original, rewritten = open_model(case.original), open_model(case.rewritten)
    student = TrainableModel(rewritten)
    selection = selected(student, rewritten, "factors", original)
    teacher = Teacher(TrainableModel(original), ["y"], tensors_behind(original, rewritten))
    return Tuning(student, selection, teacher, objective)


def tapped(file: Path, x: Array, *names: str) -> list[Array]:
    model = onnx.load(file)
    for name in names:
        model.graph.output.add(name=name)
    return run(model, {"x": x})[1:]


@pytest.mark.parametrize(("distill", "hidden"), [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_the_loss_is_of_outputs_and_hidden_tensors(
    case: Case, distill: float, hidden: float
) -> None:
    x = samples(8)

    def distance(names: tuple[str, ...]) -> float:
        pairs = zip(
            tapped(case.rewritten, x, *names), tapped(case.original, x, *names), strict=True
        )
        return float(np.mean([relative(one, other) ** 2 for one, other in pairs]))

    y, z = outputs_of(case.original, x), outputs_of(case.rewritten, x)
    expected = distill * relative(z, y) ** 2 + hidden * distance(("h1", "h2"))
    found = trainee(case, Objective(distill, hidden)).loss({"x": x})
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)


def test_what_a_teacher_keeps_changes_nothing(case: Case) -> None:
    work = trainee(case, Objective(1.0, 1.0))
    x = samples(24)
    data = TrainingData(({"x": x[:16]},), 8, ({"x": x[16:]},), "")
    teacher = work.teacher
    assert teacher.remember(data, True, memory=100) is data
    kept = teacher.remember(data, True)
    expected = [work.loss(batch).item() for batch in data.epoch(np.random.default_rng(0))]
    judged = work.judge(data.held)
    teacher.model.register_forward_pre_hook(forbidden)
    assert [work.loss(batch).item() for batch in kept.epoch(np.random.default_rng(0))] == expected
    assert work.judge(kept.held) == judged
    with pytest.raises(AssertionError, match="the original ran"):
        work.judge(data.held)


def forbidden(*_: object) -> None:
    raise AssertionError("the original ran")


def mean_cross_entropy(logits: Array, labels: Array) -> float:
    shifted = logits - logits.max(-1, keepdims=True)
    each = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(labels)), labels]
    return float(each.mean())


def test_a_loss_on_labels_is_learnt_and_judges(case: Case, losses: ModuleType) -> None:
    held = {name: array[:50] for name, array in labelled().items()}
    data = {name: array[50:] for name, array in labelled().items()}
    result = case.tune(data, loss="my_losses:loss", holdout=held, steps=100, rate=1e-2)
    came, found = (
        mean_cross_entropy(outputs_of(file, held["x"]), held["label"])
        for file in (case.rewritten, case.output)
    )
    assert result.before == pytest.approx(came, rel=1e-4)
    assert result.after == pytest.approx(found, rel=1e-4)
    assert found < 0.7 * came
    assert "my_losses:loss" in result.measure


def test_a_loss_and_the_original_together(case: Case, losses: ModuleType) -> None:
    """With a large weight of the original's outputs labels hardly move them."""
    moved = []
    for distill in (0.0, 100.0):
        case.tune(labelled(), loss=losses.loss, distill=distill, steps=40, rate=3e-3)
        x = samples()
        moved.append(relative(outputs_of(case.output, x), outputs_of(case.original, x)))
    assert moved[1] < moved[0]


def test_a_loss_that_becomes_nan_keeps_the_last_good_checkpoint(
    case: Case, losses: ModuleType
) -> None:
    asked = 0

    def loss(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
        nonlocal asked
        asked += torch.is_grad_enabled()
        return cross_entropy(outputs, batch) * (float("nan") if asked > 25 else 1)

    losses.loss = loss  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match=r"loss is nan .* 5 steps up to .*of step 24, is kept"):
        case.tune(labelled(), loss="my_losses:loss")
    content = torch.load(Path(f"{case.output}.checkpoint"))
    assert all(value.isfinite().all() for value in content["best_state"].values())
    assert not case.output.exists()
    losses.loss = cross_entropy  # type: ignore[attr-defined]
    assert case.tune(labelled(), loss="my_losses:loss").resumed == content["step"]


def masked_model() -> onnx.ModelProto:
    """Return a model of `(samples, positions, features)`, with a mask that it hardly uses."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], "fc"),
        helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["m", "axes"], ["rows"], keepdims=1),
        helper.make_node("Unsqueeze", ["rows", "last"], ["zero"]),
        helper.make_node("Sub", ["zero", "zero"], ["nothing"]),
        helper.make_node("Add", ["p", "nothing"], ["y"]),
    ]
    shape = ["n", "positions", INPUTS]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("mask", TensorProto.INT64, shape[:2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*shape[:2], OUTPUTS])],
        [
            numpy_helper.from_array(drawn(0, INPUTS, OUTPUTS), "w"),
            numpy_helper.from_array(np.array([1]), "axes"),
            numpy_helper.from_array(np.array([2]), "last"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_masked_positions_are_not_learnt_and_do_not_judge(tmp_path: Path) -> None:
    """Where masked positions hold something else, what counts is fitted as if they were not."""
    case = Case(tmp_path, masked_model(), rank=4)
    mask = (np.arange(10) < np.array([[3], [10], [6], [8]] * 10)).astype(np.int64)
    x = samples(400).reshape(40, 10, INPUTS)
    x[mask == 0] = 30 * drawn(5, int((mask == 0).sum()), INPUTS)
    data = {"x": x, "mask": mask}
    result = case.tune(
        data, holdout=data, mask="mask", steps=600, rate=2e-2, patience=None, batch=40
    )
    y, z = (run(onnx.load(file), data)[0][mask != 0] for file in (case.original, case.output))
    tail = np.linalg.svd(y.astype(np.float64), compute_uv=False)[4:]
    best = float(np.linalg.norm(tail) / np.linalg.norm(y))
    assert result.after == pytest.approx(relative(z, y), rel=1e-4)
    assert relative(z, y) <= best * 1.02


def test_hidden_tensors_alone_that_are_none(tmp_path: Path) -> None:
    case = Case(tmp_path, one_layer(), rank=4)  # behind its layer is the output itself
    with pytest.raises(UsageError, match="no tensors behind rewritten layers"):
        case.tune(distill=0.0)
