"""Reports of ternary layers: what is counted, which way was proved, and all within a terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from rich.console import Console

import onnxlr
from onnxlr.methods import Setting, find_method
from onnxlr.numbers import Format
from onnxlr.reporting import print_report, print_rewrite, to_document
from onnxlr.reporting.cells import count_of
from tests.classifier import HIDDEN, classifier, samples, weights
from tests.onelayer import model_of
from tests.operators.oplibrary import installed_library

LONG = "/encoder/layers.11/attention/self/query/projection/MatMul_that_has_a_long_name"


def printed(show: Any, result: Any, width: int = 80) -> str:
    """Return what a terminal of that width gets."""
    console = Console(file=io.StringIO(), width=width, emoji=False)
    show(console, result)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def rewritten(folder: Path, model: onnx.ModelProto, **options: Any) -> onnxlr.RewriteResult:
    asked = {"target": "onnxlr", "tolerance": "cosine>=0.1", "isolate": False} | options
    return onnxlr.rewrite(model, folder / "o.onnx", **asked)


def row(text: str, name: str) -> list[str]:
    """Return the cells of a layer in the table of ternary layers."""
    table = text.partition("ternary layer")[2].partition("trits:")[0]
    (line,) = (line for line in table.splitlines() if line.startswith(name))
    return re.split(r"\s{2,}", line.strip())


def test_direct_ternary_layers_are_counted_by_their_trits(tmp_path: Path) -> None:
    """The trits are those of the method on the weight alone, counted one by one."""
    result = rewritten(tmp_path, classifier(), method="ternary", terms=2)
    records = {record.name: record for record in result.layers}
    document = to_document("rewrite", result)
    text = printed(print_rewrite, result)
    for entry, (name, key) in zip(
        document["layers"], {"first": "w1", "second": "w2", "head": "w3"}.items(), strict=True
    ):
        weight = weights()[key]
        method = find_method("ternary")
        setting = Setting(format=Format.parse("ternary"), compute=np.dtype("float32"))
        (stage,) = method.factorize(weight, method.options(terms=2), setting).stages
        trits = stage.weight.trits
        nonzeros = sum(1 for trit in trits.flat if trit)
        record = records[name]
        assert record.trits_per_weight == 2
        assert record.nonzeros == record.additions == nonzeros
        assert record.multiplications == 2 * weight.shape[1]  # one group of inputs
        for field in ("trits_per_weight", "nonzeros", "additions", "multiplications"):
            assert entry[field] == getattr(record, field)
        share = f"{nonzeros / trits.size:.1%}"
        assert row(text, name)[1:3] == ["2.00", share]
        assert row(text, name)[4] == str(2 * weight.shape[1])


def test_a_ternary_svd_is_counted_by_its_rank(tmp_path: Path) -> None:
    result = rewritten(tmp_path, classifier(), method="ternary_svd", rank=20, layers=["second"])
    record = next(record for record in result.layers if record.name == "second")
    assert record.trits_per_weight == pytest.approx(20 * 2 * HIDDEN / HIDDEN**2)
    assert record.multiplications == 20
    text = printed(print_rewrite, result)
    assert row(text, "second")[1] == f"{20 * 2 / HIDDEN:.2f}"
    others = [record for record in result.layers if record.name != "second"]
    assert {(r.trits_per_weight, r.nonzeros, r.additions, r.multiplications) for r in others} == {
        (None,) * 4
    }


def test_convolutions_count_places_of_their_output(tmp_path: Path) -> None:
    """Twice as large an image changes no count."""
    kernel = np.random.default_rng(0).standard_normal((24, 16, 3, 3)).astype(np.float32)
    found = []
    for size in (8, 16):
        x = np.ones((1, 16, size, size), np.float32)
        node = helper.make_node("Conv", ["x", "w"], ["y"], "layer")
        model = model_of([node], {"x": x}, ["y"], {"w": kernel})
        (record,) = rewritten(tmp_path, model, method="ternary", terms=1, group_size=0).layers
        found.append((record.additions, record.multiplications, record.trits_per_weight))
    assert found[0] == found[1]
    assert found[0][1:] == (24, 1)


def test_other_layers_have_no_such_table(tmp_path: Path) -> None:
    result = rewritten(tmp_path, classifier(), method="svd", rank=4)
    text = printed(print_rewrite, result)
    assert "ternary" not in text
    assert "adds" not in text
    assert "kernels" not in text
    entry = to_document("rewrite", result)["layers"][0]
    assert (entry["trits_per_weight"], entry["additions"]) == (None, None)
    checks = to_document("rewrite", result)["report"]["checks"]
    assert {check["run_by"] for check in checks} == {None}


def test_counts_are_not_called_time(tmp_path: Path) -> None:
    text = printed(print_rewrite, rewritten(tmp_path, classifier(), method="ternary", terms=2))
    words = " ".join(text.split())
    assert "for one row of data" in words
    assert "counts, which do not say how long they take" in words
    assert not re.search(r"faster|slower|speed", words)


def test_a_ternary_svd_is_not_called_the_smallest_form(tmp_path: Path) -> None:
    sentence = "not the smallest file"
    for method, options in (("ternary_svd", {"ratio": 2.0}), ("ternary", {"terms": 2})):
        text = printed(print_rewrite, rewritten(tmp_path, classifier(), method=method, **options))
        assert (sentence in " ".join(text.split())) == (method == "ternary_svd")


@pytest.mark.parametrize("activations", ["float", "dynamic_int8"])
@pytest.mark.parametrize("names", ["short", "long"])
def test_tables_fit_in_80_columns_and_cut_nothing(
    tmp_path: Path, names: str, activations: str
) -> None:
    model = classifier()
    if names == "long":
        for number, node in enumerate(model.graph.node):
            node.name = f"{LONG}_{number}"
    result = rewritten(
        tmp_path,
        model,
        method="ternary_svd",
        rank=20,
        activations=activations,
        calibration={"x": samples(200)},
    )
    text = printed(print_rewrite, result)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    table = text.partition("ternary layer")[2].partition("trits:")[0]
    cells = "".join(line.split(" ")[0] for line in table.splitlines())
    for record in result.layers:
        if not record.choice.keeps:
            assert record.name in cells


def test_each_way_has_a_table(tmp_path: Path) -> None:
    installed_library()
    result = rewritten(tmp_path, classifier(), method="ternary", terms=2)
    text = printed(print_report, result.report)
    kernels, _, functions = text.partition("With functions of standard operators")
    assert "With the op library's kernels:" in kernels
    assert "emission" in kernels
    assert "equiv." not in kernels
    assert "equiv.   both  first.TernaryMatMul" in functions
    assert "equivalence relative_l2<=0.0001 of each ternary node" in " ".join(text.split())
    checks = to_document("rewrite", result)["report"]["checks"]
    assert {check["run_by"] for check in checks} == {"kernels", "functions"}


def test_one_way_has_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXLR_OPS_LIBRARY", "off")
    result = rewritten(tmp_path, classifier(), method="ternary", terms=2)
    text = printed(print_report, result.report)
    assert "op library's kernels:" not in text
    assert "With functions of standard operators" in text
    assert "ONNXLR_OPS_LIBRARY=off" in "".join(text.split())


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (1234, "1.23 k"),
        (999_499, "999 k"),
        (999_600, "1 M"),
        (1_180_000, "1.18 M"),
        (2 * 10**12, "2 T"),
    ],
)
def test_short_counts(count: int, expected: str) -> None:
    assert count_of(count) == expected
