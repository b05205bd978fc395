"""The ratio of parameters that every layer got, and all together, in tables and in JSON."""

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
from onnxlr.methods import option_names
from onnxlr.reporting import print_rewrite, to_document
from tests.classifier import classifier, weights
from tests.onelayer import model_of
from tests.planning.two_orders import network

NAMES = {"first": "w1", "second": "w2", "head": "w3"}
LONG = "/encoder/layers.11/attention/self/query/projection/MatMul_that_has_a_long_name"


def printed(result: Any) -> str:
    console = Console(file=io.StringIO(), width=80, emoji=False)
    print_rewrite(console, result)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def rewritten(folder: Path, model: onnx.ModelProto, **options: Any) -> onnxlr.RewriteResult:
    asked = {"tolerance": "cosine>=-1", "isolate": False} | options
    return onnxlr.rewrite(model, folder / "o.onnx", **asked)


def numbers_in(file: Path, original: onnx.ModelProto) -> dict[str, int]:
    """Return the numbers of a file's new float tensors, by the layer they are named after."""
    known = {tensor.name for tensor in original.graph.initializer}
    found: dict[str, int] = {}
    for tensor in onnx.load(file).graph.initializer:
        if tensor.name not in known and tensor.data_type == onnx.TensorProto.FLOAT:
            layer = tensor.name.split(".")[0]
            found[layer] = found.get(layer, 0) + int(np.prod(tensor.dims))
    return found


@pytest.mark.parametrize("method", ["svd", "tucker"])
def test_the_numbers_are_those_in_the_file(tmp_path: Path, method: str) -> None:
    result = rewritten(tmp_path, classifier(), method=method, rank=3)
    counted = numbers_in(tmp_path / "o.onnx", classifier())
    document = to_document("rewrite", result)
    entries = {entry["name"]: entry for entry in document["layers"]}
    before = after = whole = 0
    for name, key in NAMES.items():
        size = weights()[key].size
        entry = entries[name]
        assert entry["parameters_before"] == size
        assert entry["parameters_after"] == counted.get(name, size)
        whole += size
        if name not in counted:
            assert entry["ratio"] is None
            continue
        assert entry["ratio"] == counted[name] / size
        before, after = before + size, after + counted[name]
        line = next(line for line in printed(result).splitlines() if line.startswith(name))
        assert f"  {counted[name] / size:.3f}  " in line
    assert counted
    totals = document["parameters"]
    assert totals["rewritten"] == {"before": before, "after": after, "ratio": after / before}
    kept = whole - before
    expected = {"before": whole, "after": after + kept, "ratio": (after + kept) / whole}
    assert totals["all"] == expected


def test_layers_that_are_left_alone_count_as_they_are(tmp_path: Path) -> None:
    result = rewritten(tmp_path, classifier(), rank=4, layers=["second"])
    text = " ".join(printed(result).split())
    assert "1 layer rewritten: 1.02 k → 256 numbers (ratio 0.250)" in text
    assert "with those left alone: 2.11 k → 1.34 k numbers (ratio 0.636)" in text
    whole = " ".join(printed(rewritten(tmp_path, classifier(), rank=4)).split())
    assert "3 layers rewritten: 2.11 k → 648 numbers (ratio 0.307)" in whole
    assert "left alone" not in whole


def test_of_a_convolution(tmp_path: Path) -> None:
    kernel = np.random.default_rng(0).standard_normal((24, 8, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], "layer", group=2)
    model = model_of([node], {"x": np.ones((1, 16, 8, 8), np.float32)}, ["y"], {"w": kernel})
    (record,) = rewritten(tmp_path, model, rank=4, form="input").layers
    # Two groups, each of 1×1 from 8 to 4 channels and then 3×3 from 4 to 12
    assert record.parameters_after == 2 * (8 * 4 + 4 * 12 * 9)
    assert record.ratio == record.parameters_after / kernel.size


def test_other_formats_of_the_same_numbers_have_no_ratio_to_tell(tmp_path: Path) -> None:
    for options in ({"method": "quantize", "format": "int8"}, {"method": "ternary"}):
        result = rewritten(tmp_path, classifier(), **options)
        assert {record.ratio for record in result.layers if not record.choice.keeps} == {1.0}
        assert "ratio" not in printed(result)


def test_ternary_factors_are_counted_by_their_trits(tmp_path: Path) -> None:
    result = rewritten(tmp_path, classifier(), method="ternary_svd", ratio=2.0, target="onnxlr")
    assert "numbers stored for each entry" not in " ".join(printed(result).split())
    for record in result.layers:
        assert record.ratio == pytest.approx(record.trits_per_weight, rel=0.1)


def test_nothing_rewritten(tmp_path: Path) -> None:
    result = rewritten(tmp_path, classifier(), method="keep")
    document = to_document("rewrite", result)
    assert document["parameters"]["rewritten"] == {"before": 0, "after": 0, "ratio": None}
    assert document["parameters"]["all"]["ratio"] == 1
    assert "ratio" not in printed(result)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("method", ["svd", "tucker"])
def test_tables_fit_in_80_columns_and_cut_nothing(
    tmp_path: Path, method: str, calibrated: bool
) -> None:
    model = network(3, 96, "n")
    for number, node in enumerate(model.graph.node):
        node.name = f"{LONG}_{number}"
    x = np.random.default_rng(0).standard_normal((300, 96)).astype(np.float32)
    data = {"calibration": {"x": x}} if calibrated else {}
    result = rewritten(tmp_path, model, method=method, rank=2, format="int8", **data)
    text = printed(result)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    ratios = {f"{record.ratio:.3f}" for record in result.layers if record.ratio is not None}
    cells = set(re.findall(r"\d\.\d{3}", text.partition("numbers stored")[0]))
    assert ratios
    assert ratios <= cells


def test_options_named_ratio_are_another_thing() -> None:
    """A choice's own `ratio` stays an option in JSON."""
    plan = onnxlr.Plan.loads(
        '{"schema": "onnxlr.plan/1", "layers": {"a": {"method": "svd", "options": {"ratio": 0.5}}}}'
    )
    choice = plan.layers["a"]
    assert "ratio" in option_names(type(choice.options))
    assert to_document("x", choice)["options"] == {"ratio": 0.5}
