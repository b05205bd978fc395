"""Flags that commands share: dataclasses, which cyclopts flattens, and the methods' own options."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, make_dataclass
from functools import reduce
from inspect import getdoc
from itertools import takewhile
from operator import or_
from pathlib import Path
from textwrap import dedent, indent
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from cyclopts import Parameter

from onnxlr.calibration import HOLDOUT
from onnxlr.choices import (
    Activations,
    Allocation,
    AnyMethod,
    DataName,
    FormatName,
    GoalName,
    GroupSize,
    MetricName,
    RoundingName,
    SolverName,
    TargetName,
    one_of,
)
from onnxlr.methods import METHODS, option_names
from onnxlr.methods.method import choices_of

__all__ = [
    "ANYTHING",
    "AS_USUAL",
    "FLAT",
    "NOTHING",
    "Fitting",
    "Json",
    "Known",
    "MethodName",
    "Patterns",
    "Quiet",
    "Seed",
    "Switch",
    "Threads",
    "Wanted",
    "files_among",
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


def _whole_or_text(_: object, tokens: Sequence[Any]) -> int | str:
    """Read a whole number where it is one; the method judges any other text."""
    try:
        return int(tokens[0].value)
    except ValueError:
        return str(tokens[0].value)


WHOLE = Parameter(converter=_whole)
WHOLE_OR_TEXT = Parameter(converter=_whole_or_text)
FLAT = Parameter(name="*")
Seed = Annotated[int, WHOLE]
Quiet = Annotated[
    bool,
    Parameter(
        ["--quiet", "-q"],
        negative=(),
        help="Print nothing but warnings and errors, and JSON if it is asked for.",
    ),
]
Threads = Annotated[
    int | None,
    Parameter(
        converter=_whole,
        help="Threads that models run on, where they are observed or compared; one for each core "
        "if not given. Times are measured on one thread whatever this is.",
    ),
]
MethodName = Annotated[
    AnyMethod | None,
    Parameter(
        help="auto: for each layer what measurements say is best, which is done if nothing else is "
        f"asked; or what approximates every layer: {', '.join(METHODS)} (svd, if any of the "
        "options below is given without a method)."
    ),
]


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

    format: FormatName | None = None
    group_size: Annotated[GroupSize | None, WHOLE] = None
    rounding: RoundingName | None = None
    activations: Activations | None = None
    target: TargetName = "onnx"
    metric: MetricName | None = None
    solver: SolverName | None = None
    allocate: Allocation = "uniform"
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

    calibration: DataName | None = None
    holdout: float | DataName = HOLDOUT
    mask: str | None = None
    statistics: Path | None = None
    importance: Path | None = None

    @property
    def files(self) -> list[Path]:
        """Files and folders that are read."""
        return files_among(self.calibration, self.statistics, self.importance, self.holdout)


NOTHING = Known()
"""Known where no flag is given."""


@dataclass(frozen=True)
class Wanted:
    """What method auto is to reach, and how layers are fitted whatever the method.

    Attributes
    ----------
    goal
        What is to be small, for method auto: size, latency, or balanced (both), if not given.
    max_drop
        What outputs may lose on held-out calibration data, for method auto: cosine=0.01 if nothing
        is asked; cosine, relout, top1 or module:function, a score of a model's path. Repeatable.
    max_size
        Fraction of the original's size that the result may have, for method auto; without
        --max-drop the best outputs within it are sought.
    max_latency
        Fraction of the original's time, on one thread, for method auto.
    cache
        Folder that fits of layers, and what method auto measures, are kept in and taken from; a run
        that was interrupted goes on from it. It can be deleted at any time.
    stock
        Compare with what ONNX Runtime's own tools make, for method auto, and hand that out where it
        is better.
    jobs
        Layers that are fitted side by side, each by a process with one thread; one a processor if
        not given, for small models of a single method none. The result is always the same.
    memory
        Memory that all processes may take while layers are fitted, such as 4G, as far as can be
        foreseen; half of what is free if not given. One layer is fitted in any case.
    """

    goal: GoalName | None = None
    max_drop: Patterns = ()
    max_size: float | None = None
    max_latency: float | None = None
    cache: Path | None = None
    stock: bool = True
    jobs: Annotated[int | None, WHOLE] = None
    memory: str | None = None


ANYTHING = Wanted()
"""Wanted where no flag is given."""


def with_method_flags(function: Function) -> Function:
    """Give a command's parameter `flags` one flag for each option of each method.

    An option that several methods have is one flag. It takes what any of them takes, and its help
    is what each says of it, the general before what begins with `Of` and names methods.
    """
    types: dict[str, set[Any]] = {}
    choices: dict[str, list[str]] = {}
    texts: dict[str, list[str]] = {}
    for method in METHODS.values():
        hints = get_type_hints(method.options)
        for name in option_names(method.options):
            types.setdefault(name, set()).update(get_args(hints[name]) or (hints[name],))
            choices.setdefault(name, []).extend(choices_of(method.options).get(name, ()))
            text = _documentation(method.options, name)
            if text and text not in texts.setdefault(name, []):
                texts[name].append(text)
    lines = ["Options of the methods.", "", "Attributes", "----------"]
    for name in types:
        said = sorted(texts.get(name, ()), key=lambda text: text.startswith("Of "))
        lines += [name, indent("\n".join(said), "    ")]
    members = [
        (name, _flag(kinds, choices[name]), field(default=None)) for name, kinds in types.items()
    ]
    kind = make_dataclass("MethodFlags", members)
    # cyclopts opens up classes of any module but the standard library's, which this would count to.
    kind.__module__, kind.__doc__ = __name__, "\n".join(lines)
    function.__annotations__["flags"] = Annotated[kind, Parameter(name="*")]
    return function


def _documentation(options: type[Any], name: str) -> str:
    """Return what a class says of an attribute, or the nearest of its bases that says something."""
    for kind in options.__mro__:
        text = getdoc(kind) if "__doc__" in vars(kind) else None
        attributes = (text or "").partition("Attributes\n----------\n")[2].split("\n")
        for position, line in enumerate(attributes):
            if name in line.split(", ") and not line.startswith(" "):
                rest = attributes[position + 1 :]
                said = takewhile(lambda text: not text or text.startswith(" "), rest)
                return dedent("\n".join(said)).strip()
    return ""


def _flag(kinds: set[Any], choices: Sequence[str]) -> Any:
    """Return the type of a flag that takes values of any of some types, some of them known."""
    if choices:
        kinds = {one_of(choices), *(kinds - {str})}
    hint = reduce(or_, sorted(kinds, key=str))
    if int not in kinds:
        return hint
    return Annotated[hint, WHOLE_OR_TEXT if str in kinds else WHOLE]


def given(flags: Any) -> dict[str, Any]:
    """Return the flags of the methods that were given."""
    return {} if flags is None else {k: v for k, v in vars(flags).items() if v is not None}


def files_among(*sources: object) -> list[Path]:
    """Return those sources that are files or folders."""
    texts = [str(source) for source in sources if isinstance(source, str | Path)]
    # Path.exists raises for names that are too long
    return [Path(text) for text in texts if os.path.exists(text)]  # noqa: PTH110
