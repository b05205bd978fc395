"""The verbs of the API, where the command line does not reach."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxlr
from tests.fixtures import runnable_model, svd_plan


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(runnable_model().SerializeToString())
    return path


@pytest.mark.parametrize(
    "argument",
    [
        {"format": "int8"},
        {"method": "keep"},
        {"activations": "dynamic_int8"},
        {"target": "ort"},
        {"rank": 1},
        {"layers": ["fc"]},
        {"skip": ["fc"]},
    ],
)
def test_a_plan_and_what_it_says_already(model: Path, argument: dict) -> None:
    with pytest.raises(onnxlr.UsageError, match="give either a plan"):
        onnxlr.rewrite(model, plan=svd_plan(["fc"], 1), **argument)


def test_the_output_is_never_the_plan(model: Path) -> None:
    file = model.with_name("plan.json")
    file.write_text(onnxlr.plan(model, rank=1).dumps())
    before = file.read_bytes()
    with pytest.raises(onnxlr.OutputError, match="is the input"):
        onnxlr.rewrite(model, file, plan=file)
    assert file.read_bytes() == before


def test_unknown_activations(model: Path) -> None:
    with pytest.raises(onnxlr.UsageError, match="'int7' is unknown; expected one of float"):
        onnxlr.plan(model, activations="int7")


def test_outputs_that_are_no_files(model: Path) -> None:
    with pytest.raises(onnxlr.OutputError, match="cannot be written: File name too long"):
        onnxlr.rewrite(model, model.with_name("x" * 300))
    os.mkfifo(model.with_name("pipe"))
    with pytest.raises(onnxlr.OutputError, match="no regular file"):
        onnxlr.rewrite(model, model.with_name("pipe"))


def test_bytes_are_copied_as_they_were_given(tmp_path: Path) -> None:
    """An unknown field in front is where protobuf itself would not write it."""
    content = b"\xa2\x06\x03abc" + runnable_model().SerializeToString()
    onnxlr.rewrite(content, tmp_path / "copy.onnx", method="keep")
    assert (tmp_path / "copy.onnx").read_bytes() == content


def test_what_the_caller_opened_stays_as_it_is(tmp_path: Path) -> None:
    opened = onnxlr.open(runnable_model())
    before = opened.proto.SerializeToString(deterministic=True)
    onnxlr.rewrite(opened, tmp_path / "o.onnx", plan=svd_plan(["fc"], 1), tolerance="cosine>=-1")
    assert opened.proto.SerializeToString(deterministic=True) == before


def test_data_is_checked_before_the_work(model: Path) -> None:
    np.savez(model.with_name("d.npz"), other=np.zeros(3))
    tasks = []
    with pytest.raises(onnxlr.DataError, match="is missing; found 'other'"):
        onnxlr.rewrite(
            model, data=model.with_name("d.npz"), progress=lambda task, *_: tasks.append(task)
        )
    assert tasks == []


def test_other_metadata_beside_the_plan(model: Path) -> None:
    result = onnxlr.rewrite(model, plan=svd_plan(["fc"], 1), tolerance="cosine>=-1", isolate=False)
    proto = onnx.load(result.output)
    proto.metadata_props.add(key="onnxlr.plan-notes", value="{}")
    onnx.save(proto, model.with_name("noted.onnx"))
    report = onnxlr.verify(
        model, model.with_name("noted.onnx"), tolerance="cosine>=-1", isolate=False
    )
    assert {check.proof for check in report.checks} == {"emission", "approximation"}


def test_a_failure_names_the_file(model: Path) -> None:
    with pytest.raises(onnxlr.VerificationError, match=r"m\.onnxlr\.onnx: approximation proof"):
        onnxlr.rewrite(model, plan=svd_plan(["fc"], 1), tolerance="cosine>=1.1", isolate=False)


def test_a_model_whose_path_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"m\xff.onnx")
    path.write_bytes(runnable_model().SerializeToString())
    assert onnxlr.inspect(path).layers


@pytest.mark.parametrize("budget", [{"bits": 64}, {"rank": 100}], ids=str)
def test_a_budget_beyond_the_full_rank_is_the_full_rank(budget: dict[str, int]) -> None:
    chain = onnxlr.decompose(np.eye(8, 6, dtype=np.float32), **budget)
    assert chain.stages[0].shape == (8, 6)


@pytest.mark.parametrize("ratio", [1e300, 1.0001])
@pytest.mark.parametrize("method", ["svd", "tucker", "kronecker"])
def test_a_ratio_above_one_is_a_mistake(method: str, ratio: float) -> None:
    with pytest.raises(onnxlr.UsageError, match="expected above 0 and at most 1"):
        onnxlr.decompose(np.eye(8, 6), method, ratio=ratio)


def recombined(model: Path, **arguments: Any) -> onnxlr.RewriteResult:
    options = {"layers": ["fc"], "tolerance": "cosine>=-1", "isolate": False} | arguments
    return onnxlr.rewrite(model, method="sparse_quantized", atoms=4, tile=2, **options)


def inputs() -> Iterator[dict[str, Any]]:
    """Yield inputs that can be read once only."""
    for rows in range(1, 8):
        yield {"x": np.ones((rows, 32), np.float32), "condition": True, "ids": np.arange(rows)}


@pytest.mark.parametrize("once", [False, True])
def test_recombined_weights_are_measured(model: Path, once: bool) -> None:
    said = []
    result = recombined(
        model, data=inputs() if once else None, progress=lambda task, *_: said.append(task)
    )
    found = result.footprints
    assert found is not None
    assert found.original.bytes == model.stat().st_size
    assert found.rewritten.bytes == result.output.stat().st_size
    for one in (found.original, found.rewritten):
        assert one.load_seconds > 0
        assert one.latency.seconds > 0
    assert "measuring memory and speed" in said
    assert result.report.data == ("the given data: 7 runs" if once else result.report.data)
    assert onnxlr.rewrite(model, rank=2, tolerance="cosine>=-1").footprints is None


def test_a_failed_measurement_fails_no_rewrite(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("onnxlr.delivery.measure_footprints", fail)
    result = recombined(model)
    assert result.output.exists()
    assert "no space left" in result.footprints.rewritten.problems[0]
    with pytest.raises(onnxlr.VerificationError) as caught:
        recombined(model, tolerance="cosine>=1.1")
    assert caught.value.result.footprints is None
