"""Ways to multiply by a constant matrix: TernaryMatMul, and what ONNX Runtime ships beside it.

Weights are random, without mean, and scaled so that a product leaves the size of its data as it
was: a chain of any length has neither infinities nor subnormal numbers in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxlr.operators.packing import pack

__all__ = ["PEERS", "Contender", "DynamicInt8", "Float32", "Floats", "NBits", "Piece", "Ternary"]

Floats: TypeAlias = npt.NDArray[np.float32]

BLOCK = 128
"""Inputs that share a scale in MatMulNBits."""


@dataclass(frozen=True)
class Piece:
    """One product of a chain: its nodes and tensors, and what they compute."""

    nodes: list[NodeProto]
    tensors: list[TensorProto]
    apply: Callable[[Floats], Floats]


class Contender(Protocol):
    """One way to multiply by a constant matrix."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def isa(self) -> str | None:
        """The instruction set that its kernels are forced to; None for what is not ours."""

    @property
    def noise(self) -> float:
        """Largest relative L2 distance from `Piece.apply`, for each product of a chain.

        Data rounded to int8 are rounded in another way after the least difference.
        """

    @property
    def exact(self) -> float:
        """The same for a product alone."""

    def piece(self, rng: np.random.Generator, inputs: int, outputs: int, place: int) -> Piece:
        """Return the product from the tensor `x{place}` to `x{place + 1}`."""


@dataclass(frozen=True)
class Ternary:
    """TernaryMatMul of the op library, data rounded to int8 row by row."""

    isa: str
    group: int | None = None
    """Inputs that share a scale; None for all of them."""
    noise: float = 0.02
    exact: float = 2e-4

    @property
    def name(self) -> str:
        """The instruction set and the group."""
        return f"{self.isa} g{self.group or 'K'}"

    def piece(self, rng: np.random.Generator, inputs: int, outputs: int, place: int) -> Piece:
        """Return a product with random values -1, 0 and 1 and random scales."""
        ternary = rng.integers(-1, 2, (inputs, outputs), np.int8)
        size = self.group or inputs
        starts = np.arange(0, inputs, size)
        spread = rng.uniform(0.5, 1.5, (len(starts), outputs)) / np.sqrt(13 / 12)
        scales = (spread * np.sqrt(1.5 / inputs)).astype(np.float32)
        node = helper.make_node(
            "TernaryMatMul",
            [f"x{place}", *(f"{name}{place}" for name in ("codes", "scales", "ones", "zeros"))],
            [f"x{place + 1}"],
            domain="onnxlr",
            K=inputs,
            N=outputs,
            group_size=size,
            terms=1,
            layout=1,
            accuracy_level=4,
        )
        tensors = _tensors(
            place,
            codes=pack(ternary),
            scales=scales[None],
            ones=np.ones(inputs, np.float32),
            zeros=np.zeros(outputs, np.float32),
        )

        def apply(x: Floats) -> Floats:
            # Level 4 of docs/operators.md; integers below 2 ** 24 are exact in float32.
            codes, step = _rows_to_int8(x)
            products = np.zeros((len(x), outputs), np.float32)
            for start, scale in zip(starts, scales, strict=True):
                part = slice(start, start + size)
                products += scale * (codes[:, part] @ ternary[part].astype(np.float32))
            return step * products

        return Piece([node], tensors, apply)


@dataclass(frozen=True)
class NBits:
    """MatMulNBits in blocks of 128, symmetric, data rounded to int8."""

    bits: int
    isa: None = None
    noise: float = 0.02
    exact: float = 0.02

    @property
    def name(self) -> str:
        """The bits of a weight."""
        return f"{self.bits}-bit"

    def piece(self, rng: np.random.Generator, inputs: int, outputs: int, place: int) -> Piece:
        """Return a product with random codes, except the one that has no counterpart."""
        levels, each = 2**self.bits, 8 // self.bits
        blocks = -(-inputs // BLOCK)
        codes = rng.integers(1, levels, (outputs, blocks, BLOCK), np.uint8)
        packed = np.zeros((outputs, blocks, BLOCK // each), np.uint8)
        for number in range(each):
            packed |= codes[:, :, number::each] << np.uint8(number * self.bits)
        deviation = np.sqrt(((levels - 1) ** 2 - 1) / 12)
        scale = np.float32(1 / (deviation * np.sqrt(inputs)))
        node = helper.make_node(
            "MatMulNBits",
            [f"x{place}", f"codes{place}", f"scales{place}"],
            [f"x{place + 1}"],
            domain="com.microsoft",
            K=inputs,
            N=outputs,
            bits=self.bits,
            block_size=BLOCK,
            accuracy_level=4,
        )
        scales = np.full(outputs * blocks, scale, np.float32)
        middle = np.float32(levels // 2)

        def apply(x: Floats) -> Floats:
            matrix = codes.reshape(outputs, -1)[:, :inputs].astype(np.float32) - middle
            product: Floats = scale * (x @ matrix.T)
            return product

        return Piece([node], _tensors(place, codes=packed, scales=scales), apply)


@dataclass(frozen=True)
class DynamicInt8:
    """What `quantize_dynamic` writes with int8 weights, which have zero in their middle."""

    columns: bool = False
    """A scale for each column, not one for the matrix, which is the tool's default and faster."""
    isa: None = None
    noise: float = 0.02
    exact: float = 0.02

    @property
    def name(self) -> str:
        """One name for each kind of scales."""
        return "int8-columns" if self.columns else "int8"

    def piece(self, rng: np.random.Generator, inputs: int, outputs: int, place: int) -> Piece:
        """Return the five nodes that ONNX Runtime fuses to DynamicQuantizeMatMul."""
        weight = rng.integers(-127, 128, (inputs, outputs), np.int8)
        scale = np.float32(1 / (np.sqrt((255**2 - 1) / 12) * np.sqrt(inputs)))
        code, step, zero, product, cast, both = (
            f"{name}{place}" for name in ("code", "step", "zero", "product", "cast", "both")
        )
        factors = [code, f"weight{place}", zero, f"middle{place}"]
        nodes = [
            helper.make_node("DynamicQuantizeLinear", [f"x{place}"], [code, step, zero]),
            helper.make_node("Mul", [step, f"scales{place}"], [both]),
            helper.make_node("MatMulInteger", factors, [product]),
            helper.make_node("Cast", [product], [cast], to=TensorProto.FLOAT),
            helper.make_node("Mul", [cast, both], [f"x{place + 1}"]),
        ]
        shape = (outputs,) if self.columns else ()
        tensors = _tensors(
            place,
            weight=weight,
            scales=np.full(shape, scale, np.float32),
            middle=np.zeros(shape, np.int8),
        )
        return Piece(nodes, tensors, lambda x: scale * (x @ weight.astype(np.float32)))


@dataclass(frozen=True)
class Float32:
    """MatMul."""

    name: str = "fp32"
    isa: None = None
    noise: float = 1e-5
    exact: float = 1e-5

    def piece(self, rng: np.random.Generator, inputs: int, outputs: int, place: int) -> Piece:
        """Return a product with uniform weights."""
        weight = (2 * rng.random((inputs, outputs), np.float32) - 1) * np.float32(
            np.sqrt(3 / inputs)
        )
        node = helper.make_node("MatMul", [f"x{place}", f"weight{place}"], [f"x{place + 1}"])
        return Piece([node], _tensors(place, weight=weight), lambda x: x @ weight)


def _tensors(place: int, **arrays: npt.NDArray[Any]) -> list[TensorProto]:
    return [numpy_helper.from_array(value, f"{name}{place}") for name, value in arrays.items()]


def _rows_to_int8(x: Floats) -> tuple[Floats, Floats]:
    """Return codes and step of each row, rounded as docs/operators.md says."""
    largest = np.maximum(np.abs(x).max(axis=1, keepdims=True), np.float32(1e-30))
    return np.rint(x * (np.float32(127) / largest)), largest / np.float32(127)


PEERS: dict[str, Contender] = {
    peer.name: peer
    for peer in (NBits(4), NBits(2), DynamicInt8(), DynamicInt8(columns=True), Float32())
}
"""What ONNX Runtime ships, by name."""
