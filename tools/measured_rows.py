"""What the measuring tools make of a model, row by row: peers first, then onnxlr."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from onnxlr.planning.auto.quantizers import dynamic_int8, matmul_nbits
from tools.minilm import LINEARS, WORDS

__all__ = ["ROWS", "TERNARY_ROWS", "Again", "Ours", "Peer", "Row"]

MATRICES = ("MatMul", "Gemm")


@dataclass(frozen=True)
class Peer:
    """A file that another tool makes of the model's file."""

    name: str
    make: Callable[[Path, Path], None]


@dataclass(frozen=True)
class Ours:
    """A file that `onnxlr.rewrite` makes with these arguments."""

    name: str
    arguments: Mapping[str, Any]
    calibrated: bool = True


@dataclass(frozen=True)
class Again:
    """A file of the plan of a row before, for another target."""

    name: str
    of: str
    target: str
    calibrated: bool = True


Row = Peer | Ours | Again

PEERS: tuple[Row, ...] = (
    Peer("ORT dynamic int8", dynamic_int8),
    Peer("ORT dynamic int8, matrices only", partial(dynamic_int8, operators=MATRICES)),
    *(
        Peer(
            f"ORT MatMulNBits int4 b{block} {'symmetric' if symmetric else 'asymmetric'}",
            partial(matmul_nbits, block=block, symmetric=symmetric),
        )
        for block in (32, 128)
        for symmetric in (False, True)
    ),
)


def _svd(ratio: float, metric: str, allocate: str = "uniform", **more: Any) -> Ours:
    words = ["svd", metric, allocate, f"{ratio:g}", *(str(value) for value in more.values())]
    arguments = {"method": "svd", "ratio": ratio, **more}
    # Only what differs from the defaults: a row without calibration takes no metric.
    if metric == "frobenius":
        return Ours(" ".join(words), arguments, calibrated=False)
    return Ours(" ".join(words), {**arguments, "metric": metric, "allocate": allocate})


def _of_linears(row: Ours) -> Ours:
    return Ours(row.name, {**row.arguments, "layers": (LINEARS,)}, row.calibrated)


def _int4(name: str, group: int, **more: Any) -> Ours:
    arguments = {"method": "quantize", "format": "int4", "group_size": group, **more}
    return Ours(f"int4 b{group} {name}", arguments)


def _atoms(bits: float, name: str = "", **more: Any) -> Ours:
    words = f"sparse_quantized {bits:g} bits{name and f', {name}'}"
    return Ours(words, {"method": "sparse_quantized", "bits": bits, **more})


_SPARSE_INT4 = {"dictionary_bits": 0, "value_bits": 4, "tile": 16}
"""Atoms that are the inputs themselves: sparse whole numbers, with the same error feedback."""

_INT8 = {"method": "quantize", "format": "int8"}
_NBITS = {"rounding": "gptq", "target": "ort"}

_QUANTIZED = (
    Ours("int8 per column nearest", {"method": "quantize", "format": "int8"}, calibrated=False),
    Ours("int8 per column gptq", {"method": "quantize", "format": "int8", "rounding": "gptq"}),
    _int4("nearest", 32, rounding="nearest"),
    _int4("gptq", 32, rounding="gptq"),
    _int4("gptq", 128, rounding="gptq"),
    _int4("+ rank 32 int8", 32, correction_rank=32, correction_format="int8"),
)

_MINILM_LINEARS = (
    *(_svd(ratio, metric) for metric in ("frobenius", "activation") for ratio in (0.75, 0.5, 0.25)),
    *(_svd(ratio, "activation", "global") for ratio in (0.75, 0.5)),
    _svd(0.5, "activation", format="int8"),
    Ours("svd activation sequential 0.5", {"method": "svd", "ratio": 0.5, "sequential": True}),
    *_QUANTIZED,
    Ours(
        "int2 b32 gptq",
        {"method": "quantize", "format": "int2", "group_size": 32, "rounding": "gptq"},
    ),
    *(_atoms(bits) for bits in (2, 3, 3.3, 4)),
    _atoms(3.3, "sparse int4", **_SPARSE_INT4),
    _int4("gptq + rank 32 int8", 32, rounding="gptq", correction_rank=32),
    *(
        Ours(f"int8 per column, {data} data", {**_INT8, "activations": data})
        for data in ("dynamic_int8", "static_int8")
    ),
    *(
        _int4(f"gptq, MatMulNBits, {data} data", 32, **_NBITS, activations=data)
        for data in ("float", "dynamic_int8")
    ),
)

_MINILM: tuple[Row, ...] = (
    *PEERS,
    *(_of_linears(row) for row in _MINILM_LINEARS),
    Ours(
        "word table int8 rows",
        {"method": "quantize", "format": "int8", "layers": (WORDS,)},
        calibrated=False,
    ),
)

_OCR: tuple[Row, ...] = (
    *PEERS,
    *(
        _svd(ratio, metric, allocate)
        for metric, allocate in (
            ("frobenius", "uniform"),
            ("activation", "uniform"),
            ("activation", "global"),
        )
        for ratio in (0.9, 0.75, 0.6, 0.5)
    ),
    _svd(0.5, "activation", "global", format="int8"),
    *_QUANTIZED[:4],
    Ours("int8 per column, static_int8 data", {**_INT8, "activations": "static_int8"}),
)

ROWS: dict[str, tuple[Row, ...]] = {"minilm": _MINILM, "ocr": _OCR}
"""By task."""


def _ternary(method: str, name: str, **options: Any) -> tuple[Row, ...]:
    """Return a row of the op library's kernels, and one of its plan for ONNX Runtime alone."""
    arguments = {"method": method, "layers": (LINEARS,), "target": "onnxlr", **options}
    kernels = f"{name}, onnxlr"
    return Ours(kernels, arguments), Again(f"{name}, ort", kernels, "ort")


TERNARY_ROWS: tuple[Row, ...] = (
    *(peer for peer in PEERS if peer.name.endswith(("matrices only", " asymmetric"))),
    *(row for r in (2, 3, 4) for row in _ternary("ternary_svd", f"ternary_svd {r}", ratio=r)),
    *(row for count in (1, 2, 3) for row in _ternary("ternary", f"ternary ×{count}", terms=count)),
)
"""Of the encoder of MiniLM: ternary methods, with the number of trits a weight or of terms."""
