"""Tuning of rewritten models: what it reaches, what it writes, and what it refuses."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

import onnxlr  # noqa: E402
from onnxlr.errors import (  # noqa: E402
    DataError,
    ModelError,
    NothingGainedError,
    OnnxlrWarning,
    OutputError,
    TrainingError,
    UsageError,
    VerificationError,
)
from onnxlr.model import open_model  # noqa: E402
from onnxlr.plan import TRAINED_KEY  # noqa: E402
from onnxlr.training.data import TrainingData  # noqa: E402
from onnxlr.training.selection import selected  # noqa: E402
from onnxlr.training.trainable import TrainableModel  # noqa: E402
from onnxlr.training.tuning import file as tuned_file  # noqa: E402
from onnxlr.training.tuning.teacher import Teacher, tensors_behind  # noqa: E402
from onnxlr.training.tuning.trainee import Objective, Tuning  # noqa: E402
from tests.onelayer import run  # noqa: E402

Array = np.ndarray[Any, Any]
ANY = "cosine>=-1"
"""A tolerance that everything holds."""

INPUTS, WIDTH, OUTPUTS = 24, 20, 16


def drawn(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model_of(
    nodes: list[onnx.NodeProto], constants: Mapping[str, Array], outputs: Mapping[str, int]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", INPUTS])],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, ["n", v]) for k, v in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def one_layer(outputs: int = OUTPUTS) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "fc")]
    return model_of(nodes, {"w": drawn(0, INPUTS, outputs)}, {"y": outputs})


def two_layers(seed: int = 0, last: str = "Identity") -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["p1"], "first"),
        helper.make_node("Add", ["p1", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("MatMul", ["r1", "w2"], ["p2"], "second"),
        helper.make_node("Add", ["b2", "p2"], ["h2"]),
        helper.make_node(last, ["h2"], ["y"]),
    ]
    constants = {
        "w1": drawn(seed, INPUTS, WIDTH),
        "b1": drawn(seed + 1, WIDTH),
        "w2": drawn(seed + 2, WIDTH, OUTPUTS),
        "b2": drawn(seed + 3, OUTPUTS),
    }
    return model_of(nodes, constants, {"y": OUTPUTS})


def samples(count: int = 160, seed: int = 9) -> Array:
    """Return inputs that lie more in some directions than in others."""
    spread = np.geomspace(3, 0.1, INPUTS)
    turned = np.linalg.qr(drawn(seed + 1, INPUTS, INPUTS))[0]
    return np.asarray((drawn(seed, count, INPUTS) * spread) @ turned, np.float32)


class Case:
    """A model, what became of it, and data, as files in a folder."""

    def __init__(self, folder: Path, model: onnx.ModelProto, **options: Any) -> None:
        self.original, self.rewritten = folder / "m.onnx", folder / "r.onnx"
        self.output = folder / "t.onnx"
        onnx.save(model, self.original)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OnnxlrWarning)
            onnxlr.rewrite(self.original, self.rewritten, tolerance=ANY, isolate=False, **options)

    def tune(self, data: Any = None, **options: Any) -> Any:
        data = {"x": samples()} if data is None else data
        usual = {"tolerance": ANY, "isolate": False, "steps": 40, "batch": 16}
        return onnxlr.tune(self.original, self.rewritten, data, self.output, **{**usual, **options})


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path, two_layers(), rank=4)


def outputs_of(file: Path, x: Array) -> Array:
    return run(onnx.load(file), {"x": x})[0].astype(np.float64)


def relative(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_low_rank_factors_reach_the_best_there_are(tmp_path: Path) -> None:
    """The best of a rank on given inputs is known: the truncated SVD of their outputs."""
    x = samples()
    case = Case(tmp_path, one_layer(), rank=4)
    y = outputs_of(case.original, x)
    tail = np.linalg.svd(y, compute_uv=False)[4:]
    best = float(np.linalg.norm(tail) / np.linalg.norm(y))
    result = case.tune(
        {"x": x}, holdout={"x": x}, train="factors", steps=1500, rate=3e-2, patience=None, batch=160
    )
    found = relative(outputs_of(case.output, x), y)
    came = relative(outputs_of(case.rewritten, x), y)
    assert result.before == pytest.approx(came, rel=1e-4)
    assert result.after == pytest.approx(found, rel=1e-4)
    assert best * (1 - 1e-5) <= found <= best * 1.01
    assert came > 1.3 * best


def test_scales_reach_their_least_squares(tmp_path: Path) -> None:
    x = samples()
    case = Case(tmp_path, one_layer(200), method="quantize", format="int4", group_size=0)
    opened = onnx.load(case.rewritten)
    y = outputs_of(case.original, x)
    weight = run(opened, {"x": np.eye(INPUTS, dtype=np.float32)})[0].astype(np.float64)
    parts = x @ weight  # each column times a scale that is trained
    factors = (parts * y).sum(0) / (parts * parts).sum(0)
    best = relative(parts * factors, y)
    case.tune(
        {"x": x}, holdout={"x": x}, train="scales", steps=600, rate=1e-2, patience=None, batch=160
    )
    found = relative(outputs_of(case.output, x), y)
    came = relative(parts, y)
    assert came > best * 1.001
    assert best * (1 - 1e-5) <= found <= best + 0.02 * (came - best)
    tuned = run(onnx.load(case.output), {"x": np.eye(INPUTS, dtype=np.float32)})[0]
    ratios = tuned.astype(np.float64) / np.where(weight == 0, 1, weight)
    assert np.allclose(
        ratios[weight != 0], np.broadcast_to(factors, weight.shape)[weight != 0], atol=2e-3
    )


def test_what_it_writes_and_tells(case: Case) -> None:
    before = case.rewritten.read_bytes()
    result = case.tune(steps=60, seed=2)
    assert result.output == case.output
    assert case.rewritten.read_bytes() == before
    assert not Path(f"{case.output}.checkpoint").exists()
    assert result.after < result.before
    assert result.steps in [one.step for one in result.course]
    assert result.report.passed
    assert {check.proof for check in result.report.checks} == {"torch", "approximation"}
    # What held-out data says is what verification finds on it.
    errors = [c.relative_l2 for c in result.report.checks[-1].comparisons]
    assert result.after == pytest.approx(np.mean(errors), rel=1e-4)
    old, new = onnx.load(case.rewritten), onnx.load(case.output)
    assert [n.SerializeToString() for n in new.graph.node] == [
        n.SerializeToString() for n in old.graph.node
    ]
    changed = {
        a.name for a, b in zip(old.graph.initializer, new.graph.initializer, strict=True) if a != b
    }
    assert changed
    assert changed <= {t.name for t in old.graph.initializer if t.data_type == TensorProto.FLOAT}
    onnx.checker.check_model(new, full_check=True)


def test_the_metadata_says_what_was_done_and_verify_why_no_plan_gives_it(case: Case) -> None:
    case.tune(steps=30, seed=5)
    entries = {e.key: e.value for e in onnx.load(case.output).metadata_props}
    told = json.loads(entries[TRAINED_KEY])
    assert told["by"] == "tune"
    assert told["seed"] == 5
    assert 0 < told["steps"] <= 30
    assert told["train"] == "factors"
    assert "144 samples, 16 held out" in told["data"]
    assert told["held_out"]["after"] < told["held_out"]["before"]
    report = onnxlr.verify(case.original, case.output, tolerance=ANY, isolate=False)
    assert report.passed
    assert {check.proof for check in report.checks} == {"approximation"}
    assert any("trained by onnxlr tune" in note for note in report.notes)
    untouched = onnxlr.verify(case.original, case.rewritten, tolerance=ANY, isolate=False)
    assert "emission" in {check.proof for check in untouched.checks}


def test_a_tuned_model_that_is_rewritten_is_proved_against_itself(tmp_path: Path) -> None:
    case = Case(tmp_path, two_layers(), rank=4, layers=["first"])
    case.tune(steps=20)
    again = tmp_path / "again.onnx"
    result = onnxlr.rewrite(
        case.output, again, rank=2, layers=["second"], tolerance=ANY, isolate=False
    )
    assert result.report is not None
    report = onnxlr.verify(case.output, again, tolerance=ANY, isolate=False)
    assert "emission" in {check.proof for check in report.checks}


def test_the_same_run_gives_the_same_bytes(case: Case) -> None:
    case.tune(steps=20)
    first = case.output.read_bytes()
    case.tune(steps=20)
    assert case.output.read_bytes() == first
    case.tune(steps=20, seed=1)
    assert case.output.read_bytes() != first


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_a_run_that_breaks_off_goes_on_to_the_same_bytes(
    case: Case, error: type[BaseException]
) -> None:
    case.tune(steps=40)
    expected = case.output.read_bytes()
    case.output.unlink()
    steps = 0

    def interrupt(task: str, done: int, total: int) -> None:
        nonlocal steps
        steps += task.startswith("training")
        if steps == 23:
            raise error

    with pytest.raises(error):
        case.tune(steps=40, progress=interrupt)
    checkpoint = Path(f"{case.output}.checkpoint")
    assert checkpoint.exists()
    assert not case.output.exists()
    result = case.tune(steps=40)
    assert result.resumed == 20
    assert case.output.read_bytes() == expected
    assert not checkpoint.exists()


def test_a_checkpoint_of_another_run_or_a_damaged_one_stops_it(case: Case) -> None:
    checkpoint = case.output.with_name("own.checkpoint")

    def interrupt(task: str, done: int, total: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.tune(progress=interrupt, checkpoint=checkpoint)
    content = checkpoint.read_bytes()
    for other in ({"seed": 1}, {"train": "all"}, {"data": {"x": samples(seed=3)}}, {"hidden": 0.0}):
        with pytest.raises(TrainingError, match=r"own\.checkpoint: is a checkpoint of another run"):
            case.tune(checkpoint=checkpoint, **other)
    assert checkpoint.read_bytes() == content
    checkpoint.write_bytes(content[:1000])
    with pytest.raises(TrainingError, match=r"own\.checkpoint: is no checkpoint .* or damaged"):
        case.tune(checkpoint=checkpoint)
    assert not case.output.exists()


def test_what_gains_nothing_is_not_written(case: Case) -> None:
    case.output.write_bytes(b"older")
    with pytest.raises(NothingGainedError, match="nothing was gained on held-out data") as caught:
        case.tune(steps=20, rate=10.0, keep=True)
    assert case.output.read_bytes() == b"older"
    assert caught.value.exit_code == 1
    assert caught.value.result.output is None
    assert caught.value.result.report is None
    assert not Path(f"{case.output}.checkpoint").exists()


def test_what_does_not_hold_is_not_written_unless_kept(case: Case) -> None:
    with pytest.raises(
        VerificationError, match=r"approximation proof.*expected >=0\.9999"
    ) as caught:
        case.tune(tolerance="cosine>=0.9999")
    assert not case.output.exists()
    assert caught.value.result.output is None
    assert Path(f"{case.output}.checkpoint").exists()
    with pytest.raises(VerificationError):
        case.tune(tolerance="cosine>=0.9999", keep=True)
    assert case.output.exists()
    result = case.tune()
    assert result.resumed == 40  # what was trained is there
    assert result.output == case.output


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


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a module `my_losses`, of which `my_losses:loss` is a loss on labels."""
    module = ModuleType("my_losses")
    module.loss = cross_entropy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_losses", module)
    return module


def cross_entropy(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    return torch.nn.functional.cross_entropy(outputs["y"], batch["label"])


def labelled(count: int = 160) -> dict[str, Array]:
    x = samples(count)
    return {"x": x, "label": (x @ drawn(77, INPUTS, OUTPUTS)).argmax(-1)}


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
    with pytest.raises(TrainingError, match="my_losses:loss: returned nan, expected a finite"):
        case.tune(labelled(), loss="my_losses:loss")
    checkpoint = Path(f"{case.output}.checkpoint")
    assert torch.load(checkpoint)["step"] == 24
    assert not case.output.exists()
    losses.loss = cross_entropy  # type: ignore[attr-defined]
    assert case.tune(labelled(), loss="my_losses:loss").resumed == 24


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


def test_the_usual_place_of_the_result(case: Case) -> None:
    result = onnxlr.tune(
        case.original, case.rewritten, {"x": samples()}, steps=10, tolerance=ANY, isolate=False
    )
    assert result.output == case.rewritten.with_name("r.tuned.onnx")
    with pytest.raises(UsageError, match="a model without a file needs an output path"):
        onnxlr.tune(onnx.load(case.original), onnx.load(case.rewritten), {"x": samples()})


def test_models_in_memory(case: Case) -> None:
    case.tune(steps=20)
    expected = case.output.read_bytes()
    onnxlr.tune(
        onnx.load(case.original),
        case.rewritten.read_bytes(),
        {"x": samples()},
        case.output,
        steps=20,
        tolerance=ANY,
        isolate=False,
    )
    # All but the hash of the original, of which there is no file.
    assert onnx.load(case.output).graph == onnx.load_from_string(expected).graph


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("train", ["scales", "factors"])
def test_on_cuda_it_learns_as_on_the_cpu(tmp_path: Path, train: str) -> None:
    case = Case(tmp_path, two_layers(), rank=4)
    on_cpu = case.tune(steps=40, train=train)
    on_cuda = case.tune(steps=40, train=train, device="cuda")
    assert on_cuda.after == pytest.approx(on_cpu.after, rel=1e-2)
    assert on_cuda.report.passed


def test_a_run_goes_on_with_other_steps_and_another_rate(case: Case) -> None:
    """What a run may take from a checkpoint is not how long and how fast it goes on."""

    def interrupt(task: str, done: int, total: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.tune(progress=interrupt)
    result = case.tune(steps=60, rate=1e-4, patience=9)
    assert result.resumed == 28
    assert result.course[-1].step == 60


def test_hidden_tensors_alone_that_are_none(tmp_path: Path) -> None:
    case = Case(tmp_path, one_layer(), rank=4)  # behind its layer is the output itself
    with pytest.raises(UsageError, match="no tensors behind rewritten layers"):
        case.tune(distill=0.0)


def written_as(case: Case, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Let the file get only a share of what training changed."""
    came = {t.name: numpy_helper.to_array(t) for t in onnx.load(case.rewritten).graph.initializer}
    right = tuned_file.current_values

    def wrong(*arguments: Any) -> dict[str, Array]:
        return {k: came[k] + share * (v - came[k]) for k, v in right(*arguments).items()}

    monkeypatch.setattr(tuned_file, "current_values", wrong)


def test_a_file_that_is_not_what_was_trained_fails(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_as(case, monkeypatch, 0.5)
    with pytest.raises(VerificationError, match="torch proof") as caught:
        case.tune()
    assert caught.value.result.after < caught.value.result.before
    assert not case.output.exists()


def test_a_file_that_is_worse_than_what_was_trained_is_never_kept(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_as(case, monkeypatch, -2.0)
    with pytest.raises(NothingGainedError, match="nothing was gained"):
        case.tune(keep=True)
    assert not case.output.exists()
