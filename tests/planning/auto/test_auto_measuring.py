"""Errors of candidates against numpy's, times against a clock that the tests set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxlr.calibration import Sources, gather
from onnxlr.errors import RuntimeFailureError
from onnxlr.layers import Layer, find_layers, read_weight
from onnxlr.methods import Setting, SvdOptions, find_method
from onnxlr.model import Model, open_model
from onnxlr.plan import Choice, Proposal
from onnxlr.planning.auto import measuring, trials
from onnxlr.planning.auto.inputs import Inputs, capture
from onnxlr.planning.auto.measuring import Bench, Measured
from onnxlr.planning.request import Request
from onnxlr.planning.uniform import propose_one
from onnxlr.runtime import Latency, Race, read_arrays, store_arrays
from onnxlr.stages import Adjustment
from tests.onelayer import Array, model_of, run, truncated

SLOW, FAST = 4e-3, 1e-3


class Memory:
    """Keeps what is put, as JSON does."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def get(self, key: str) -> Any:
        return json.loads(self.values[key]) if key in self.values else None

    def put(self, key: str, value: Any) -> None:
        self.values[key] = json.dumps(value)


class Timer:
    """Stands for the races: each model takes as long as its file has nodes of some kind."""

    def __init__(self) -> None:
        self.races: list[tuple[list[int], list[str]]] = []

    def __call__(self, races: Sequence[Race], *_: object) -> list[Any]:
        found = []
        for race in races:
            self.races.append(([len(onnx.load(m).graph.node) for m in race.models], [*race.feeds]))
            seconds = [self.seconds(model) for model in race.models]
            found.append([Latency(s, s / seconds[0], s, s) for s in seconds])
        return found

    @staticmethod
    def seconds(model: str) -> float:
        return SLOW if len(onnx.load(model).graph.node) == 1 else FAST


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> Timer:
    made = Timer()
    monkeypatch.setattr(trials, "measure_latency", made)
    return made


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def matmul(data: str, weight: str, name: str, output: str) -> onnx.NodeProto:
    return helper.make_node("MatMul", [data, weight], [output], name)


def bench_of(
    model: onnx.ModelProto | Model, feeds: Sequence[Mapping[str, Array]], folder: Path, **more: Any
) -> tuple[Bench, list[Layer]]:
    """Return a bench with the inputs that layers have on these feeds."""
    opened = model if isinstance(model, Model) else open_model(model)
    layers = [layer for layer in find_layers(opened) if layer.skip is None]
    files = [str(folder / f"feed{number}.npz") for number in range(len(feeds))]
    for file, feed in zip(files, feeds, strict=True):
        store_arrays(Path(file), dict(feed))
    (folder / "inputs").mkdir()
    inputs = capture(opened, layers, files, folder / "inputs", isolate=False)
    settings: dict[str, Any] = {"target": "onnx", "cache": Memory(), "isolate": False, **more}
    return Bench(opened, {}, inputs, **settings), layers


def svd(bench: Bench, layer: Layer, rank: int, *corrections: Array) -> Proposal:
    weight = read_weight(bench.model, layer)
    options = SvdOptions(rank=rank)
    chain = find_method("svd").factorize(weight, options, Setting.for_layer(layer, None))
    adjustments = tuple(Adjustment(correction) for correction in corrections)
    return Proposal(layer, Choice("svd", options), chain, adjustments)


def relative(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# --- errors --------------------------------------------------------------------------------------


def biased(kind: str) -> tuple[onnx.ModelProto, Array, Array]:
    """Return a product with a bias, and its weight and bias."""
    w, b, x = normal(12, 7), 5 + normal(7, seed=1), normal(5, 12)
    if kind == "Gemm":
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "layer")]
    else:
        nodes = [matmul("x", "w", "layer", "p"), helper.make_node("Add", ["b", "p"], ["y"])]
    if kind == "computed bias":
        nodes.insert(0, helper.make_node("Abs", ["b"], ["c"]))
        nodes[-1].input[0] = "c"
    return model_of(nodes, {"x": x}, ["y"], {"w": w, "b": b}), w, b


@pytest.mark.parametrize("kind", ["Gemm", "MatMul and Add", "computed bias"])
@pytest.mark.parametrize("is_corrected", [False, True])
def test_an_error_is_of_the_outputs_on_real_inputs(
    kind: str, is_corrected: bool, tmp_path: Path, timer: Timer
) -> None:
    """A bias counts neither in the difference nor in the norm; its correction does.

    The first run is what models are timed on, and does not count.
    """
    model, w, _ = biased(kind)
    feeds = [{"x": 1 + normal(5, 12, seed=seed)} for seed in (2, 3, 4)]
    bench, (layer,) = bench_of(model, feeds, tmp_path)
    x = np.concatenate([feed["x"] for feed in feeds[1:]]).astype(np.float64)
    approximation = truncated(w, 3)
    correction = x.mean(0) @ (w - approximation)
    added = [correction] if is_corrected else []
    (measured,) = bench.measure(layer, [svd(bench, layer, 3, *added)])
    expected = relative(x @ approximation + sum(added), x @ w)
    assert measured.error == pytest.approx(expected, rel=1e-4)
    assert measured.problem is None


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_convolutions_with_a_bias(operator: str, tmp_path: Path, timer: Timer) -> None:
    node = helper.make_node(operator, ["x", "w", "b"], ["y"], "layer", pads=[1, 1, 1, 1])
    x, w = normal(2, 6, 9, 8), normal(6, 6, 3, 3)
    model = model_of([node], {"x": x}, ["y"], {"w": w, "b": normal(6) + 9})
    bench, (layer,) = bench_of(model, [{"x": x}], tmp_path)
    proposal = svd(bench, layer, 4)
    site = layer.sites[0]
    outputs = []
    for weight in (w, site.arranged(proposal.chain.reconstruct()).astype(np.float32)):
        constants = {"w": weight, "b": np.zeros(6, np.float32)}
        outputs += run(model_of([node], {"x": x}, ["y"], constants), {"x": x})
    (measured,) = bench.measure(layer, [proposal])
    assert measured.error == pytest.approx(relative(outputs[1], outputs[0]), rel=1e-4)


def test_rows_of_a_table_count_as_often_as_they_are_taken(tmp_path: Path, timer: Timer) -> None:
    table = normal(200, 64)
    table[7] = 100  # all alike: without an error
    node = helper.make_node("Gather", ["t", "ids"], ["y"], "layer")
    inputs = {"x": normal(1), "ids": np.array([[3, 3, 8]], np.int32)}
    nodes = [node, helper.make_node("Add", ["y", "x"], ["z"])]
    model = model_of(nodes, inputs, ["z"], {"t": table})
    bench, (layer,) = bench_of(model, [inputs], tmp_path)
    request = Request("quantize", find_method("quantize").options(), format="int8")
    proposal = propose_one(bench.model, layer, request, gather(bench.model, [layer], Sources()))
    kept = proposal.chain.reconstruct()
    (measured,) = bench.measure(layer, [proposal])
    rows = [3, 3, 8]
    assert measured.error == pytest.approx(relative(kept[rows], table[rows]), rel=1e-3)
    assert measured.error != pytest.approx(relative(kept, table), rel=0.1)


def test_rounding_of_the_data_counts(tmp_path: Path, timer: Timer) -> None:
    """One huge entry sets the range of all: the others lose their bits."""
    x = normal(4, 64)
    x[0, 0] = 300
    model = model_of([matmul("x", "w", "layer", "y")], {"x": x}, ["y"], {"w": normal(64, 32)})
    bench, (layer,) = bench_of(model, [{"x": x}], tmp_path)
    knowledge = gather(bench.model, [layer], Sources())
    found = []
    for activations in ("float", "dynamic_int8"):
        options = find_method("quantize").options()
        request = Request("quantize", options, format="int8", activations=activations)
        found.append(propose_one(bench.model, layer, request, knowledge))
    plain, rounded = bench.measure(layer, found)
    weight = read_weight(bench.model, layer)
    assert plain.error == pytest.approx(
        relative(x @ found[0].chain.reconstruct(), x @ weight), rel=1e-3
    )
    assert rounded.error > 2 * plain.error


def test_without_real_inputs_there_is_no_error_but_a_time(tmp_path: Path, timer: Timer) -> None:
    bench, layers = bench_of(two(), [], tmp_path)
    for layer in layers:
        (measured,) = bench.measure(layer, [svd(bench, layer, 2)])
        assert measured == Measured(None, FAST, SLOW, None)


# --- times ---------------------------------------------------------------------------------------


def two(sizes: tuple[int, int] = (7, 7)) -> onnx.ModelProto:
    """Return two layers of the same data."""
    nodes = [matmul("x", "a", "first", "p"), matmul("x", "b", "second", "q")]
    constants = {"a": normal(12, sizes[0]), "b": normal(12, sizes[1], seed=1)}
    return model_of(nodes, {"x": normal(5, 12)}, ["p", "q"], constants)


FEED = [{"x": normal(5, 12, seed=9)}]


def test_structures_are_raced_once(tmp_path: Path, timer: Timer) -> None:
    bench, layers = bench_of(two(), FEED, tmp_path)
    groups = [(layer, [svd(bench, layer, rank) for rank in (2, 3, 2)]) for layer in layers]
    found = bench.measure_all(groups)
    assert [len(nodes) for nodes, _ in timer.races] == [3]  # the original, and two ranks
    assert {(m.seconds, m.original_seconds) for row in found for m in row} == {(FAST, SLOW)}
    errors = [[m.error for m in row] for row in found]
    assert errors[0][0] == errors[0][2]
    assert len({*errors[0], *errors[1]}) == 4


def test_other_shapes_are_raced_apart_on_real_inputs(tmp_path: Path, timer: Timer) -> None:
    bench, layers = bench_of(two((7, 8)), FEED, tmp_path)
    bench.measure_all([(layer, [svd(bench, layer, 2)]) for layer in layers])
    assert [len(nodes) for nodes, _ in timer.races] == [2, 2]
    for _, (feed,) in timer.races:
        np.testing.assert_array_equal(read_arrays(Path(feed))["x"], FEED[0]["x"])


def test_what_was_measured_is_not_measured_again(
    tmp_path: Path, timer: Timer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, layers = bench_of(two(), FEED, tmp_path)
    groups = [(layer, [svd(bench, layer, 2), Proposal(layer, Choice("keep"))]) for layer in layers]
    first = bench.measure_all(groups)
    monkeypatch.setattr(trials, "run_task", None)
    monkeypatch.setattr(trials, "measure_latency", None)
    assert bench.measure_all(groups) == first


def test_other_inputs_change_errors_only_and_another_machine_both(
    tmp_path: Path, timer: Timer
) -> None:
    cache = Memory()

    def keys(folder: str, seed: int, machine: str) -> set[str]:
        (tmp_path / folder).mkdir()
        feeds = [{"x": normal(5, 12, seed=seed)}]
        bench, layers = bench_of(two(), feeds, tmp_path / folder, cache=cache, machine=machine)
        before = set(cache.values)
        bench.measure(layers[0], [svd(bench, layers[0], 2)])
        return set(cache.values) - before

    assert len(keys("a", 1, "here")) == 3  # an error, its time, the original's
    assert len(keys("b", 2, "here")) == 1
    assert len(timer.races) == 1
    assert len(keys("c", 1, "there")) == 3
    assert len(keys("d", 1, "here")) == 0


def test_a_layer_that_is_kept_takes_its_own_time(tmp_path: Path, timer: Timer) -> None:
    bench, layers = bench_of(two(), FEED, tmp_path)
    found = bench.measure(layers[0], [Proposal(layers[0], Choice("keep"))])
    assert found == [Measured(0.0, SLOW, SLOW, None)]


@pytest.mark.parametrize(("rows", "counted"), [(5, 2), (6, 1)])
def test_each_site_with_data_of_the_same_shape_counts(
    rows: int, counted: int, tmp_path: Path, timer: Timer
) -> None:
    nodes = [matmul("x", "w", "first", "p"), matmul("z", "w", "second", "q")]
    inputs = {"x": normal(5, 12), "z": normal(rows, 12)}
    model = model_of(nodes, inputs, ["p", "q"], {"w": normal(12, 7)})
    bench, (layer,) = bench_of(model, [inputs], tmp_path)
    (measured,) = bench.measure(layer, [svd(bench, layer, 2)])
    assert measured.original_seconds == SLOW * counted
    assert measured.seconds == pytest.approx(FAST * counted)


def test_real_races(tmp_path: Path) -> None:
    bench, layers = bench_of(two(), FEED, tmp_path, isolate=True)
    found = bench.measure_all([(layer, [svd(bench, layer, 2)]) for layer in layers])
    for (measured,) in found:
        assert measured.problem is None
        assert measured.seconds > 0
        assert measured.original_seconds > 0


# --- problems ------------------------------------------------------------------------------------


def test_what_cannot_be_written_says_so_and_harms_no_other(tmp_path: Path, timer: Timer) -> None:
    bench, (layer, _) = bench_of(two(), FEED, tmp_path)
    good = svd(bench, layer, 2)
    bad = Proposal(layer, Choice("svd", SvdOptions(rank=2), activations="static_int8"), good.chain)
    found = bench.measure(layer, [bad, good])
    assert "static_int8" in found[0].problem
    assert (found[0].error, found[0].seconds, found[0].original_seconds) == (None, None, SLOW)
    assert found[1].problem is None


def test_what_cannot_be_run_says_so_and_harms_no_other(
    tmp_path: Path, timer: Timer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, (layer, _) = bench_of(two(), FEED, tmp_path)
    proposals = [svd(bench, layer, rank) for rank in (2, 3)]
    runs = trials.open_runner

    def open_runner(model: str, *rest: Any) -> Any:
        proto = onnx.load(model)
        if any(3 in tensor.dims for tensor in proto.graph.initializer):
            raise trials.ExecutionError("there is no kernel")
        return runs(model, *rest)

    monkeypatch.setattr(trials, "open_runner", open_runner)
    good, bad = bench.measure(layer, proposals)
    assert good.problem is None
    assert bad == Measured(None, None, SLOW, "there is no kernel")
    assert [len(nodes) for nodes, _ in timer.races] == [2]


def test_a_process_that_dies_names_who_killed_it() -> None:
    """Trials are halved until the one is found; the others are compared."""
    group = trials.Group("original", ("feed",))
    some = [trials.Trial(group, str(n), f"model{n}") for n in range(5)]

    def work(tried: Sequence[trials.Trial]) -> trials.Values:
        if any(trial.key == "3" for trial in tried):
            raise RuntimeFailureError("it was killed")
        return {trial.key: {"error": 0.5} for trial in tried}

    found = trials._in_parts(some, work)
    assert found.pop("3") == {"problem": "it was killed"}
    assert found == {key: {"error": 0.5} for key in "0124"}


def test_a_race_that_cannot_be_held_is_held_without_who_is_to_blame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measure_latency(races: Sequence[Race], name: str, isolate: bool) -> list[Any]:
        return [
            "no kernel"
            if "bad" in race.models
            else [Latency(1.0, 0.5, 0.5, 0.5)] * len(race.models)
            for race in races
        ]

    monkeypatch.setattr(trials, "measure_latency", measure_latency)
    group = trials.Group("original", ("feed",))
    names = ("good", "bad", "original")
    found = trials.time_trials([trials.Trial(group, name, name) for name in names], "m")
    assert found == {
        "good": {"ratio": 0.5},
        "bad": {"problem": "no kernel"},
        "original": {"seconds": 1.0},
    }


def test_distances_know_overflow_and_zeros() -> None:
    y = np.array([3.0, 4.0, np.inf])
    changed = np.array([3.0, 5.0, 7.0])
    assert trials._distance([y], [changed]) == pytest.approx(0.2)
    assert trials._distance([y, 2 * y], [changed, 2 * y]) == pytest.approx(1 / 125**0.5)
    assert trials._distance([y], [np.array([np.nan, 4, 0])]) == 1e3
    assert trials._distance([0 * y[:2]], [0 * y[:2]]) == 0
    assert trials._distance([0 * y[:2]], [y[:2]]) == 1e3


# --- disk ----------------------------------------------------------------------------------------


def test_small_models_are_measured_and_deleted_before_they_fill_the_disk(
    tmp_path: Path, timer: Timer, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr(measuring, "_DISK", 100)
    bench, layers = bench_of(two((7, 8)), FEED, tmp_path)
    left: list[int] = []

    def proposals(layer: Layer) -> Any:
        left.append(sum(len(onnx.load(f).graph.node) for f in scratch.rglob("*.onnx")))
        yield svd(bench, layer, 2)

    found = bench.measure_all((layer, proposals(layer)) for layer in layers)
    assert [len(row) for row in found] == [1, 1]
    assert left == [0, 0]
    assert [*scratch.iterdir()] == []


def test_inputs_that_were_not_looked_at_are_not_real(tmp_path: Path, timer: Timer) -> None:
    bench, (layer, _) = bench_of(two(), FEED, tmp_path)
    blind = Bench(bench.model, {}, {}, "onnx", bench.cache, isolate=False)
    (measured,) = blind.measure(layer, [svd(bench, layer, 2)])
    assert measured.error is None
    assert Inputs().missing is None
