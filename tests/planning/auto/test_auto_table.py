"""Candidates, their fits, and the table of them, of the small classifier."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxlr.calibration import Sources, gather
from onnxlr.evidence import Evidence
from onnxlr.fits import Order, Wish, fit_side_by_side, usual_jobs
from onnxlr.layers import Layer, find_layers, layer_keys, read_weight
from onnxlr.methods import METHODS, Recipe, Setting, SvdOptions
from onnxlr.methods.offering import Offer
from onnxlr.model import Model, open_model
from onnxlr.numbers import Format
from onnxlr.planning.auto import candidates
from onnxlr.planning.auto.cache import Cache
from onnxlr.planning.auto.candidates import Workshop, offers_for
from onnxlr.planning.auto.feeds import FeedFiles
from onnxlr.planning.auto.goal import Goal, Limit
from onnxlr.planning.auto.inputs import capture
from onnxlr.planning.auto.measuring import Bench
from onnxlr.planning.auto.request import AutoRequest
from onnxlr.planning.auto.sensitivities import Trial, measure_damages, sensitivities
from onnxlr.planning.auto.table import Row, Tabulation
from onnxlr.progress import silent
from onnxlr.runtime import read_arrays
from tests.classifier import classifier, reference, samples, weights
from tests.planned import DATA, count_time

REQUEST = AutoRequest(Goal("size", (Limit("cosine", 0.01),)), jobs=1)
PLAIN = Setting(Format.parse("float32"), np.dtype("float32"))
MATRICES = {"first": "w1", "second": "w2", "head": "w3"}


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    count_time(monkeypatch)


def workshop_of(
    folder: Path,
    model: onnx.ModelProto | None = None,
    sources: Sources | None = None,
    request: AutoRequest = REQUEST,
) -> Workshop:
    opened = open_model(model or classifier())
    known = sources or Sources(DATA)
    knowledge = gather(opened, find_layers(opened), known, isolate=False)
    folder.mkdir()
    return Workshop(opened, request, knowledge, folder, known.calibration is not None)


def fitted(workshop: Workshop, name: str) -> list[Any]:
    layer = layer_of(workshop.model, name)
    requests = workshop.requests(layer)
    return workshop.fit([(layer, requests)], False, silent)[0]


def layer_of(model: Model, name: str) -> Layer:
    return next(layer for layer in find_layers(model) if layer.name == name)


# --- offers and candidates -----------------------------------------------------------------------


def test_every_method_that_offers_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that comes later joins by offering."""
    monkeypatch.setattr(candidates, "METHODS", dict(METHODS))
    layer = layer_of(open_model(classifier()), "first")
    found = list(offers_for(layer, REQUEST, observed=True))
    assert {name for name, _ in found} >= {"quantize", "svd", "sparse_quantized"}
    unseen = list(offers_for(layer, REQUEST, observed=False))
    assert unseen
    assert all(offer.safe for _, offer in unseen)
    more = list(offers_for(layer, replace(REQUEST, target="onnxlr"), observed=True))
    assert {name for name, _ in more} > {name for name, _ in found}


def test_what_is_offered_twice_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Twice:
        def offers(self, _: object) -> tuple[Offer, ...]:
            offer = Offer(SvdOptions(rank=3), "int8")
            return offer, offer, Offer(SvdOptions(rank=4), "int8")

    workshop = workshop_of(tmp_path / "w")
    monkeypatch.setattr(candidates, "METHODS", {"svd": Twice()})
    found = workshop.requests(layer_of(workshop.model, "first"))
    assert [request.options for request in found] == [SvdOptions(rank=3), SvdOptions(rank=4)]


def test_candidates_are_what_their_chains_are(tmp_path: Path) -> None:
    workshop = workshop_of(tmp_path / "w")
    found = [each for each in fitted(workshop, "second") if each.refused is None]
    assert len(found) > 4
    matrix = weights()["w2"].astype(float)
    for each in found:
        proposal = workshop.proposal(each)
        assert proposal.layer is each.layer
        assert proposal.choice == each.choice
        assert proposal.chain is not None
        other = proposal.chain.reconstruct().astype(float)
        assert np.linalg.norm(other - matrix) < 0.7 * np.linalg.norm(matrix)
        assert each.size < matrix.size * 4 + 100  # with names and shapes


def test_a_candidate_of_a_record_is_fitted_again_to_the_same_bits(tmp_path: Path) -> None:
    workshop = workshop_of(tmp_path / "w")
    found = [each for each in fitted(workshop, "first") if each.refused is None]
    anew = workshop_of(tmp_path / "v")
    for each in found:
        record = each.record()
        restored = anew.restored(layer_of(anew.model, "first"), each.request, record)
        assert (restored.choice, restored.size) == (each.choice, each.size)
        one, other = workshop.proposal(each).chain, anew.proposal(restored).chain
        assert one is not None
        assert other is not None
        assert one.reconstruct().tobytes() == other.reconstruct().tobytes()


def test_without_data_the_error_is_that_of_the_weight(tmp_path: Path) -> None:
    workshop = workshop_of(tmp_path / "w", sources=Sources())
    found = [each for each in fitted(workshop, "first") if each.refused is None]
    assert {each.choice.format for each in found} == {"float16", "int8"}
    matrix = weights()["w1"].astype(float)
    for each in found:
        chain = workshop.proposal(each).chain
        assert chain is not None
        distance = np.linalg.norm(chain.reconstruct().astype(float) - matrix)
        assert each.fit_error == pytest.approx(distance / np.linalg.norm(matrix), rel=1e-6)
        # Rounding to 8 bits is off by at most half a step of the largest entry of a column.
        assert 0 < each.fit_error < 0.02


def test_a_candidate_that_is_no_smaller_is_refused_with_the_reason(tmp_path: Path) -> None:
    refused = [each for each in fitted(workshop_of(tmp_path / "w"), "head") if each.refused]
    assert refused
    assert any("bytes" in each.refused for each in refused)


# --- fits ----------------------------------------------------------------------------------------


def orders(ranks: dict[str, list[int]]) -> Iterator[Order]:
    for name, some in ranks.items():
        wishes = [Wish("svd", SvdOptions(rank=r), PLAIN, Recipe()) for r in some]
        yield Order(weights()[name], Evidence(), wishes)


@pytest.mark.parametrize("jobs", [1, 2])
def test_fits_are_the_truncated_svd_in_whatever_process(tmp_path: Path, jobs: int) -> None:
    wanted = {"w1": [2, 5], "w3": [3]}
    done = dict(fit_side_by_side(orders(wanted), tmp_path, "m", jobs, isolate=jobs == 2))
    for number, (name, ranks) in enumerate(wanted.items()):
        matrix = weights()[name].astype(float)
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        for rank, fit in zip(ranks, done[number], strict=True):
            assert not isinstance(fit, str)
            exact = left[:, :rank] * values[:rank] @ right[:rank]
            np.testing.assert_allclose(fit.chain.reconstruct(), exact, atol=1e-5)
    assert list(tmp_path.iterdir()) == []


def test_a_fit_that_cannot_be_is_a_sentence_and_the_others_go_on(tmp_path: Path) -> None:
    wanted = {"w1": [9999, 2]}
    ((_, (bad, good)),) = fit_side_by_side(orders(wanted), tmp_path, "m", 1, isolate=False)
    assert not isinstance(good, str)
    wish = Wish("svd", SvdOptions(rank=2), PLAIN, Recipe(metric="activation"))
    order = Order(weights()["w1"], Evidence(), [wish])
    ((_, (bad,)),) = fit_side_by_side(iter([order]), tmp_path, "m", 1, isolate=False)
    assert isinstance(bad, str)
    assert "\n" not in bad
    assert usual_jobs() >= 1


# --- the table -----------------------------------------------------------------------------------


def rows_of(
    folder: Path,
    cache: Cache,
    sources: Sources | None = None,
    request: AutoRequest = REQUEST,
    model: onnx.ModelProto | None = None,
) -> tuple[dict[str, Row], int]:
    """Return the rows, and how many candidates came from the cache."""
    known = sources or Sources(DATA)
    folder.mkdir()
    workshop = workshop_of(folder / "w", model, known, request)
    opened = workshop.model
    layers = find_layers(opened)
    feeds = FeedFiles.store(folder / "feeds", opened, known)
    (folder / "inputs").mkdir()
    seen = capture(opened, layers, feeds.captured, folder / "inputs", False)
    bench = Bench(opened, {}, seen, request.target, cache, None, isolate=False)
    keys = layer_keys(opened, layers, layers)
    table = Tabulation(workshop, bench, cache, keys, None, False, silent)
    return {row.layer.name: row for row in table.rows(layers)}, table.from_cache


def test_errors_of_the_table_are_those_of_the_layers_outputs(tmp_path: Path) -> None:
    rows, from_cache = rows_of(tmp_path / "t", Cache(None))
    assert from_cache == 0
    assert list(rows) == list(MATRICES)
    x = DATA["x"][4::5].astype(float)  # what is held out
    w = {name: values.astype(float) for name, values in weights().items()}
    b = np.maximum(x @ w["w1"], 0)
    data = {"first": x, "second": b, "head": np.maximum(b @ w["w2"], 0)}
    workshop = workshop_of(tmp_path / "again")
    for name, row in rows.items():
        assert row.size == pytest.approx(w[MATRICES[name]].size * 4, rel=0.3)
        plain = [e for e in row.possible if e.candidate.choice.activations == "float"]
        assert len(plain) >= 2
        for entry in plain:
            chain = workshop.proposal(
                workshop.restored(row.layer, entry.candidate.request, entry.candidate.record())
            ).chain
            assert chain is not None
            if entry.candidate.choice.bias_correction:
                continue
            exact = data[name] @ w[MATRICES[name]]
            bias = w["bias"] if name == "head" else 0.0
            wrong = data[name] @ chain.reconstruct().astype(float) - exact
            expected = np.linalg.norm(wrong) / np.linalg.norm(exact + bias)
            assert entry.error == pytest.approx(expected, rel=0.35, abs=1e-4)


def test_what_was_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(None)
    first, _ = rows_of(tmp_path / "a", cache)
    total = sum(len(row.entries) for row in first.values())

    def never(*_: object) -> None:
        raise AssertionError("something is measured again")

    with monkeypatch.context() as patched:
        patched.setattr("onnxlr.planning.auto.trials.measure_latency", never)
        patched.setattr(Workshop, "fit", lambda _self, wanted, *_: [never() for _ in wanted])
        second, from_cache = rows_of(tmp_path / "b", cache)
    assert from_cache == total
    for name, row in first.items():
        assert [e.measured for e in second[name].entries] == [e.measured for e in row.entries]
        assert [e.candidate.choice for e in second[name].entries] == [
            e.candidate.choice for e in row.entries
        ]
        assert second[name].seconds == row.seconds


@pytest.mark.parametrize(
    ("changed", "layers_anew"),
    [
        ({"sources": Sources({"x": samples(64, seed=3)})}, {"first", "second", "head"}),
        ({"request": replace(REQUEST, seed=1)}, {"first", "second", "head"}),
        ({"request": replace(REQUEST, target="ort")}, {"first", "second", "head"}),
        ({"request": replace(REQUEST, bias_correction=False)}, {"first", "second", "head"}),
        ({"request": replace(REQUEST, goal=Goal(max_size=0.5), jobs=2)}, set()),
    ],
    ids=["data", "seed", "target", "bias", "goal"],
)
def test_what_a_measurement_depends_on_is_part_of_its_key(
    tmp_path: Path, changed: dict[str, Any], layers_anew: set[str]
) -> None:
    cache = Cache(None)
    rows_of(tmp_path / "a", cache)
    rows, from_cache = rows_of(tmp_path / "b", cache, **changed)
    expected = sum(len(row.entries) for name, row in rows.items() if name not in layers_anew)
    assert from_cache == expected


def test_a_changed_weight_is_measured_anew(tmp_path: Path) -> None:
    """Statistics of given inputs stay: only the last layer is another."""
    cache = Cache(None)
    rows_of(tmp_path / "a", cache)
    changed = classifier(w3=weights()["w3"] * np.float32(1.5))
    _, from_cache = rows_of(tmp_path / "b", cache, model=changed)
    assert from_cache == 0  # statistics are of all layers, and known by the layers' weights


# --- feeds and sensitivities ---------------------------------------------------------------------


def test_models_are_compared_on_what_was_held_out(tmp_path: Path) -> None:
    model = open_model(classifier())
    feeds = FeedFiles.store(tmp_path / "feeds", model, Sources(DATA))
    compared = np.concatenate([read_arrays(Path(file))["x"] for file in feeds.compared])
    kept = np.concatenate([read_arrays(Path(file))["x"] for file in feeds.fitted])
    both = {row.tobytes() for row in compared} & {row.tobytes() for row in kept}
    assert not both
    everything = {row.tobytes() for row in DATA["x"]}
    assert {row.tobytes() for row in compared} <= everything
    assert all(read_arrays(Path(file))["x"].shape[0] == 1 for file in feeds.timed)
    assert feeds.captured[0] == feeds.timed[0]
    assert set(feeds.tried) <= set(feeds.compared)
    same = FeedFiles.store(tmp_path / "same", model, Sources({"x": samples(64)}))
    other = FeedFiles.store(tmp_path / "other", model, Sources({"x": samples(64, seed=1)}))
    assert same.content == feeds.content != other.content
    assert FeedFiles.store(tmp_path / "none", model, Sources()) == FeedFiles()
    assert not (tmp_path / "none").exists()


def test_damages_are_what_numpy_computes(tmp_path: Path) -> None:
    model = open_model(classifier())
    feeds = FeedFiles.store(tmp_path / "feeds", model, Sources(DATA))
    rng = np.random.default_rng(0)
    trials, expected = [], {}
    x = np.concatenate([read_arrays(Path(file))["x"] for file in feeds.tried]).astype(float)
    plain = reference(x)
    for layer in find_layers(model):
        matrix = read_weight(model, layer)
        other = matrix + 0.05 * rng.standard_normal(matrix.shape).astype(np.float32)
        trials.append(Trial(layer, lambda other=other: other, 0.05))
        values = weights() | {MATRICES[layer.name]: other}
        wrong = reference(x, values) - plain
        expected[layer.name] = np.linalg.norm(wrong) ** 2 / np.linalg.norm(plain) ** 2
    found = measure_damages(
        model, lambda: open_model(classifier()), trials, feeds.tried, None, False, silent
    )
    assert found == pytest.approx(expected, rel=0.05)
    weights_of = sensitivities(trials, found)
    assert weights_of == pytest.approx({name: d / 0.05**2 for name, d in found.items()})


def test_a_layer_that_was_not_measured_is_like_the_median() -> None:
    layers = find_layers(open_model(classifier()))
    trials = [
        Trial(layer, lambda: np.zeros(1), e)
        for layer, e in zip(layers, (0.1, 0.5, 0.2), strict=True)
    ]
    found = sensitivities(trials, {"first": 0.02, "head": 0.16})
    assert found == pytest.approx({"first": 2.0, "second": 3.0, "head": 4.0})
    assert sensitivities(trials, {}) == {"first": 1.0, "second": 1.0, "head": 1.0}


def test_orders_hold_nothing_of_the_model(tmp_path: Path) -> None:
    workshop = workshop_of(tmp_path / "w")
    fitted(workshop, "first")
    for file in workshop.files.values():
        assert pickle.loads(file.read_bytes()).layer is None  # noqa: S301  (of this very test)
        assert file.stat().st_size < 60_000
