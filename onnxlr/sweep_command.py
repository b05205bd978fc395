"""`onnxlr sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from onnxlr import sweeping
from onnxlr.calibration import HOLDOUT
from onnxlr.choices import DataName, GoalName, Measure, TargetName
from onnxlr.console import at_work, out, print_json
from onnxlr.errors import UsageError
from onnxlr.flags import WHOLE, Json, Patterns, Quiet, Seed, Threads, files_among
from onnxlr.model import check_beside
from onnxlr.reporting import shown, to_document
from onnxlr.reporting.sweep import print_sweep, summarise_sweep
from onnxlr.reporting.sweep_plot import check_plot, write_plot

__all__ = ["sweep"]


def sweep(
    model: Path,
    /,
    *,
    calibration: DataName,
    goal: GoalName = "size",
    measure: Measure = "cosine",
    budgets: Annotated[list[float] | None, Parameter(negative=(), consume_multiple=True)] = None,
    output: Annotated[Path | None, Parameter(["--output", "-o"])] = None,
    plot: Path | None = None,
    target: TargetName = "onnx",
    layers: Patterns = (),
    skip: Patterns = (),
    bias_correction: bool = True,
    holdout: float | DataName = HOLDOUT,
    mask: str | None = None,
    statistics: Path | None = None,
    cache: Path | None = None,
    stock: bool = True,
    jobs: Annotated[int | None, WHOLE] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find what a model can become for a series of drops: size, time and drop side by side.

    Layers are fitted and measured once for all of them. No model is proved or saved: hand a plan to
    `onnxlr rewrite --plan` for that, with the same calibration.

    For example:

        onnxlr sweep model.onnx --calibration train.npz -o plans --cache m.sqlite
        onnxlr sweep model.onnx --calibration train.npz --goal latency --plot s.svg
        onnxlr sweep model.onnx --calibration train.npz --budgets 0.01 0.05 --json

    Parameters
    ----------
    model
        The ONNX model.
    calibration
        Inputs like those the model will meet: .npz, .npy, a folder of them, or module:function.
    goal
        What is made small within each drop: size, latency, or balanced (both).
    measure
        What drops are measured in, on held-out calibration data: cosine, relout, top1 or
        module:function, a score of a model's path.
    budgets
        The drops, one or several: --budgets 0.001 0.01 0.1; five usual ones if not given.
    output
        Folder to write the plans to, MODEL.DROP.plan.json; made where it is missing.
    plot
        File to draw size and time against the drop in, .svg or .png. Needs matplotlib: pip install
        'onnxlr[report]'.
    target
        onnx: standard operators, any runtime; ort: also ONNX Runtime's own operators; onnxlr: also
        those of the op library.
    layers
        Shell pattern of layers to rewrite, as inspect names them; all if not given. Repeatable.
    skip
        Shell pattern of layers to leave alone. Repeatable.
    bias_correction
        Correct the mean of outputs where held-out inputs say that it pays.
    holdout
        Fraction of the calibration runs to judge by, or data of its own.
    mask
        Input that is 0 where positions do not count, such as attention_mask.
    statistics
        What `onnxlr observe` made of the same model.
    cache
        File that measurements are kept in and taken from; a run that was interrupted goes on from
        it.
    stock
        Compare with what ONNX Runtime's own tools make.
    jobs
        Layers that are fitted side by side; one a processor if not given.
    seed
        Seed of methods that draw random numbers.
    as_json
        Print JSON (schema onnxlr.sweep/1) instead of tables.
    """
    if budgets == []:
        raise UsageError("--budgets needs a number or more, such as --budgets 0.01 0.05")
    if plot is not None:
        check_plot(plot, model, *files_among(calibration, holdout, statistics, cache))
        check_beside(plot, model)
    with at_work(quiet, threads) as progress:
        found = sweeping.sweep(
            model,
            calibration=calibration,
            goal=goal,
            measure=measure,
            budgets=budgets or (),
            target=target,
            layers=layers,
            skip=skip,
            bias_correction=bias_correction,
            holdout=holdout,
            mask=mask,
            statistics=statistics,
            cache=cache,
            stock=stock,
            jobs=jobs,
            seed=seed,
            output=output,
            progress=progress,
        )
    if plot is not None:
        write_plot(plot, found)
    if as_json:
        print_json(to_document("sweep", summarise_sweep(found)))
        return
    print_sweep(out, found)
    for written in (*(point.plan_file for point in found.points), plot):
        if written is not None:
            out.print(f"[green]Wrote[/] {shown(str(written))}")
