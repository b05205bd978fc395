"""What the fuzz target does to a model: changes that know what its messages are for.

Mutations are our own rather than hypothesis's: they know what a model is (names that exist, types
that do not fit their values), and a case is made again from its number alone, without a database.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from tools.fuzz_fields import INTEGERS, OPERATORS, TEXTS, all_of, any_field, copied, set_field

__all__ = ["change_model"]

LOCATIONS = (
    *("data.bin", "a/../data.bin", "../outside.bin", "/dev/zero", "link.bin", "none.bin", "pipe"),
    *(".", ""),
)


def change_model(model: onnx.ModelProto, random: Random) -> list[str]:
    """Change a model in place, one to four times; return the names of what was done."""
    done = []
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        mutate = random.choice(_MUTATIONS)
        try:
            mutate(model, random)
        except (DecodeError, IndexError, ValueError, TypeError, UnicodeError):
            continue  # there is nothing to change so, or protobuf does not take the value
        done.append(mutate.__name__)
    return done


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return all_of(model, onnx.NodeProto)


def _names(model: onnx.ModelProto) -> list[str]:
    names = [name for node in _nodes(model) for name in (*node.input, *node.output)]
    return names + [tensor.name for tensor in model.graph.initializer] + list(TEXTS)


def dims_of_a_tensor(model: onnx.ModelProto, random: Random) -> None:
    """Change the shape a tensor claims."""
    tensor = random.choice(all_of(model, TensorProto))
    kind = random.randrange(4)
    if kind == 0:
        tensor.dims[random.randrange(len(tensor.dims))] = random.choice(INTEGERS)
    elif kind == 1:
        tensor.dims.append(random.choice((1, 1, *INTEGERS)))
    elif kind == 2:
        del tensor.dims[random.randrange(len(tensor.dims))]
    else:  # as many entries in another shape
        kept = list(tensor.dims)
        random.shuffle(kept)
        tensor.dims[:] = kept


def shape_of_a_value(model: onnx.ModelProto, random: Random) -> None:
    """Change the type or shape an input, output or inner tensor states."""
    value = random.choice(all_of(model, onnx.ValueInfoProto))
    if random.random() < 0.2:
        value.type.tensor_type.elem_type = random.randrange(-1, 30)
        return
    dims = value.type.tensor_type.shape.dim
    if random.random() < 0.3:
        dims.add(dim_value=random.choice(INTEGERS))
    elif random.random() < 0.3:
        del dims[random.randrange(len(dims))]
    else:
        dims[random.randrange(len(dims))].dim_value = random.choice(INTEGERS)


def numbers_of_a_tensor(model: onnx.ModelProto, random: Random) -> None:
    """Change a tensor's type or numbers: too few, too many, NaN."""
    tensor = random.choice(all_of(model, TensorProto))
    kind = random.randrange(4)
    if kind == 0:
        tensor.data_type = random.randrange(-1, 30)
    elif kind == 1:
        tensor.raw_data = tensor.raw_data[: random.randrange(len(tensor.raw_data) + 1)]
    elif kind == 2:
        tensor.raw_data = b"\x00\x00\xc0\x7f" * (len(tensor.raw_data) // 4)
    else:
        tensor.raw_data = bytes(len(tensor.raw_data))


def move_outside(model: onnx.ModelProto, random: Random) -> None:
    """Make a tensor external, with entries that may lie."""
    tensor = random.choice(all_of(model, TensorProto))
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    numbers = ("0", str(size), "-1", "abc", "9" * 30, "4096", "1e3", "", str(2**63 - 1))
    tensor.external_data.add(key="location", value=random.choice(("data.bin", *LOCATIONS)))
    for key in ("offset", "length", "location", "offset", "checksum"):
        if random.random() < 0.4:
            value = random.choice(numbers if key != "location" else LOCATIONS)
            tensor.external_data.add(key=key, value=value)


def rename(model: onnx.ModelProto, random: Random) -> None:
    """Give an input, output, node or tensor the name of another, or a strange one."""
    name = random.choice(_names(model))
    node = random.choice(_nodes(model))
    kind = random.randrange(5)
    if kind == 0:
        node.input[random.randrange(len(node.input))] = name
    elif kind == 1:
        node.output[random.randrange(len(node.output))] = name
    elif kind == 2:
        node.name = name
    else:
        random.choice(all_of(model, onnx.ValueInfoProto if kind == 3 else TensorProto)).name = name


def rename_everywhere(model: onnx.ModelProto, random: Random) -> None:
    """Give a tensor another name wherever it is used, so that the model stays valid."""
    old, new = random.choice(_names(model)), random.choice(TEXTS)
    for node in _nodes(model):
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    for message in (*all_of(model, onnx.ValueInfoProto), *all_of(model, TensorProto)):
        if message.name == old:
            message.name = new


def change_node(model: onnx.ModelProto, random: Random) -> None:
    """Change a node's operator, domain, or number of inputs and outputs."""
    node = random.choice(_nodes(model))
    kind = random.randrange(5)
    if kind == 0:
        node.op_type = random.choice(OPERATORS)
    elif kind == 1:
        node.domain = random.choice(("", "ai.onnx", "com.microsoft", "org.example", "onnxlr"))
    elif kind == 2:
        del node.input[random.randrange(len(node.input))]
    elif kind == 3:
        node.input.append(random.choice(_names(model)))
    else:
        node.output.append(random.choice(TEXTS))


def change_attribute(model: onnx.ModelProto, random: Random) -> None:
    """Make an attribute lie: another type, another value, a value of another field, twice."""
    attribute = random.choice(all_of(model, onnx.AttributeProto))
    kind = random.randrange(6)
    if kind == 0:
        attribute.type = random.randrange(0, 15)
    elif kind == 1:
        attribute.ClearField("type")
    elif kind == 2:
        attribute.i = random.choice(INTEGERS)
    elif kind == 3:
        attribute.ints[:] = random.choices(INTEGERS[:8], k=random.randrange(6))
    elif kind == 4:
        attribute.s, attribute.f = b"\xff", float("nan")
    else:
        attribute.name = random.choice(
            ("group", "axis", "perm", "strides", "value", "to", "transB")
        )


def add_attribute(model: onnx.ModelProto, random: Random) -> None:
    """Give a node an attribute that its operator may know, with any value."""
    node = random.choice(_nodes(model))
    names = ("group", "strides", "pads", "kernel_shape", "dilations", "axis", "alpha", "transA")
    attribute = node.attribute.add(name=random.choice((*names, "auto_pad", "output_shape")))
    attribute.type = random.choice((1, 2, 3, 6, 7))
    attribute.i = random.choice(INTEGERS)
    attribute.ints[:] = random.choices(INTEGERS[:7], k=random.randrange(5))
    attribute.s = random.choice((b"SAME_UPPER", b"VALID", b"\xff", b""))


def drop_or_repeat_node(model: onnx.ModelProto, random: Random) -> None:
    """Leave a node out, have it twice, or move it."""
    graph = random.choice(all_of(model, onnx.GraphProto))
    at = random.randrange(len(graph.node))
    node = copied(graph.node[at])
    if random.random() < 0.6:
        del graph.node[at]
    if random.random() < 0.6:
        graph.node.append(node)


def nest(model: onnx.ModelProto, random: Random) -> None:
    """Put a node into both branches of an If, some levels deep."""
    graph = random.choice(all_of(model, onnx.GraphProto))
    at = random.randrange(len(graph.node))
    node = copied(graph.node[at])
    condition = TensorProto(name="fuzz.c", data_type=TensorProto.BOOL, dims=[], raw_data=b"\x01")
    model.graph.initializer.append(condition)
    for _ in range(random.choice((1, 1, 2, 5, 20, 40))):
        outer = onnx.NodeProto(op_type="If", input=["fuzz.c"], output=list(node.output))
        for name in ("then_branch", "else_branch"):
            branch = outer.attribute.add(name=name, type=onnx.AttributeProto.GRAPH)
            branch.g.name = name
            if name == "then_branch" or random.random() < 0.1:
                branch.g.node.append(node)
            branch.g.output.extend(onnx.ValueInfoProto(name=output) for output in node.output)
        node = outer
    graph.node[at].CopyFrom(node)


def versions(model: onnx.ModelProto, random: Random) -> None:
    """Change the version of the format or of operators."""
    if random.random() < 0.4:
        model.ir_version = random.choice((0, 1, 2, 3, 4, 5, 10, 11, 99, -1, 2**40))
    else:
        entry = random.choice(list(model.opset_import))
        entry.version = random.choice((0, -1, 1, 5, 6, 7, 9, 11, 12, 13, 18, 21, 22, 24, 99, 2**40))


def change_functions(model: onnx.ModelProto, random: Random) -> None:
    """Have functions call each other or themselves, or call one with other inputs."""
    function = random.choice(list(model.functions))
    callee = random.choice(list(model.functions))
    node = random.choice(list(function.node) or _nodes(model))
    node.op_type, node.domain = callee.name, callee.domain
    if random.random() < 0.3:
        function.input.append(random.choice(TEXTS))


_MUTATIONS: tuple[Callable[[onnx.ModelProto, Random], None], ...] = (
    *(any_field, set_field, set_field),
    *(dims_of_a_tensor, shape_of_a_value, numbers_of_a_tensor, move_outside),
    *(rename, rename_everywhere, change_node, change_attribute, add_attribute),
    *(drop_or_repeat_node, nest, versions, change_functions),
)
"""Each as often as it stands here."""
