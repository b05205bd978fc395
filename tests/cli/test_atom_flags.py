"""The command line with method sparse_quantized: its flags, what it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from onnxlr import delivery
from onnxlr.runtime import Footprint, Footprints, ModelFile
from tests.cli.conftest import Run

Refused = Callable[[Sequence[object], int, Sequence[str]], str]
DEMO = Path(__file__).resolve().parents[2] / "models"
ANY = ("--tolerance", "cosine>=-1")
METHOD = ("--method", "sparse_quantized")
LAYER = "features.conv3"
"""128 channels to 128, 3×3: 147 thousand weights."""
CONTROL = ("--tile", 16, "--value-bits", 4, "--dictionary-bits", 0)
"""Sparse whole numbers."""


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of the time of a small rewrite."""

    def sizes(original: ModelFile, rewritten: ModelFile, *_: object) -> Footprints:
        return Footprints(Footprint(original.bytes), Footprint(rewritten.bytes))

    monkeypatch.setattr(delivery, "measure_footprints", sizes)


@pytest.fixture
def demo(folder: Path) -> Path:
    """Return `d.onnx`, the demo model, alone in the current folder."""
    shutil.copy(DEMO / "demo.onnx", folder / "d.onnx")
    return Path("d.onnx")


def choices_of(file: str | Path) -> dict[str, dict[str, Any]]:
    """Return what the plan in a model has for each layer that was rewritten."""
    entries = {e.key: e.value for e in onnx.load(file).metadata_props}
    layers = json.loads(entries["onnxlr.plan"])["layers"]
    return {k: v for k, v in layers.items() if v["method"] == "sparse_quantized"}


def logits(file: str | Path) -> np.ndarray[Any, Any]:
    """Return what a model makes of the first test images."""
    with np.load(DEMO / "demo_test.npz") as data:
        session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        images = data[name] if name in data else data[data.files[0]]
        return np.asarray(session.run(None, {name: images[:64].astype(np.float32)})[0])


def kept_bytes(file: str | Path) -> int:
    """Return the bytes of constants that ONNX Runtime holds when it has loaded a model."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = "optimised.onnx"
    ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    tensors = onnx.load("optimised.onnx").graph.initializer
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in tensors)


def test_bits_are_those_of_the_file_and_the_outputs_stay(run: Run, demo: Path) -> None:
    arguments = (*METHOD, "--bits", 4, "--layers", LAYER, "--json")
    ended = run("rewrite", demo, "-o", "o.onnx", *arguments)
    assert ended.code == 0, ended
    weights = 128 * 128 * 9
    grown = Path("o.onnx").stat().st_size - (demo.stat().st_size - 4 * weights)
    assert 3 * weights < 8 * grown < 1.05 * 4 * weights
    before, after = logits(demo), logits("o.onnx")
    cosines = np.sum(before * after, axis=1) / np.linalg.norm(before, axis=1)
    assert np.all(cosines / np.linalg.norm(after, axis=1) > 0.99)
    assert np.any(before != after)
    # The footprints say what the files take.
    footprints = json.loads(ended.out)["footprints"]
    assert footprints["original"]["bytes"] == demo.stat().st_size
    assert footprints["rewritten"]["bytes"] == Path("o.onnx").stat().st_size


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("recombine", ["load", "run"])
def test_a_plan_gives_the_same_bytes(run: Run, demo: Path, recombine: str) -> None:
    layers = ("--layers", "features.pointwise*")
    arguments = (*METHOD, "--bits", 3.5, *layers, "--recombine", recombine)
    assert run("rewrite", demo, "-o", "a.onnx", *arguments, *ANY).code == 0
    assert run("plan", demo, "-o", "p.json", *arguments).code == 0
    planned = json.loads(Path("p.json").read_text())["layers"]
    assert planned["features.pointwise1"]["options"]["recombine"] == recombine
    assert run("rewrite", demo, "-o", "b.onnx", "--plan", "p.json", *ANY).code == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    found = choices_of("a.onnx")
    assert set(found) == {"features.pointwise1", "features.pointwise2"}
    settled = {"atoms", "tile", "nonzeros", "value_bits", "dictionary_bits", "recombine"}
    assert all(set(choice["options"]) == settled for choice in found.values())


@pytest.mark.usefixtures("unmeasured")
def test_weights_are_recombined_at_load_or_in_each_run(run: Run, demo: Path) -> None:
    kept = {}
    for mode in ("load", "run"):
        arguments = (*METHOD, "--atoms", 64, "--tile", 3, "--layers", LAYER, "--recombine", mode)
        assert run("rewrite", demo, "-o", f"{mode}.onnx", *arguments, *ANY).code == 0
        kept[mode] = kept_bytes(f"{mode}.onnx")
    weights = 4 * 128 * 128 * 9
    assert kept["load"] == pytest.approx(kept_bytes(demo), rel=1e-3)
    assert kept["run"] < kept["load"] - 0.9 * weights
    np.testing.assert_allclose(logits("load.onnx"), logits("run.onnx"), rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    ("flags", "form"),
    [
        (
            ("--atoms", 32, "--tile", 4),
            {"atoms": 32, "tile": 4, "nonzeros": 1, "value_bits": 0, "dictionary_bits": 8},
        ),
        (
            ("--atoms", 12, "--tile", 5, "--nonzeros", 2, "--dictionary-bits", 4),
            {"atoms": 12, "tile": 5, "nonzeros": 2, "value_bits": 0, "dictionary_bits": 4},
        ),
        (
            ("--atoms", 16, *CONTROL, "--nonzeros", 8),
            {"atoms": 16, "tile": 16, "nonzeros": 8, "value_bits": 4, "dictionary_bits": 0},
        ),
        (
            ("--atoms", 20, "--tile", 9999, "--nonzeros", 10, "--value-bits", 6),
            {"atoms": 20, "tile": 64, "nonzeros": 10, "value_bits": 6, "dictionary_bits": 8},
        ),
    ],
)
def test_a_form_is_what_is_asked(
    run: Run, demo: Path, flags: Sequence[object], form: dict[str, int]
) -> None:
    arguments = (*METHOD, *flags, "--layers", "features.pointwise1")
    ended = run("rewrite", demo, "-o", "o.onnx", *arguments, *ANY)
    assert ended.code == 0, ended
    (choice,) = choices_of("o.onnx").values()
    assert choice["options"] == form
    assert choice["metric"] == "frobenius"


@pytest.mark.usefixtures("unmeasured")
def test_what_is_not_asked_of_a_form_is_chosen(run: Run, demo: Path) -> None:
    """Of 16 numbers, 4 bits each and a bit for every place: 8 at 3.1 bits, 11 at 4."""
    for bits, entries in ((3.35, 8), (4.0, 10)):
        arguments = (*METHOD, "--bits", bits, *CONTROL, "--layers", LAYER)
        assert run("rewrite", demo, "-o", f"{bits}.onnx", *arguments, *ANY).code == 0
        (choice,) = choices_of(f"{bits}.onnx").values()
        options = choice["options"]
        assert (options["tile"], options["value_bits"], options["dictionary_bits"]) == (16, 4, 0)
        # A mask takes 1, s entries s/4, and a scale for each of the 1152 inputs 32/1152 bits.
        assert options["nonzeros"] >= entries
        assert 1 + options["nonzeros"] / 4 + 32 / 1152 <= bits


@pytest.mark.usefixtures("unmeasured")
def test_an_error_is_not_exceeded(run: Run, demo: Path) -> None:
    layer = "features.pointwise2"
    arguments = (*METHOD, "--max-error", 0.15, "--layers", layer, "--json")
    ended = run("rewrite", demo, "-o", "o.onnx", *arguments, *ANY)
    assert ended.code == 0, ended
    records = {record["name"]: record for record in json.loads(ended.out)["layers"]}
    assert 0 < records[layer]["error"] <= 0.15
    assert records[layer]["bytes_after"] < 128 * 128


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--max-error", 0), "max_error 0 is not reached with 8 bits"),
        (("--bits", 0.05), "less than any such form of a 64×128 weight takes"),
        (("--format", "int8"), "has grids of its own, not int8"),
        (("--bits", 3, "--activations", "dynamic_int8"), "dynamic_int8 data was asked"),
    ],
)
def test_layers_that_cannot_have_what_is_asked_are_kept_and_say_why(
    run: Run, demo: Path, flags: Sequence[object], reason: str
) -> None:
    arguments = (*METHOD, *flags, "--layers", "features.pointwise1")
    ended = run("rewrite", demo, "-o", "o.onnx", *arguments, "--json", *ANY)
    assert ended.code == 0, ended
    records = {record["name"]: record for record in json.loads(ended.out)["layers"]}
    assert records["features.pointwise1"]["choice"]["method"] == "keep"
    assert reason in records["features.pointwise1"]["choice"]["reason"]
    assert Path("o.onnx").read_bytes() == demo.read_bytes()
    assert run("rewrite", demo, *arguments, "--require-change").code != 0


@pytest.mark.parametrize("command", ["rewrite", "plan"])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--bits", 3, "--atoms", 8), ("bits and atoms are both given",)),
        (("--bits", 3, "--max-error", 0.1), ("bits and max_error are both given",)),
        (("--bits", 0), ("bits 0", "above 0")),
        (("--bits", "nan"), ("bits nan", "finite")),
        (("--bits", "many"), ("--bits", "many")),
        (("--max-error", 1), ("max_error 1", "below 1")),
        (("--max-error", "nan"), ("max_error nan",)),
        (("--atoms", 0), ("atoms 0", "at least 1")),
        (("--tile", -3), ("tile -3", "at least 1")),
        (("--nonzeros", 0), ("nonzeros 0", "at least 1")),
        (("--nonzeros", "2.5"), ("--nonzeros", "2.5")),
        (("--value-bits", 9), ("value_bits 9 is unknown", "expected one of 0, 2")),
        (("--value-bits", 1), ("value_bits 1 is unknown",)),
        (("--dictionary-bits", 5), ("dictionary_bits 5 is unknown", "0, 4, 8, 16, 32")),
        (("--recombine", "never"), ("recombine 'never' is unknown", "load, run")),
        (("--rank", 3), ("'sparse_quantized' has no option 'rank'", "dictionary_bits")),
        (("--ratio", 0.5), ("no option 'ratio'",)),
        (("--group-size", 32), ("group size", "give --format")),
        (("--rounding", "gptq"), ("rounding", "give --format")),
        (("--metric", "kfac"), ("metric kfac",)),
        (("--allocate", "global"), ("global allocation",)),
        (("--sequential",), ("sequential", "--calibration")),
    ],
)
def test_what_makes_no_sense_is_refused(
    refused: Refused, model: Path, command: str, flags: Sequence[object], words: Sequence[str]
) -> None:
    refused((command, model, *METHOD, *flags), 2, words)


@pytest.mark.parametrize("flag", ["--atoms", "--tile", "--nonzeros", "--value-bits", "--recombine"])
def test_other_methods_have_no_such_flags(refused: Refused, model: Path, flag: str) -> None:
    name = flag.strip("-").replace("-", "_")
    value = "run" if flag == "--recombine" else 4
    words = (f"method 'quantize' has no option '{name}'",)
    refused(("rewrite", model, "--method", "quantize", flag, value), 2, words)


FORM = {"atoms": 8, "tile": 2, "nonzeros": 1, "value_bits": 0, "dictionary_bits": 8}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"options": {**FORM, "bits": 3}}, ("bits and atoms are both given",)),
        ({"options": {**FORM, "nozeros": 2}}, ("unknown key 'nozeros'", "nonzeros")),
        ({"options": {**FORM, "atoms": "8"}}, ("options.atoms", '"8"', "whole number")),
        ({"options": {**FORM, "atoms": True}}, ("options.atoms", "true")),
        ({"options": {**FORM, "recombine": "later"}}, ("recombine 'later'", "load, run")),
        ({"options": {**FORM, "dictionary_bits": 0}}, ("'second'", "as many atoms, and values")),
        (
            {"options": {**FORM, "nonzeros": 9, "value_bits": 4}},
            ("'second'", "nonzeros 9 is more than the 8 atoms"),
        ),
        ({"options": FORM, "format": "int8"}, ("'second'", "grids of its own")),
        ({"options": FORM, "metric": "activation"}, ("'second'", "needs statistics")),
        ({"options": FORM, "activations": "dynamic_int8"}, ("dynamic_int8",)),
    ],
)
def test_plans_that_cannot_be_followed(
    refused: Refused, model: Path, entry: dict[str, Any], words: Sequence[str]
) -> None:
    layers = {"second": {"method": "sparse_quantized", **entry}}
    document = {"schema": "onnxlr.plan/1", "layers": layers}
    Path("p.json").write_text(json.dumps(document), encoding="utf-8")
    refused(("rewrite", model, "--plan", "p.json"), 2, words)
