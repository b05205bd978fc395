"""Chains of products in ONNX Runtime: each one's output is the next one's input.

A run call's own cost is spread over many nodes, and no node finds its weights where the one before
left them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper

from onnxlr.runtime.library import register_ops
from tools.operator_contenders import Contender, Floats, Piece

__all__ = ["Chain", "WrongResultError", "build", "forced", "model_of", "open_session"]


class WrongResultError(Exception):
    """Something computes another product than it should: its time means nothing."""


@dataclass
class Chain:
    """A session of `nodes` products from `x0` to `x{nodes}`, and what some rows of it must be."""

    session: Any
    nodes: int
    data: Floats
    """Rows to run, the most that are wanted."""
    sample: list[int]
    """Rows whose outputs are known."""
    expected: Floats
    """Their outputs."""
    tolerance: float
    """Largest relative L2 distance of these rows."""

    def runner(self, rows: int) -> Callable[[object], None]:
        """Check the first `rows` rows, and return what runs them without copying anything.

        Raises
        ------
        WrongResultError
            If an output is wrong.
        """
        source = self.data[:rows].copy()
        target = np.full((rows, *self.expected.shape[1:]), np.nan, np.float32)
        # The binding does not keep the values alive that it writes to, nor they their arrays.
        kept = [ort.OrtValue.ortvalue_from_numpy(array) for array in (source, target)]
        binding = self.session.io_binding()
        binding.bind_ortvalue_input("x0", kept[0])
        binding.bind_ortvalue_output(f"x{self.nodes}", kept[1])
        self.session.run_with_iobinding(binding)
        self.check(kept[1].numpy())

        def run(_: object = None, *, _kept: object = (source, target, kept)) -> None:
            self.session.run_with_iobinding(binding)

        return run

    def check(self, found: Floats) -> None:
        """Compare the outputs of as many rows as there are with what is known.

        Raises
        ------
        WrongResultError
            If one is wrong.
        """
        known = [place for place, row in enumerate(self.sample) if row < len(found)]
        expected = self.expected[known].astype(np.float64)
        # Of all rows together: where they share a range, long chains leave little of the smallest.
        distance = np.linalg.norm(found[[self.sample[k] for k in known]] - expected)
        error = distance / np.linalg.norm(expected)
        if not (error <= self.tolerance and np.isfinite(found).all()):
            raise WrongResultError(
                f"{self.nodes} products of {len(found)} rows are {error:.2g} off (relative L2);"
                f" expected at most {self.tolerance:.2g} and no infinities"
            )


def build(
    contender: Contender, shape: tuple[int, int], nodes: int, data: Floats, threads: int = 1
) -> Chain:
    """Return a chain of `nodes` products, from inputs to outputs and back in turn.

    Parameters
    ----------
    contender
        What multiplies.
    shape
        `(inputs, outputs)` of the products at even places; those at odd places go back.
    nodes
        Products.
    data
        Rows `(rows, inputs)`; the first, the last and some between are computed here as well.
    threads
        Of the session.
    """
    rng = np.random.default_rng(0)
    sample = sorted({0, len(data) - 1, *(k for k in (3, 7, 31, 127) if k < len(data))})
    expected, pieces = data[sample], []
    for place in range(nodes):
        inputs, outputs = shape if place % 2 == 0 else shape[::-1]
        pieces.append(contender.piece(rng, inputs, outputs, place))
        expected = pieces[-1].apply(expected)
    model = model_of(pieces, data.shape[1:], expected.shape[1:])
    session = open_session(model, contender.isa, threads)
    # What the products round away adds up like a random walk.
    allowed = contender.exact if nodes == 1 else contender.noise * nodes**0.5
    return Chain(session, nodes, data, sample, expected, allowed)


def model_of(pieces: Sequence[Piece], source: Sequence[int], target: Sequence[int]) -> ModelProto:
    """Return the model of all pieces in turn, for any number of rows of these shapes."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", *shape])
        for name, shape in (("x0", source), (f"x{len(pieces)}", target))
    ]
    graph = helper.make_graph(
        [node for piece in pieces for node in piece.nodes],
        "chain",
        ends[:1],
        ends[1:],
        [tensor for piece in pieces for tensor in piece.tensors],
    )
    domains = {"": 17, "com.microsoft": 1, "onnxlr": 1}
    opset = [helper.make_opsetid(name, version) for name, version in domains.items()]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


@contextmanager
def forced(isa: str) -> Iterator[None]:
    """Let kernels that are made within be those of one instruction set."""
    before = os.environ.get("ONNXLR_ISA")
    os.environ["ONNXLR_ISA"] = isa
    try:
        yield
    finally:
        if before is None:
            del os.environ["ONNXLR_ISA"]
        else:
            os.environ["ONNXLR_ISA"] = before


def open_session(
    model: ModelProto, isa: str | None = None, threads: int = 1, optimized: str = ""
) -> Any:
    """Return a session of the model, with our kernels of one instruction set if it is named.

    Parameters
    ----------
    model
        The model.
    isa
        What ONNXLR_ISA is to be while the session is made; no op library where it is None.
    threads
        That an operator may use.
    optimized
        A file for the model as ONNX Runtime runs it, if given.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.optimized_model_filepath = optimized
    providers = ["CPUExecutionProvider"]
    if isa is None:
        return ort.InferenceSession(model.SerializeToString(), options, providers=providers)
    register_ops(options)
    with forced(isa):
        return ort.InferenceSession(model.SerializeToString(), options, providers=providers)
