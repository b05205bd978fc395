"""Finds out where the codes lie that a model takes apart by nodes of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.training.flow import Flow, Use, is_move
from onnxlr.training.storage.decoding import decoding_of
from onnxlr.training.storage.layouts import Bits
from onnxlr.training.torch_import import torch

__all__ = ["Unpacked", "unpacked"]

Array = npt.NDArray[Any]
Run = Callable[[Array], Array]
"""Returns the codes that nodes make of bytes."""

_STEPS = frozenset(("Cast", "Mul", "Div", "Sub", "Add", "Floor", "Mod", "BitShift", "BitwiseAnd"))
_EITHER = frozenset(("Mul", "Add", "BitwiseAnd"))
"""Of the steps, those whose operands may be exchanged."""
_CUTS = frozenset(("Floor", "Mod", "BitShift", "BitwiseAnd"))
"""Of the steps, those that leave part of a number out; without one nothing is taken apart."""
_LAST = frozenset(("Cast", "Floor", "Mod", "Sub", "BitwiseAnd", "BitShift"))


@dataclass(frozen=True)
class Unpacked:
    """Codes that nodes take out of bytes.

    Attributes
    ----------
    name
        The tensor that has them, one an entry.
    layout
        Where they lie in the constant.
    indices
        The tensor that says which rows of a table are taken, of all of which `layout` tells; None
        where the codes are those of the whole constant.
    """

    name: str
    layout: Bits
    indices: str | None = None


def unpacked(
    flow: Flow, constant: str, array: Array, dims_of: Callable[[str], Sequence[Any] | None]
) -> Unpacked | None:
    """Return the tensor that holds a constant's codes, one an entry, and where they lie in it.

    Nothing is known of the nodes between: they are run on bytes that tell one place from another.

    Parameters
    ----------
    constant, array
        A constant of bytes, uint8.
    dims_of
        Returns what is known of a tensor's dimensions.

    Returns
    -------
    Unpacked or None
        The last tensor all of whose entries are some bits of one byte each, and through which
        everything goes that the constant is used for; None where there is none.
    """
    if array.dtype != np.uint8 or flow.is_open(constant):
        return None
    uses = flow.uses(constant)
    begin, indices = constant, None
    if len(uses) == 1 and uses[0].at("Gather", 0) and not uses[0].call.number("axis", 0):
        begin, indices = uses[0].call.outputs[0], uses[0].call.inputs[1]
        if indices in flow.fixed or flow.is_open(begin):
            return None
    closure = _closure(flow, begin)
    if not any(flow.makers[name].operator in _CUTS for name in closure[1:]):
        return None
    for name in reversed(closure[1:]):
        call = flow.makers[name]
        last = call.operator in _LAST or is_move(Use(call, 0))
        if not last or not _goes_through(flow, begin, name, closure):
            continue
        if decoding_of(flow, name) is None:
            continue
        run = _runner(flow, constant, name, indices, dims_of)
        if run is not None:
            found = _bits(run, array) if indices is None else _bits_of_rows(run, array)
            if found is not None:
                return Unpacked(name, found, indices)
    return None


def _closure(flow: Flow, begin: str) -> list[str]:
    """Return a tensor and what steps make of it alone, in the order of the nodes."""
    found = [begin]
    known = {begin}
    for call in flow.model.calls:
        own = known.intersection(call.inputs)
        first = bool(call.inputs) and call.inputs[0] in known
        step = is_move(Use(call, 0)) or call.operator in (_STEPS if first else _EITHER)
        if own and step and not call.domain and known | flow.fixed >= set(call.inputs):
            found.append(call.outputs[0])
            known.add(call.outputs[0])
    return found


def _goes_through(flow: Flow, begin: str, name: str, closure: list[str]) -> bool:
    """Whether every way from a tensor out of the closure goes through another."""
    left, seen = [begin], {begin}
    while left:
        current = left.pop()
        if flow.is_open(current):
            return False
        outputs = {output for use in flow.uses(current) for output in use.call.outputs}
        if not outputs <= set(closure):
            return False
        fresh = outputs - seen - {name}
        seen |= fresh
        left += fresh
    return True


def _runner(
    flow: Flow,
    constant: str,
    name: str,
    indices: str | None,
    dims_of: Callable[[str], Sequence[Any] | None],
) -> Run | None:
    """Return what runs the nodes from a constant to a tensor; None if it cannot be told how."""
    if indices is not None:
        dims = dims_of(indices)
        return None if dims is None else _row_runner(flow, constant, name, indices, dims)
    part = flow.model.part([constant], [name])

    def run(held: Array) -> Array:
        with torch.no_grad():
            found = part({constant: torch.from_numpy(held.copy())})[name]
        return np.asarray(found.cpu().numpy())

    return run


def _row_runner(flow: Flow, constant: str, name: str, indices: str, dims: Sequence[Any]) -> Run:
    """Return what runs nodes on all rows of a table, with indices of the dimensions they have."""
    part = flow.model.part([constant, indices], [name])

    def run(held: Array) -> Array:
        rows = len(held)
        known = prod(dim for dim in dims if isinstance(dim, int))
        open_ = [place for place, dim in enumerate(dims) if not isinstance(dim, int)]
        shape = [dim if isinstance(dim, int) else 1 for dim in dims]
        if open_:
            shape[open_[0]] = -(-rows // known)
        size = prod(shape)
        asked = np.arange(-(-rows // size) * size) % rows
        table = torch.from_numpy(held.copy())
        found = []
        with torch.no_grad():
            for piece in asked.reshape(-1, *shape):
                taken = part({constant: table, indices: torch.from_numpy(piece)})[name]
                found.append(taken.cpu().numpy().reshape(size, -1))
        return np.concatenate(found)[:rows]

    return run


def _bits_of_rows(run: Run, array: Array) -> Bits | None:
    """Return where the codes of all rows lie, found out from one."""
    row = _bits(run, array[:1])
    if row is None:
        return None
    size = prod(array.shape[1:])
    begins = np.arange(len(array), dtype=np.int32)[:, None] * size
    shifts = np.broadcast_to(row.shifts, (len(array), row.shifts.size))
    found = Bits(row.bits, row.bytes_of.reshape(1, -1) + begins, shifts)
    return found if _agrees(run, found, array) else None


def _bits(run: Run, array: Array) -> Bits | None:
    if run(np.zeros_like(array)).any():
        return None
    largest = run(np.full_like(array, 255))
    bits = next((b for b in (1, 2, 4) if (largest == (1 << b) - 1).all()), None)
    if bits is None or not largest.size:
        return None
    places = np.zeros(largest.shape, np.int32)
    for digit, probe in enumerate(_numbered(array, bits)):
        places |= run(probe).astype(np.int32) << (bits * digit)
    shifts = np.zeros(largest.shape, np.uint8)
    for shift in range(0, 8, bits):
        shifts[run(np.full_like(array, 1 << shift)) == 1] = shift
    if places.min() < 0 or places.max() >= array.size:
        return None
    taken = np.bincount((places * (8 // bits) + shifts // bits).reshape(-1))
    found = Bits(bits, places, shifts)
    drawn = np.random.default_rng(0).integers(0, 256, array.shape, np.uint8)
    if taken.max() > 1 or not (_agrees(run, found, array) and _agrees(run, found, drawn)):
        return None
    return found


def _agrees(run: Run, found: Bits, array: Array) -> bool:
    return bool((run(array) == found.read(array)).all())


def _numbered(array: Array, bits: int) -> Iterator[Array]:
    """Yield bytes whose codes are all a digit of the byte's place, the lowest digit first."""
    places = np.arange(array.size).reshape(array.shape)
    repeated = sum(1 << shift for shift in range(0, 8, bits))
    for digit in range(-(-max(int(array.size - 1).bit_length(), 1) // bits)):
        codes = places >> (bits * digit) & ((1 << bits) - 1)
        yield (codes * repeated).astype(np.uint8)
