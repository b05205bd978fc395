"""The command line: parsing and printing; every command is one call of the API."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter

from onnxlr import pipeline
from onnxlr.bench_command import bench
from onnxlr.calibration import HOLDOUT
from onnxlr.choices import DataName
from onnxlr.console import at_work, explain, heed_signals, out, print_json, show_warning
from onnxlr.errors import ExitCode, VerificationError
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
    Threads,
    Wanted,
    files_among,
    given,
    with_method_flags,
)
from onnxlr.misuse import misused
from onnxlr.model import check_beside
from onnxlr.model.saving import write_text
from onnxlr.reporting import (
    print_inspection,
    print_ops,
    print_plan,
    print_report,
    print_statistics,
    shown,
    summarise_statistics,
    to_document,
    tolerate_encodings,
)
from onnxlr.rewrite_command import rewrite
from onnxlr.runtime import describe_ops
from onnxlr.sweep_command import sweep
from onnxlr.training_commands import COMMANDS
from onnxlr.verification import DEFAULT_TOLERANCE
from onnxlr.version import VERSION

__all__ = ["app", "main"]

app = App(
    name="onnxlr",
    help="""Factorizes the weights of ONNX models, rewrites the graph and proves that the outputs
    agree.

    Exit codes: 0 done, 1 verification failed, 2 usage, 3 the model cannot be handled, 4 nothing was
    rewritten (with --require-change), 70 a defect of onnxlr, 130 interrupted.
    """,
    version=VERSION,
    console=out,
    help_format="markdown",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(show_choices=False),  # help says what each is
)


@app.command
def inspect(model: Path, /, *, quiet: Quiet = False, as_json: Json = False) -> None:
    """List a model's linear layers, their ranks, and why some are left alone.

    For example:

        onnxlr inspect model.onnx
        onnxlr inspect model.onnx --json > layers.json

    Parameters
    ----------
    model
        The ONNX model.
    as_json
        Print JSON (schema onnxlr.inspection/1) instead of tables.
    """
    with at_work(quiet) as progress:
        inspection = pipeline.inspect(model, progress=progress)
    if as_json:
        print_json(to_document("inspection", inspection))
    else:
        print_inspection(out, inspection)


@app.command
def observe(
    model: Path,
    /,
    *,
    calibration: DataName,
    output: Annotated[Path, Parameter(["--output", "-o"])],
    holdout: float | DataName = HOLDOUT,
    mask: str | None = None,
    quiet: Quiet = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Run a model on calibration data and save what its layers' inputs are like.

    For example:

        onnxlr observe model.onnx --calibration train.npz -o statistics.npz
        onnxlr observe model.onnx --calibration my:train --holdout my:test -o s.npz
        onnxlr observe bert.onnx --calibration texts/ -o s.npz --mask attention_mask

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
    check_beside(output, model, *files_among(calibration, holdout))
    with at_work(quiet, threads) as progress:
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
    /,
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
    quiet: Quiet = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Decide what becomes of each layer and write it as a plan that can be edited.

    For example:

        onnxlr plan model.onnx --energy 0.95 -o plan.json
        onnxlr plan model.onnx --calibration train.npz --goal size -o plan.json
        onnxlr plan model.onnx --method cp --ratio 0.5 --layers '*conv*'

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
        check_beside(output, model, *known.files)
    with at_work(quiet, threads) as progress:
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
        out.documents += 1
        out.write(made.dumps() + "\n")
    else:
        print_plan(out, made)
        out.print(f"[green]Wrote[/] {shown(str(output))}")


@app.command
def verify(
    original: Path,
    rewritten: Path,
    /,
    *,
    data: DataName | None = None,
    tolerance: str = DEFAULT_TOLERANCE,
    known: Annotated[Known, FLAT] = NOTHING,
    seed: Seed = 0,
    quiet: Quiet = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Run two models on the same inputs and compare their outputs.

    For example:

        onnxlr verify model.onnx small.onnx --data test.npz
        onnxlr verify model.onnx small.onnx --tolerance 'cosine>=0.995'
        onnxlr verify model.onnx small.onnx --statistics statistics.npz --json

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
    with at_work(quiet, threads) as progress:
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
def ops(*, quiet: Quiet = False, as_json: Json = False) -> None:
    """Tell where the op library is, what it runs on, or why there is none.

    For example:

        onnxlr ops
        onnxlr ops --json

    Parameters
    ----------
    as_json
        Print JSON (schema onnxlr.ops/1) instead of text.
    """
    with at_work(quiet):
        found = describe_ops()
    if as_json:
        print_json(to_document("ops", found))
    else:
        print_ops(out, found)


@app.command
def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a script that lets a shell complete commands and options.

    For example:

        onnxlr completion bash > ~/.local/share/bash-completion/completions/onnxlr
        onnxlr completion zsh > ~/.zfunc/_onnxlr
        onnxlr completion fish > ~/.config/fish/completions/onnxlr.fish

    Parameters
    ----------
    shell
        The shell: bash (with the package bash-completion), zsh (with ~/.zfunc in fpath) or fish.
    """
    out.write(app.generate_completion(shell=shell).rstrip() + "\n")


_OTHERS: tuple[Callable[..., Any], ...] = (rewrite, sweep, bench, *COMMANDS)
for _command in _OTHERS:
    app.command(_command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    tolerate_encodings()
    heed_signals()
    out.quiet, out.documents = False, 0
    warnings.showwarning = show_warning
    try:
        app(tokens, exit_on_error=False, print_error=False)
        code = ExitCode.DONE
    except CycloptsError as error:
        code = explain(misused(error, app), "--json" in tokens)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (no traceback meets a user)
        code = explain(error, "--json" in tokens)
    sys.exit(code)
