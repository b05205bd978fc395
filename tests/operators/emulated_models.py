"""Models of one ternary node as files, for a program without Python, and what they should give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.operators.ternary_nodes import TernaryNode, conv_node, matmul_node

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """A model, a file with its input as plain float32 numbers, and the expected output."""

    model: Path
    input: Path
    shape: tuple[int, ...]
    expected: Array


def write_models(folder: Path) -> list[Case]:
    """Write models of both operators, at both levels, for one row and many."""
    matmul = matmul_node(173, 85, group_size=64, terms=2)
    matmul_float = matmul_node(173, 85, terms=2, level=0)
    conv = conv_node(12, 34, (3, 3), pads=(1, 1, 1, 1), strides=(2, 1), group=2, group_size=32)
    conv_float = conv_node(12, 34, (3,), level=0)
    wanted: list[tuple[str, TernaryNode, tuple[int, ...]]] = [
        ("matmul_row", matmul, (1, 173)),
        ("matmul_rows", matmul, (2, 9, 173)),
        ("matmul_none", matmul, (0, 173)),
        ("matmul_float", matmul_float, (11, 173)),
        ("conv", conv, (2, 12, 9, 7)),
        ("conv_float", conv_float, (1, 12, 19)),
    ]
    return [_write(folder, *each) for each in wanted]


def _write(folder: Path, name: str, node: TernaryNode, shape: tuple[int, ...]) -> Case:
    model, numbers = folder / f"{name}.onnx", folder / f"{name}.bin"
    x = np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)
    model.write_bytes(node.model())
    numbers.write_bytes(x.tobytes())
    return Case(model, numbers, shape, node.expected(x))


def compare(case: Case, output: Path) -> str:
    """Say how far an output file is off; empty if it is within float32's rounding."""
    found = np.fromfile(output, np.float32)
    expected = case.expected.ravel()
    if found.size != expected.size:
        return f"{found.size} numbers, expected {expected.size}"
    if not expected.size:
        return ""
    bound = 1e-5 * max(1.0, float(np.abs(expected).max()))
    error = float(np.abs(found - expected).max())
    return "" if error <= bound else f"the largest error is {error:.3g}, expected up to {bound:.3g}"
