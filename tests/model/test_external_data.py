"""External data: copied, read tensor by tensor, written anew beside the output, never touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxlr
from tests.fixtures import runnable_model, save_external, svd_plan


def rewrite(model: Path, output: Path, *layers: str) -> onnxlr.pipeline.RewriteResult:
    plan = svd_plan(layers, 2)
    return onnxlr.rewrite(model, output, plan=plan, tolerance="cosine>=-1", isolate=False)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def values(path: Path) -> dict[str, bytes]:
    """Return the bytes of every initializer, from wherever ONNX finds them."""
    return {t.name: numpy_helper.to_array(t).tobytes() for t in onnx.load(path).graph.initializer}


def locations(path: Path) -> set[str]:
    model = onnx.load(path, load_external_data=False)
    return {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }


def outputs(path: Path) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    random = np.random.default_rng(0)
    feeds = {
        "x": random.standard_normal((3, 32)).astype(np.float32),
        "condition": np.array(False),
        "ids": np.array([1, 2, 3]),
    }
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    save_external(runnable_model(), folder / "m.onnx")
    assert locations(folder / "m.onnx") == {"weights.bin"}
    return folder / "m.onnx"


def test_an_empty_plan_copies_model_and_data(source: Path, tmp_path: Path) -> None:
    before = contents(source.parent)
    (tmp_path / "out").mkdir()
    result = onnxlr.rewrite(source, tmp_path / "out" / "copy.onnx", method="keep")
    after = contents(tmp_path / "out")
    expected = {"copy.onnx": before["m.onnx"], "weights.bin": before["weights.bin"]}
    assert after == expected
    assert contents(source.parent) == before
    assert result.bytes_before == result.bytes_after == sum(map(len, before.values()))


def test_an_empty_plan_in_the_same_folder_shares_the_data(source: Path) -> None:
    before = contents(source.parent)
    data = (source.parent / "weights.bin").stat().st_ino
    onnxlr.rewrite(source, method="keep")
    assert (source.parent / "weights.bin").stat().st_ino == data  # not even written anew
    assert contents(source.parent) == before | {"m.onnxlr.onnx": before["m.onnx"]}


def test_data_in_a_folder_below_is_copied_with_it(tmp_path: Path) -> None:
    (tmp_path / "in" / "data").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    save_external(runnable_model(), tmp_path / "in" / "m.onnx", "data/weights.bin")
    onnxlr.rewrite(tmp_path / "in" / "m.onnx", tmp_path / "out" / "m.onnx", method="keep")
    assert contents(tmp_path / "out") == contents(tmp_path / "in")


def test_a_copy_does_not_overwrite_other_data(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights.bin").write_bytes(b"of another model")
    with pytest.raises(onnxlr.OutputError, match=r"weights\.bin: exists and is not the data"):
        onnxlr.rewrite(source, tmp_path / "out" / "copy.onnx", method="keep")
    assert contents(tmp_path / "out") == {"weights.bin": b"of another model"}


def test_a_copy_may_be_made_twice(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    onnxlr.rewrite(source, tmp_path / "out" / "copy.onnx", method="keep")
    once = contents(tmp_path / "out")
    onnxlr.rewrite(source, tmp_path / "out" / "copy.onnx", method="keep")
    assert contents(tmp_path / "out") == once


@pytest.mark.parametrize("folder", ["in", "out"])
def test_a_rewritten_model_has_its_own_data(source: Path, tmp_path: Path, folder: str) -> None:
    before, weights, expected = contents(source.parent), values(source), outputs(source)
    output = tmp_path / folder / "small.onnx"
    output.parent.mkdir(exist_ok=True)
    result = rewrite(source, output, "fc", "gemm")
    after = contents(output.parent)
    assert {name: after[name] for name in after if name in before} == (
        before if folder == "in" else {}
    )
    assert after.keys() - before.keys() == {"small.onnx", "small.onnx.data"}
    assert locations(output) == {"small.onnx.data"}
    assert result.bytes_after == len(after["small.onnx"]) + len(after["small.onnx.data"])
    found = values(output)
    gone = {"fc.W", "gemm.W"}
    assert {name: found[name] for name in weights if name in found} == {
        name: weights[name] for name in weights.keys() - gone
    }
    for path in (source.parent / "m.onnx", source.parent / "weights.bin"):
        path.unlink()
    tied, handed_out = (
        next(w for n, w in weights.items() if n == name) for name in ("tied.W", "handed out.W")
    )
    got = outputs(output)
    assert got[-1].tobytes() == handed_out == expected[-1].tobytes()
    rows = np.frombuffer(tied, np.float32).reshape(24, 28)
    np.testing.assert_array_equal(got[-2], rows[[1, 2, 3]])


def test_tensors_start_at_whole_pages(source: Path, tmp_path: Path) -> None:
    rewrite(source, tmp_path / "small.onnx", "fc")
    model = onnx.load(tmp_path / "small.onnx", load_external_data=False)
    entries = [{e.key: e.value for e in t.external_data} for t in model.graph.initializer]
    offsets = [int(entry["offset"]) for entry in entries if entry]
    assert len(offsets) > 5
    assert len(set(offsets)) == len(offsets)
    assert all(offset % 4096 == 0 for offset in offsets)


def test_data_of_the_input_is_not_overwritten_by_data_of_the_same_name(tmp_path: Path) -> None:
    """As it is after `m.onnxlr.onnx` was renamed to `m.onnx` without its data."""
    save_external(runnable_model(), tmp_path / "m.onnx", "m.onnxlr.onnx.data")
    before, weights = contents(tmp_path), values(tmp_path / "m.onnx")
    rewrite(tmp_path / "m.onnx", tmp_path / "m.onnxlr.onnx", "fc")
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"m.onnxlr.onnx", "m.onnxlr.onnx.2.data"}
    assert locations(tmp_path / "m.onnxlr.onnx") == {"m.onnxlr.onnx.2.data"}
    found = values(tmp_path / "m.onnxlr.onnx")
    assert found["gemm.W"] == weights["gemm.W"]


def test_the_output_is_never_data_of_the_input(source: Path) -> None:
    before = contents(source.parent)
    with pytest.raises(onnxlr.OutputError, match="is the input"):
        onnxlr.rewrite(source, source.parent / "weights.bin", method="keep")
    assert contents(source.parent) == before


def test_what_lies_in_the_model_file_stays_there(tmp_path: Path) -> None:
    """ONNX Runtime cannot read the shape of a Reshape out of another file, however long it is."""
    random = np.random.default_rng(0)

    def weight(name: str) -> TensorProto:
        return numpy_helper.from_array(random.standard_normal((64, 64)).astype(np.float32), name)

    shape = numpy_helper.from_array(np.array([1] * 198 + [-1, 64]), "shape")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "A"], ["a"], "first"),
            helper.make_node("MatMul", ["a", "B"], ["b"], "second"),
            helper.make_node("Reshape", ["b", "shape"], ["c"]),
            helper.make_node("ReduceMax", ["c"], ["y"], keepdims=0),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        [weight("A"), weight("B"), shape],
    )
    opset = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.external_data_helper.convert_model_to_external_data(
        model, location="m.data", size_threshold=2000
    )
    onnx.save_model(model, tmp_path / "m.onnx")
    rewrite(tmp_path / "m.onnx", tmp_path / "out.onnx", "first")
    found = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    external = {t.name: t.data_location == TensorProto.EXTERNAL for t in found}
    new = external.keys() - {"A", "B", "shape"}
    assert external == {"B": True, "shape": False} | dict.fromkeys(new, False)
    assert [t for t in found if t.name == "shape"] == [shape]


def test_a_model_whose_external_weights_all_go_becomes_one_file(tmp_path: Path) -> None:
    model = runnable_model()
    save_external(model, tmp_path / "all.onnx")
    external = onnx.load(tmp_path / "all.onnx", load_external_data=False)
    model.graph.initializer[0].CopyFrom(external.graph.initializer[0])
    onnx.save_model(model, tmp_path / "m.onnx")
    assert locations(tmp_path / "m.onnx") == {"weights.bin"}
    rewrite(tmp_path / "m.onnx", tmp_path / "out.onnx", "fc")
    assert not (tmp_path / "out.onnx.data").exists()
    assert locations(tmp_path / "out.onnx") == set()
    outputs(tmp_path / "out.onnx")
