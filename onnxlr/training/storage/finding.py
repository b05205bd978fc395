"""Finds the low-bit weights of a model."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from onnxlr.model import Model
from onnxlr.operators.schema import DOMAIN
from onnxlr.training.flow import Flow, is_move
from onnxlr.training.program import Call
from onnxlr.training.storage.decoding import Decoding, decoding_of, slopes
from onnxlr.training.storage.layouts import Blocks, Plain, TernaryKernel, TernaryMatrix
from onnxlr.training.storage.straight import Layout, Storage, StoredCodes
from onnxlr.training.storage.terms import MOST_TERMS, SumOfTerms, TermCodes
from onnxlr.training.storage.unpacking import Unpacked, unpacked
from onnxlr.training.trainable import TrainableModel
from onnxlr.training.writing import constant_tensors

__all__ = ["stored_codes"]

Array = npt.NDArray[Any]

_BOUNDS = {
    kind: bounds
    for name, bounds in {
        "INT8": (-127, 127),
        "UINT8": (0, 255),
        "INT4": (-8, 7),
        "UINT4": (0, 15),
        "INT2": (-2, 1),
        "UINT2": (0, 3),
    }.items()
    if (kind := getattr(TensorProto, name, None)) is not None
}
_CONTRIB = "com.microsoft"


def stored_codes(model: Model, trainable: TrainableModel) -> list[StoredCodes]:
    """Return a module for each constant of the main graph that holds a weight's codes.

    These are the codes of ternary operators and of MatMulNBits, integers that are cast or
    dequantised, those of integer products, and bytes that nodes take apart.

    Parameters
    ----------
    model
        The opened model.
    trainable
        The same model in torch; nothing of it has been replaced. It is not changed: to train codes
        let their module `attach` itself.
    """
    flow = Flow(trainable)
    found = []
    for name, tensor in constant_tensors(model).items():
        if name in trainable.constants and tensor.data_type in _BOUNDS:
            one = _found(model, flow, name, _BOUNDS[tensor.data_type])
            if one is not None:
                found.append(one)
    return _joined(flow, found)


@dataclass(frozen=True)
class _Found:
    """A weight's codes.

    Attributes
    ----------
    constant, name, array, layout
        As `StoredCodes` takes them.
    bounds, unit, decoding
        Range of the codes, what each counts, and what is known of their decoding.
    indices
        As `Storage` has them.
    """

    constant: str
    name: str
    array: Array
    layout: Layout
    bounds: tuple[int, int]
    unit: Array
    decoding: Decoding
    indices: str | None = None

    @property
    def codes(self) -> Array:
        return self.layout.read(self.array)

    @property
    def is_ternary(self) -> bool:
        """Whether all codes are −1, 0 or 1 beside the one that stands for 0."""
        zero = self.decoding.zero
        return zero is not None and bool((np.abs(self.codes - zero) <= 1).all())

    @property
    def storage(self) -> Storage:
        """What is trained of it; what is ternary in a larger type stays ternary."""
        zero, (low, high) = self.decoding.zero, self.bounds
        if self.is_ternary and zero is not None:
            low, high = zero - 1, zero + 1
        else:
            low, high = min(low, int(self.codes.min())), max(high, int(self.codes.max()))
        return Storage(
            self.constant,
            self.name,
            self.array,
            self.layout,
            low,
            high,
            (low + high + 1) // 2 if zero is None else zero,
            self.decoding.scales,
            self.decoding.fixed_scales,
            self.indices,
        )


def _found(model: Model, flow: Flow, name: str, bounds: tuple[int, int]) -> _Found | None:
    array = np.asarray(flow.model.constants[name])
    ends = list(flow.ends(name))
    if not ends or not array.size or flow.is_open(name):
        return None
    for kind, domain, make in (
        ("TernaryMatMul", DOMAIN, _ternary_matrix),
        ("TernaryConv", DOMAIN, _ternary_kernel),
        ("MatMulNBits", _CONTRIB, _blocks),
    ):
        if all(use.at(kind, 1, domain=domain) for use in ends):
            return make(flow, name, array, ends[0].call)
    if bounds == (0, 255):
        taken = unpacked(flow, name, array, lambda other: _dims(model, other))
        if taken is not None:
            return _decoded(flow, name, array, taken, (0, (1 << taken.layout.bits) - 1))
    return _decoded(flow, name, array, None, bounds)


def _dims(model: Model, name: str) -> Sequence[Any] | None:
    found = model.types.get(name)
    return None if found is None else found.dims


def _decoded(
    flow: Flow, name: str, array: Array, taken: Unpacked | None, bounds: tuple[int, int]
) -> _Found | None:
    """Return codes that nodes decode, None if they are none."""
    tensor, layout = (name, Plain()) if taken is None else (taken.name, taken.layout)
    indices = None if taken is None else taken.indices
    decoding = decoding_of(flow, tensor)
    if decoding is None or not (indices or _is_weight(flow, tensor)):
        return None
    unit = slopes(flow, tensor, layout.read(array), decoding.scales)
    return _Found(name, tensor, array, layout, bounds, unit, decoding, indices)


_PRODUCTS: Mapping[str, tuple[int, ...]] = {
    "MatMul": (0, 1),
    "Gemm": (0, 1),
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gather": (0,),
    "MatMulInteger": (0, 1),
    "ConvInteger": (1,),
    "QLinearConv": (3,),
    "QLinearMatMul": (3,),
}


def _is_weight(flow: Flow, name: str) -> bool:
    """Whether data is multiplied by what becomes of a tensor, or rows of it are looked up."""
    if name not in flow.fixed:
        return False
    uses = [
        use
        for target in flow.made_of(name)
        for use in flow.uses(target)
        if not flow.fixed.issuperset(use.call.outputs)
    ]
    return bool(uses) and all(
        use.at(use.call.operator, *_PRODUCTS.get(use.call.operator, (-1,))) or is_move(use)
        for use in uses
    )


def _ternary_matrix(flow: Flow, name: str, array: Array, call: Call) -> _Found:
    inputs, outputs, size = (call.attributes[key] for key in ("K", "N", "group_size"))
    layout = TernaryMatrix(inputs, outputs)
    scales = np.asarray(flow.model.constants[call.inputs[2]])
    unit = np.repeat(scales, size, axis=1)[:, :inputs]
    decoding = Decoding((call.inputs[2],), 0)
    return _Found(name, name, array, layout, (-1, 1), unit, decoding)


def _ternary_kernel(flow: Flow, name: str, array: Array, call: Call) -> _Found:
    group, kernel = call.attributes["group"], call.attributes["kernel_shape"]
    shape = (call.attributes["N"], call.attributes["channels"] // group, *kernel)
    layout = TernaryKernel(shape, group)
    scales = np.asarray(flow.model.constants[call.inputs[2]])
    unit = layout.scales(scales, call.attributes["group_size"])
    return _Found(name, name, array, layout, (-1, 1), unit, Decoding((call.inputs[2],), 0))


def _blocks(flow: Flow, name: str, array: Array, call: Call) -> _Found:
    inputs, outputs, size = (call.attributes[key] for key in ("K", "N", "block_size"))
    bits = call.attributes.get("bits", 4)
    scales = np.asarray(flow.model.constants[call.inputs[2]]).astype(np.float64)
    unit = np.repeat(scales.reshape(outputs, -1), size, axis=1)[:, :inputs]
    plain = len(call.inputs) < 4 or not call.inputs[3]
    decoding = Decoding((call.inputs[2],), 1 << (bits - 1) if plain else None)
    layout = Blocks(bits, inputs, outputs)
    return _Found(name, name, array, layout, (0, (1 << bits) - 1), unit, decoding)


def _joined(flow: Flow, found: list[_Found]) -> list[StoredCodes]:
    """Return the modules; terms of one sum share their trained values."""
    dtype = flow.model.floating
    modules = [StoredCodes(one.storage, one.unit, dtype) for one in found]
    groups: dict[Hashable, list[int]] = {}
    for place, one in enumerate(found):
        if isinstance(one.layout, TernaryMatrix | TernaryKernel):
            if 1 < len(one.codes) <= MOST_TERMS:
                shared = SumOfTerms(one.codes, one.unit, dtype)
                modules[place] = TermCodes(one.storage, shared)
        elif one.is_ternary:
            key = _sum_of(flow, one)
            if key is not None:
                groups.setdefault((key, one.codes.shape), []).append(place)
    for places in groups.values():
        if 1 < len(places) <= MOST_TERMS and _aligned([found[place] for place in places]):
            trits = np.stack([found[place].storage.codes for place in places])
            units = np.stack([np.abs(found[place].unit) for place in places])
            shared = SumOfTerms(trits, units, dtype)
            for term, place in enumerate(places):
                modules[place] = TermCodes(found[place].storage, shared, term)
    return modules


def _aligned(terms: list[_Found]) -> bool:
    """Whether codes of one place make the same entry: differentiated, they have the same signs."""
    signs = [np.sign(term.unit) for term in terms]
    return all((other == signs[0]).all() for other in signs)


def _sum_of(flow: Flow, one: _Found) -> Hashable | None:
    """Return what tells the sum that a ternary term belongs to, None if nothing does."""
    if one.name in flow.fixed:
        made = flow.made_of(one.name)
        if made and one.name not in made:
            return made
    (call, *others) = [use.call for use in flow.ends(one.name)]
    if others or call.operator not in ("MatMulNBits", "MatMulInteger"):
        return None
    return call.operator, _data(flow, call.inputs[0]), _total(flow, call.outputs[0])


def _data(flow: Flow, name: str) -> str:
    """Return what was rounded to the data of a product."""
    found = flow.behind(name)
    call = flow.makers.get(found)
    if call is not None and call.operator in ("DynamicQuantizeLinear", "QuantizeLinear"):
        return flow.behind(call.inputs[0])
    return found


def _total(flow: Flow, name: str) -> str:
    """Return the last of the sums that a product ends in."""
    while True:
        uses = list(flow.uses(name))
        if len(uses) != 1 or flow.is_open(name):
            return name
        (use,) = uses
        if not (is_move(use) or use.at("Cast") or use.at("Mul") or use.at("Add")):
            return name
        if use.at("Add") and use.other in flow.fixed:
            return name
        name = use.call.outputs[0]
