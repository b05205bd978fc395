"""Models side by side: what they run on, what is said of them, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxlr
from onnxlr import benching
from onnxlr.errors import DataError, ModelError, RuntimeFailureError, UsageError
from onnxlr.runtime import Pace
from tests.classifier import FEATURES, classifier, samples
from tests.fixtures import save_external
from tests.onelayer import model_of

PACE = Pace(2e-3, 1e-3, 3e-3, 1.0, 0.9, 1.1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(classifier(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Let nothing be timed; return what would have been, with the arrays of the inputs."""
    found: list[tuple[Any, ...]] = []

    def run(
        models: Sequence[str],
        feeds: Sequence[str],
        threads: int,
        rounds: Sequence[int | None],
        name: str,
        isolate: bool,
        tick: Any,
    ) -> tuple[list[Pace], int]:
        arrays = [dict(np.load(file)) for file in feeds]
        found.append((list(models), arrays, threads, list(rounds), isolate))
        for heat in range(len(rounds)):
            tick(heat)
        return [PACE] * len(models), 7

    monkeypatch.setattr(benching, "run_heats", run)
    return found


def test_all_is_measured_and_said(model: Path) -> None:
    said: list[tuple[str, int, int]] = []
    found = onnxlr.bench(
        model, model, rounds=2, data={"x": samples(8)}, progress=lambda *step: said.append(step)
    )
    assert (found.threads, found.clock, found.rounds, found.processes) == (1, "thread", 2, 2)
    assert not found.is_random
    assert found.data == "the given data: 1 run: x [8, 24]"
    assert found.runtime.startswith("ONNX Runtime 1.")
    assert found.notes == ()
    for each in found.models:
        assert each.model == str(model)
        assert each.bytes == model.stat().st_size
        assert each.load_seconds is not None
        assert each.load_seconds > 0
        assert 0 < each.seconds_low <= each.seconds <= each.seconds_high
    assert found.models[0].ratio == 1
    assert [step[1] for step in said] == sorted(step[1] for step in said)
    assert said[0][1:] == (0, 5)
    assert said[-1][1:] == (5, 5)


@pytest.mark.usefixtures("asked")
def test_memory_is_of_a_process_of_its_own(model: Path) -> None:
    alone = onnxlr.bench(model, isolate=False)
    assert alone.models[0].memory is None
    assert "in this process" in alone.notes[0]
    assert alone.processes == 1
    if Path("/proc/self/status").exists():
        apart = onnxlr.bench(model).models[0]
        assert apart.memory is not None
        assert apart.peak is not None
        assert apart.peak >= apart.memory


@pytest.mark.parametrize(
    ("rounds", "heats"), [(None, [None] * 3), (2, [1, 1]), (3, [1, 1, 1]), (20, [6, 7, 7])]
)
def test_rounds_are_divided_among_processes(
    model: Path, asked: list[tuple[Any, ...]], rounds: int | None, heats: list[int | None]
) -> None:
    found = onnxlr.bench(model, rounds=rounds, threads=2, isolate=False)
    assert asked[0][2:] == (2, heats, False)
    assert (found.threads, found.clock, found.rounds) == (2, "wall", 7)


def test_inputs_are_the_first_few_runs_of_the_data(
    model: Path, asked: list[tuple[Any, ...]]
) -> None:
    data = [{"x": np.full((2, FEATURES), k, np.float32)} for k in range(9)]
    found = onnxlr.bench(model, data=data, isolate=False)
    assert [arrays["x"][0, 0] for arrays in asked[0][1]] == [0, 1, 2, 3]
    assert found.data == "the given data: the first 4 runs: x [2, 24]"


def test_random_inputs_are_of_a_size_that_all_models_take(
    tmp_path: Path, model: Path, asked: list[tuple[Any, ...]]
) -> None:
    fixed = classifier()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, tmp_path / "fixed.onnx")
    found = onnxlr.bench(model, tmp_path / "fixed.onnx", seed=5, isolate=False)
    assert asked[0][1][0]["x"].shape == (1, FEATURES)
    assert found.is_random
    assert "seed 5" in found.data
    assert any("random inputs" in note for note in found.notes)


def test_a_size_counts_what_lies_beside_the_file(
    tmp_path: Path, asked: list[tuple[Any, ...]]
) -> None:
    path = tmp_path / "m.onnx"
    save_external(classifier(), path)
    found = onnxlr.bench(path, isolate=False).models[0]
    assert found.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert found.bytes > path.stat().st_size


def test_models_in_memory_are_measured_as_files(asked: list[tuple[Any, ...]]) -> None:
    proto = classifier()
    found = onnxlr.bench(proto, proto.SerializeToString(), isolate=False)
    assert found.models[0].bytes == found.models[1].bytes == len(proto.SerializeToString())
    assert len(set(asked[0][0])) == 2


def other(tmp_path: Path, **inputs: Any) -> Path:
    """Store a model of some inputs that gives them back."""
    arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in inputs.items()}
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in inputs]
    onnx.save(model_of(nodes, arrays, [f"{n}_out" for n in inputs], {}), tmp_path / "other.onnx")
    return tmp_path / "other.onnx"


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"z": ((2, 24), "float32")}, ["other.onnx: its inputs are 'z', expected", "m.onnx: 'x'"]),
        ({"x": ((2, 24), "float32"), "y": ((1,), "float32")}, ["'x', 'y'", "expected those"]),
        ({"x": ((2, 24), "int64")}, ["other.onnx: does not take", "float32, expected int64"]),
        ({"x": ((2, 25), "float32")}, ["does not take", "[2, 24], expected [2, 25]"]),
    ],
)
def test_models_of_other_inputs_are_refused(
    tmp_path: Path, model: Path, inputs: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ModelError) as refused:
        onnxlr.bench(model, other(tmp_path, **inputs), data={"x": samples(2)}, isolate=False)
    for word in words:
        assert word in str(refused.value)


def test_random_inputs_that_no_model_takes_ask_for_data(tmp_path: Path, model: Path) -> None:
    with pytest.raises(DataError, match=r"other\.onnx: does not take .* give --data"):
        onnxlr.bench(model, other(tmp_path, x=((7, 24), "float32")), isolate=False)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"threads": 0}, "threads 0"),
        ({"rounds": 1}, "rounds 1"),
        ({"seed": -1}, "seed -1"),
        ({"data": "missing.npz"}, "missing.npz"),
    ],
)
def test_arguments_that_cannot_be_followed(
    model: Path, arguments: dict[str, Any], word: str
) -> None:
    with pytest.raises(UsageError, match=word):
        onnxlr.bench(model, isolate=False, **arguments)


def test_no_model_is_nothing_to_measure() -> None:
    with pytest.raises(UsageError, match="no model"):
        onnxlr.bench()


def test_a_model_without_kernels_is_named(tmp_path: Path, model: Path) -> None:
    node = helper.make_node("Unheard", ["x"], ["y"], domain="nobody")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", FEATURES])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nobody", 1)]
    graph = helper.make_graph([node], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "u.onnx")
    for models in ((model, tmp_path / "u.onnx"), (tmp_path / "u.onnx", model)):
        with pytest.raises(RuntimeFailureError, match=r"u\.onnx: cannot be loaded"):
            onnxlr.bench(*models, isolate=False)


def test_more_threads_than_processors_are_noted(
    model: Path, asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benching, "_processors", lambda: 1)
    notes = onnxlr.bench(model, threads=2, isolate=False).notes
    assert "2 threads share 1 processor" in notes
