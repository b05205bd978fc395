"""The file beside a model that tensors go to, one at a time."""

from __future__ import annotations

import sys
from contextlib import suppress
from os import SEEK_END
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from onnx import TensorProto, helper

from onnxlr.errors import ModelError
from onnxlr.model.external import Extent
from onnxlr.model.tensors import make_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

    import numpy.typing as npt

__all__ = ["SMALL", "DataFile"]

SMALL = 1024
"""Tensors of fewer bytes stay in the model file: scalars and shapes that tools look at."""

_ALIGNMENT = 4096
"""Every tensor begins at a multiple of this, so that it can be mapped into memory."""

_BLOCK = 1 << 20


class DataFile:
    """A file of tensors that is being written; each is at a multiple of 4096 bytes.

    Tensors can be moved here as they are made, so that memory never holds all of them.

    Parameters
    ----------
    path
        The file; it is made when the first tensor comes.
    is_needed
        Whether the model is one with such a file in any case, and not only if it is too big.
    """

    def __init__(self, path: Path, is_needed: bool = False) -> None:
        self.path, self.is_needed = path, is_needed
        self._stream: BinaryIO | None = None
        self._extents: dict[str, Extent] = {}

    def __enter__(self) -> DataFile:  # noqa: PYI034  (Self is of Python 3.11)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            with suppress(OSError):  # a full disk has been said already
                self.close()

    def close(self) -> None:
        """Write what is left to write."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    @property
    def size(self) -> int:
        """Bytes of the tensors that were moved here."""
        return sum(extent.length for extent in self._extents.values())

    def holds(self, tensor: TensorProto) -> bool:
        """Whether a tensor was moved here by `take`."""
        return tensor.name in self._extents

    def take(self, tensors: Iterable[TensorProto]) -> list[TensorProto]:
        """Write the raw data of new tensors here, but for small ones.

        Returns
        -------
        list of TensorProto
            Messages in their place: a message that is emptied gives no memory back.
        """
        return [self._taken(tensor) for tensor in tensors]

    def _taken(self, tensor: TensorProto) -> TensorProto:
        found = TensorProto()
        if len(tensor.raw_data) < SMALL:
            found.CopyFrom(tensor)
            return found
        for descriptor, value in tensor.ListFields():
            if descriptor.name in ("metadata_props", "dims"):
                getattr(found, descriptor.name).extend(value)
            elif descriptor.name != "raw_data":
                setattr(found, descriptor.name, value)
        self._extents[tensor.name] = self._placed(found, tensor.raw_data)
        return found

    def put(self, values: npt.NDArray[Any], name: str) -> TensorProto:
        """Return an initializer whose values are written here, but for small ones.

        No copy of them is made, as there is on the way through a message.
        """
        if values.nbytes < SMALL or sys.byteorder != "little":
            return self._taken(make_tensor(values, name))
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = TensorProto(name=name, dims=values.shape, data_type=kind)
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self._extents[name] = self._placed(tensor, raw.data)
        return tensor

    def move(self, tensor: TensorProto) -> Extent:
        """Move one tensor's raw data here."""
        raw = tensor.raw_data
        tensor.ClearField("raw_data")
        return self._placed(tensor, raw)

    def copy(self, tensor: TensorProto, extent: Extent) -> Extent:
        """Copy a tensor's external data here.

        Raises
        ------
        ModelError
            If it cannot be read any more.
        """
        begin = self._begin()
        for block in _blocks(extent):
            self._file.write(block)
        return self._refer(tensor, begin, extent.length)

    def read(self, tensor: TensorProto) -> bytes:
        """Return the raw data of a tensor that was moved here."""
        extent = self._extents[tensor.name]
        self._file.flush()
        with extent.path.open("rb") as stream:
            stream.seek(extent.offset)
            return stream.read(extent.length)

    def _placed(self, tensor: TensorProto, raw: bytes | memoryview) -> Extent:
        begin = self._begin()
        self._file.write(raw)
        return self._refer(tensor, begin, len(raw))

    def _begin(self) -> int:
        """Return where the next tensor begins, after going there."""
        begin = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        self._file.seek(begin)
        return begin

    def _refer(self, tensor: TensorProto, offset: int, length: int) -> Extent:
        """Let a tensor say where its data is."""
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", self.path.name),
            ("offset", str(offset)),
            ("length", str(length)),
        ):
            tensor.external_data.add(key=key, value=value)
        return Extent(self.path, offset, length)

    @property
    def _file(self) -> BinaryIO:
        if self._stream is None:
            self._stream = self.path.open("r+b" if self._extents else "wb")
            self._stream.seek(0, SEEK_END)
        return self._stream


def _blocks(extent: Extent) -> Iterator[bytes]:
    """Yield a part of a file in blocks; raises ModelError if it cannot be read."""
    try:
        with extent.path.open("rb") as stream:
            stream.seek(extent.offset)
            left = extent.length
            while left and (block := stream.read(min(left, _BLOCK))):
                left -= len(block)
                yield block
    except OSError as error:
        raise ModelError(f"{extent.path}: cannot be read: {error.strerror}") from error
    if left:
        raise ModelError(f"{extent.path}: became shorter while it was read")
