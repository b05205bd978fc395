"""The file beside a model: tensors move there as they are made, and what is too big goes there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

import onnxlr
from onnxlr.errors import ModelError
from onnxlr.model import open_model, saving, tensors
from onnxlr.model.data_file import DataFile
from onnxlr.model.external import Extent, extent_of
from onnxlr.model.model import tensors_of
from tests.classifier import classifier, samples
from tests.fixtures import runnable_model, save_external

LAX = {"tolerance": "cosine>=-1", "isolate": False}


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def values_of(tensor: TensorProto, folder: Path) -> np.ndarray:
    """Return values as ONNX's own reader finds them."""
    copy = TensorProto()
    copy.CopyFrom(tensor)
    load_external_data_for_tensor(copy, str(folder))
    copy.ClearField("data_location")
    return numpy_helper.to_array(copy)


def test_tensors_lie_in_the_file_each_at_its_own_page(tmp_path: Path) -> None:
    arrays = [random(17, 31, seed=1), random(300, seed=2).astype(np.float64), random(1024, 3)]
    with DataFile(tmp_path / "d") as data:
        moved = numpy_helper.from_array(arrays[0], "moved")
        (moved,) = data.take([moved])
        made = [moved, data.put(arrays[1], "put"), data.put(arrays[2].T, "turned")]
        assert data.size == sum(array.nbytes for array in arrays)
        assert data.holds(moved)
        assert data.read(moved) == arrays[0].tobytes()
    arrays[2] = arrays[2].T
    for tensor, array in zip(made, arrays, strict=True):
        assert not tensor.HasField("raw_data")
        assert extent_of(tensor, tmp_path).offset % 4096 == 0
        np.testing.assert_array_equal(values_of(tensor, tmp_path), array)
        assert values_of(tensor, tmp_path).dtype == array.dtype


def test_small_tensors_stay(tmp_path: Path) -> None:
    with DataFile(tmp_path / "d") as data:
        small = numpy_helper.from_array(random(255), "small")
        (small,) = data.take([small])
        other = data.put(random(255), "other")
    assert small.HasField("raw_data")
    assert other.HasField("raw_data")
    assert not (tmp_path / "d").exists()


def test_bfloat16_is_put_as_it_is(tmp_path: Path) -> None:
    values = random(40, 30).astype(ml_dtypes.bfloat16)
    with DataFile(tmp_path / "d") as data:
        tensor = data.put(values, "w")
    assert tensor.data_type == TensorProto.BFLOAT16
    assert (tmp_path / "d").read_bytes() == values.tobytes()


def test_writing_goes_on_after_closing(tmp_path: Path) -> None:
    data = DataFile(tmp_path / "d")
    first = data.put(random(300), "first")
    data.close()
    second = data.put(random(300, seed=1), "second")
    data.close()
    np.testing.assert_array_equal(values_of(first, tmp_path), random(300))
    np.testing.assert_array_equal(values_of(second, tmp_path), random(300, seed=1))
    assert extent_of(second, tmp_path).offset == 4096


def test_external_data_is_copied_in_parts(tmp_path: Path) -> None:
    values = random(700, 1000)  # more than is copied at a time
    (tmp_path / "source").mkdir()
    with DataFile(tmp_path / "source" / "a") as source:
        source.put(random(300), "before")
        tensor = source.put(values, "w")
    with DataFile(tmp_path / "b") as data:
        data.copy(tensor, extent_of(tensor, tmp_path / "source"))
    np.testing.assert_array_equal(values_of(tensor, tmp_path), values)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"1234", "became shorter"), (None, "cannot be read: No such file")]
)
def test_a_source_that_goes_away_is_named(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "source").write_bytes(content)
    with (
        DataFile(tmp_path / "d") as data,
        pytest.raises(ModelError, match=rf"^{tmp_path}/source: {reason}"),
    ):
        data.copy(TensorProto(name="w"), Extent(tmp_path / "source", 0, 8))


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64", "bool"])
@pytest.mark.parametrize("rows", [3, 700_000])
def test_large_and_small_tensors_are_read_alike(tmp_path: Path, dtype: str, rows: int) -> None:
    kind = getattr(ml_dtypes, dtype, None) or np.dtype(dtype)
    values = (np.arange(rows * 3) % 999).reshape(rows, 3).astype(kind)
    tensor = numpy_helper.from_array(values, "w")
    data = DataFile(tmp_path / "d")
    data.move(tensor)
    data.close()
    found = tensors.read_tensor(tensor, tmp_path)
    assert type(found) is np.ndarray
    assert found.dtype == kind
    assert found.tobytes() == values.tobytes()
    mapped = isinstance(found.base, np.memmap)
    assert mapped == (values.nbytes >= 1 << 20)
    if mapped:
        with pytest.raises(ValueError, match="read-only"):
            found[0, 0] = 1


def test_packed_types_are_read_however_large(tmp_path: Path) -> None:
    values = (np.arange(3_000_001) % 16).astype(np.uint8)
    tensor = onnx.helper.make_tensor("w", TensorProto.UINT4, values.shape, values.tolist())
    raw = (values[::2] | (np.append(values[1::2], 0) << 4)).astype(np.uint8).tobytes()
    tensor.ClearField("int32_data")
    tensor.raw_data = raw
    data = DataFile(tmp_path / "d")
    data.move(tensor)
    data.close()
    np.testing.assert_array_equal(tensors.read_tensor(tensor, tmp_path).astype(np.uint8), values)


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", dims=[2], data_type=4711, raw_data=b"12345678")
    with pytest.raises(ModelError, match=r"^tensor 'w' \(unknown type 4711 2\) cannot be read: ."):
        tensors.read_tensor(tensor, tmp_path)


# --- whole models --------------------------------------------------------------------------------


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let models be too big for one file from a few thousand bytes on."""
    monkeypatch.setattr(saving, "_PROTO_LIMIT", 6000)
    return 6000


def check_parts(file: Path, limit: int) -> None:
    """Check that a model and its data are sound, and no message is above the limit."""
    proto = onnx.load(file, load_external_data=False)
    assert proto.ByteSize() < limit
    onnx.checker.check_model(str(file), full_check=True)
    external = [t for t in tensors_of(proto) if t.data_location == TensorProto.EXTERNAL]
    assert external
    for tensor in external:
        assert extent_of(tensor, file.parent).offset % 4096 == 0
        assert np.isfinite(values_of(tensor, file.parent)).all()
    assert {path.name for path in file.parent.iterdir()} == {file.name, f"{file.name}.data"}


def test_every_verb_handles_what_is_too_big_for_one_file(tmp_path: Path, low_limit: int) -> None:
    source, data = tmp_path / "m.onnx", {"x": samples(48)}
    onnx.save(classifier(), source)
    assert source.stat().st_size > low_limit
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "small.onnx"
    assert onnxlr.inspect(source).layers
    statistics = onnxlr.observe(source, data, isolate=False)
    plan = onnxlr.plan(source, method="svd", ratio=0.9, statistics=statistics)
    result = onnxlr.rewrite(source, output, plan=plan, statistics=statistics, data=data, **LAX)
    assert result.report is not None
    assert {check.proof for check in result.report.checks} >= {"emission", "approximation"}
    check_parts(output, source.stat().st_size)
    report = onnxlr.verify(
        source, output, statistics=statistics, data=data, tolerance="cosine>=-1", isolate=False
    )
    assert report.passed


@pytest.mark.parametrize("arguments", [{"allocate": "global"}, {"sequential": True}])
def test_calibrated_fits_of_what_is_too_big_for_one_file(
    tmp_path: Path, low_limit: int, arguments: dict[str, Any]
) -> None:
    source, data = tmp_path / "m.onnx", {"x": samples(48)}
    onnx.save(classifier(), source)
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "small.onnx"
    given = {"method": "svd", "ratio": 0.8, "calibration": data} | arguments
    assert onnxlr.rewrite(source, output, **given, **LAX).output == output
    check_parts(output, source.stat().st_size)
    assert low_limit == 6000


def test_a_model_with_external_data_stays_one(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    save_external(classifier(), tmp_path / "in" / "m.onnx")
    output = tmp_path / "out" / "m.onnx"
    onnxlr.rewrite(tmp_path / "in" / "m.onnx", output, method="svd", rank=4, **LAX)
    check_parts(output, output.stat().st_size + 1)


def test_a_model_in_one_file_stays_in_one(tmp_path: Path) -> None:
    onnx.save(runnable_model(), tmp_path / "m.onnx")
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "m.onnx"
    onnxlr.rewrite(tmp_path / "m.onnx", output, method="svd", rank=2, **LAX)
    assert [path.name for path in output.parent.iterdir()] == ["m.onnx"]
    assert open_model(output).external_files() == []


def test_the_bytes_do_not_depend_on_where_tensors_waited(tmp_path: Path) -> None:
    """What was moved to the data file and back is what `numpy_helper` would have written."""
    onnx.save(classifier(), tmp_path / "m.onnx")
    onnxlr.rewrite(tmp_path / "m.onnx", tmp_path / "o.onnx", method="svd", rank=4, **LAX)
    proto = onnx.load(tmp_path / "o.onnx")
    new = [t for t in proto.graph.initializer if t.name.startswith("first.")]
    assert len(new) == 2
    for tensor in new:
        again = numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name)
        assert again.SerializeToString() == tensor.SerializeToString()
