"""Flags that commands share: dataclasses, which cyclopts flattens, and the methods' own options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, make_dataclass
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from cyclopts import Parameter

from onnxlr.calibration import HOLDOUT
from onnxlr.methods import METHODS, option_names

__all__ = [
    "AS_USUAL",
    "FLAT",
    "NOTHING",
    "Fitting",
    "Json",
    "Known",
    "MethodName",
    "Patterns",
    "Seed",
    "Switch",
    "given",
    "with_method_flags",
]

Function = TypeVar("Function", bound=Callable[..., Any])
Json = Annotated[bool, Parameter("--json", negative=())]
Switch = Annotated[bool, Parameter(negative=())]
Patterns = Annotated[Sequence[str], Parameter(negative=())]


def _whole(_: object, tokens: Sequence[Any]) -> int:
    """Read a whole number; cyclopts would round 1.5."""
    return int(tokens[0].value)


WHOLE = Parameter(converter=_whole)
FLAT = Parameter(name="*")
Seed = Annotated[int, WHOLE]
MethodName = Annotated[str, Parameter(help=f"What approximates every layer: {', '.join(METHODS)}.")]


@dataclass(frozen=True)
class Fitting:
    """How layers are fitted and kept, beside the method's own options.

    Attributes
    ----------
    format
        How factors are kept: float32, float16, int8, int4, int2, ternary; the weight's own type if
        not given. The ternary methods have no other than ternary.
    group_size
        Inputs that share a scale: 0 (all), 32, 64 or 128; if not given, 0 for int8, 32 for int4 and
        int2, 128 for ternary.
    rounding
        nearest, or gptq, which needs calibration; gptq for method ternary if not given.
    activations
        What the data of int8, int4, int2 and ternary layers is computed in: float; dynamic_int8,
        rounded as it comes; static_int8, rounded to ranges seen in calibration. If not given,
        dynamic_int8 for ternary layers that targets ort and onnxlr can write so, float for others.
    target
        onnx: standard operators, any runtime; ort: also ONNX Runtime's own operators; onnxlr: also
        those of the op library, for ternary numbers, which the model carries as functions so that
        it runs without the library.
    metric
        What error is measured in: frobenius, activation, fisher-rows, fisher, kfac; activation
        where there are statistics if not given.
    solver
        Of metric fisher: als, em, adam-sgd.
    allocate
        uniform: the budget holds for each layer; global: a ratio holds for all together.
    sequential
        Fit each layer behind those that were rewritten before it.
    bias_correction
        Correct the mean of outputs where held-out inputs say that it pays.
    """

    format: str | None = None
    group_size: Annotated[int | None, WHOLE] = None
    rounding: str | None = None
    activations: str | None = None
    target: str = "onnx"
    metric: str | None = None
    solver: str | None = None
    allocate: str = "uniform"
    sequential: Switch = False
    bias_correction: bool = True


AS_USUAL = Fitting()
"""Fitted as if no flag is given."""


@dataclass(frozen=True)
class Known:
    """Where knowledge of the layers comes from.

    Attributes
    ----------
    calibration
        Inputs like those the model will meet: .npz, .npy, a folder of them, or module:function.
    holdout
        Fraction of the calibration runs to judge by, or data of its own.
    mask
        Input that is 0 where positions do not count, such as attention_mask.
    statistics
        What `onnxlr observe` made; --calibration is then needed for --allocate global and
        --sequential only.
    importance
        .npz file with the importance of each entry under a weight's name.
    """

    calibration: str | None = None
    holdout: float | str = HOLDOUT
    mask: str | None = None
    statistics: Path | None = None
    importance: Path | None = None


NOTHING = Known()
"""Known where no flag is given."""


def with_method_flags(function: Function) -> Function:
    """Give a command's parameter `flags` one flag for each option of each method."""
    flags: dict[str, Any] = {}
    documentation = ["Options of the methods.", "", "Attributes", "----------"]
    for method in METHODS.values():
        hints = get_type_hints(method.options)
        flags |= {name: _flag(hints[name]) for name in option_names(method.options)}
        documentation += [_attributes(kind) for kind in reversed(method.options.__mro__)]
    members = [(name, hint, field(default=None)) for name, hint in flags.items()]
    kind = make_dataclass("MethodFlags", members)
    # cyclopts opens up classes of any module but the standard library's, which this would count to.
    kind.__module__, kind.__doc__ = __name__, "\n".join(documentation)
    function.__annotations__["flags"] = Annotated[kind, Parameter(name="*")]
    return function


def _attributes(kind: type) -> str:
    """Return what a class's own docstring says of its attributes."""
    text = getdoc(kind) if "__doc__" in vars(kind) else None
    return (text or "").partition("----------\n")[2]


def _flag(hint: Any) -> Any:
    return Annotated[hint, WHOLE] if int in get_args(hint) else hint


def given(flags: Any) -> dict[str, Any]:
    """Return the flags of the methods that were given."""
    return {} if flags is None else {k: v for k, v in vars(flags).items() if v is not None}
