"""Tests of `tools/measure_tensors.py` on a model of one convolution and one matrix."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxlr
from tools import measure_tensors
from tools.measure_tensors import main
from tools.tensor_figures import KERNELS, MATRICES, Approximation, LayerError, choose, layer_errors
from tools.tensor_latency import ORIGINAL, ChainTime, Product, time_chains
from tools.tensor_tables import Document

SPATIAL = Approximation("svd spatial", "svd", {"form": "spatial"})
TUCKER = Approximation("tucker", "tucker", {})


@pytest.fixture
def model(tmp_path):
    """Return a file of one convolution of 12 channels, named layer."""
    random = np.random.default_rng(3)
    weight = random.standard_normal((12, 12, 3, 3)).astype(np.float32)
    path = tmp_path / "model.onnx"
    onnx.save(Product("layer", weight, ((1, 12, 8, 8),)).model(), path)
    return path, weight


def _images(seed, count=6):
    """Return images whose channels and neighbours correlate."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(1).standard_normal((12, 12)) * np.exp(-np.arange(12) / 3)
    images = np.einsum("oc,ncyx->noyx", mixing, random.standard_normal((count, 12, 8, 8)))
    images[..., 1:] += images[..., :-1]
    return [{"x": image[None].astype(np.float32)} for image in images]


def _run(model, feeds):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0].astype(np.float64)


def test_errors_are_of_outputs_on_inputs_that_the_fit_has_not_seen(model):
    path, weight = model
    held_out = _images(8)
    rows = list(layer_errors(path, _images(7), held_out, ["layer"], [SPATIAL, TUCKER], 0.4))
    assert [(row.name, row.metric) for row in rows] == [
        (name, metric)
        for name in ("svd spatial", "tucker")
        for metric in ("frobenius", "activation")
    ]
    for row in rows:
        assert row.problem is None
        assert 0 < row.ratio <= 0.4
    plain, aware = rows[:2]
    assert aware.error < plain.error
    assert aware.weight_error > plain.weight_error
    # The plain fit again, run by ONNX Runtime.
    found = onnxlr.decompose(weight, "svd", groups=1, ratio=0.4, form="spatial").reconstruct()
    original = onnx.load(path)
    changed = onnx.load(path)
    tensor = numpy_helper.from_array(found.astype(np.float32), "w")
    changed.graph.initializer[0].CopyFrom(tensor)
    expected = [(_run(original, feeds), _run(changed, feeds)) for feeds in held_out]
    wrong = sum(np.sum((a - b) ** 2) for a, b in expected)
    total = sum(np.sum(a**2) for a, _ in expected)
    assert plain.error == pytest.approx(np.sqrt(wrong / total), rel=1e-4)
    distance = np.linalg.norm(found - weight) / np.linalg.norm(weight)
    assert plain.weight_error == pytest.approx(distance)


def test_what_cannot_be_fitted_says_why(model):
    path, _ = model
    wanted = Approximation("tucker of 5", "tucker", {"modes": "5,12"})
    rows = list(layer_errors(path, _images(7), _images(8), ["layer"], [wanted], 0.5))
    assert len(rows) == 2
    assert all("modes 5 multiply to 5" in row.problem and row.error is None for row in rows)


def test_a_layer_that_is_not_there_is_named(model):
    with pytest.raises(ValueError, match="no layer other"):
        list(layer_errors(model[0], _images(7), _images(8), ["other"], [SPATIAL]))


def test_chains_are_timed_beside_the_original(tmp_path):
    weight = np.random.default_rng(0).standard_normal((48, 64)).astype(np.float32)
    product = Product("matrix", weight, ((4, 48), (9, 48)))
    svd, bad = Approximation("svd", "svd", {}), Approximation("bad", "svd", {"form": "spatial"})
    rows = list(time_chains(product, [svd, bad], 0.5, tmp_path, rounds=2))
    assert [(row.name, row.data) for row in rows] == [
        ("bad", ()),
        (ORIGINAL, (4, 48)),
        ("svd", (4, 48)),
        (ORIGINAL, (9, 48)),
        ("svd", (9, 48)),
    ]
    assert rows[0].problem
    first, found = rows[1:3]
    assert (first.ratio, first.operations, first.nodes) == (1.0, 1.0, "MatMul")
    rank = (48 * 64 // 2) // (48 + 64)
    assert found.ratio == found.operations == rank * (48 + 64) / (48 * 64)
    assert found.nodes == "MatMul MatMul"
    values = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
    expected = np.linalg.norm(values[rank:]) / np.linalg.norm(values)
    assert found.weight_error == pytest.approx(expected, rel=1e-4)
    assert all(0 < row.low <= row.latency <= row.high for row in rows[1:])


def test_a_convolution_to_time_keeps_the_size_of_images():
    weight = np.random.default_rng(0).standard_normal((5, 3, 3, 3)).astype(np.float32)
    product = Product("kernel", weight, ((1, 3, 7, 9),))
    onnx.checker.check_model(product.model(), full_check=True)
    data = np.random.default_rng(1).standard_normal((2, 3, 7, 9)).astype(np.float32)
    found = _run(product.model(), {"x": data})
    assert found.shape == (2, 5, 7, 9)
    middle = np.einsum("nchw,ochw->no", data[:, :, 2:5, 3:6], weight)
    np.testing.assert_allclose(found[:, :, 3, 4], middle, rtol=1e-4, atol=1e-5)


def test_approximations_are_chosen_by_name_and_have_names_of_their_own():
    for known in (KERNELS, MATRICES):
        assert len({each.name for each in known}) == len(known)
    assert [each.name for each in choose(KERNELS, ["svd*"])] == ["svd spatial", "svd channel"]
    assert choose(KERNELS, []) == list(KERNELS)


ROWS = [
    LayerError("one", (64, 64, 3, 3), "svd spatial", "frobenius", 0.5, 0.25, 0.3, 1.0),
    LayerError("one", (64, 64, 3, 3), "svd spatial", "activation", 0.5, 0.125, 0.4, 2.0),
    LayerError("two", (256, 256, 3, 3), "svd spatial", "frobenius", 0.48, 0.2, 0.3, 1.0),
    LayerError("one", (64, 64, 3, 3), "none", "frobenius", problem="it [cannot]"),
]
TIME = ChainTime("m", (4, 8), "svd", 0.5, 0.5, 0.45, 0.1, 0.25, 0.6, 0.5, 0.7, "MatMul MatMul")
FULL = Document(
    ROWS,
    [ChainTime("c", (), "bad", 0.5, problem="it [cannot]"), replace(TIME, product="c")],
    [TIME, replace(TIME, data=(9, 8), latency=0.75), replace(TIME, budget=0.25)],
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
    errors, kernel, matrix = FULL.grids()
    assert errors.header == ["", "one (64)", "two (256)", "ratio", "all in s"]
    assert errors.rows[:2] == [
        ["svd spatial", "0.250 → 0.125", "0.200 → –", "0.480–0.500", "4"],
        ["none", "–", "–", "–", "0"],
    ]
    assert errors.rows[2] == ["svd spatial, reference", ".217", ".167", "", ""]
    assert kernel.title.startswith("c: time by")
    assert kernel.rows[0] == ["bad 0.5", "–", "–", "–", "–", "–", r"it \[cannot]"]
    assert matrix.header[4:6] == ["time, 4×8", "time, 9×8"]
    assert matrix.rows == [
        [
            "svd 0.5",
            *("0.500", "0.450", "0.100", "0.60 (0.50–0.70)", "0.75 (0.50–0.70)"),
            *("0.250 / 0.250", "2 MatMul"),
        ],
        [
            "svd 0.25",
            *("0.500", "0.450", "0.100", "0.60 (0.50–0.70)", "–"),
            *("0.250", "2 MatMul"),
        ],
    ]
    assert Document().grids() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["latencies"], "no part latencies; there are layers, latency, matrices"),
        (["--show"], "needs --json"),
        (["--rounds", "1"], "--rounds must be 2 or more"),
        (["--ratio", "1.5"], "--ratio must be above 0 and below 1"),
        (["--rows", "cpd*"], "no approximation matches cpd*; there are svd spatial"),
    ],
)
def test_arguments_that_cannot_be_followed(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_parts_that_are_not_measured_stay_as_they_were(model, tmp_path, monkeypatch, capsys):
    file, page = tmp_path / "figures.json", tmp_path / "page.md"
    replace(FULL, layers=ROWS[:3], latency=[]).write(file)
    monkeypatch.setattr(measure_tensors, "fetch", lambda _: model[0])
    monkeypatch.setattr(measure_tensors, "calibration_photographs", lambda: _images(7))
    monkeypatch.setattr(measure_tensors, "held_out_photographs", lambda: _images(8))
    chosen = ["--layers", "layer", "--rows", "svd spatial", "--rounds", "2"]
    asked = ["layers", "latency", *chosen, "--json", str(file), "--write", str(page)]
    assert main(asked) == 0
    content = json.loads(file.read_text())
    assert [row["layer"] for row in content["layers"]] == ["layer", "layer"]
    assert [row["name"] for row in content["latency"]] == ["original", "svd spatial"]
    assert content["latency"][0]["data"] == [1, 12, 8, 8]
    assert len(content["matrices"]) == 3
    assert "held-out photographs" in page.read_text()
    shown = capsys.readouterr().out
    assert main(["--show", "--json", str(file)]) == 0
    assert capsys.readouterr().out == shown


def test_a_layer_of_unknown_data_cannot_be_timed(tmp_path, monkeypatch, capsys):
    weight = np.random.default_rng(0).standard_normal((12, 12, 3, 3)).astype(np.float32)
    path = tmp_path / "model.onnx"
    proto = Product("layer", weight, ((1, 12, 8, 8),)).model()
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 12, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 12, "h", "w"])
    proto.graph.input[0].CopyFrom(x)
    proto.graph.output[0].CopyFrom(y)
    onnx.save(proto, path)
    monkeypatch.setattr(measure_tensors, "fetch", lambda _: path)
    assert main(["latency", "--layers", "layer", "--rows", "svd spatial"]) == 3
    assert "does not say what data layer has" in capsys.readouterr().err
