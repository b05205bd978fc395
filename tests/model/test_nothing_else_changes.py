"""A rewrite changes what it says and nothing else: field by field, byte by byte."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx
import pytest
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

import onnxlr
from onnxlr.layers import find_layers
from onnxlr.model import open_model
from onnxlr.model.saving import copy_model, staging, write_model
from onnxlr.plan import Plan
from onnxlr.rewriting import METADATA_KEY, Rewriting, follow_plan
from tests.fixtures import RELEASED, runnable_model, svd_plan
from tests.model.everything import everything_model

IN_NO_MODEL_FILE = {
    ("onnx.TensorProto", "segment"),  # never used, by anyone
    ("onnx.TensorProto", "data_location"),  # test_external_data.py
    ("onnx.TensorProto", "external_data"),
}


def rewritten_proto(source: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    """Rewrite by the steps of a delivery that need no runtime."""
    model = open_model(source)
    work = Rewriting(model, open_model(source), "onnx")
    plan = svd_plan(names, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", onnxlr.OnnxlrWarning)  # shared weights stay: it grows
        for proposal in follow_plan(model, find_layers(model), plan):
            work.add(proposal)
    work.finish(plan)
    return model.proto


def messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in [value] if isinstance(value, Message) else value:
                yield from messages(each)


def all_names(model: onnx.ModelProto) -> list[str]:
    """Return every name of a tensor or node anywhere in a model, as often as it is given."""
    names = []
    for message in messages(model):
        if isinstance(message, onnx.NodeProto):
            names += [message.name, *message.input, *message.output]
        elif isinstance(message, onnx.ValueInfoProto | TensorProto):
            names.append(message.name)
        elif isinstance(message, onnx.FunctionProto):
            names += [*message.input, *message.output]
    return names


def differences(expected: Message, found: Message, where: str) -> Iterator[str]:
    """Yield the fields in which two messages differ, presence and order included."""
    for field in expected.DESCRIPTOR.fields:
        one, other = getattr(expected, field.name), getattr(found, field.name)
        path = f"{where}.{field.name}"
        if isinstance(one, Message):
            if expected.HasField(field.name) != found.HasField(field.name):
                yield f"{path}: present in one only"
            elif expected.HasField(field.name):
                yield from differences(one, other, path)
        elif field.message_type is not None:
            if len(one) != len(other):
                yield f"{path}: {len(one)} entries, found {len(other)}"
            for index, (first, second) in enumerate(zip(one, other, strict=False)):
                yield from differences(first, second, f"{path}[{index}]")
        elif [*_values(expected, field.name)] != [*_values(found, field.name)]:
            yield f"{path}: {one!r}, found {other!r}"


def _values(message: Message, field: str) -> Iterable[str]:
    # repr: NaN equals NaN and 0.0 is not -0.0; the field list tells an unset field from a default
    return [repr(value) for known, value in message.ListFields() if known.name == field]


def without(messages: Sequence[Message], names: set[str]) -> list[Message]:
    return [message for message in messages if message.name not in names]


def expected_after(source: onnx.ModelProto, layers: Sequence[str]) -> onnx.ModelProto:
    """Return the original without the nodes and weights that the replacement takes away."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    gone = {weight for layer in layers if (weight := RELEASED[layer])}
    graph = model.graph
    nodes = [n for n in graph.node if n.name not in layers and not gone.intersection(n.output)]
    kept = {
        "node": nodes,
        "initializer": without(graph.initializer, gone),
        "value_info": without(graph.value_info, gone),
        "quantization_annotation": [
            a for a in graph.quantization_annotation if a.tensor_name not in gone
        ],
    }
    for field, entries in kept.items():
        graph.ClearField(field)
        getattr(graph, field).extend(entries)
    return model


def stripped(source: onnx.ModelProto, rewritten: onnx.ModelProto) -> onnx.ModelProto:
    """Return a rewritten model without what is new in it, and without the plan."""
    model = onnx.ModelProto()
    model.CopyFrom(rewritten)
    graph, old = model.graph, set(all_names(source))
    assert model.metadata_props[-1].key == METADATA_KEY
    del model.metadata_props[-1]
    outputs = {output for node in source.graph.node for output in node.output}
    known = {node.name for node in source.graph.node if node.name}
    kept = {
        # nodes without a name are recognised by what they write
        "node": [
            n for n in graph.node if n.name in known or (not n.name and n.output[0] in outputs)
        ],
        "initializer": [t for t in graph.initializer if t.name in old],
        "value_info": [v for v in graph.value_info if v.name in old],
    }
    for field, entries in kept.items():
        graph.ClearField(field)
        getattr(graph, field).extend(entries)
    return model


def test_the_fixture_has_one_of_everything() -> None:
    filled, kinds = set(), {}
    for message in messages(everything_model()):
        name = message.DESCRIPTOR.full_name
        kinds[name] = message.DESCRIPTOR
        filled |= {(name, field.name) for field, _ in message.ListFields()}
    fields = {(name, field.name) for name, kind in kinds.items() for field in kind.fields}
    assert len(kinds) > 20
    assert fields - filled == IN_NO_MODEL_FILE


def test_an_empty_plan_gives_the_input_itself(tmp_path: Path) -> None:
    content = everything_model().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(content)
    result = onnxlr.rewrite(tmp_path / "m.onnx", method="keep")
    assert result.output == tmp_path / "m.onnxlr.onnx"
    assert result.output.read_bytes() == content
    assert (tmp_path / "m.onnx").read_bytes() == content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnxlr.onnx"]


def test_an_empty_plan_copies_bytes_that_protobuf_would_write_otherwise(tmp_path: Path) -> None:
    """Fields in another order, and fields that ONNX does not know, are bytes like all others."""
    model = runnable_model()
    head = onnx.ModelProto(ir_version=model.ir_version)
    unknown = b"\xa2\x06\x03abc"  # field 100, three bytes
    content = unknown + model.SerializeToString() + head.SerializeToString()
    assert onnx.ModelProto.FromString(content).SerializeToString() != content
    (tmp_path / "m.onnx").write_bytes(content)
    onnxlr.rewrite(tmp_path / "m.onnx", tmp_path / "copy.onnx", method="keep")
    assert (tmp_path / "copy.onnx").read_bytes() == content


def test_fields_that_onnx_does_not_know_survive_a_rewrite(tmp_path: Path) -> None:
    unknown = b"\xa2\x06\x03abc"
    (tmp_path / "m.onnx").write_bytes(runnable_model().SerializeToString() + unknown)
    onnxlr.rewrite(
        tmp_path / "m.onnx", plan=svd_plan(["fc"], 1), tolerance="cosine>=-1", isolate=False
    )
    assert unknown in (tmp_path / "m.onnxlr.onnx").read_bytes()


@pytest.mark.parametrize("layer", RELEASED)
def test_replacing_one_layer_changes_nothing_else(layer: str) -> None:
    source = everything_model()
    before = source.SerializeToString(deterministic=True)
    found = rewritten_proto(source, layer)
    expected = expected_after(source, [layer])
    assert [*differences(expected, stripped(source, found), "model")] == []
    assert source.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(found)
    weight = RELEASED[layer]
    assert weight is None or weight not in all_names(found)


def test_replacing_all_layers_changes_nothing_else() -> None:
    source = everything_model()
    found = rewritten_proto(source, *RELEASED)
    expected = expected_after(source, list(RELEASED))
    assert [*differences(expected, stripped(source, found), "model")] == []
    onnx.checker.check_model(found)


@pytest.mark.parametrize("layer", RELEASED)
def test_new_nodes_stand_where_the_old_one_stood(layer: str) -> None:
    source = everything_model()
    old = next(node for node in source.graph.node if node.name == layer)
    kept = [n.output[-1] for n in expected_after(source, [layer]).graph.node]
    nodes = list(rewritten_proto(source, layer).graph.node)
    new = [index for index, n in enumerate(nodes) if n.output[-1] not in kept]
    assert len(new) >= 2
    assert new == list(range(new[0], new[-1] + 1))
    last = nodes[new[-1]]
    assert last.output == old.output
    assert last.doc_string == old.doc_string
    assert list(last.metadata_props) == list(old.metadata_props)
    gone = RELEASED[layer]
    order = [n.output[-1] for n in source.graph.node if gone not in n.output]
    assert order.index(old.output[-1]) == new[0]


def test_new_names_collide_with_nothing() -> None:
    source = everything_model()
    taken = set(all_names(source))
    assert {"fc.MatMul", "fc.MatMul.2", "fc.MatMul.3", "fc.MatMul.3.output"} <= taken
    assert {"fc.weight", "fc.weight.2", "fc.weight.3", "gemm.weight", "gemm.MatMul"} <= taken
    found = rewritten_proto(source, *RELEASED)
    before = {node.name for node in source.graph.node}
    nodes = [node.name for node in found.graph.node if node.name not in before]
    tensors = [t.name for t in found.graph.initializer if t.name not in taken]
    outputs = {o for n in source.graph.node for o in n.output}
    results = [o for n in found.graph.node for o in n.output if o not in outputs]
    new = nodes + tensors + results
    assert len(nodes) == 2 * len(RELEASED)
    assert len(tensors) == 2 * len(RELEASED)
    assert len(results) == len(RELEASED)
    assert len(set(new)) == len(new)
    assert taken.isdisjoint(new)


def trained_model() -> onnx.ModelProto:
    """Return a model whose training graph reads one weight and binds another."""
    model = runnable_model()
    algorithm = helper.make_graph(
        [
            helper.make_node("Mul", ["fc.W", "fc.W"], ["fc.MatMul.4"], "square"),
            helper.make_node("Neg", ["fc.MatMul.4"], ["next"], "fc.weight.4"),
        ],
        "step",
        [],
        [helper.make_tensor_value_info("next", TensorProto.FLOAT, [32, 24])],
    )
    training = model.training_info.add(algorithm=algorithm)
    training.update_binding.add(key="gemm.W", value="next")
    return model


def test_training_keeps_the_weights_it_reads_or_binds() -> None:
    source = trained_model()
    found = rewritten_proto(source, "fc", "gemm", "left")
    names = {tensor.name for tensor in found.graph.initializer}
    assert {"fc.W", "gemm.W"} <= names
    assert "left.W" not in names
    assert list(found.training_info) == list(source.training_info)
    training = set(all_names(source)) - set(all_names(runnable_model()))
    assert training == {"square", "fc.MatMul.4", "fc.weight.4", "next"}
    assert training.isdisjoint(all_names(onnx.ModelProto(graph=found.graph)))


def test_a_weight_with_two_names_for_the_same_values_goes_alone() -> None:
    source = runnable_model()
    twin = source.graph.initializer.add()
    twin.CopyFrom(source.graph.initializer[0])
    twin.name = "twin of fc.W"
    found = rewritten_proto(source, "fc")
    assert [t for t in found.graph.initializer if t.name == "twin of fc.W"] == [twin]
    assert "fc.W" not in all_names(found)


def test_a_model_rewritten_twice_keeps_both_plans() -> None:
    once = rewritten_proto(runnable_model(), "fc")
    twice = rewritten_proto(once, "gemm")
    before, after = (
        [(entry.key, entry.value) for entry in model.metadata_props] for model in (once, twice)
    )
    assert after[:-1] == before
    assert [key for key, _ in after[-2:]] == ["onnxlr.plan", "onnxlr.plan.2"]
    assert Plan.loads(after[-1][1]).layers.keys() >= {"gemm"}


def test_the_file_written_is_the_model_spliced(tmp_path: Path) -> None:
    source = everything_model()
    model = open_model(source)
    model.proto = rewritten_proto(source, "fc")
    with staging(tmp_path / "out.onnx") as folder:
        write_model(model, folder, "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == model.proto.SerializeToString()
    with staging(tmp_path / "copy.onnx") as folder:
        copy_model(open_model(source), folder, "copy.onnx")
    assert (tmp_path / "copy.onnx").read_bytes() == source.SerializeToString()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.onnx", "out.onnx"]


def test_constant_of_another_domain_is_no_weight() -> None:
    """A custom operator may be called Constant and mean anything."""
    source = runnable_model()
    tensor = numpy_helper.to_array(source.graph.initializer[0])
    foreign = helper.make_node(
        "Constant",
        [],
        ["foreign.W"],
        "foreign",
        domain="org.example.unused",
        value=numpy_helper.from_array(tensor, "v"),
    )
    source.graph.node.insert(0, foreign)
    next(n for n in source.graph.node if n.name == "fc").input[1] = "foreign.W"
    layers = {layer.name: layer for layer in find_layers(open_model(source))}
    assert layers["fc"].skip is not None
