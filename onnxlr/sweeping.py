"""The verb that sweeps: what a model can become for a series of drops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from os import W_OK, X_OK, access
from pathlib import Path

from onnxlr.calibration import HOLDOUT, DataSource, Sources
from onnxlr.errors import OutputError
from onnxlr.model import Model, ModelSource, open_anew, open_source
from onnxlr.model.saving import check_output, write_text
from onnxlr.planning import (
    AutoRequest,
    Goal,
    Limit,
    Selection,
    SweepPoint,
    SweepResult,
    limits_of,
    make_sweep,
)
from onnxlr.planning.asking import Aims
from onnxlr.progress import Progress, silent
from onnxlr.statistics import Statistics

__all__ = ["sweep"]


def sweep(
    model: ModelSource,
    *,
    calibration: DataSource,
    goal: str = "size",
    measure: str = "cosine",
    budgets: Sequence[float] = (),
    target: str = "onnx",
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
    bias_correction: bool = True,
    holdout: float | DataSource = HOLDOUT,
    mask: str | None = None,
    statistics: Statistics | str | Path | None = None,
    cache: str | Path | None = None,
    stock: bool = True,
    jobs: int | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    isolate: bool = True,
    progress: Progress = silent,
) -> SweepResult:
    """Find what a model can become for a series of drops, and compare all of it in one run.

    Layers are fitted and measured once for all of them. No model is proved or saved: hand a point's
    plan to `rewrite` for that.

    Parameters
    ----------
    model
        The model.
    calibration
        Inputs like those it will meet, see `load_feeds`; models are compared on what is held out.
    goal
        What is made small within each drop: `size`, `latency` or `balanced` (both).
    measure
        What drops are measured in: `cosine`, `relout` (relative L2 distance), `top1` (share of rows
        whose largest entry moves), or a function, `module:function`, that returns a score for a
        model's path, the higher the better.
    budgets
        The drops; if not given, .001 to .1 (of `relout` .05 to .45) in five steps.
    target, layers, skip, bias_correction, holdout, mask, statistics, cache, jobs, seed, isolate
        As in `rewrite`.
    stock
        Whether what ONNX Runtime's own tools make is measured as well.
    output
        Folder to write the points' plans to, as `<model>.<drop>.plan.json`; it is made where it
        is missing. None are written if not given.
    progress
        Called before each step.

    Raises
    ------
    UsageError, DataError, OutputError
        If an argument cannot be followed.
    ModelError
        If the model cannot be handled.
    """
    limits = limits_of(measure, budgets)
    request = AutoRequest(
        Goal(goal, limits[-1:]),
        target,
        seed,
        Selection(layers, skip),
        bias_correction,
        Aims(cache=cache).measurements(),
        stock,
        jobs,
        store=Aims(cache=cache).store(),
    )
    request.check()
    sources = Sources(calibration, holdout, mask, statistics)
    sources.check()
    source = open_source(model)
    sources.check_files(source)
    folder = None if output is None else Path(output)
    if folder is not None:
        _check_folder(folder, source, limits)
    reopen = partial(open_anew, model)
    found = make_sweep(source, request, limits, sources, reopen, isolate, progress)
    if folder is None:
        return found
    folder.mkdir(exist_ok=True)
    points = (_saved(point, folder, source) for point in found.points)
    return replace(found, points=tuple(points))


def _check_folder(folder: Path, source: Model, limits: Sequence[Limit]) -> None:
    """Refuse, before any work, a folder that plans cannot be written to; raises OutputError."""
    if folder.is_dir():
        for limit in limits:
            check_output(folder / _file(source, limit.drop), *source.files)
    elif folder.exists():
        raise OutputError(f"{folder}: is no folder, expected one to write plans to")
    elif not folder.absolute().parent.is_dir():
        raise OutputError(f"{folder}: the folder {folder.absolute().parent} does not exist")
    elif not access(folder.absolute().parent, W_OK | X_OK):
        raise OutputError(f"{folder}: cannot be made (permission denied)")


def _saved(point: SweepPoint, folder: Path, source: Model) -> SweepPoint:
    """Write a point's plan, if it has one."""
    if point.plan is None or point.budget is None:
        return point
    file = folder / _file(source, point.budget)
    write_text(file, point.plan.dumps() + "\n")
    return replace(point, plan_file=file)


def _file(source: Model, drop: float) -> str:
    stem = "model" if source.path is None else source.path.stem
    return f"{stem}.{drop:g}.plan.json"
