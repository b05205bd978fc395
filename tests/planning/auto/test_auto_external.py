"""The planner on models whose weights lie in other files, and on those too big for one file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import onnxlr
from onnxlr.fits import workers
from onnxlr.model import open_model, saving
from onnxlr.planning.auto import contest, preparing, stock
from onnxlr.planning.auto.quantizers import dynamic_int8, matmul_nbits, static_int8
from onnxlr.planning.auto.stock import STOCK, Stock
from tests.classifier import classifier, samples, weight
from tests.onelayer import distance
from tests.planned import DATA, count_time, rewrite

WIDE = {"w1": weight(24, 160, 1), "w2": weight(160, 160, 2), "w3": weight(160, 10, 3)}
"""Weights that are large enough to lie in a file of their own when they are written."""

LIMIT = 6000


@pytest.fixture(autouse=True)
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    count_time(monkeypatch)


def save_in_parts(model: onnx.ModelProto, file: Path, locations: Sequence[str]) -> Path:
    """Save a model whose weights lie in several files, in turn."""
    for number, tensor in enumerate(model.graph.initializer):
        location = locations[number % len(locations)]
        place = file.parent / location
        place.parent.mkdir(exist_ok=True)
        with place.open("ab") as stream:
            offset = stream.tell()
            stream.write(tensor.raw_data)
        values = {"location": location, "offset": offset, "length": len(tensor.raw_data)}
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in values.items():
            tensor.external_data.add(key=key, value=str(value))
    file.write_bytes(model.SerializeToString())
    return file


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def values_of(file: Path) -> dict[str, tuple[str, bytes]]:
    return {
        tensor.name: (array.dtype.name, array.tobytes())
        for tensor in onnx.load(file).graph.initializer
        for array in [numpy_helper.to_array(tensor)]
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A classifier whose weights lie in two files, one of them in a folder below."""
    (tmp_path / "in").mkdir()
    parts = ["w.bin", "below/m.onnxlr.onnx.data"]
    return save_in_parts(classifier(**WIDE), tmp_path / "in" / "m.onnx", parts)


def expected(x: np.ndarray) -> np.ndarray:
    for name in ("w1", "w2"):
        x = np.maximum(x @ WIDE[name], 0)
    return np.asarray(x @ WIDE["w3"] + np.linspace(-1, 1, 10))


def logits(file: Path, x: np.ndarray) -> np.ndarray:
    session = onnxlr.session(str(file), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("isolate", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_planned_is_that_of_the_model_in_one_file(
    model: Path, tmp_path: Path, isolate: bool
) -> None:
    before = hashes(model.parent)
    alone = tmp_path / "alone.onnx"
    onnx.save(classifier(**WIDE), alone)
    arguments: dict[str, Any] = {"goal": "size", "isolate": isolate, "layers": ["first", "second"]}
    other = rewrite(alone, tmp_path / "one.onnx", **arguments)
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "m.onnx"
    found = rewrite(model, output, **arguments)
    assert {n: str(c) for n, c in found.plan.layers.items()} == {
        name: str(choice) for name, choice in other.plan.layers.items()
    }
    assert not all(choice.keeps for choice in found.plan.layers.values())
    assert values_of(output) == values_of(tmp_path / "one.onnx")
    assert found.bytes_before == sum(p.stat().st_size for p in model.parent.rglob("*.*"))
    assert found.bytes_after == sum(path.stat().st_size for path in output.parent.iterdir())
    assert hashes(model.parent) == before


def only_dynamic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one of ONNX Runtime's tools be all there is to compare with."""
    monkeypatch.setattr(contest, "STOCK", STOCK[:1])
    monkeypatch.setattr(contest, "make_stock", partial(stock.make_stock, options=STOCK[:1]))


def test_a_stock_model_that_is_best_comes_with_its_weights(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is about one layer only; what ONNX Runtime's tool makes is too big for one file."""
    monkeypatch.setattr(saving, "_PROTO_LIMIT", LIMIT)
    only_dynamic(monkeypatch)
    before = hashes(model.parent)
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "m.onnx"
    result = rewrite(model, output, goal="size", layers=["head"], stock=True)
    assert result.findings is not None
    (tool,) = (each for each in result.findings.contenders if each.is_stock)
    if tool.problem is not None and "'onnx' has no attribute" in tool.problem:
        pytest.skip(f"ONNX Runtime's tool does not go with this onnx: {tool.problem}")
    (chosen,) = (each for each in result.findings.contenders if each.chosen)
    assert chosen.name == "dynamic int8"
    assert result.report is not None
    assert result.report.passed
    assert {path.name for path in output.parent.iterdir()} == {"m.onnx", "m.onnx.data"}
    assert open_model(output).external_files() == ["m.onnx.data"]
    size = sum(path.stat().st_size for path in output.parent.iterdir())
    assert result.bytes_after == size
    assert chosen.bytes == pytest.approx(size, rel=0.1)  # data begins at whole pages
    x = samples(16, seed=9)
    assert 1e-4 < distance(logits(output, x), expected(x)) < 0.05
    assert hashes(model.parent) == before


def test_a_stock_model_does_not_take_the_place_of_the_inputs_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The input's own weights have the name that those of the output would have."""
    monkeypatch.setattr(saving, "_PROTO_LIMIT", LIMIT)
    only_dynamic(monkeypatch)
    model = save_in_parts(classifier(**WIDE), tmp_path / "m.onnx", ["m.onnxlr.onnx.data"])
    before = hashes(tmp_path)
    output = tmp_path / "m.onnxlr.onnx"
    rewrite(model, output, goal="size", layers=["head"], stock=True)
    after = hashes(tmp_path)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"m.onnxlr.onnx", "m.onnxlr.onnx.2.data"}
    assert np.isfinite(logits(output, samples(4))).all()


@pytest.mark.parametrize("stored", ["in parts", "in one file"])
def test_models_too_big_for_one_file_are_built_and_measured(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    if stored == "in one file":
        model = tmp_path / "one.onnx"
        onnx.save(classifier(**WIDE), model)
    plain = rewrite(model, tmp_path / "plain.onnx", goal="size")
    monkeypatch.setattr(saving, "_PROTO_LIMIT", LIMIT)
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "m.onnx"
    found = rewrite(model, output, goal="size")
    assert {n: str(c) for n, c in found.plan.layers.items()} == {
        name: str(choice) for name, choice in plain.plan.layers.items()
    }
    assert values_of(output) == values_of(tmp_path / "plain.onnx")
    assert open_model(output).external_files() == ["m.onnx.data"]
    assert max(path.stat().st_size for path in output.parent.glob("*.onnx")) < LIMIT + 6000


def test_a_layer_that_no_message_holds_is_left_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "_LARGEST", 160 * 160 * 4)
    result = rewrite(model, tmp_path / "o.onnx", goal="size")
    reason = str(result.plan.layers["second"].reason)
    assert reason.startswith("its weight takes 102,400 bytes, and method auto measures layers of")
    assert [name for name, c in result.plan.layers.items() if not c.keeps] == ["first", "head"]


# --- ONNX Runtime's tools ------------------------------------------------------------------------

TOOLS: dict[str, tuple[Callable[..., None], dict[str, Any], float]] = {
    "dynamic": (dynamic_int8, {}, 0.05),
    "nbits": (matmul_nbits, {"bits": 4, "block": 32}, 0.2),
    "static": (static_int8, {}, 0.05),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_tools_quantise_what_is_too_big_for_one_file(
    tool: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_PROTO_LIMIT", LIMIT)
    function, arguments, bound = TOOLS[tool]
    np.savez(tmp_path / "feed.npz", **DATA)
    file, made = tmp_path / "feed.npz", tmp_path / "made"
    made.mkdir()
    monkeypatch.setattr(stock, "STOCK", (Stock("the tool", lambda *a: function(*a, **arguments)),))
    ((_, found),) = stock.make_stock(model, made, [str(file)], False, stock.STOCK)
    if isinstance(found, str):
        assert any(word in found for word in ("'onnx' has no", "onnx-ir", "4 bits only")), found
        pytest.skip(found)
    assert stock.files_of(found) == [found, found.with_name(f"{found.name}.data")]
    assert {path.name for path in made.iterdir()} == {path.name for path in stock.files_of(found)}
    x = samples(16, seed=9)
    assert 1e-4 < distance(logits(found, x), expected(x)) < bound


def test_of_a_tool_that_fails_nothing_is_left(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(source: Path, output: Path, feeds: Sequence[str]) -> None:
        output.write_bytes(b"half")
        output.with_name(f"{output.name}.data").write_bytes(b"half")
        raise ValueError("no more")

    monkeypatch.setattr(stock, "STOCK", (Stock("fails", half),))
    ((_, reason),) = stock.make_stock(model, tmp_path, [], False, stock.STOCK)
    assert isinstance(reason, str)
    assert "no more" in reason
    assert list(tmp_path.glob("fails*")) == []


def test_a_full_disk_is_no_fault_of_a_tool(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, output: Path, feeds: Sequence[str]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stock, "STOCK", (Stock("writes", full),))
    with pytest.raises(onnxlr.OutputError, match="temporary files cannot be written there"):
        stock.make_stock(model, tmp_path, [], False, stock.STOCK)


# --- caches --------------------------------------------------------------------------------------


def test_what_was_chosen_is_fitted_once_more_and_then_never(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measurements are known from the first run, chains of what was chosen from the second."""
    fitted: list[str] = []
    fit = workers.fit_or_reason

    def counted(values: Any, wish: Any, evidence: Any) -> Any:
        fitted.append(wish.method)
        return fit(values, wish, evidence)

    monkeypatch.setattr(workers, "fit_or_reason", counted)
    made, counts = [], []
    for number in range(3):
        output = tmp_path / f"{number}.onnx"
        result = rewrite(model, output, goal="size", cache=tmp_path / "cache")
        made.append(values_of(output))
        counts.append(len(fitted))
        del fitted[:]
    assert made[0] == made[1] == made[2]
    written = sum(not choice.keeps for choice in result.plan.layers.values())
    assert counts[0] == 0
    assert counts[1] >= written > 0
    assert counts[2] == 0
    onnxlr.rewrite(
        model,
        tmp_path / "p.onnx",
        plan=result.plan,
        calibration=DATA,
        isolate=False,
        cache=tmp_path / "cache",
    )
    assert values_of(tmp_path / "p.onnx") == made[0]
    assert fitted == []


def test_the_same_weights_in_a_model_of_another_opset_are_measured_anew(tmp_path: Path) -> None:
    """How a layer can be written depends on the opset; without data nothing else differs."""
    sizes = []
    for opset in (13, 21):
        file = tmp_path / f"{opset}.onnx"
        onnx.save(classifier(opset=opset, ir_version=10), file)
        with pytest.warns(onnxlr.OnnxlrWarning, match="no calibration data"):
            result = rewrite(file, tmp_path / "o.onnx", calibration=None, cache=tmp_path / "cache")
        assert result.findings is not None
        sizes.append((result.findings.candidates, result.findings.from_cache))
    assert [known for _, known in sizes] == [0, 0]
    assert all(number > 0 for number, _ in sizes)
