"""The command line: parsing and printing; every command is one call of the API."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import field, make_dataclass
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_type_hints

from cyclopts import App, Parameter

from onnxlr import pipeline
from onnxlr.console import explain, heed_signals, out, print_json, progress_bars, show_warning
from onnxlr.errors import ExitCode, OutputError, VerificationError
from onnxlr.methods import METHODS
from onnxlr.methods.budget import DEFAULT_MAX_ERROR
from onnxlr.model.saving import check_output, write_text
from onnxlr.reporting import (
    print_inspection,
    print_plan,
    print_report,
    print_rewrite,
    shown,
    to_document,
    tolerate_encodings,
)
from onnxlr.verification import DEFAULT_TOLERANCE
from onnxlr.version import VERSION

__all__ = ["main"]

Function = TypeVar("Function", bound=Callable[..., Any])
Json = Annotated[bool, Parameter("--json", negative=())]
Switch = Annotated[bool, Parameter(negative=())]
Patterns = Annotated[Sequence[str], Parameter(negative=())]


def _whole(_: object, tokens: Sequence[Any]) -> int:
    """Read a whole number; cyclopts would round 1.5."""
    return int(tokens[0].value)


WHOLE = Parameter(converter=_whole)
Seed = Annotated[int, WHOLE]

app = App(
    name="onnxlr",
    help="""Factorizes the weights of ONNX models, rewrites the graph and proves that the outputs
    agree.

    Exit codes: 0 done, 1 verification failed, 2 usage, 3 the model cannot be handled, 4 nothing was
    rewritten (with --require-change), 70 a defect of onnxlr, 130 interrupted.
    """,
    version=VERSION,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)


def _with_method_flags(function: Function) -> Function:
    """Give a command's parameter `flags` one flag for each option of each method."""
    flags: dict[str, Any] = {}
    documentation = ["Options of the methods.", "", "Attributes", "----------"]
    for method in METHODS.values():
        hints = get_type_hints(method.options)
        flags |= {name: _flag(hints[name]) for name in method.options.__dataclass_fields__}
        documentation.append((getdoc(method.options) or "").partition("----------\n")[2])
    members = [(name, hint, field(default=None)) for name, hint in flags.items()]
    kind = make_dataclass("MethodFlags", members)
    # cyclopts opens up classes of any module but the standard library's, which this would count to.
    kind.__module__, kind.__doc__ = __name__, "\n".join(documentation)
    function.__annotations__["flags"] = Annotated[kind, Parameter(name="*")]
    return function


def _flag(hint: Any) -> Any:
    return Annotated[hint, WHOLE] if int in get_args(hint) else hint


def _given(flags: Any) -> dict[str, Any]:
    return {} if flags is None else {k: v for k, v in vars(flags).items() if v is not None}


@app.command
def inspect(model: Path, *, as_json: Json = False) -> None:
    """List a model's linear layers, their ranks, and why some are left alone.

    Parameters
    ----------
    model
        The ONNX model.
    as_json
        Print JSON (schema onnxlr.inspection/1) instead of tables.
    """
    with progress_bars() as progress:
        inspection = pipeline.inspect(model, progress=progress)
    if as_json:
        print_json(to_document("inspection", inspection))
    else:
        print_inspection(out, inspection)


@app.command
@_with_method_flags
def plan(
    model: Path,
    *,
    output: Annotated[Path | None, Parameter(["--output", "-o"])] = None,
    method: str = "svd",
    flags: Any = None,
    layers: Patterns = (),
    skip: Patterns = (),
    format: str | None = None,
    activations: str = "float",
    target: str = "onnx",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Decide what becomes of each layer and write it as a plan that can be edited.

    Parameters
    ----------
    model
        The ONNX model.
    output
        File to write the plan to; printed if not given.
    method
        What approximates every layer.
    layers
        Shell pattern of layers to rewrite, as inspect names them; all if not given. Repeatable.
    skip
        Shell pattern of layers to leave alone. Repeatable.
    format
        How factors are kept: float32, float16, int8; the weight's own type if not given.
    activations
        float, or dynamic_int8: the runtime may round the data of int8 layers.
    target
        onnx: standard operators, any runtime.
    seed
        Seed of methods that draw random numbers.
    as_json
        Print the plan itself instead of a table.
    """
    if output is not None:
        check_output(output, model)
    with progress_bars() as progress:
        made = pipeline.plan(
            model,
            method=method,
            layers=layers,
            skip=skip,
            format=format,
            activations=activations,
            target=target,
            seed=seed,
            progress=progress,
            **_given(flags),
        )
    if output is not None:
        write_text(output, made.dumps() + "\n")
    if as_json or output is None:
        out.write(made.dumps() + "\n")
    else:
        print_plan(out, made)
        out.print(f"[green]Wrote[/] {shown(str(output))}")


@app.command
@_with_method_flags
def rewrite(
    model: Path,
    *,
    output: Annotated[Path | None, Parameter(["--output", "-o"])] = None,
    plan: Path | None = None,
    method: str = "svd",
    flags: Any = None,
    layers: Patterns = (),
    skip: Patterns = (),
    format: str | None = None,
    activations: str = "float",
    target: str = "onnx",
    tolerance: str = DEFAULT_TOLERANCE,
    data: str | None = None,
    seed: Seed = 0,
    require_change: Switch = False,
    keep: Switch = False,
    report: Path | None = None,
    as_json: Json = False,
) -> None:
    """Rewrite a model, prove that its outputs agree with the original's, and save it.

    Without a budget, each layer gets the least rank whose relative error is at most 0.05.

    Parameters
    ----------
    model
        The ONNX model; it is never modified.
    output
        File to write; MODEL.onnxlr.onnx beside the model if not given.
    plan
        A plan made by `onnxlr plan`, instead of --method and its options.
    method
        What approximates every layer.
    layers
        Shell pattern of layers to rewrite, as inspect names them; all if not given. Repeatable.
    skip
        Shell pattern of layers to leave alone. Repeatable.
    format
        How factors are kept: float32, float16, int8; the weight's own type if not given.
    activations
        float, or dynamic_int8: the runtime may round the data of int8 layers.
    target
        onnx: standard operators, any runtime.
    tolerance
        What outputs must hold, for instance "cosine>=0.99" (every float output) or
        "logits:top1>=0.98,max_abs<=0.1".
    data
        Inputs to compare on: .npz, .npy, a folder of them, or module:function; random if not given.
    seed
        Seed of methods and of random inputs.
    require_change
        Exit with 4 if no layer can be rewritten, instead of copying the model.
    keep
        Write the model even if verification fails (the exit code is still 1).
    report
        File to write the result to as JSON (schema onnxlr.rewrite/1).
    as_json
        Print that JSON instead of tables.
    """
    _check_outputs(output, report, model, plan, data)
    if not as_json:
        what = f"plan {plan}" if plan else _budget(method, flags)
        out.print(f"[dim]{shown(what)}; tolerance {shown(tolerance)}[/]")
    try:
        with progress_bars() as progress:
            result = pipeline.rewrite(
                model,
                output,
                plan=plan,
                method=method,
                layers=layers,
                skip=skip,
                format=format,
                activations=activations,
                target=target,
                tolerance=tolerance,
                data=data,
                seed=seed,
                require_change=require_change,
                keep=keep,
                progress=progress,
                **_given(flags),
            )
    except VerificationError as error:
        _publish(to_document("rewrite", error.result), report, as_json)
        if not as_json and error.result is not None:
            print_rewrite(out, error.result)
        raise
    _publish(to_document("rewrite", result), report, as_json)
    if not as_json:
        print_rewrite(out, result)


def _check_outputs(
    output: Path | None, report: Path | None, model: Path, plan: Path | None, data: str | None
) -> None:
    """Refuse to write over anything that is read, or to write two things to one place."""
    for path in (output, report):
        if path is not None:
            check_output(path, model, plan, Path(data) if data and _exists(data) else None)
    if report is not None:
        written = output if output is not None else model.with_suffix(".onnxlr.onnx")
        if report.resolve() == written.resolve():
            raise OutputError(f"{report}: is both the report and the model to write")


def _exists(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110  (Path.exists raises for names that are too long)


def _budget(method: str, flags: Any) -> str:
    if not METHODS.get(method, METHODS["svd"]).options.__dataclass_fields__:
        return method
    given = [f"{name} {value}" for name, value in _given(flags).items()]
    return f"{method}, {', '.join(given) or f'max_error {DEFAULT_MAX_ERROR}'} per layer"


def _publish(document: dict[str, Any], report: Path | None, as_json: bool) -> None:
    if report is not None:
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        # A path whose bytes are no UTF-8 is written as JSON's own escapes.
        write_text(report, text.encode("utf-8", "backslashreplace").decode())
    if as_json:
        print_json(document)


@app.command
def verify(
    original: Path,
    rewritten: Path,
    *,
    data: str | None = None,
    tolerance: str = DEFAULT_TOLERANCE,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Run two models on the same inputs and compare their outputs.

    Parameters
    ----------
    original
        The model to compare with.
    rewritten
        The model to judge.
    data
        Inputs: .npz, .npy, a folder of them, or module:function; random if not given.
    tolerance
        What outputs must hold, as in `rewrite`.
    seed
        Seed of random inputs.
    as_json
        Print JSON (schema onnxlr.report/1) instead of tables.
    """
    with progress_bars() as progress:
        report = pipeline.verify(
            original, rewritten, data=data, tolerance=tolerance, seed=seed, progress=progress
        )
    if as_json:
        print_json(to_document("report", report))
    else:
        print_report(out, report)
        if report.passed:
            out.print("[green]Verified[/]: every check passed.")
    if not report.passed:
        first, *others = report.failures
        more = f" (and {len(others)} more)" if others else ""
        raise VerificationError(f"{rewritten}: {first}{more}", report)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    tolerate_encodings()
    heed_signals()
    warnings.showwarning = show_warning
    try:
        app(tokens, exit_on_error=False, print_error=False)
        code = ExitCode.DONE
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (no traceback meets a user)
        code = explain(error, "--json" in tokens)
    sys.exit(code)
