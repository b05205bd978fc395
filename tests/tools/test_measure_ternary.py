"""Tests of `tools/measure_ternary.py` on small matrices and a model of one product."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxlr
from tests.tools.small_task import LAYER, product_task
from tools import measure_ternary
from tools.measure_ternary import main
from tools.measured_files import Bench, Counts, Result
from tools.measured_rows import TERNARY_ROWS, Again, Ours, Peer
from tools.measured_tasks import Task, sentences_of_lengths
from tools.ternary_figures import (
    APPROXIMATIONS,
    FitTime,
    GaussianError,
    LayerError,
    gaussian_errors,
    layer_errors,
    time_fit,
)
from tools.ternary_tables import Document


def test_errors_of_gaussian_matrices_fall_with_the_trits():
    rows = list(gaussian_errors([48], [1, 2]))
    by = {(row.fit, row.trits): row.error for row in rows}
    assert set(by) == {(fit, t) for fit in ("alternating", "published") for t in (1, 2)}
    for fit in ("alternating", "published"):
        assert 0 < by[fit, 2] < by[fit, 1] < 1
    assert by["alternating", 2] < by["published", 2]


def test_an_error_is_of_the_matrix_that_was_fitted():
    (row,) = gaussian_errors([32], [3], ["alternating"])
    weight = np.random.default_rng(32).standard_normal((32, 32), dtype=np.float32)
    found = onnxlr.decompose(weight, "ternary_svd", ratio=3).reconstruct()
    expected = np.sqrt(np.sum((weight - found) ** 2) / np.sum(weight.astype(np.float64) ** 2))
    assert row.error == pytest.approx(expected, rel=1e-6)


def test_fits_are_timed_between_decompositions():
    found = time_fit(24, 2.0, rounds=3)
    assert (len(found.fit), len(found.svd)) == (3, 4)
    assert 0 < found.error < 0.5
    assert all(seconds > 0 for seconds in found.fit + found.svd)


def test_a_ratio_is_to_the_decompositions_on_either_side():
    # The machine is ten times slower in the end.
    found = FitTime(8, 2.0, 0.1, [6.0, 60.0], [1.0, 3.0, 37.0], "1 of 1 processors")
    assert found.ratios == [3.0, 3.0]


@pytest.fixture
def bench(tmp_path):
    found = Bench.prepare(product_task(tmp_path), tmp_path / "made", rounds=2)
    found.observe()
    return found


@pytest.mark.filterwarnings("ignore:method ternary_svd was fitted by statistics alone")
def test_layers_are_judged_on_inputs_that_the_fit_has_not_seen(bench):
    chosen = [a for a in APPROXIMATIONS if a.name in ("ternary_svd 3", "ternary ×2")]
    rows = {row.name: row for row in layer_errors(bench, [LAYER], chosen)}
    assert set(rows) == {"ternary_svd 3", "ternary ×2"}
    for row, ours in (
        (rows["ternary_svd 3"], {"method": "ternary_svd", "ratio": 3.0}),
        (rows["ternary ×2"], {"method": "ternary", "terms": 2}),
    ):
        assert row.error == pytest.approx(_error_of_a_file(bench, ours), rel=1e-3)
        assert row.shape == (96, 128)
    # Two bits a trit and float32 scales: of inputs, ranks and outputs (ones, which the operator
    # has, too); of terms and outputs, in one group.
    rank = 3 * 96 * 128 // (96 + 128)
    svd_bits = (2 * rank * (96 + 128) + 32 * (96 + rank + 128)) / (96 * 128)
    assert rows["ternary_svd 3"].bits == pytest.approx(svd_bits, rel=2e-3)
    assert rows["ternary ×2"].bits == pytest.approx(2 * 2 + 2 * 32 / 96)


def _error_of_a_file(bench, arguments):
    """Run the rewritten model on the held-out inputs, in float."""
    output = bench.folder / "file.onnx"
    onnxlr.rewrite(
        bench.task.model,
        output,
        statistics=bench.statistics,
        activations="float",
        data=bench.comparison,
        tolerance="cosine>=0",
        **arguments,
    )
    weight = numpy_helper.to_array(onnx.load(bench.task.model).graph.initializer[0])
    session = onnxlr.session(output, ["CPUExecutionProvider"])
    wrong = total = 0.0
    for feeds in bench.task.held_out:
        expected = feeds["x"].astype(np.float64) @ weight
        wrong += np.sum((session.run(None, feeds)[0] - expected) ** 2)
        total += np.sum(expected**2)
    return np.sqrt(wrong / total)


def test_sentences_to_time_are_of_the_lengths_asked_for(tmp_path):
    lengths = [[3, 16, 40], [17, 64], [70, 30, 20]]
    feeds = []
    for row in lengths:
        mask = (np.arange(max(row)) < np.array(row)[:, None]).astype(np.int64)
        feeds.append({"input_ids": mask * 7, "attention_mask": mask})
    task = Task("t", tmp_path, "none", lambda _: 0.0, [], [], [], None, feeds)
    timed = sentences_of_lengths(task, 16, 64, count=3).timing
    assert [one["input_ids"].shape for one in timed] == [(1, 16), (1, 20), (1, 64)]
    assert all(one["attention_mask"].all() and (one["input_ids"] == 7).all() for one in timed)
    with pytest.raises(ValueError, match="6 held-out sentences have 16 to 64 tokens"):
        sentences_of_lengths(task, 16, 64, count=7)


def test_every_plan_that_is_followed_is_made_before():
    made = set()
    for row in TERNARY_ROWS:
        if isinstance(row, Again):
            assert row.of in made
        elif isinstance(row, Ours):
            made.add(row.name)
    names = [row.name for row in TERNARY_ROWS]
    assert len(set(names)) == len(names)
    assert sum(isinstance(row, Peer) for row in TERNARY_ROWS) == 3


COUNTS = Counts(1, 10**6, 2 * 10**6, 10**6, 10**6, 2000)
FULL = Document(
    [GaussianError(384, "alternating", 2.0, 0.25, 1.5), GaussianError(384, "none", 2.0, 0.75, 1)],
    [LayerError("encoder.layer.2.intermediate.dense", (4, 8), "ternary ×1", 2.25, 0.125, 0.5)],
    [FitTime(64, 2.0, 0.25, [6.0], [1.0, 3.0], "2 of 2 processors")],
    [
        Result("original", 10.0, 1.0, 5.0, 1.0, 0.9, 1.1),
        Result(
            "a, onnxlr",
            7.0,
            0.5,
            2.0,
            0.4,
            0.3,
            0.5,
            9.0,
            None,
            4.0,
            COUNTS,
        ),
        Result("a, ort", 7.5, counts=COUNTS),
        Result("bad", error="E: [1]"),
    ],
)


def test_figures_are_written_and_read_as_they_are(tmp_path):
    file = tmp_path / "figures.json"
    FULL.write(file)
    assert Document.read(file) == FULL


@pytest.mark.parametrize("text", ["", "[]", '{"gaussian": [{"size": 1}]}', '{"rows": []}'])
def test_a_file_of_other_content_is_refused(tmp_path, text):
    file = tmp_path / "figures.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="holds no figures of this tool"):
        Document.read(file)


def test_tables_hold_what_was_found():
    gaussian, layers, time, model, counts = (grid.rows for grid in FULL.grids())
    assert gaussian == [
        ["alternating", "384²", "0.2500", "1.5"],
        ["alternating", "reference", "0.254", ""],
        ["none", "384²", "0.7500", "1.0"],
        ["none", "reference", "", ""],
    ]
    assert layers == [["ternary ×1", "0.1250 (2.25)", "0.5"]]
    assert FULL.grids()[1].header[1] == "intermediate 4×8"
    assert time[0][:5] == ["64², 2 trits", "0.2500", "6.0", "2.0", "3.00 (3.00–3.00)"]
    # Three of four megabytes for a million weights: 24 of 32 bits are gone.
    assert model[1] == ["a, onnxlr", "7.00", "8.00", "0.5000", "0.40 (0.30–0.50)", "2.0", "4", "9"]
    assert model[0][2] == "32.00"
    assert r"\[1]" in model[3][0]
    assert counts == [["a", "2.00", "1.00", "1.000", "0.0020"]]


def test_tables_that_are_empty_are_left_out():
    assert Document().grids() == []
    assert len(Document(time=FULL.time).grids()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gausian"], "no part gausian; there are gaussian, layers, time, minilm"),
        (["--show"], "needs --json"),
        (["--rounds", "1"], "--rounds must be 2 or more"),
        (["--trits", "0"], "invalid list of numbers above 0"),
        (["--rows", "svd*"], "no row matches svd*"),
    ],
)
def test_arguments_that_cannot_be_followed(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_parts_that_are_not_measured_stay_as_they_were(tmp_path, capsys):
    file, page = tmp_path / "figures.json", tmp_path / "page.md"
    replace(FULL, minilm=FULL.minilm[:2]).write(file)
    arguments = ["gaussian", "--sizes", "16", "--trits", "1", "--json", str(file)]
    assert main([*arguments, "--write", str(page)]) == 0
    content = json.loads(file.read_text())
    assert [row["size"] for row in content["gaussian"]] == [16, 16]
    assert content["time"][0]["svd"] == [1.0, 3.0]
    assert "numpy.linalg.svd" in page.read_text()
    shown = capsys.readouterr().out
    assert main(["--show", "--json", str(file)]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.slow
def test_the_model_is_measured_with_its_peers_in_the_same_rounds(tmp_path, monkeypatch, capsys):
    def fail(_model, _output):
        raise RuntimeError("no such kernel")

    rows = (
        Peer("copy", shutil.copy),
        Peer("failing", fail),
        Ours("ternary, onnxlr", {"method": "ternary", "terms": 1, "target": "onnxlr"}),
        Again("ternary, onnx", "ternary, onnxlr", "onnx"),
    )
    task = product_task(tmp_path)
    monkeypatch.setattr(measure_ternary, "TERNARY_ROWS", rows)
    monkeypatch.setattr(measure_ternary, "minilm_task", lambda: task)
    monkeypatch.setattr(measure_ternary, "sentences_of_lengths", lambda task: task)
    file = tmp_path / "figures.json"
    assert main(["minilm", "--json", str(file), "--rounds", "2"]) == 1
    found = Document.read(file).minilm
    assert [row.name for row in found] == ["original", *(row.name for row in rows)]
    assert found[2].error == "RuntimeError: no such kernel"
    assert found[2].latency is None
    for row in (found[0], found[1], found[3], found[4]):
        assert row.error is None
        assert row.latency > 0
    assert found[3].counts.trits == 96 * 128
    assert found[4].counts == found[3].counts
    assert "no such kernel" in capsys.readouterr().out
