"""The verbs of the API, where the command line does not reach."""

from __future__ import annotations

import os
from pathlib import Path

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
    with pytest.raises(onnxlr.UsageError, match="'int7' is unknown, expected one of float"):
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


@pytest.mark.parametrize("ratio", [1e300, 2.0])
def test_a_ratio_beyond_the_full_rank_is_the_full_rank(ratio: float) -> None:
    chain = onnxlr.decompose(np.eye(8, 6), ratio=ratio)
    assert chain.stages[0].shape == (8, 6)
