"""The verbs, each a function: the command line prints what these return, and so can a library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from onnxlr.calibration import (
    HOLDOUT,
    DataSource,
    ImportanceSource,
    Sources,
    check_files,
    signature,
)
from onnxlr.calibration import observe as observe_layers
from onnxlr.checking import verify_files
from onnxlr.conditions import Conditions
from onnxlr.decomposition import decompose
from onnxlr.delivery import Delivery, RewriteResult
from onnxlr.errors import UsageError
from onnxlr.fits import Workers
from onnxlr.inspection import Inspection, inspect_layers
from onnxlr.layers import find_layers
from onnxlr.model import Model, ModelSource, open_anew, open_source
from onnxlr.model.saving import check_output
from onnxlr.plan import Plan
from onnxlr.planning import AutoRequest, Request, Selection, make_plan, take_plan
from onnxlr.planning.asking import Aims, request_of
from onnxlr.progress import Progress, silent
from onnxlr.statistics import Statistics
from onnxlr.verification import DEFAULT_TOLERANCE, Report, Tolerance

__all__ = [
    "RewriteResult",
    "decompose",
    "inspect",
    "observe",
    "plan",
    "rewrite",
    "verify",
]


def inspect(model: ModelSource, *, progress: Progress = silent) -> Inspection:
    """List a model's linear layers, their ranks, and why some are left alone.

    Raises
    ------
    ModelError
        If the model cannot be handled.
    """
    opened = open_source(model)
    return inspect_layers(opened, find_layers(opened), progress)


def observe(
    model: ModelSource,
    calibration: DataSource,
    output: str | Path | None = None,
    *,
    holdout: float | DataSource = HOLDOUT,
    mask: str | None = None,
    isolate: bool = True,
    progress: Progress = silent,
) -> Statistics:
    """Run a model on calibration data and sum up what its layers' inputs are like.

    Parameters
    ----------
    model
        The model.
    calibration
        Inputs like those it will meet, see `load_feeds`.
    output
        File to write the statistics to; none is written if not given.
    holdout
        Fraction of the runs to keep apart, to judge fits by; or data of its own.
    mask
        Input that is 0 where positions do not count, such as `attention_mask`.
    isolate
        Run the model in a child process.
    progress
        Called before each step.

    Raises
    ------
    UsageError, DataError, OutputError
        If an argument cannot be followed.
    ModelError
        If the model cannot be handled.
    """
    opened = open_source(model)
    if output is not None:
        check_output(Path(output), *opened.files)
    found = observe_layers(
        opened,
        find_layers(opened),
        calibration,
        holdout=holdout,
        mask=mask,
        isolate=isolate,
        progress=progress,
    )
    if output is not None:
        found.save(output)
    return found


def plan(
    model: ModelSource,
    *,
    method: str | None = None,
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
    format: str | None = None,
    group_size: int | None = None,
    rounding: str | None = None,
    activations: str | None = None,
    target: str = "onnx",
    metric: str | None = None,
    solver: str | None = None,
    allocate: str = "uniform",
    sequential: bool = False,
    bias_correction: bool = True,
    calibration: DataSource | None = None,
    holdout: float | DataSource = HOLDOUT,
    mask: str | None = None,
    statistics: Statistics | str | Path | None = None,
    importance: ImportanceSource | None = None,
    goal: str | None = None,
    max_drop: Sequence[str] = (),
    max_size: float | None = None,
    max_latency: float | None = None,
    cache: str | Path | None = None,
    stock: bool = True,
    jobs: int | None = None,
    memory: int | str | None = None,
    seed: int = 0,
    isolate: bool = True,
    progress: Progress = silent,
    **options: Any,
) -> Plan:
    """Decide what becomes of each layer, without rewriting anything.

    Parameters
    ----------
    model
        The model.
    layers, skip
        Shell patterns of layers to rewrite (all, if none) and to leave alone.

    The others are as in `rewrite`.

    Raises
    ------
    UsageError
        If an argument cannot be followed.
    ModelError
        If the model cannot be handled.
    """
    arguments = dict(locals())
    request = _request(arguments)
    sources = _sources(arguments)
    opened = open_source(model)
    sources.check_files(opened)
    workers = _workers(arguments, request)
    reopen = partial(open_anew, model)
    making = make_plan(opened, request, sources, reopen, isolate, progress, workers)
    return making.plan(making.decided(), opened.sha256)


def rewrite(
    model: ModelSource,
    output: str | Path | None = None,
    *,
    plan: Plan | str | Path | None = None,
    method: str | None = None,
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
    format: str | None = None,
    group_size: int | None = None,
    rounding: str | None = None,
    activations: str | None = None,
    target: str = "onnx",
    metric: str | None = None,
    solver: str | None = None,
    allocate: str = "uniform",
    sequential: bool = False,
    bias_correction: bool = True,
    calibration: DataSource | None = None,
    holdout: float | DataSource = HOLDOUT,
    mask: str | None = None,
    statistics: Statistics | str | Path | None = None,
    importance: ImportanceSource | None = None,
    goal: str | None = None,
    max_drop: Sequence[str] = (),
    max_size: float | None = None,
    max_latency: float | None = None,
    cache: str | Path | None = None,
    stock: bool = True,
    jobs: int | None = None,
    memory: int | str | None = None,
    seed: int = 0,
    tolerance: str | None = None,
    data: DataSource | None = None,
    require_change: bool = False,
    keep: bool = False,
    isolate: bool = True,
    progress: Progress = silent,
    **options: Any,
) -> RewriteResult:
    """Rewrite a model, prove that its outputs agree, and save it.

    Parameters
    ----------
    model
        The model; never modified.
    output
        File to write; `MODEL.onnxlr.onnx` beside the model if not given.
    plan
        A plan or its file, instead of `method`, `options` and what else a plan holds.
    method, **options
        `auto`: for each layer what measurements say is best, see `goal`; this is what is done where
        neither a method nor options of one are given. Otherwise what approximates every layer, and
        how far: for `svd` and `ternary_svd` one of `rank`,
        `ratio`, `bits`, `energy`, `max_error` (default 0.05), for `ternary_svd` also
        `tolerance_spectral`, `fit` and `sweeps`; for `ternary` its `terms`.
    layers, skip
        Shell patterns of layers to rewrite (all, if none) and to leave alone.
    format
        How factors are kept: `float32`, `float16`, `int8`, `int4`, `int2`, `ternary`; the weight's
        own type if not given. The ternary methods have no other than `ternary`.
    group_size
        Inputs that share a scale: 0 (all), 32, 64, 128; if not given, 0 for int8, 32 for int4 and
        int2, 128 for ternary.
    rounding
        `nearest`, or `gptq`, which needs statistics; method `ternary` takes it where there are some
        if not given.
    activations
        What data of int8, int4, int2 and ternary layers is computed in: `float`; `dynamic_int8`,
        rounded as it comes; `static_int8`, rounded to ranges seen in calibration. If not given,
        `dynamic_int8` for ternary layers that targets `ort` and `onnxlr` can write so, `float` for
        others.
    target
        `onnx`: standard operators; `ort`: also ONNX Runtime's own.
    metric
        What error is measured in: `frobenius`, `activation`, `fisher-rows`, `fisher`, `kfac`; if
        not given, `activation` for layers with statistics and `frobenius` for others.
    solver
        Of metric `fisher`: `als`, `em`, `adam-sgd`.
    allocate
        `uniform`: the budget holds for each layer; `global`: a `ratio` holds for all layers
        together, and is spread over them by how much the model's outputs suffer from each.
    sequential
        Fit each layer to the original output on inputs that come from those rewritten before it.
    bias_correction
        Correct the mean of outputs where held-out inputs say that it pays.
    calibration
        Inputs like those the model will meet, see `load_feeds`.
    holdout
        Fraction of the calibration runs to judge fits by, or data of its own.
    mask
        Input that is 0 where positions do not count, such as `attention_mask`.
    statistics
        What `observe` made, or its file; `calibration` is then only run for global allocation and
        sequential fitting.
    importance
        A `.npz` file, or arrays: the importance of each entry under a weight's name, and the
        covariance of output gradients under `<name>/output_covariance`.
    goal
        Of method `auto`: what is to be small, `size`, `latency` or `balanced` (both, if not given).
    max_drop
        Of method `auto`: what the outputs may lose on held-out calibration data, as
        `measure=value`, one or more; `cosine=0.01` if nothing is asked. Measures are `cosine`,
        `relout` (relative L2 distance), `top1` (share of rows whose largest entry moves) and
        functions, `module:function`, that return a score for a model's path, the higher the better.
    max_size, max_latency
        Of method `auto`: fractions of the original's size and time on one thread. Given without
        `max_drop`, the best outputs that keep to them are sought.
    cache
        Folder that fits of layers, and what method `auto` measures, are kept in and taken from: a
        run that was interrupted goes on from it. A file, or a name that ends in `.sqlite`, is for
        the measurements alone.
    stock
        Of method `auto`: whether what ONNX Runtime's own tools make is compared, and handed out
        where it is better.
    jobs
        Layers that are fitted side by side, each by a process with one thread; the result is the
        same however many. If not given one a processor, for small models of a single method none.
    memory
        Bytes, or a text such as `4G`, that all processes may take together while layers are fitted,
        as far as can be foreseen; half of what is free if not given. One fits in any case.
    seed
        Of methods, and of random inputs.
    tolerance
        What every float output must hold against the original's, see `Tolerance`; if not given,
        `cosine>=0.99`, or for method `auto` what `max_drop` says.
    data
        Inputs to compare on, see `load_feeds`; if not given, the first held-out runs of the
        calibration data, or random ones without any.
    require_change
        Refuse to write a mere copy.
    keep
        Write the output even if verification fails (it still raises).
    isolate
        Run models in child processes.
    progress
        Called before each step.

    Raises
    ------
    VerificationError
        If a proof fails; nothing is written unless `keep`.
    GoalNotMetError
        If method `auto` finds nothing that does what is asked.
    NothingRewrittenError
        If `require_change` and no layer was rewritten.
    UsageError, DataError, PlanError, OutputError
        If an argument cannot be followed.
    ModelError
        If the model cannot be handled.
    """
    arguments = dict(locals())
    # What needs no model is looked at first, then what needs no more of it than its signature.
    request, sources = _request(arguments), _sources(arguments)
    given = None if plan is None else _plan(plan, request)
    held_to = _tolerance(tolerance, None if plan is not None else request)
    source = open_source(model)
    file = _output(source, output, plan)
    held_to.check_outputs([value.name for value in source.proto.graph.output])
    check_files(data, signature(source))
    sources.check_files(source)
    reopen, workers = partial(open_anew, model), _workers(arguments, request)
    if given is not None:
        making = take_plan(source, given, sources, reopen, isolate, progress, workers)
    else:
        making = make_plan(source, request, sources, reopen, isolate, progress, workers)
    delivery = Delivery(source=source, reopen=reopen, output=file, making=making)
    if data is None and sources.calibration is not None:
        data = sources.held_out(source)
    conditions = Conditions(held_to, data, seed, isolate, progress)
    return delivery.carry_out(conditions, require_change=require_change, keep=keep)


def verify(
    original: ModelSource,
    rewritten: str | Path,
    *,
    tolerance: str = DEFAULT_TOLERANCE,
    data: DataSource | None = None,
    calibration: DataSource | None = None,
    holdout: float | DataSource = HOLDOUT,
    mask: str | None = None,
    statistics: Statistics | str | Path | None = None,
    importance: ImportanceSource | None = None,
    seed: int = 0,
    isolate: bool = True,
    progress: Progress = silent,
) -> Report:
    """Run two models on the same inputs and compare their outputs.

    The emission proof is made if `rewritten` carries the plan that made it out of `original`, and
    the statistics that the plan was made with, if any, are given.

    Parameters
    ----------
    original, rewritten
        The models.
    tolerance, data, calibration, holdout, mask, statistics, importance, seed, isolate, progress
        As in `rewrite`.

    Raises
    ------
    UsageError, DataError
        If an argument cannot be followed.
    ModelError
        If one of the models cannot be handled, or their inputs and outputs are not the same.
    """
    arguments = dict(locals())
    sources, held_to = _sources(arguments), Tolerance.parse(tolerance)
    opened = open_source(original)
    sources.check_files(opened)
    if data is None and sources.calibration is not None:
        data = sources.held_out(opened)
    conditions = Conditions(held_to, data, seed, isolate, progress)
    return verify_files(opened, partial(open_anew, original), Path(rewritten), sources, conditions)


def _request(arguments: Mapping[str, Any]) -> Request | AutoRequest:
    """Return what the arguments of `plan` or `rewrite` ask for."""
    names = {field.name for field in fields(Request)} - {"method", "options", "selection"}
    fitting = {name: arguments[name] for name in names}
    fitting["selection"] = Selection(arguments["layers"], arguments["skip"])
    importance = arguments["importance"] is not None
    options = arguments["options"]
    found = request_of(arguments["method"], options, fitting, _aims(arguments), importance)
    found.check()
    return found


def _sources(arguments: Mapping[str, Any]) -> Sources:
    """Return where the arguments of a verb say that knowledge comes from."""
    found = Sources(**{field.name: arguments[field.name] for field in fields(Sources)})
    found.check()
    return found


def _plan(plan: Plan | str | Path, request: Request | AutoRequest) -> Plan:
    """Return a plan that is to be followed; refuse what else is asked beside it."""
    if isinstance(request, AutoRequest):  # who fits, and what is kept, is no plan's matter
        request = replace(request, cache=None, jobs=None, memory=None, store=None)
    seed = request.seed
    if request not in (Request(seed=seed), AutoRequest(Aims().parse(), seed=seed)):
        raise UsageError(
            "a plan says what to do: give either a plan, or a method with its options, layers, "
            "format, metric, activations and target"
        )
    return plan if isinstance(plan, Plan) else Plan.read(Path(plan))


def _aims(arguments: Mapping[str, Any]) -> Aims:
    return Aims(**{field.name: arguments[field.name] for field in fields(Aims)})


def _workers(arguments: Mapping[str, Any], request: Request | AutoRequest) -> Workers:
    """Return who fits the layers of a single method, or of a plan."""
    if isinstance(request, AutoRequest) and arguments.get("plan") is None:
        return Workers(isolate=arguments["isolate"])
    return _aims(arguments).workers(arguments["isolate"])


def _tolerance(text: str | None, request: Request | AutoRequest | None) -> Tolerance:
    """Return what outputs must hold: what is asked, or else what the planner is held to."""
    if text is None:
        text = DEFAULT_TOLERANCE
        if isinstance(request, AutoRequest):
            text = request.goal.tolerance
    return Tolerance.parse(text)


def _output(source: Model, output: str | Path | None, plan: Plan | str | Path | None) -> Path:
    if output is not None:
        path = Path(output)
    elif source.path is not None:
        path = source.path.with_suffix(".onnxlr.onnx")
    else:
        raise UsageError("a model without a file needs an output path")
    plan_file = None if plan is None or isinstance(plan, Plan) else Path(plan)
    check_output(path, plan_file, *source.files)
    return path
