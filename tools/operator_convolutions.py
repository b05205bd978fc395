"""TernaryConv beside Conv and QLinearConv: chains of convolutions with the same ternary weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxlr.operators.packing import pack_kernel
from tools.operator_chains import Chain, model_of, open_session
from tools.operator_contenders import Floats, Piece
from tools.operator_timing import Bench, attempt

__all__ = ["SHAPES", "Kernel", "Window", "time_convolutions"]

NODES = 4
STEP = np.float32(4 / 127)
"""Of int8 data: four deviations, which nearly all of it lies within."""
NOISE = 0.03
"""Largest relative L2 distance of one convolution with int8 data from one with floats."""


@dataclass(frozen=True)
class Window:
    """Convolutions of stride 1 that keep the image's size, from channels to outputs and back."""

    side: int
    channels: int
    outputs: int
    image: int

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.side}x{self.side} {self.channels}-{self.outputs}, {self.image}²"


SHAPES = (
    Window(3, 64, 64, 56),
    Window(3, 128, 128, 28),
    Window(3, 256, 256, 14),
    Window(3, 512, 512, 7),
    Window(1, 64, 256, 56),
    Window(1, 256, 1024, 14),
)
"""Those of a ResNet-50."""


@dataclass(frozen=True)
class Kernel:
    """The ternary weight of one convolution, and how it moves."""

    ternary: npt.NDArray[np.int8]
    """(outputs, channels, side, side)."""
    scales: Floats
    """(outputs)."""

    @classmethod
    def draw(cls, rng: np.random.Generator, window: Window, place: int) -> Kernel:
        """Return a random one that leaves the size of the data as it was."""
        ends = (window.outputs, window.channels)
        outputs, channels = ends if place % 2 == 0 else ends[::-1]
        ternary = rng.integers(-1, 2, (outputs, channels, window.side, window.side), np.int8)
        spread = rng.uniform(0.5, 1.5, outputs) / np.sqrt(13 / 12)
        size = np.sqrt(1.5 / (channels * window.side**2))
        return cls(ternary, (spread * size).astype(np.float32))

    @property
    def dense(self) -> Floats:
        """The weight as floats."""
        return self.ternary * self.scales[:, None, None, None]

    @property
    def moves(self) -> dict[str, Any]:
        """Attributes that all operators have."""
        side = self.ternary.shape[-1]
        ones = [1, 1]
        return {
            "kernel_shape": [side, side],
            "pads": [side // 2] * 4,
            "strides": ones,
            "dilations": ones,
        }


def float_piece(kernel: Kernel, place: int) -> Piece:
    """Return a Conv."""
    weight = numpy_helper.from_array(kernel.dense, f"weight{place}")
    node = helper.make_node("Conv", [f"x{place}", weight.name], [f"x{place + 1}"], **kernel.moves)
    return _piece([node], [weight])


def ternary_piece(kernel: Kernel, place: int) -> Piece:
    """Return a TernaryConv, patches rounded to int8."""
    outputs, channels, *sides = kernel.ternary.shape
    inputs = channels * sides[0] * sides[1]
    arrays: dict[str, npt.NDArray[Any]] = {
        "codes": pack_kernel(kernel.ternary[None], 1),
        "scales": kernel.scales[None, None],
        "ones": np.ones(channels, np.float32),
        "zeros": np.zeros(outputs, np.float32),
    }
    tensors = [numpy_helper.from_array(value, f"{name}{place}") for name, value in arrays.items()]
    node = helper.make_node(
        "TernaryConv",
        [f"x{place}", *(tensor.name for tensor in tensors)],
        [f"x{place + 1}"],
        domain="onnxlr",
        K=inputs,
        N=outputs,
        group_size=inputs,
        terms=1,
        layout=1,
        accuracy_level=4,
        group=1,
        channels=channels,
        **kernel.moves,
    )
    return _piece([node], tensors)


def integer_piece(kernel: Kernel, place: int) -> Piece:
    """Return a QLinearConv; the first has its data rounded before it, the last turned back."""
    weight = numpy_helper.from_array(kernel.ternary, f"weight{place}")
    scales = numpy_helper.from_array(kernel.scales, f"scales{place}")
    zeros = numpy_helper.from_array(np.zeros(len(kernel.scales), np.int8), f"zeros{place}")
    step = numpy_helper.from_array(np.array(STEP), f"step{place}")
    middle = numpy_helper.from_array(np.array(128, np.uint8), f"middle{place}")
    data = [step.name, middle.name]
    factors = [f"u{place}", *data, weight.name, scales.name, zeros.name, *data]
    nodes = [helper.make_node("QLinearConv", factors, [f"u{place + 1}"], **kernel.moves)]
    if place == 0:
        nodes.insert(0, helper.make_node("QuantizeLinear", ["x0", *data], ["u0"]))
    if place == NODES - 1:
        ends = [f"u{place + 1}", *data], [f"x{place + 1}"]
        nodes.append(helper.make_node("DequantizeLinear", *ends))
    return _piece(nodes, [weight, scales, zeros, step, middle])


def _piece(nodes: list[NodeProto], tensors: list[TensorProto]) -> Piece:
    # What these compute is known from the chain of Conv.
    return Piece(nodes, tensors, lambda x: x)


PIECES = {"Conv": float_piece, "QLinearConv": integer_piece}


def time_convolutions(
    bench: Bench, isas: Sequence[str], windows: Sequence[Window] = SHAPES
) -> None:
    """Time chains of all windows, one image; TernaryConv with each of the instruction sets."""
    for window in windows:
        rng = np.random.default_rng(0)
        kernels = [Kernel.draw(rng, window, place) for place in range(NODES)]
        shape = (1, window.channels, window.image, window.image)
        data = np.random.default_rng(1).standard_normal(shape, np.float32)
        built = {}
        for name in (*PIECES, *isas):
            make = partial(_chain, name, kernels, data)
            if chain := attempt(name, make):
                built[name] = chain
        expected = built["Conv"].session.run(None, {"x0": data})[0]
        for chain in built.values():
            chain.expected = expected
        bench.time(window.name, built, 1, {isa: isa for isa in isas})


def _chain(name: str, kernels: Sequence[Kernel], data: Floats) -> Chain:
    piece = PIECES.get(name, ternary_piece)
    pieces = [piece(kernel, place) for place, kernel in enumerate(kernels)]
    model = model_of(pieces, data.shape[1:], (len(kernels[-1].scales), *data.shape[2:]))
    session = open_session(model, None if name in PIECES else name)
    return Chain(session, len(kernels), data, [0], data, NOISE * len(kernels) ** 0.5)
