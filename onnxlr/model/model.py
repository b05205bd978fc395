"""The model as it lies in its file: the original proto, where its external data is, its hash."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from google.protobuf.message import EncodeError

from onnxlr.model.liveness import Uses
from onnxlr.model.names import Names
from onnxlr.model.scopes import scopes
from onnxlr.model.shapes import TensorType, infer_types
from onnxlr.model.tensors import is_external, make_tensor, read_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from onnxlr.model.data_file import DataFile

__all__ = ["Model", "proto_bytes", "tensors_of"]

_READ_SIZE = 1 << 20
_PROTO_END = 1 << 31


class Model:
    """An opened model; `onnxlr.open` makes one.

    Attributes
    ----------
    proto
        The model's own proto. External tensors hold their location, not their values.
    path
        The file it was read from; None for a model that was given as a proto or as bytes.
    content
        The bytes it was given as; None for a file or a proto.
    added
        Names of initializers that splices have put in.
    data
        File that the values of such initializers are moved to as they are made; None where they
        stay in the proto.
    """

    def __init__(
        self, proto: onnx.ModelProto, path: Path | None, content: bytes | None = None
    ) -> None:
        self.proto = proto
        self.path = path
        self.content = content
        self.added: set[str] = set()
        self.data: DataFile | None = None

    @property
    def name(self) -> str:
        """What messages call the model: its file, or the name of its graph."""
        return str(self.path) if self.path else f"model '{self.proto.graph.name}'"

    @property
    def directory(self) -> Path:
        """The folder that external data is relative to."""
        return self.path.parent if self.path else Path()

    @property
    def opset(self) -> int:
        """Version of the standard operators; 1 where the model does not import them."""
        versions = [o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")]
        return max(versions, default=1)

    @property
    def ir_version(self) -> int:
        """Version of the file format."""
        return int(self.proto.ir_version)

    @cached_property
    def names(self) -> Names:
        """All names in use, and new ones."""
        return Names(self.proto)

    @cached_property
    def uses(self) -> Uses:
        """Who makes and who uses each tensor."""
        return Uses(self.proto)

    @cached_property
    def types(self) -> Mapping[str, TensorType]:
        """What is known of the types of the main graph's tensors."""
        return infer_types(self.proto)

    @cached_property
    def initializers(self) -> Mapping[str, onnx.TensorProto]:
        """The main graph's initializers by name."""
        return {tensor.name: tensor for tensor in self.proto.graph.initializer}

    def read(self, tensor: onnx.TensorProto) -> npt.NDArray[Any]:
        """Return the values of one of the model's tensors, read-only; raises ModelError."""
        if self.data is not None and self.data.holds(tensor):
            inside = onnx.TensorProto(name=tensor.name, dims=tensor.dims)
            inside.data_type, inside.raw_data = tensor.data_type, self.data.read(tensor)
            return read_tensor(inside, self.directory)
        return read_tensor(tensor, self.directory)

    def new_tensor(self, values: npt.NDArray[Any], name: str) -> onnx.TensorProto:
        """Return an initializer to put into the model, its values in the data file if one is."""
        return make_tensor(values, name) if self.data is None else self.data.put(values, name)

    def external_files(self) -> list[str]:
        """Return the locations of external data the model refers to, sorted, each once."""
        locations = {
            entry.value
            for tensor in tensors_of(self.proto)
            if is_external(tensor) and not (self.data is not None and self.data.holds(tensor))
            for entry in tensor.external_data
            if entry.key == "location"
        }
        return sorted(locations)

    @property
    def files(self) -> list[Path]:
        """The model's file and those of its external data; none for a model without a file."""
        if self.path is None:
            return []
        return [self.path, *(self.directory / name for name in self.external_files())]

    @property
    def stored_bytes(self) -> int:
        """Bytes of the model's files, or that one would have."""
        if self.path is None:
            return int(self.proto.ByteSize()) if self.content is None else len(self.content)
        return sum(file.stat().st_size for file in self.files)

    @cached_property
    def sha256(self) -> str:
        """Hash of the file's bytes and of the external data behind it."""
        digest = hashlib.sha256()
        if self.path is None:
            digest.update(self.proto.SerializeToString(deterministic=True))
            return digest.hexdigest()
        for file in self.files:
            with file.open("rb") as stream:
                while block := stream.read(_READ_SIZE):
                    digest.update(block)
        return digest.hexdigest()


def proto_bytes(proto: onnx.ModelProto) -> int | None:
    """Return the bytes of a model's file; None above 2 GB, which protobuf does not write."""
    try:
        size = int(proto.ByteSize())
    except EncodeError:
        return None
    return size if size < _PROTO_END else None


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor message in which a model can keep values, at any depth."""
    for scope in scopes(model):
        if isinstance(scope.graph, onnx.GraphProto):
            yield from scope.graph.initializer
            for sparse in scope.graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in scope.graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
