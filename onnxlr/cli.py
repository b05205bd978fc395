"""The command line: parsing and printing; every command is one call of the API."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cyclopts import App, Parameter

from onnxlr import pipeline
from onnxlr.calibration import HOLDOUT
from onnxlr.console import (
    explain,
    heed_signals,
    out,
    print_json,
    progress_bars,
    publish,
    show_warning,
)
from onnxlr.errors import ExitCode, GoalNotMetError, OutputError, VerificationError
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
    Seed,
    Switch,
    Wanted,
    given,
    with_method_flags,
)
from onnxlr.methods import METHODS
from onnxlr.model.saving import check_output, write_text
from onnxlr.planning.asking import AUTO, Aims, method_of
from onnxlr.reporting import (
    print_findings,
    print_inspection,
    print_ops,
    print_plan,
    print_report,
    print_rewrite,
    print_statistics,
    shown,
    summarise_statistics,
    to_document,
    tolerate_encodings,
)
from onnxlr.runtime import describe_ops
from onnxlr.sweep_command import sweep
from onnxlr.training_commands import COMMANDS
from onnxlr.verification import DEFAULT_TOLERANCE
from onnxlr.version import VERSION

__all__ = ["main"]

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
def observe(
    model: Path,
    *,
    calibration: str,
    output: Annotated[Path, Parameter(["--output", "-o"])],
    holdout: float | str = HOLDOUT,
    mask: str | None = None,
    as_json: Json = False,
) -> None:
    """Run a model on calibration data and save what its layers' inputs are like.

    Parameters
    ----------
    model
        The ONNX model.
    calibration
        Inputs like those the model will meet: .npz, .npy, a folder of them, or module:function.
    output
        File to write the statistics to (.npz), for the --statistics of plan and rewrite.
    holdout
        Fraction of the runs to keep apart, to judge by; or data of its own.
    mask
        Input that is 0 where positions do not count, such as attention_mask.
    as_json
        Print JSON (schema onnxlr.observation/1) instead of tables.
    """
    check_output(output, model, *_files(calibration, holdout))
    with progress_bars() as progress:
        found = pipeline.observe(
            model, calibration, output, holdout=holdout, mask=mask, progress=progress
        )
    if as_json:
        print_json(to_document("observation", summarise_statistics(found)))
    else:
        print_statistics(out, found)
        out.print(f"[green]Wrote[/] {shown(str(output))}")


@app.command
@with_method_flags
def plan(
    model: Path,
    *,
    output: Annotated[Path | None, Parameter(["--output", "-o"])] = None,
    method: MethodName = None,
    flags: Any = None,
    layers: Patterns = (),
    skip: Patterns = (),
    wanted: Annotated[Wanted, FLAT] = ANYTHING,
    fitting: Annotated[Fitting, FLAT] = AS_USUAL,
    known: Annotated[Known, FLAT] = NOTHING,
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
        auto, or one of those that docs/methods.md describes.
    layers
        Shell pattern of layers to rewrite, as inspect names them; all if not given. Repeatable.
    skip
        Shell pattern of layers to leave alone. Repeatable.
    seed
        Seed of methods that draw random numbers.
    as_json
        Print the plan itself instead of a table.
    """
    if output is not None:
        check_output(output, model, *_known_files(known))
    with progress_bars() as progress:
        made = pipeline.plan(
            model,
            method=method,
            layers=layers,
            skip=skip,
            **vars(wanted),
            **vars(fitting),
            **vars(known),
            seed=seed,
            progress=progress,
            **given(flags),
        )
    if output is not None:
        write_text(output, made.dumps() + "\n")
    if as_json or output is None:
        out.write(made.dumps() + "\n")
    else:
        print_plan(out, made)
        out.print(f"[green]Wrote[/] {shown(str(output))}")


@app.command
@with_method_flags
def rewrite(
    model: Path,
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
    data: str | None = None,
    seed: Seed = 0,
    require_change: Switch = False,
    keep: Switch = False,
    report: Path | None = None,
    as_json: Json = False,
) -> None:
    """Rewrite a model, prove that its outputs agree with the original's, and save it.

    Without a method, each layer becomes what measurements say is best for the goal. A single method
    without a budget gives each layer the least rank whose relative error is at most 0.05.

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
        File to write the result to as JSON (schema onnxlr.rewrite/1).
    as_json
        Print that JSON instead of tables.
    """
    _check_outputs(output, report, model, plan, data, known)
    if not as_json:
        what = f"plan {plan}" if plan else _budget(method, flags, fitting, wanted, known)
        held_to = f"; tolerance {tolerance}" if tolerance else ""
        out.print(f"[dim]{shown(what + held_to)}[/]")
    try:
        with progress_bars() as progress:
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
    except GoalNotMetError as error:
        if error.result is not None:
            publish(to_document("findings", error.result), report, as_json)
            if not as_json:
                print_findings(out, error.result)
        raise
    except VerificationError as error:
        publish(to_document("rewrite", error.result), report, as_json)
        if not as_json and error.result is not None:
            print_rewrite(out, error.result)
        raise
    publish(to_document("rewrite", result), report, as_json)
    if not as_json:
        print_rewrite(out, result)


def _check_outputs(
    output: Path | None,
    report: Path | None,
    model: Path,
    plan: Path | None,
    data: str | None,
    known: Known,
) -> None:
    """Refuse to write over anything that is read, or to write two things to one place."""
    read = (*_files(data), *_known_files(known))
    for path in (output, report):
        if path is not None:
            check_output(path, model, plan, *read)
    if report is not None:
        written = output if output is not None else model.with_suffix(".onnxlr.onnx")
        if report.resolve() == written.resolve():
            raise OutputError(f"{report}: is both the report and the model to write")


def _known_files(known: Known) -> list[Path]:
    return _files(known.calibration, known.statistics, known.importance, known.holdout)


def _files(*sources: object) -> list[Path]:
    """Return those sources that are files or folders."""
    return [Path(s) for s in sources if isinstance(s, str | Path) and _exists(str(s))]


def _exists(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110  (Path.exists raises for names that are too long)


def _budget(method: str | None, flags: Any, fitting: Fitting, wanted: Wanted, known: Known) -> str:
    options = given(flags)
    method = method_of(method, options, vars(fitting), known.importance is not None)
    if method == AUTO:
        return f"{AUTO}: {Aims(**vars(wanted)).parse().words}"
    budget = [f"{name} {value}" for name, value in options.items()]
    if not budget and method in METHODS:
        usual = str(METHODS[method].options())
        budget = [usual] if usual else []
    if not budget:
        return method
    where = "for all layers together" if fitting.allocate == "global" else "per layer"
    return f"{method}, {', '.join(budget)} {where}"


@app.command
def verify(
    original: Path,
    rewritten: Path,
    *,
    data: str | None = None,
    tolerance: str = DEFAULT_TOLERANCE,
    known: Annotated[Known, FLAT] = NOTHING,
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
            original,
            rewritten,
            data=data,
            tolerance=tolerance,
            **vars(known),
            seed=seed,
            progress=progress,
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


@app.command
def ops(*, as_json: Json = False) -> None:
    """Tell where the op library is, what it runs on, or why there is none.

    Parameters
    ----------
    as_json
        Print JSON (schema onnxlr.ops/1) instead of text.
    """
    found = describe_ops()
    if as_json:
        print_json(to_document("ops", found))
    else:
        print_ops(out, found)


for _command in (sweep, *COMMANDS):
    app.command(_command)


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
