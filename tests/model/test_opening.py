"""What is no model is refused with one sentence that names the file, and never a traceback."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import onnxlr
from onnxlr.layers import find_layers
from onnxlr.model import Splice, open_model, splice
from onnxlr.model.model import tensors_of
from tests.fixtures import runnable_model, save_external
from tests.model.everything import everything_model

CONTENT = everything_model().SerializeToString()


def refusal(source: Path) -> str:
    """Return the message of the ModelError that opening must raise; one line, the file first."""
    with pytest.raises(onnxlr.ModelError) as raised:
        open_model(source)
    assert type(raised.value) is onnxlr.ModelError
    message = str(raised.value)
    assert message.startswith(f"{source}: ")
    assert "\n" not in message
    return message.removeprefix(f"{source}: ")


def written(path: Path, content: bytes | onnx.ModelProto) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(onnxlr.UsageError) as raised:
        open_model(tmp_path / "none.onnx")
    assert str(raised.value) == f"{tmp_path / 'none.onnx'}: no such file"


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(onnxlr.UsageError) as raised:
        open_model(tmp_path)
    assert str(raised.value) == f"{tmp_path}: is a folder, expected an ONNX model file"


def test_a_path_below_a_file(tmp_path: Path) -> None:
    path = written(tmp_path / "m.onnx", CONTENT) / "m.onnx"
    with pytest.raises(onnxlr.UsageError) as raised:
        open_model(path)
    assert str(raised.value) == f"{path}: cannot be read: Not a directory"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty, expected an ONNX model"),
        (b"\n", "not an ONNX model, or a truncated one (1 bytes that protobuf cannot decode)"),
        (b"PK\x03\x04", "not an ONNX model"),
        ("Ωμέγα\n".encode() * 50, "not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not an ONNX model"),
        (b'{"a": 1}', "not an ONNX model"),
        (b"<!DOCTYPE html>\n<title>404</title>", "not an ONNX model"),
        (b"\x00" * 64, "not an ONNX model"),
        (b"\xff" * 64, "not an ONNX model"),
        (onnx.ModelProto().SerializeToString() + b"\x08\x08", "not an ONNX model: no graph in it"),
        (helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0]).SerializeToString(), "not an ONNX"),
    ],
)
def test_what_is_no_model(content: bytes, reason: str, tmp_path: Path) -> None:
    assert refusal(written(tmp_path / "m.onnx", content)).startswith(reason)
    if content:
        with pytest.raises(onnxlr.ModelError, match="the given bytes: not an ONNX"):
            open_model(content)


def test_no_ir_version(tmp_path: Path) -> None:
    model = runnable_model()
    model.ClearField("ir_version")
    path = written(tmp_path / "m.onnx", model)
    assert refusal(path) == "not an ONNX model: no IR version in it"


@pytest.mark.parametrize("part", [i / 40 for i in range(40)])
def test_truncated_anywhere(part: float, tmp_path: Path) -> None:
    refusal(written(tmp_path / "m.onnx", CONTENT[: int(part * len(CONTENT))]))


@pytest.mark.parametrize("missing", [1, 2, 3, 7, 20, 100])
def test_truncated_at_the_end(missing: int, tmp_path: Path) -> None:
    """The opset imports stand last in a file: without them protobuf may see nothing amiss."""
    refusal(written(tmp_path / "m.onnx", runnable_model().SerializeToString()[:-missing]))


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=1, max_size=200))
def test_random_bytes(content: bytes) -> None:
    with pytest.raises(onnxlr.ModelError):
        open_model(content)


@pytest.mark.parametrize("seed", range(8))
def test_damaged_models_open_or_are_refused(seed: int, tmp_path: Path) -> None:
    """Whatever opens can be searched, spliced and written, too."""
    generator, refused = random.Random(seed), 0
    places = outside_of_weights(CONTENT)
    for _ in range(60):
        damaged = bytearray(CONTENT)
        for _ in range(generator.choice((1, 1, 2, 5))):
            damaged[generator.choice(places)] = generator.randrange(256)
        refused += is_refused(written(tmp_path / "m.onnx", bytes(damaged)))
    assert 0 < refused < 60


def outside_of_weights(content: bytes) -> list[int]:
    """Return the positions that are worth damaging: weights would swallow most of it."""
    places = set(range(len(content)))
    for tensor in tensors_of(onnx.ModelProto.FromString(content)):
        if len(tensor.raw_data) > 100:
            start = content.index(tensor.raw_data)
            places.difference_update(range(start, start + len(tensor.raw_data)))
    return sorted(places)


def is_refused(path: Path) -> bool:
    try:
        model = open_model(path)
        find_layers(model)
    except onnxlr.ModelError:
        return True
    splice(model, Splice(released=[(0, "fc.W")]))
    model.names.new("a")
    model.proto.SerializeToString()
    return False


def unsorted(model: onnx.ModelProto) -> None:
    node = model.graph.node[0]
    model.graph.node.append(node)
    del model.graph.node[0]


def twice_written(model: onnx.ModelProto) -> None:
    model.graph.node.append(model.graph.node[0])


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "MatMull"


def unknown_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("alpha", 1.0))


def no_opset(model: onnx.ModelProto) -> None:
    model.ClearField("opset_import")


def opset_of_tomorrow(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 9999


def no_input(model: onnx.ModelProto) -> None:
    del model.graph.input[:]


def empty_graph_name(model: onnx.ModelProto) -> None:
    model.graph.name = ""


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (unsorted, "topologically sorted"),
        (twice_written, "however 'h' has been used as output names multiple times"),
        (unknown_operator, "No Op registered for MatMull"),
        (unknown_attribute, "Unrecognized attribute: alpha"),
        (no_opset, "opset_import"),
        (opset_of_tomorrow, "9999|No Op registered"),
        (no_input, "x"),
        (empty_graph_name, "name"),
    ],
)
def test_what_the_checker_refuses(
    damage: Callable[[onnx.ModelProto], None], reason: str, tmp_path: Path
) -> None:
    model = runnable_model()
    damage(model)
    path = written(tmp_path / "m.onnx", model)
    message = refusal(path)
    assert "checker" in message
    with pytest.raises(onnxlr.ModelError, match=reason):
        open_model(path)
    with pytest.raises(onnxlr.ModelError, match=f"model '{model.graph.name}': "):
        open_model(model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"either", "'name' of a NodeProto"),
        (b"inner.C", "a NodeProto|'input' of a NodeProto"),
        (b"SCALE_TENSOR", "'key' of a StringStringEntryProto"),
        (b"trained by hand", "TensorProto|decode"),
        (b"org.example.unused", "'domain' of a OperatorSetIdProto"),
        (b"multiplies", "'doc_string' of a FunctionProto"),
    ],
)
def test_text_that_is_not_utf_8(text: bytes, message: str, tmp_path: Path) -> None:
    content = runnable_model().SerializeToString()
    assert text in content
    path = written(tmp_path / "m.onnx", content.replace(text, b"\xff" + text[1:]))
    refusal(path)
    with pytest.raises(onnxlr.ModelError, match=f"({message}|undecodable).*expected UTF-8"):
        open_model(path)


def test_an_attribute_may_hold_any_bytes() -> None:
    node = everything_model().graph.node[-1]
    assert any(b"\xff" in attribute.s for attribute in node.attribute)
    open_model(CONTENT)


def test_an_element_type_of_tomorrow_is_skipped_with_its_number() -> None:
    model = runnable_model()
    model.graph.initializer[0].data_type = 4711
    layer = next(layer for layer in find_layers(open_model(model)) if layer.name == "fc")
    assert layer.skip is not None
    assert "unknown type 4711" in layer.skip


def test_a_weight_with_too_little_data(tmp_path: Path) -> None:
    """Some versions of the checker look, others leave it to whoever reads the weight."""
    model = runnable_model()
    model.graph.initializer[0].raw_data = b"\x00" * 8
    path = written(tmp_path / "m.onnx", model)
    with pytest.raises(onnxlr.ModelError, match=r"m\.onnx: .*fc\.W"):
        onnxlr.rewrite(path, rank=2, isolate=False)
    assert list(tmp_path.iterdir()) == [path]


def test_missing_external_data(tmp_path: Path) -> None:
    save_external(runnable_model(), tmp_path / "m.onnx")
    (tmp_path / "weights.bin").unlink()
    assert "weights.bin" in refusal(tmp_path / "m.onnx")


def test_external_data_outside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    save_external(runnable_model(), folder / "m.onnx")
    shutil.move(folder / "weights.bin", tmp_path / "weights.bin")
    model = onnx.load(folder / "m.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "../weights.bin"
    onnx.save(model, folder / "m.onnx")
    assert "weights.bin" in refusal(folder / "m.onnx")


def test_a_layer_with_too_little_external_data(tmp_path: Path) -> None:
    """The checker does not look."""
    save_external(runnable_model(), tmp_path / "m.onnx")
    (tmp_path / "weights.bin").write_bytes(b"\x00" * 100)
    with pytest.raises(onnxlr.ModelError, match=r"m.onnx: tensor '.*' \(.*\) cannot be read"):
        onnxlr.rewrite(tmp_path / "m.onnx", rank=2, isolate=False)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["m.onnx", "weights.bin"]


def test_another_tensor_with_too_little_external_data(tmp_path: Path) -> None:
    """Here it is no layer that lacks data, but a tensor that is only moved along."""
    save_external(runnable_model(), tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    with (tmp_path / "short.bin").open("wb") as stream:
        stream.write(b"\x00" * 10)
    unused = next(t for t in model.graph.initializer if t.name == "unused")
    unused.external_data[0].value = "short.bin"
    for entry in unused.external_data:
        if entry.key == "offset":
            entry.value = "0"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(onnxlr.ModelError, match=r"tensor 'unused' \(float 3×5\) cannot be read"):
        onnxlr.rewrite(tmp_path / "m.onnx", rank=2, isolate=False)


def test_a_proto_stays_as_it_was() -> None:
    model = runnable_model()
    before = model.SerializeToString(deterministic=True)
    opened = open_model(model)
    opened.proto.graph.node[0].name = "another"
    assert model.SerializeToString(deterministic=True) == before
