"""Layers fitted by other processes, and taken from what was fitted before."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxlr
from onnxlr.errors import OnnxlrWarning
from onnxlr.fits import FitStore, StoredWeight, Workers, orders, workers
from onnxlr.layers import find_layers, read_weight
from onnxlr.model import open_model
from onnxlr.runtime import jobs, run_task
from tests.classifier import classifier, samples, weights
from tools.bench_large_model import make_model

LAYERS, SIZE, RANK = 7, 96, 5
LAX = {"method": "svd", "rank": RANK, "tolerance": "cosine>=-1"}


@pytest.fixture(autouse=True)
def _proofs_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_run_in_child", lambda task, name: run_task(task, name, False))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return make_model(tmp_path / "in", LAYERS, SIZE)


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the methods of all fits that this process makes from now on."""
    made: list[str] = []
    original = orders.fit_or_reason

    def counted(weight: Any, wish: Any, evidence: Any) -> Any:
        made.append(wish.method)
        return original(weight, wish, evidence)

    monkeypatch.setattr(orders, "fit_or_reason", counted)
    monkeypatch.setattr(workers, "fit_or_reason", counted)
    return made


def files_of(model: Path, output: Path, **arguments: Any) -> dict[str, bytes]:
    """Rewrite, and return what was written."""
    output.mkdir()
    onnxlr.rewrite(model, output / "m.onnx", **LAX | arguments)
    return {path.name: path.read_bytes() for path in output.iterdir()}


def test_the_result_is_the_same_however_many_processes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = files_of(model, tmp_path / "1", jobs=1)
    assert set(first) == {"m.onnx", "m.onnx.data"}
    monkeypatch.setattr(workers, "_TOGETHER", 2 * SIZE**2)  # so that layers come in groups of two
    for count in (2, 3):
        assert files_of(model, tmp_path / str(count), jobs=count) == first
    monkeypatch.setattr(workers, "_TOGETHER", 0)
    assert files_of(model, tmp_path / "one each", jobs=3, memory=1) == first


def test_fits_of_other_processes_are_the_truncated_svd(model: Path) -> None:
    opened = open_model(model)
    plan = onnxlr.plan(model, method="svd", rank=RANK, jobs=2)
    result = model.with_name("out.onnx")
    onnxlr.rewrite(model, result, plan=plan, jobs=2, tolerance="cosine>=-1")
    written = open_model(result)
    for layer in find_layers(opened):
        factors = [
            written.read(tensor).astype(float)
            for tensor in written.proto.graph.initializer
            if tensor.name.startswith(f"{layer.name}.")
        ]
        left, values, right = np.linalg.svd(read_weight(opened, layer).astype(float))
        exact = left[:, :RANK] * values[:RANK] @ right[:RANK]
        np.testing.assert_allclose(factors[0] @ factors[1], exact, atol=1e-6)


def test_fits_come_in_order_though_others_end_first(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last order is done first, as it were."""

    def backwards(wanted: Iterator[Any], *_: Any) -> Iterator[Any]:
        for number, order in reversed(list(enumerate(wanted))):
            yield number, order.carry_out()

    monkeypatch.setattr(workers, "fit_side_by_side", backwards)
    plan = onnxlr.plan(model, method="svd", ratio=0.5, jobs=2)
    assert list(plan.layers) == [f"fc{number}" for number in range(LAYERS)]
    made = onnxlr.rewrite(model, model.with_name("o.onnx"), jobs=2, **LAX)
    errors = [record.error for record in made.layers]
    weights_of = [read_weight(open_model(model), layer) for layer in find_layers(open_model(model))]
    for error, weight in zip(errors, weights_of, strict=True):
        values = np.linalg.svd(weight.astype(float), compute_uv=False)
        expected = np.sqrt(np.sum(values[RANK:] ** 2) / np.sum(values**2))
        assert error == pytest.approx(expected, rel=1e-5)


def test_no_processes_for_small_models_that_ask_for_none(
    model: Path, monkeypatch: pytest.MonkeyPatch, fitted: list[str]
) -> None:
    onnxlr.plan(model, method="svd", rank=RANK)
    assert len(fitted) == LAYERS
    monkeypatch.setattr(workers, "_LARGE", LAYERS * SIZE**2 * 4)
    onnxlr.plan(model, method="svd", rank=RANK)
    assert len(fitted) == LAYERS


def test_a_weight_is_read_where_it_lies(model: Path) -> None:
    opened = open_model(model)
    for layer in find_layers(opened):
        stored = StoredWeight.of(layer, opened)
        assert stored.shape == (SIZE, SIZE)
        np.testing.assert_array_equal(stored.read(), read_weight(opened, layer))


def test_a_weight_in_the_model_comes_along() -> None:
    opened = open_model(classifier())
    names = {"first": "w1", "second": "w2", "head": "w3"}
    for layer in find_layers(opened):
        if layer.name in names:
            found = StoredWeight.of(layer, opened).read()
            np.testing.assert_array_equal(found, weights()[names[layer.name]])


def test_a_weight_that_cannot_be_used_is_told_in_one_sentence(model: Path) -> None:
    with model.with_name("model.onnx.data").open("r+b") as stream:
        stream.seek(3 * SIZE**2 * 4 + 8)
        stream.write(np.float32(np.nan).tobytes())
    with pytest.raises(onnxlr.ModelError, match=r"'fc3' \(MatMul\): weight 'w3' has 1 entries"):
        onnxlr.plan(model, method="svd", rank=RANK, jobs=2)


def test_what_cannot_be_is_a_reason_to_keep_a_layer(model: Path) -> None:
    alone, other = (onnxlr.plan(model, method="svd", ratio=0.001, jobs=jobs) for jobs in (None, 2))
    assert alone == other
    assert "leaves less than rank 1" in str(other.layers["fc0"].reason)


# --- memory --------------------------------------------------------------------------------------


def test_room_is_what_this_process_leaves(model: Path) -> None:
    assert Workers(memory=1 << 30).room([]) == (1 << 30) - (200 << 20)
    assert Workers(memory=1).room([]) == 0
    assert Workers().room([]) > 0


def test_too_little_memory_for_any_is_refused() -> None:
    with pytest.raises(onnxlr.UsageError, match="memory of 0 bytes"):
        Workers(memory=0)


# --- the cache -----------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [None, 2])
def test_nothing_is_fitted_twice_with_a_cache(
    model: Path, tmp_path: Path, processes: int | None, fitted: list[str]
) -> None:
    plain = files_of(model, tmp_path / "plain", jobs=processes)
    cache = tmp_path / "cache"
    assert files_of(model, tmp_path / "first", jobs=processes, cache=cache) == plain
    entries = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npz")}
    assert len(entries) == LAYERS
    del fitted[:]
    assert files_of(model, tmp_path / "second", jobs=processes, cache=cache) == plain
    assert files_of(model, tmp_path / "third", cache=cache) == plain
    assert fitted == []
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npz")} == entries


def test_a_plan_is_followed_from_the_cache(model: Path, tmp_path: Path, fitted: list[str]) -> None:
    plan, cache = onnxlr.plan(model, method="svd", rank=RANK), tmp_path / "cache"
    asked = {"plan": plan, "cache": cache, "tolerance": "cosine>=-1"}
    del fitted[:]
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        onnxlr.rewrite(model, tmp_path / name / "m.onnx", **asked)
        written.append((tmp_path / name / "m.onnx.data").read_bytes())
    assert written[0] == written[1]
    assert len(fitted) == LAYERS


def test_only_what_changed_is_fitted_anew(model: Path, tmp_path: Path, fitted: list[str]) -> None:
    cache = tmp_path / "cache"
    onnxlr.plan(model, method="svd", rank=RANK, cache=cache)
    with model.with_name("model.onnx.data").open("r+b") as stream:
        stream.write(np.float32(0.5).tobytes())
    del fitted[:]
    onnxlr.plan(model, method="svd", rank=RANK, cache=cache)
    assert len(fitted) == 1
    onnxlr.plan(model, method="svd", rank=RANK + 1, cache=cache)
    assert len(fitted) == 1 + LAYERS


@pytest.mark.parametrize("processes", [None, 2])
def test_a_damaged_entry_is_made_anew(model: Path, tmp_path: Path, processes: int | None) -> None:
    cache = tmp_path / "cache"
    plain = files_of(model, tmp_path / "first", jobs=processes, cache=cache)
    damaged = sorted(cache.rglob("*.npz"))[2]
    damaged.write_bytes(damaged.read_bytes()[:500])
    with pytest.warns(OnnxlrWarning, match="damaged"):
        assert files_of(model, tmp_path / "second", jobs=processes, cache=cache) == plain
    assert np.load(damaged).files


def test_an_entry_that_goes_away_meanwhile_is_made_anew(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    plain = files_of(model, tmp_path / "first", jobs=1, cache=cache)
    original, asked = FitStore.get, list[str]()

    def forgetful(store: FitStore, key: str, shape: Any) -> Any:
        asked.append(key)
        return original(store, key, shape) if asked.count(key) == 1 else None

    monkeypatch.setattr(FitStore, "get", forgetful)
    assert files_of(model, tmp_path / "second", jobs=1, cache=cache) == plain
    assert len(asked) == 2 * LAYERS


def test_a_cache_that_is_deleted_meanwhile_is_made_anew(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fits of the first layers are known, and go away while others are still being made."""
    cache = tmp_path / "cache"
    plain = files_of(model, tmp_path / "plain", jobs=2)
    files_of(model, tmp_path / "first", jobs=2, cache=cache, layers=["fc0", "fc1", "fc3"])
    original = FitStore.get
    asked: list[str] = []

    def deleting(store: FitStore, key: str, shape: Any) -> Any:
        asked.append(key)
        if asked.count(key) > 1:
            shutil.rmtree(cache, ignore_errors=True)
        return original(store, key, shape)

    monkeypatch.setattr(FitStore, "get", deleting)
    monkeypatch.setattr(workers, "_TOGETHER", 0)
    assert files_of(model, tmp_path / "second", jobs=2, cache=cache) == plain
    assert max(asked.count(key) for key in asked) == 2


def test_other_statistics_are_other_fits(tmp_path: Path, fitted: list[str]) -> None:
    cache, file = tmp_path / "cache", tmp_path / "m.onnx"
    onnx.save(classifier(), file)
    arguments: dict[str, Any] = {"method": "svd", "rank": 4, "cache": cache, "isolate": False}
    plans = [
        onnxlr.plan(file, calibration={"x": samples(64, seed=seed)}, **arguments)
        for seed in (1, 2, 1)
    ]
    assert plans[0] == plans[2]
    assert fitted.count("svd") == 2 * sum(not c.keeps for c in plans[0].layers.values())
