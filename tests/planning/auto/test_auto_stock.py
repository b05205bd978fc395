"""What ONNX Runtime's tools make of a model runs, or there is a sentence that says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxlr.planning.auto import stock
from onnxlr.planning.auto.quantizers import QuantizerError
from onnxlr.planning.auto.stock import STOCK, Making, Stock, make_stock
from onnxlr.runtime import run_task, store_arrays
from tests import classifier
from tests.fixtures import save_external
from tests.onelayer import distance, run

CODES = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4}


@pytest.fixture
def subject(tmp_path):
    """The classifier's file, files of inputs, and a folder for what is made."""
    onnx.save(classifier.classifier(), tmp_path / "model.onnx")
    feeds = []
    for seed in range(3):
        feeds.append(str(tmp_path / f"feed-{seed}.npz"))
        store_arrays(Path(feeds[-1]), {"x": classifier.samples(16, seed)})
    (tmp_path / "stock").mkdir()
    return tmp_path / "model.onnx", tmp_path / "stock", feeds


def option_of(name: str) -> Stock:
    return next(option for option in STOCK if option.name == name)


def only(name, make, monkeypatch) -> tuple[Stock, ...]:
    """Return options of one, which is known by that name for the time of a test."""
    monkeypatch.setattr(stock, "STOCK", (Stock(name, make),))
    return stock.STOCK


def reason_of(found) -> str:
    ((_, reason),) = found
    assert isinstance(reason, str)
    return reason


def weights_of(path) -> list[int]:
    return [t.data_type for t in onnx.load(path).graph.initializer if len(t.dims) > 1]


@pytest.mark.parametrize("option", STOCK, ids=lambda option: option.name)
def test_each_option_is_quantised_and_close_or_says_why_not(subject, option, capfd):
    model, folder, feeds = subject
    isolate = option.name.startswith("dynamic")  # the others' processes would only take time
    ((name, made),) = make_stock(model, folder, feeds, isolate, options=[option])
    assert name == option.name
    assert capfd.readouterr() == ("", "")
    if isinstance(made, str):
        assert not list(folder.iterdir())
        if "tables" in name:
            assert "no table" in made
            return
        # Other reasons come from versions that do not go together.
        assert any(word in made for word in ("'onnx' has no", "onnx-ir", "4 bits only")), made
        pytest.skip(made)
    assert made.parent == folder
    low = [kind for kind in weights_of(made) if kind in CODES]
    assert len(low) >= 2  # of the three matrices, MatMulNBits does not know the Gemm's
    x = classifier.samples(64, 9)
    (found,) = run(onnx.load(made), {"x": x})
    bound = 0.2 if "4 bits" in name else 0.05
    assert 1e-4 < distance(found, classifier.reference(x)) < bound


def test_every_option_has_a_name_and_a_file_of_its_own(subject, monkeypatch):
    model, folder, feeds = subject
    outputs = []

    def note(task, name, isolate):
        assert (task.stock, name, isolate, task.feeds) == (name, task.stock, True, feeds)
        outputs.append(task.output)
        return {"reason": None}

    monkeypatch.setattr(stock, "run_task", note)
    found = make_stock(model, folder, feeds)
    assert [name for name, _ in found] == [option.name for option in STOCK]
    assert len({name for name, _ in found}) == len(set(outputs)) == len(STOCK)
    assert [str(path) for _, path in found] == outputs


def test_in_a_process_or_not_the_file_is_the_same(subject, tmp_path):
    model, folder, feeds = subject
    other = tmp_path / "other"
    other.mkdir()
    options = [option_of("MatMulNBits 4 bits, blocks of 32")]
    apart = make_stock(model, folder, feeds, options=options)
    here = make_stock(model, other, feeds, isolate=False, options=options)
    for (_, one), (_, two) in zip(apart, here, strict=True):
        if isinstance(one, str):
            assert one == two
        else:
            assert one.read_bytes() == two.read_bytes()


def test_static_quantisation_without_inputs_says_so(subject):
    model, folder, _ = subject
    option = option_of("static int8 (QDQ), uint8 data")
    reason = reason_of(make_stock(model, folder, [], False, [option]))
    assert reason == "static quantisation needs inputs to calibrate on; there are none"


def test_a_model_without_weights_has_nothing_to_quantise(subject, tmp_path):
    _, folder, _ = subject
    node = helper.make_node("Relu", ["x"], ["y"])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([node], "g", value[:1], value[1:])
    opset = [helper.make_opsetid("", 17)]
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    reason = reason_of(make_stock(path, folder, [], False, [option_of("dynamic int8")]))
    assert "finds nothing in the model" in reason
    assert not list(folder.iterdir())


def test_numbers_of_a_few_bits_that_were_there_do_not_count(subject, monkeypatch):
    model, folder, feeds = subject
    proto = onnx.load(model)
    codes = numpy_helper.from_array(np.ones((4, 4), np.int8), "codes")
    proto.graph.node.append(helper.make_node("Constant", [], ["codes"], value=codes))
    onnx.save(proto, model)

    def as_initializer(model, output, feeds):
        proto = onnx.load(model)
        proto.graph.initializer.add().CopyFrom(codes)
        del proto.graph.node[-1]
        onnx.save(proto, output)

    options = only("copies", as_initializer, monkeypatch)
    reason = reason_of(make_stock(model, folder, feeds, isolate=False, options=options))
    assert "finds nothing in the model" in reason


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ModuleNotFoundError("no", name="onnx_ir.passes"),
            "needs the package onnx-ir, which is not",
        ),
        (ImportError("cannot import x", name="onnxruntime.x"), "be imported: cannot import x"),
        (AssertionError("Invalid\n axis"), "fails: AssertionError: Invalid axis"),
        (MemoryError(), "fails: MemoryError"),
        (ValueError("x" * 5000), "fails: ValueError: xxx"),
        (QuantizerError("it cannot"), "it cannot"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_whatever_a_tool_raises_is_a_sentence(subject, monkeypatch, error, words):
    model, folder, feeds = subject

    def fail(model, output, feeds):
        output.write_bytes(b"half a file")
        raise error

    options = only("fails", fail, monkeypatch)
    reason = reason_of(make_stock(model, folder, feeds, isolate=False, options=options))
    assert words in reason
    assert "\n" not in reason
    assert len(reason) < 600
    assert not list(folder.iterdir())


@pytest.mark.parametrize("feeds_given", [True, False])
def test_a_file_that_onnxruntime_cannot_take_is_no_result(subject, monkeypatch, feeds_given):
    model, folder, feeds = subject

    def write(model, output, feeds):
        proto = onnx.load(model)
        proto.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4), np.int8), "codes"))
        proto.graph.node[-1].input[1] = (
            "codes" if not feeds_given else proto.graph.node[-1].input[1]
        )
        if feeds_given:  # loads, since sizes are not known, and cannot be run
            proto.graph.node.insert(0, helper.make_node("Reshape", ["x", "to"], ["x2"]))
            proto.graph.node[1].input[0] = "x2"
            proto.graph.initializer.append(numpy_helper.from_array(np.array([-1, 23]), "to"))
            proto.graph.initializer[0].CopyFrom(
                numpy_helper.from_array(np.ones((23, classifier.HIDDEN), np.float32), "w1")
            )
        onnx.save(proto, output)

    options = only("writes", write, monkeypatch)
    given = feeds if feeds_given else []
    reason = reason_of(make_stock(model, folder, given, isolate=False, options=options))
    verb = "run" if feeds_given else "loaded"
    assert reason.startswith(f"what ONNX Runtime's tool makes of the model cannot be {verb}: ")
    assert not list(folder.iterdir())


def test_a_process_that_dies_is_a_sentence(subject, monkeypatch):
    model, folder, feeds = subject
    monkeypatch.setattr(Making, "function", "os:abort")
    monkeypatch.setattr(Making, "__dataclass_fields__", {})  # abort takes no arguments
    reason = reason_of(make_stock(model, folder, feeds, options=STOCK[:1]))
    assert reason.startswith("the process that runs it was ended by SIGABRT")


def test_a_model_that_is_no_model_is_a_sentence(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08 no model")
    for name, reason in make_stock(path, tmp_path, [str(tmp_path / "none.npz")], isolate=False):
        assert isinstance(reason, str), name
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx"]


def test_external_data_is_read_and_becomes_part_of_the_file(subject, tmp_path):
    model, folder, feeds = subject
    outside = tmp_path / "outside"
    outside.mkdir()
    save_external(onnx.load(model), outside / "model.onnx")
    option = option_of("MatMulNBits 4 bits, blocks of 32")
    ((_, inside),) = make_stock(model, folder, feeds, False, [option])
    if isinstance(inside, str):
        pytest.skip(inside)
    expected = {t.name: numpy_helper.to_array(t) for t in onnx.load(inside).graph.initializer}
    inside.unlink()
    ((_, made),) = make_stock(outside / "model.onnx", folder, feeds, False, [option])
    assert [file.name for file in folder.iterdir()] == [made.name]
    proto = onnx.load(made, load_external_data=False)
    for tensor in proto.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), expected.pop(tensor.name))
    assert not expected


def test_the_names_of_tasks_are_those_of_the_options(subject):
    model, folder, feeds = subject
    with pytest.raises(ValueError, match="values to unpack"):
        run_task(Making("unknown", str(model), str(folder / "o"), feeds), "m", isolate=False)
