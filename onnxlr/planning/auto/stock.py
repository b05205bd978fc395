"""What ONNX Runtime's own tools make of a model: the files that a plan has to be better than.

The tools take much memory, print, and write to the root logger: each of them works in a process of
its own. What it cannot do is a sentence in place of a file, never an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Protocol

import onnx
from onnx import TensorProto

from onnxlr.errors import RuntimeFailureError
from onnxlr.model.scopes import scopes
from onnxlr.planning.auto.quantizers import (
    QuantizerError,
    dynamic_int8,
    matmul_nbits,
    static_int8,
)
from onnxlr.runtime import ExecutionError, read_arrays, run_task
from onnxlr.runtime.execution import in_one_line
from onnxlr.runtime.single_thread import SingleThread
from onnxlr.scratch import is_full

__all__ = ["STOCK", "Make", "Making", "Stock", "files_of", "make", "make_stock"]


class Make(Protocol):
    """Writes `output`, quantised from `model`; may look at files of inputs."""

    def __call__(self, model: Path, output: Path, feeds: Sequence[str]) -> None:
        """Write the file, or raise what the tool raises."""


@dataclass(frozen=True)
class Stock:
    """A way to quantise models with ONNX Runtime's tools.

    Attributes
    ----------
    name
        What reports call it.
    make
        Writes the file, or raises what the tool raises.
    """

    name: str
    make: Make


STOCK: tuple[Stock, ...] = (
    Stock("dynamic int8", dynamic_int8),
    # A Conv whose data is rounded as it runs takes five to six times as long as one of floats.
    Stock("dynamic int8, no Conv", partial(dynamic_int8, operators=("MatMul", "Gather", "Gemm"))),
    Stock("MatMulNBits 4 bits, blocks of 32", partial(matmul_nbits, bits=4, block=32)),
    Stock("MatMulNBits 4 bits, blocks of 128", partial(matmul_nbits, bits=4, block=128)),
    Stock(
        "MatMulNBits 4 bits, blocks of 32, tables too",
        partial(matmul_nbits, bits=4, block=32, tables=True),
    ),
    Stock(
        "MatMulNBits 4 bits, blocks of 128, tables too",
        partial(matmul_nbits, bits=4, block=128, tables=True),
    ),
    Stock("MatMulNBits 8 bits, blocks of 128", partial(matmul_nbits, bits=8, block=128)),
    # Which of these is faster depends on the processor, and on some it is three times as fast.
    Stock("static int8 (QDQ), uint8 data", partial(static_int8, data="uint8")),
    Stock("static int8 (QDQ), int8 data", partial(static_int8, data="int8")),
)

_CODES = tuple(getattr(TensorProto, name) for name in ("INT8", "UINT8", "INT4", "UINT4"))
"""Types that numbers of quantised weights are stored in."""


@dataclass(frozen=True)
class Making:
    """A task: quantise a model, and try the result in ONNX Runtime.

    Attributes
    ----------
    stock
        Name of the option, one of `STOCK`.
    model, output
        The files.
    feeds
        Files of inputs, to calibrate on and to try the result on.
    """

    stock: str
    model: str
    output: str
    feeds: Sequence[str]
    function: ClassVar[str] = "onnxlr.planning.auto.stock:make"


def make_stock(
    model: Path,
    folder: Path,
    feeds: Sequence[str],
    isolate: bool = True,
    options: Sequence[Stock] = STOCK,
) -> list[tuple[str, Path | str]]:
    """Quantise a model in each way that ONNX Runtime's tools know.

    Parameters
    ----------
    model
        The model's file; external data is read, and becomes part of the files written unless they
        would be too big.
    folder
        Where the files go; there has to be such a folder.
    feeds
        `.npz` files of inputs: static quantisation takes the ranges of data from them, and what was
        made is tried on the first.
    isolate
        Whether to use a child process for each.
    options
        Which of `STOCK`.

    Returns
    -------
    list
        For each option its name, and the file, which ONNX Runtime can run; or, in one sentence, why
        there is none.
    """
    found: list[tuple[str, Path | str]] = []
    for option in options:
        output = folder / f"{re.sub('[^a-z0-9]+', '-', option.name.lower()).strip('-')}.onnx"
        task = Making(option.name, str(model), str(output), feeds)
        try:
            reason: str | None = run_task(task, option.name, isolate)["reason"]
        except RuntimeFailureError as error:
            reason = str(error).removeprefix(f"{option.name}: ")
        if reason is not None:
            for file in files_of(output):
                file.unlink()
        found.append((option.name, output if reason is None else reason))
    return found


def files_of(output: Path) -> list[Path]:
    """Return the files of a model that a tool made: where it is big, weights lie beside it."""
    return [f for f in (output, output.with_name(f"{output.name}.data")) if f.exists()]


def make(stock: str, model: str, output: str, feeds: Sequence[str]) -> dict[str, Any]:
    """Make one option's file as `Making` says; return `reason`, None if all is well."""
    (option,) = (option for option in STOCK if option.name == stock)
    try:
        option.make(Path(model), Path(output), feeds)
        _check(Path(model), Path(output), feeds)
    except QuantizerError as error:
        return {"reason": str(error)}
    except ExecutionError as error:
        return {"reason": f"what ONNX Runtime's tool makes of the model {error}"}
    except ImportError as error:
        return {"reason": _what_is_missing(error)}
    except Exception as error:
        if isinstance(error, OSError) and is_full(error):
            raise  # which says nothing of the tool
        return {
            "reason": f"ONNX Runtime's tool fails: {type(error).__name__}: {in_one_line(error)}"
        }
    return {"reason": None}


def _check(model: Path, output: Path, feeds: Sequence[str]) -> None:
    """Refuse a file in which nothing is quantised, or that does not run."""
    if _count_codes(output) <= _count_codes(model):
        raise QuantizerError("ONNX Runtime's tool finds nothing in the model that it can quantise")
    session = SingleThread(str(output))
    if feeds:
        session.run(read_arrays(Path(feeds[0])))


def _count_codes(file: Path) -> int:
    """Return the number of stored numbers of a few bits; scalars are zero points."""
    proto = onnx.load(file, load_external_data=False)
    tensors: list[TensorProto] = []
    for scope in scopes(proto):
        tensors += getattr(scope.graph, "initializer", ())
        tensors += [a.t for n in scope.graph.node if n.op_type == "Constant" for a in n.attribute]
    return sum(
        prod(tensor.dims) for tensor in tensors if tensor.data_type in _CODES and tensor.dims
    )


def _what_is_missing(error: ImportError) -> str:
    name = (error.name or "").partition(".")[0]
    if name and name != "onnxruntime":
        package = name.replace("_", "-")
        return (
            f"ONNX Runtime's tool needs the package {package}, which is not installed "
            f"(pip install {package})"
        )
    return f"ONNX Runtime's tool cannot be imported: {in_one_line(error)}"
