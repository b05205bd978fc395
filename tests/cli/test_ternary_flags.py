"""The command line with method ternary_svd: its flags, what it writes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.classifier import weights
from tests.cli.conftest import Run

Refused = Callable[[Sequence[object], int, Sequence[str]], str]
ANY = ("--tolerance", "cosine>=-1")


def plan_of(file: str) -> dict[str, Any]:
    entries = {e.key: e.value for e in onnx.load(file).metadata_props}
    return dict(json.loads(entries["onnxlr.plan"]))


def options_of(file: str) -> dict[str, dict[str, Any]]:
    """Return the options of each layer that was rewritten, by its name."""
    layers = plan_of(file)["layers"]
    return {k: v["options"] for k, v in layers.items() if v["method"] == "ternary_svd"}


@pytest.mark.parametrize("target", ["onnx", "onnxlr"])
def test_bits_and_target(run: Run, model: Path, target: str) -> None:
    arguments = ("--method", "ternary_svd", "--bits", 10, "--target", target)
    ended = run("rewrite", model, "-o", "o.onnx", *arguments, *ANY)
    assert ended.code == 0, ended
    ranks = {name: options["rank"] for name, options in options_of("o.onnx").items()}
    assert ranks
    shapes = {"first": "w1", "second": "w2", "head": "w3"}
    for name, rank in ranks.items():
        rows, columns = weights()[shapes[name]].shape
        # Two bits a trit, each row of them in whole bytes, and a float for each rank and output
        trits = columns * -(-rank // 4) + rank * -(-rows // 4)
        assert 8 * trits <= 10 * rows * columns
        assert 8 * (rank + columns) * 4 <= 10 * rows * columns
    domains = {node.domain for node in onnx.load("o.onnx").graph.node}
    assert any("onnxlr" in domain for domain in domains) == (target == "onnxlr")


def test_a_spectral_tolerance(run: Run, model: Path) -> None:
    arguments = ("--method", "ternary_svd", "--tolerance-spectral", 0.2, "--layers", "second")
    ended = run("rewrite", model, "-o", "o.onnx", *arguments, *ANY)
    assert ended.code == 0, ended
    assert set(options_of("o.onnx")) <= {"second"}


def test_the_published_fit_is_recorded(run: Run, model: Path) -> None:
    arguments = (
        "--method",
        "ternary_svd",
        "--fit",
        "published",
        "--ratio",
        3,
        "--target",
        "onnxlr",
    )
    ended = run("rewrite", model, "-o", "o.onnx", *arguments, *ANY)
    assert ended.code == 0, ended
    found = options_of("o.onnx")
    assert found
    assert {options["fit"] for options in found.values()} == {"published"}
    names = {value.name for value in onnx.load("o.onnx").graph.initializer}
    assert len(names & set(weights())) < len(weights())


def test_sweeps_are_recorded(run: Run, model: Path) -> None:
    arguments = ("--method", "ternary_svd", "--sweeps", 1, "--ratio", 3, "--target", "onnxlr")
    assert run("rewrite", model, "-o", "o.onnx", *arguments, *ANY).code == 0
    assert {options["sweeps"] for options in options_of("o.onnx").values()} == {1}


def test_help_says_what_the_options_are(run: Run) -> None:
    text = " ".join(run("rewrite", "--help").out.replace("│", " ").split())
    for flag in ("--tolerance-spectral", "--fit", "--sweeps", "--terms", "--bits"):
        assert flag in text
    assert "alternating" in text
    assert "published" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--fit", "best", "--ratio", 2), ("fit 'best' is unknown", "alternating, published")),
        (("--bits", 4, "--ratio", 2), ("ratio and bits are both given",)),
        (("--tolerance-spectral", 1.5), ("tolerance_spectral 1.5", "above 0 and below 1")),
        (("--tolerance-spectral", 0.1, "--max-error", 0.1), ("both given, expected one budget",)),
        (("--format", "int8", "--ratio", 2), ("ternary_svd", "found format 'int8'")),
        (("--group-size", 64, "--ratio", 2), ("ternary_svd", "rounds nothing in groups")),
        (("--sweeps", -1, "--ratio", 2), ("sweeps -1",)),
    ],
)
def test_what_makes_no_sense_is_refused(
    refused: Refused, model: Path, arguments: Sequence[object], words: Sequence[str]
) -> None:
    refused(("rewrite", model, "-o", "o.onnx", "--method", "ternary_svd", *arguments), 2, words)


def test_options_of_other_methods_are_refused(refused: Refused, model: Path) -> None:
    refused(("rewrite", model, "--method", "ternary_svd", "--terms", 2), 2, ("terms",))
    refused(("rewrite", model, "--method", "svd", "--fit", "published"), 2, ("fit",))


def test_a_weight_that_is_not_a_number(refused: Refused, model: Path) -> None:
    proto = onnx.load(model)
    tensor = next(t for t in proto.graph.initializer if t.name == "w1")
    broken = numpy_helper.to_array(tensor).copy()
    broken[1, 2] = np.inf
    tensor.CopyFrom(numpy_helper.from_array(broken, "w1"))
    onnx.save(proto, model)
    arguments = ("rewrite", model, "--method", "ternary_svd", "--ratio", 2)
    refused(arguments, 3, ("w1", "NaN or infinite"))
