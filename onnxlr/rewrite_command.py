"""`onnxlr rewrite`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from onnxlr import pipeline
from onnxlr.choices import DataName
from onnxlr.console import at_work, out, publish
from onnxlr.errors import OnnxlrWarning, OutputError, VerificationError
from onnxlr.flags import (
    ANYTHING,
    AS_USUAL,
    FLAT,
    NOTHING,
    Fitting,
    Json,
    Known,
    MethodName,
    Patterns,
    Quiet,
    Seed,
    Switch,
    Threads,
    Wanted,
    files_among,
    given,
    with_method_flags,
)
from onnxlr.methods import METHODS
from onnxlr.model import check_beside
from onnxlr.planning.asking import AUTO, Aims, method_of
from onnxlr.reporting import print_findings, print_rewrite, shown, to_document
from onnxlr.reporting.page import Origin, check_report

__all__ = ["rewrite"]


@with_method_flags
def rewrite(
    model: Path,
    /,
    *,
    output: Annotated[Path | None, Parameter(["--output", "-o"])] = None,
    plan: Path | None = None,
    method: MethodName = None,
    flags: Any = None,
    layers: Patterns = (),
    skip: Patterns = (),
    wanted: Annotated[Wanted, FLAT] = ANYTHING,
    fitting: Annotated[Fitting, FLAT] = AS_USUAL,
    known: Annotated[Known, FLAT] = NOTHING,
    tolerance: str | None = None,
    data: DataName | None = None,
    seed: Seed = 0,
    require_change: Switch = False,
    keep: Switch = False,
    report: Path | None = None,
    quiet: Quiet = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Rewrite a model, prove that its outputs agree with the original's, and save it.

    Without a method, each layer becomes what measurements say is best for the goal. A single method
    without a budget gives each layer the least rank whose relative error is at most 0.05.

    For example:

        onnxlr rewrite model.onnx --calibration train.npz --max-drop cosine=0.005
        onnxlr rewrite model.onnx -o small.onnx --ratio 0.5 --data test.npz
        onnxlr rewrite model.onnx --method quantize --format int8
        onnxlr rewrite model.onnx --plan plan.json --quiet --report report.html

    Parameters
    ----------
    model
        The ONNX model; it is never modified.
    output
        File to write; MODEL.onnxlr.onnx beside the model if not given.
    plan
        A plan made by `onnxlr plan`, instead of --method and its options.
    method
        auto, or one of those that docs/methods.md describes.
    layers
        Shell pattern of layers to rewrite, as inspect names them; all if not given. Repeatable.
    skip
        Shell pattern of layers to leave alone. Repeatable.
    tolerance
        What outputs must hold, for instance "cosine>=0.99" (every float output) or
        "logits:top1>=0.98,max_abs<=0.1"; cosine>=0.99 if not given, or what --max-drop says.
    data
        Inputs to compare on: .npz, .npy, a folder of them, or module:function; random if not given.
    seed
        Seed of methods and of random inputs.
    require_change
        Exit with 4 if no layer can be rewritten, instead of copying the model.
    keep
        Write the model even if verification fails (the exit code is still 1).
    report
        File to write the result to: .json (schema onnxlr.rewrite/1), or .html for a page to read,
        which needs jinja2: pip install 'onnxlr[report]'.
    as_json
        Print that JSON instead of tables.
    """
    origin = Origin(model, _options_given(rewrite, locals()))
    _check_outputs(output, report, model, plan, data, known)
    asked = f"plan {plan}" if plan else _budget(method, flags, fitting, wanted, known)
    held_to = f"; tolerance {tolerance}" if tolerance else ""
    heading = f"[dim]{shown(asked + held_to)}[/]"
    try:
        with at_work(quiet, threads) as progress:
            result = pipeline.rewrite(
                model,
                output,
                plan=plan,
                method=method,
                layers=layers,
                skip=skip,
                **vars(wanted),
                **vars(fitting),
                **vars(known),
                tolerance=tolerance,
                data=data,
                seed=seed,
                require_change=require_change,
                keep=keep,
                progress=progress,
                **given(flags),
            )
    except VerificationError as error:
        if error.result is not None:
            _tell(error.result, heading, report, as_json, origin)
        raise
    _tell(result, heading, report, as_json, origin)
    if quiet and result.report is None:
        warnings.warn(
            f"{result.output}: nothing was rewritten, it is a copy (--require-change refuses that)",
            OnnxlrWarning,
            stacklevel=2,
        )


def _tell(found: Any, heading: str, report: Path | None, as_json: bool, origin: Origin) -> None:
    """Write and print what became of a model, or what came nearest to a goal that is not met."""
    is_model = isinstance(found, pipeline.RewriteResult)
    publish(to_document("rewrite" if is_model else "findings", found), report, as_json, origin)
    if not as_json:
        out.print(heading)
        (print_rewrite if is_model else print_findings)(out, found)


def _check_outputs(
    output: Path | None,
    report: Path | None,
    model: Path,
    plan: Path | None,
    data: DataName | None,
    known: Known,
) -> None:
    """Refuse to write over anything that is read, or to write two things to one place."""
    read = (*files_among(data), *known.files)
    for path in (output, report):
        if path is not None:
            check_beside(path, model, plan, *read)
    if report is not None:
        written = output if output is not None else model.with_suffix(".onnxlr.onnx")
        if report.resolve() == written.resolve():
            raise OutputError(f"{report}: is both the report and the model to write")
        check_report(report)


def _budget(method: str | None, flags: Any, fitting: Fitting, wanted: Wanted, known: Known) -> str:
    options = given(flags)
    method = method_of(method, options, vars(fitting), known.importance is not None)
    if method == AUTO:
        return f"{AUTO}: {Aims(**vars(wanted)).parse().words}"
    budget = [f"{name} {value}" for name, value in options.items()]
    if not budget and method in METHODS:
        usual = str(METHODS[method].options())
        budget = [usual] if usual else []
    kept_as = [fitting.format] if fitting.format else []
    if not budget:
        return ", ".join([method, *kept_as])
    where = "for all layers together" if fitting.allocate == "global" else "per layer"
    return f"{', '.join([method, *kept_as, *budget])} {where}"


def _options_given(command: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that differ from what they are if not given, as one writes them.

    Parameters
    ----------
    command
        The function of a command.
    values
        Its arguments by name.
    """
    found: dict[str, str] = {}
    for name, parameter in signature(command).parameters.items():
        value = values[name]
        if is_dataclass(value):
            for one in fields(value):
                found |= _option(one.name, getattr(value, one.name), one.default)
        elif parameter.kind is parameter.KEYWORD_ONLY:
            found |= _option(name, value, parameter.default)
    return found


def _option(name: str, value: Any, default: Any) -> dict[str, str]:
    if value is None or value == default:
        return {}
    flag = name.removeprefix("as_").replace("_", "-")
    if isinstance(value, bool):
        return {f"--{'' if value else 'no-'}{flag}": ""}
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return {f"--{flag}": " ".join(map(str, value)) if several else str(value)}
