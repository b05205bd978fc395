"""Tests of `tools/measure_atoms.py` on models of one product and of one convolution."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import onnxlr
from tests.tools.small_task import LAYER, product_task
from tools import measure_atoms
from tools.atom_figures import (
    KERNELS,
    MATRICES,
    NEAREST,
    Approximation,
    AtomError,
    layer_errors,
    rounded_in_blocks,
)
from tools.atom_files import FileBytes, ModelFootprint, file_bytes, footprints
from tools.atom_tables import Document
from tools.measure_atoms import OCR_ROWS, main
from tools.measured_files import Bench, Result
from tools.measured_tasks import Task
from tools.tensor_latency import Product

THREE = Approximation("three", "sparse_quantized", {"bits": 3.0})
INT4 = Approximation("int4", "quantize", {}, {"format": "int4", "group_size": 0}, ("frobenius",))
TOO_FEW = Approximation("few", "sparse_quantized", {"bits": 0.01})


@pytest.fixture
def bench(tmp_path):
    found = Bench.prepare(product_task(tmp_path), tmp_path / "made", rounds=2)
    found.observe()
    return found


def _weight(path):
    return numpy_helper.to_array(onnx.load(path).graph.initializer[0])


def _wrong(task, made):
    """Return the relative error of the outputs of a matrix on held-out inputs."""
    weight = _weight(task.model).astype(np.float64)
    wrong = total = 0.0
    for feeds in task.held_out:
        x = feeds["x"].astype(np.float64)
        wrong += np.sum((x @ made - x @ weight) ** 2)
        total += np.sum((x @ weight) ** 2)
    return np.sqrt(wrong / total)


def test_layers_are_judged_on_inputs_that_the_fit_has_not_seen(bench):
    task = bench.task
    wanted = [THREE, INT4]
    rows = list(layer_errors(task, bench.statistics, [LAYER], wanted, nearest=True))
    assert [(row.name, row.metric) for row in rows] == [
        (NEAREST, "frobenius"),
        ("three", "frobenius"),
        ("three", "activation"),
        ("int4", "frobenius"),
    ]
    nearest, plain, aware, int4 = rows
    weight = _weight(task.model)
    assert nearest.error == pytest.approx(_wrong(task, rounded_in_blocks(weight)[0]), rel=1e-6)
    made = onnxlr.decompose(weight, "sparse_quantized", bits=3.0).reconstruct()
    assert plain.error == pytest.approx(_wrong(task, made), rel=1e-6)
    assert aware.error < plain.error
    assert 2 < plain.bits <= 3
    assert int4.bits == pytest.approx(4 + 32 / 96 + 4 / 96)
    assert all(row.problem is None and row.shape == (96, 128) for row in rows)


def test_rounding_in_blocks_is_to_the_nearest_of_few_numbers():
    weight = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)
    weight[:32, 1] = 0
    weight[32:, 2] = 4.0
    rounded, bits = rounded_in_blocks(weight)
    assert bits == 3 + (16 + 3) / 32
    for block in (slice(0, 32), slice(32, 64)):
        for output in range(5):
            known = np.unique(rounded[block, output])
            assert len(known) <= 8
            steps = np.diff(known)
            own = weight[block, output]
            step = (max(own.max(), 0) - min(own.min(), 0)) / 7
            assert np.all(np.abs(steps - step * np.rint(steps / max(step, 1e-9))) <= 4e-3 * step)
            # At the ends of the range, the zero point's rounding costs half a step.
            assert np.abs(rounded[block, output] - own).max() <= 1.01 * step
            middle = np.abs(rounded[block, output] - own)
            assert np.median(middle) <= 0.5 * step
    with pytest.raises(ValueError, match="33 inputs are no whole blocks of 32"):
        rounded_in_blocks(np.ones((33, 2), np.float32))


def test_what_cannot_be_fitted_says_why(bench):
    rows = list(layer_errors(bench.task, bench.statistics, [LAYER], [TOO_FEW]))
    assert len(rows) == 2
    assert all("less than any such form" in row.problem and row.error is None for row in rows)
    with pytest.raises(ValueError, match="no layer other"):
        list(layer_errors(bench.task, bench.statistics, ["other"], [THREE]))


def _images(seed, count=6):
    """Return images whose channels and neighbours correlate."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(1).standard_normal((12, 12)) * np.exp(-np.arange(12) / 3)
    images = np.einsum("oc,ncyx->noyx", mixing, random.standard_normal((count, 12, 8, 8)))
    images[..., 1:] += images[..., :-1]
    return [{"x": image[None].astype(np.float32)} for image in images]


@pytest.fixture
def pictures(tmp_path):
    """Return a task of one convolution."""
    weight = np.random.default_rng(3).standard_normal((16, 12, 3, 3)).astype(np.float32)
    path = tmp_path / "kernel.onnx"
    onnx.save(Product("layer", weight, ((1, 12, 8, 8),)).model(), path)
    seen, held_out = _images(7), _images(8)
    return Task(
        "pictures", path, "half", lambda _: 0.5, seen, held_out[:1], held_out[:1], None, held_out
    )


def test_kernels_are_judged_on_their_outputs(pictures, tmp_path):
    bench = Bench.prepare(pictures, tmp_path / "made", rounds=2)
    bench.observe()
    plain, aware = layer_errors(pictures, bench.statistics, ["layer"], [THREE])
    assert aware.error < plain.error
    weight = _weight(pictures.model)
    made = onnxlr.decompose(weight, "sparse_quantized", groups=1, bits=3.0).reconstruct()
    changed = onnx.load(pictures.model)
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(made.astype(np.float32), "w"))
    sessions = [
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"])
        for m in (onnx.load(pictures.model), changed)
    ]
    wrong = total = 0.0
    for feeds in pictures.held_out:
        before, after = (one.run(None, feeds)[0].astype(np.float64) for one in sessions)
        wrong += np.sum((before - after) ** 2)
        total += np.sum(before**2)
    assert plain.error == pytest.approx(np.sqrt(wrong / total), rel=1e-4)


def test_bytes_are_those_of_a_file_that_is_written(tmp_path):
    task = product_task(tmp_path, 128, 160)
    (row,) = file_bytes(task.model, [LAYER], [3.5])
    written = tmp_path / "o.onnx"
    onnxlr.rewrite(task.model, written, method="sparse_quantized", bits=3.5, tolerance="cosine>=0")
    weight = 4 * 128 * 160
    grown = written.stat().st_size - (task.model.stat().st_size - weight)
    # Beside that, the plan of a rewrite names the model that it is of.
    assert row.grown <= grown <= row.grown + 150
    assert row.stated <= 3.5 * 128 * 160 / 8
    assert row.stated < row.reported < row.grown + 150
    assert row.shape == (128, 160)


@pytest.mark.slow
def test_footprints_are_of_both_modes(tmp_path):
    task = product_task(tmp_path, 256, 256)
    rows = list(footprints(task.model, tmp_path, 3.0, [LAYER], task.timing))
    assert [row.name for row in rows] == [
        "original",
        "sparse_quantized 3, load",
        "sparse_quantized 3, run",
    ]
    original, load, run = rows
    assert original.megabytes == pytest.approx(task.model.stat().st_size / 1e6)
    assert original.latency == 1
    assert load.megabytes < original.megabytes / 8
    assert load.megabytes < run.megabytes < 1.1 * load.megabytes
    assert all(row.load_seconds > 0 and row.milliseconds > 0 for row in rows)
    assert all(row.low <= row.latency <= row.high for row in rows)


def test_layers_that_do_not_become_atoms_have_no_footprints(tmp_path):
    task = product_task(tmp_path)
    with pytest.raises(ValueError, match="name no layer that sparse_quantized rewrites"):
        list(footprints(task.model, tmp_path, 0.01, [LAYER], task.timing))


def test_approximations_have_names_of_their_own():
    for known in (MATRICES, KERNELS, OCR_ROWS):
        assert len({each.name for each in known}) == len(known)


ERRORS = [
    AtomError("encoder.layer.1.output.dense", (4, 8), "a", "frobenius", 3.0, 0.25, 1.0),
    AtomError("encoder.layer.1.output.dense", (4, 8), "a", "activation", 3.0, 0.125, 2.0),
    AtomError("encoder.layer.1.query", (4, 4), "a", "activation", 3.25, 0.5, 2.0),
    AtomError("encoder.layer.1.query", (4, 4), "b", "frobenius", problem="it [cannot]"),
]
FULL = Document(
    ERRORS,
    [
        FileBytes("one", (10, 80), 3.0, 300, 310, 315),
        FileBytes("two", (10, 80), 3.0, 200, 210, 220),
        FileBytes("one", (10, 80), 2.0, 200, 210, 220),
    ],
    [replace(ERRORS[0], layer="Conv.1", shape=(4, 8, 1, 1))],
    [Result("original", 10.0, 1.0, 5.0, 1.0, 0.9, 1.1), Result("bad", error="E: [1]")],
    [
        ModelFootprint("original", 90.0, 0.5, 95.0, 120.0, 10.0, 1.0, 1.0, 1.0),
        ModelFootprint("m", 9.0, 1.0, None, None, None, None, None, None, ("no [memory]",)),
    ],
)


def test_figures_are_written_and_read_as_they_are(tmp_path):
    file = tmp_path / "figures.json"
    FULL.write(file)
    assert Document.read(file) == FULL


@pytest.mark.parametrize("text", ["", "[]", '{"layers": [{"size": 1}]}', '{"rows": []}'])
def test_a_file_of_other_content_is_refused(tmp_path, text):
    file = tmp_path / "figures.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="holds no figures of this tool"):
        Document.read(file)


def test_tables_hold_what_was_found():
    layers, sizes, kernels, models, taken = FULL.grids()
    assert layers.header == ["", "output 4×8", "query 4×4", "all in s"]
    assert layers.rows == [
        ["a", "0.2500 → 0.1250 (3.00)", "– → 0.5000 (3.25)", "5.0"],
        ["b", "", r"it \[cannot]", "0.0"],
    ]
    assert kernels.header[1] == "Conv.1 4×8×1×1"
    assert sizes.rows == [
        ["3", "10×80", "2", *("2.000–3.000", "2.100–3.100", "2.200–3.150"), "5.00–10.00 %"],
        ["2", "10×80", "1", "2.000", "2.100", "2.200", "10.00–10.00 %"],
    ]
    assert models.rows[0][:4] == ["original", "10.00", "1.0000", "1.00 (0.90–1.10)"]
    assert r"\[1]" in models.rows[1][0]
    assert taken.rows[0] == [
        "original",
        "90.00",
        "0.50",
        "95",
        "120",
        "10.0",
        "1.00 (1.00–1.00)",
        "",
    ]
    assert taken.rows[1] == ["m", "9.00", "1.00", "–", "–", "–", "–", r"no \[memory]"]
    assert Document().grids() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layer"], "no part layer; there are layers, bytes, convolutions, ocr, footprints"),
        (["--show"], "needs --json"),
        (["layers", "--show", "--json", "x"], "--show takes no parts"),
        (["--rounds", "1"], "--rounds must be 2 or more"),
        (["--bits", "3,0"], "invalid list of numbers above 0"),
        (["--rows", "cpd*"], "no approximation matches cpd*; there are sparse_quantized 3"),
    ],
)
def test_arguments_that_cannot_be_followed(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_parts_that_are_not_measured_stay_as_they_were(tmp_path, monkeypatch, capsys):
    file, page = tmp_path / "figures.json", tmp_path / "page.md"
    replace(FULL, ocr=FULL.ocr[:1], layers=[]).write(file)
    task = product_task(tmp_path)
    monkeypatch.setattr(measure_atoms, "minilm_model", lambda: task.model)
    monkeypatch.setattr(measure_atoms, "minilm_task", lambda: task)
    asked = ["layers", "bytes", "--layers", LAYER, "--bits", "3", "--rows", "*d 3", "--json"]
    assert main([*asked, str(file), "--write", str(page)]) == 0
    content = json.loads(file.read_text())
    assert [row["layer"] for row in content["layers"]] == [LAYER] * 3
    assert [(row["layer"], row["bits"]) for row in content["bytes"]] == [(LAYER, 3.0)]
    assert len(content["footprints"]) == 2
    assert "held-out text" in page.read_text()
    shown = capsys.readouterr().out
    assert main(["--show", "--json", str(file)]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.slow
def test_the_whole_model_is_measured_and_a_fit_that_fails_is_told(
    pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(measure_atoms, "ocr_task", lambda: pictures)
    monkeypatch.setattr(measure_atoms.ocr_lines, "test_lines", lambda count: list(range(count)))
    held_out = [(feeds, "text") for feeds in pictures.held_out]
    monkeypatch.setattr(measure_atoms.ocr_lines, "batches", lambda _: held_out)
    monkeypatch.setattr(measure_atoms, "CONVOLUTIONS", ("layer",))
    monkeypatch.setattr(measure_atoms, "KERNELS", (THREE, TOO_FEW))
    rows = tuple(row for row in OCR_ROWS if row.name in ("int4 gptq", "sparse_quantized 3 bits"))
    monkeypatch.setattr(measure_atoms, "OCR_ROWS", rows)
    file = tmp_path / "figures.json"
    assert main(["convolutions", "ocr", "--json", str(file), "--rounds", "2"]) == 1
    found = Document.read(file)
    assert [row.problem is None for row in found.convolutions] == [True, True, False, False]
    assert [row.name for row in found.ocr] == ["original", *(row.name for row in rows)]
    assert all(row.error is None and row.latency > 0 for row in found.ocr)
    assert found.ocr[2].megabytes < found.ocr[0].megabytes
    assert "less than any such form" in capsys.readouterr().out
