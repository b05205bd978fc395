"""Training with ternary layers, from a model to a proved file."""

from __future__ import annotations

import json
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr import open as open_model  # noqa: E402
from onnxlr import train_ternary, verify  # noqa: E402
from onnxlr.calibration import signature  # noqa: E402
from onnxlr.errors import (  # noqa: E402
    DataError,
    ModelError,
    NothingRewrittenError,
    OutputError,
    TrainingError,
    UsageError,
    VerificationError,
)
from onnxlr.plan.trained import TRAINED_KEY  # noqa: E402
from onnxlr.training.data import read_training_data  # noqa: E402
from onnxlr.training.ternary.factors import TernaryFactors  # noqa: E402
from tests.training.ternary_net import cross_entropy, samples, ternary_net  # noqa: E402

Array = np.ndarray[Any, Any]

FACTORS = {"layers": ["wide", "head"], "tolerance_spectral": 0.6}
CODES = {"method": "ternary", "terms": 1, "layers": ["wide", "dense", "head"]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return the file of the network."""
    onnx.save(ternary_net(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def trained(model: Path, **more: Any) -> Any:
    """Train for a few steps on labels, and write `o.onnx` and `dense.onnx` beside the model."""
    settings: dict[str, Any] = {
        "data": samples(120),
        "loss": cross_entropy,
        "steps": 12,
        "every": 4,
        "rate": 3e-3,
        "dense": model.with_name("dense.onnx"),
        "isolate": False,
        **more,
    }
    return train_ternary(model, settings.pop("data"), model.with_name("o.onnx"), **settings)


def run(model: Path, image: Array) -> Array:
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": image})[0])


def constants(model: Path) -> dict[str, Array]:
    graph = onnx.load(model).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def loss_of(model: Path, held: Any) -> float:
    """Return the cross entropy of held-out batches, in numpy."""
    total, count = 0.0, 0
    for batch in held:
        logits = run(model, batch["image"]).astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        total -= float(logs[np.arange(len(logits)), batch["label"]].sum())
        count += len(logits)
    return total / count


@pytest.mark.parametrize("asked", [FACTORS, CODES, {**CODES, "scales": "trained"}])
def test_the_file_is_what_was_trained(model: Path, asked: dict[str, Any]) -> None:
    before = model.read_bytes()
    result = trained(model, **asked)
    output, dense = model.with_name("o.onnx"), model.with_name("dense.onnx")
    assert model.read_bytes() == before
    assert result.rewrite.output == output
    assert result.dense == dense
    assert result.rewrite.report.passed
    image = samples(30, seed=5)["image"]
    np.testing.assert_allclose(run(output, image), run(dense, image), rtol=1e-4, atol=1e-4)
    held = read_training_data(samples(120), signature(open_model(model)), 32, 0.1, 0).held
    assert loss_of(output, held) == pytest.approx(result.after, rel=1e-4)
    assert loss_of(model, held) == pytest.approx(result.original, rel=1e-4)
    assert result.after < result.before
    ternary = [record for record in result.rewrite.layers if not record.choice.keeps]
    assert [record.name for record in ternary] == asked["layers"]
    assert all(record.error < 1e-5 for record in ternary)
    assert not output.with_name("o.onnx.checkpoint").exists()


def test_everything_else_is_trained_too(model: Path) -> None:
    result = trained(model, **FACTORS)
    old, new = constants(model), constants(model.with_name("dense.onnx"))
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert changed == set(old)
    assert result.train == "all"
    written = constants(model.with_name("o.onnx"))
    for name in ("stem", "scale", "shift", "mean", "variance", "last", "grouped", "wide.bias"):
        np.testing.assert_array_equal(written[name], new[name])


@pytest.mark.parametrize(
    ("train", "kept"),
    [
        (
            "layers",
            {"stem", "grouped", "dense", "last", "scale", "shift", "wide.bias", "head.bias"},
        ),
        ("scales", {"stem", "grouped", "dense", "last"}),
    ],
)
def test_less_is_trained(model: Path, train: str, kept: set[str]) -> None:
    trained(model, train=train, **FACTORS)
    old, new = constants(model), constants(model.with_name("dense.onnx"))
    same = {name for name in old if np.array_equal(old[name], new[name])}
    assert same == kept


def test_distillation_needs_no_labels_and_leaves_statistics_alone(model: Path) -> None:
    data = {"image": samples(120)["image"]}
    result = trained(model, data=data, loss=None, rate=1e-3, steps=30, every=10, **FACTORS)
    old, new = constants(model), constants(model.with_name("dense.onnx"))
    assert result.measure == "distance to the model's outputs"
    assert result.original == 0
    assert result.after < 0.8 * result.before
    for name in ("mean", "variance"):
        np.testing.assert_array_equal(new[name], old[name])


def test_training_beats_the_direct_transition(model: Path) -> None:
    result = trained(model, steps=40, every=10, **FACTORS)
    assert result.after < 0.9 * result.before
    assert result.course[0].judged == result.before
    assert min(one.judged for one in result.course) == result.after


def test_terms_stay_when_they_are_not_renewed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed: list[int] = []
    whole = TernaryFactors.renew

    def watched(self: TernaryFactors) -> None:
        renewed.append(id(self))
        whole(self)

    monkeypatch.setattr(TernaryFactors, "renew", watched)
    for renewing, times in ((0.0, 0), (0.5, 1), (1.0, 3)):
        renewed.clear()
        trained(model, renewing=renewing, **FACTORS)
        # 12 steps, a turn of each of both layers every 4: at steps 4, 8, 12 and 2, 6, 10
        assert len(renewed) == times * 2 + (1 if renewing == 0.5 else 0)


def test_metadata_says_that_no_plan_repeats_it(model: Path) -> None:
    result = trained(model, **FACTORS)
    output, dense = model.with_name("o.onnx"), model.with_name("dense.onnx")
    found = {entry.key: entry.value for entry in onnx.load(output).metadata_props}
    entry = json.loads(found[TRAINED_KEY])
    assert entry["by"] == "train-ternary"
    assert entry["held_out"]["after"] == result.after
    for original in (model, dense):
        report = verify(original, output, tolerance="cosine>=-1", isolate=False)
        assert report.passed
        assert {check.proof for check in report.checks} == {"approximation"}
        assert any("trained by onnxlr train-ternary" in note for note in report.notes)


def test_an_interrupted_run_goes_on_to_the_same_bytes(model: Path) -> None:
    trained(model, **FACTORS)
    expected = model.with_name("o.onnx").read_bytes()
    model.with_name("o.onnx").unlink()
    calls = 0

    @wraps(cross_entropy)
    def interrupted(outputs: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 18:
            raise KeyboardInterrupt
        return cross_entropy(outputs, batch)

    with pytest.raises(KeyboardInterrupt):
        trained(model, loss=interrupted, **FACTORS)
    assert not model.with_name("o.onnx").exists()
    assert model.with_name("o.onnx.checkpoint").exists()
    result = trained(model, **FACTORS)
    assert result.resumed is not None
    assert model.with_name("o.onnx").read_bytes() == expected
    assert not model.with_name("o.onnx.checkpoint").exists()


def test_a_checkpoint_of_another_run_is_refused(model: Path) -> None:
    calls = 0

    def loss(outputs: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 18:
            raise KeyboardInterrupt
        return cross_entropy(outputs, batch)

    with pytest.raises(KeyboardInterrupt):
        trained(model, loss=loss, **FACTORS)
    for other in ({"eta": 2.0}, {"every": 5}, {"layers": ["wide"]}, {"train": "layers"}):
        with pytest.raises(TrainingError, match="checkpoint of another run"):
            trained(model, loss=loss, **{**FACTORS, **other})


def test_layers_that_do_not_pay_keep_their_weights(model: Path) -> None:
    result = trained(model, tolerance_spectral=0.6, fit="alternating", steps=2)
    kept = {r.name: r.choice.reason for r in result.rewrite.layers if r.choice.keeps}
    assert set(kept) == {"stem", "last"}
    assert all("bytes, the layer as it is" in str(reason) for reason in kept.values())


def wrong_labels(outputs: Any, batch: Any) -> Any:
    return torch.nn.functional.cross_entropy(outputs["logits"], batch["label"][:-1])


def not_a_number(outputs: Any, batch: Any) -> Any:
    return outputs["logits"].sum() * float("nan")


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"method": "svd"}, UsageError, "method 'svd' makes no ternary layers"),
        ({"train": "half"}, UsageError, "train 'half' is unknown; expected one of layers"),
        ({"every": 0}, UsageError, "every 0 is not a number of steps of at least 1"),
        ({"renewing": 1.5}, UsageError, "renewing 1.5 is not a part from 0 to 1"),
        ({"feedback": 2.0}, UsageError, "feedback 2 is not a fraction from 0 to 1"),
        ({"eta": -1.0}, UsageError, "eta -1 is not a number above 0"),
        ({"batch": 0}, UsageError, "a batch of 0 samples"),
        ({"layers": ["nothing"]}, UsageError, "pattern 'nothing' matches no layer"),
        ({"rank": 0}, UsageError, "rank 0"),
        ({"terms": 2}, UsageError, "terms"),
        ({"layers": ["stem"]}, NothingRewrittenError, "no layer becomes ternary: .* bytes"),
        ({"holdout": 0.0}, DataError, "without inputs that were not trained on"),
        ({"data": {"image": np.zeros((9, 3, 6, 6), "f4")}}, DataError, "image"),
        ({"loss": "no_such_module:loss"}, DataError, "no_such_module"),
        ({"loss": wrong_labels}, TrainingError, "wrong_labels: failed with ValueError"),
        ({"loss": not_a_number}, TrainingError, "before anything is trained, expected a finite"),
        ({"device": "cuda:77"}, UsageError, "cuda:77"),
        ({"dense": "o.onnx"}, OutputError, "expected different files"),
    ],
)
def test_bad_input(model: Path, asked: dict[str, Any], error: Any, words: str) -> None:
    settings = {**FACTORS, "steps": 2, **asked}
    if asked.get("method") == "svd":
        settings.pop("tolerance_spectral")
    if asked.get("rank") == 0:
        settings.pop("tolerance_spectral")
    if "dense" in asked:
        settings["dense"] = model.with_name(asked["dense"])
    with pytest.raises(error, match=words):
        trained(model, **settings)
    assert not model.with_name("o.onnx").exists()


def test_nodes_that_torch_cannot_run_are_named_before_any_fit(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = ternary_net()
    proto.graph.node[13].op_type = "Mish"
    monkeypatch.setattr("onnxlr.training.ternary.training.propose", None)
    with pytest.raises(ModelError, match="Mish"):
        train_ternary(proto, samples(20), model.with_name("o.onnx"), loss=cross_entropy)


def test_what_fails_its_proof_leaves_no_file(model: Path) -> None:
    dense = model.with_name("d.onnx")
    with pytest.raises(VerificationError):
        trained(model, **FACTORS, dense=dense, tolerance="relative_l2<=1e-30")
    assert not dense.exists()
    assert not model.with_name("o.onnx").exists()
    assert model.with_name("o.onnx.checkpoint").exists()


def test_a_model_without_floats_to_learn_from_needs_a_loss(model: Path) -> None:
    proto = ternary_net()
    proto.graph.node.append(onnx.helper.make_node("ArgMax", ["logits"], ["best"], axis=1))
    del proto.graph.output[:]
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info("best", onnx.TensorProto.INT64, ["n", 1])
    )
    with pytest.raises(ModelError, match="no output of floats to learn from: give a loss"):
        train_ternary(proto, samples(20), model.with_name("o.onnx"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("asked", [FACTORS, CODES])
def test_on_cuda(model: Path, asked: dict[str, Any]) -> None:
    result = trained(model, device="cuda", **asked)
    assert result.after < result.before
    assert result.rewrite.report.passed
