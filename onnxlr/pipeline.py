"""The verbs, each a function: the command line prints what these return, and so can a library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxlr.calibration import DataSource, check_files, signature
from onnxlr.delivery import Conditions, Delivery, RewriteResult, verify_files
from onnxlr.errors import UsageError
from onnxlr.inspection import Inspection, inspect_layers
from onnxlr.layers import find_layers
from onnxlr.methods import Options, Setting, find_method
from onnxlr.metrics import choose_metric
from onnxlr.model import Model, open_model
from onnxlr.model.saving import check_output
from onnxlr.plan import Plan
from onnxlr.planning import Request, Selection, propose
from onnxlr.progress import Progress, silent
from onnxlr.rewriting import follow_plan
from onnxlr.stages import Chain
from onnxlr.verification import DEFAULT_TOLERANCE, Report, Tolerance
from onnxlr.version import VERSION

__all__ = ["RewriteResult", "decompose", "inspect", "plan", "rewrite", "verify"]

ModelSource = str | Path | bytes | onnx.ModelProto | Model
"""A path, the bytes of a model file, a proto, or an opened model."""


def inspect(model: ModelSource, *, progress: Progress = silent) -> Inspection:
    """List a model's linear layers, their ranks, and why some are left alone.

    Raises
    ------
    ModelError
        If the model cannot be handled.
    """
    opened = _open(model)
    return inspect_layers(opened, find_layers(opened), progress)


def decompose(
    weight: npt.ArrayLike,
    method: str = "svd",
    *,
    covariance: npt.ArrayLike | None = None,
    importance: npt.ArrayLike | None = None,
    format: str | None = None,
    groups: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Chain:
    """Factorize one array.

    Parameters
    ----------
    weight
        Finite floats, shape `(inputs, outputs)` or a stack `(…, inputs, outputs)`; the layer is
        `y = x @ weight`. With `groups`, a convolution's kernel `(outputs, inputs/groups, *kernel)`.
    method
        Name of a method.
    covariance
        Uncentred covariance `E[x xᵀ]` of the inputs, shape `(inputs, inputs)`: the error is then
        measured in the outputs.
    importance
        Importance of each entry, shape `(inputs, outputs)`, for instance Fisher information; its
        row sums weight the error.
    format
        How the factors are kept: `float64`, `float32`, `float16`, `int8`; the weight's own type if
        not given.
    groups
        Of a convolution.
    seed
        Of methods that draw random numbers.
    **options
        The method's options: for `svd` one of `rank`, `ratio`, `bits`, `energy`, `max_error`, and
        for convolutions `form`.

    Returns
    -------
    Chain
        With `.stages`, `.reconstruct()`, `.approximation`, `.cost.bytes`.

    Raises
    ------
    UsageError
        If an argument cannot be followed.
    """
    array = np.asarray(weight)
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    if array.ndim < 2 or 0 in array.shape:
        raise UsageError(f"weight has shape {array.shape}, expected (inputs, outputs)")
    if not np.isfinite(array).all():
        raise UsageError("weight has NaN or infinite entries, expected finite numbers")
    if method == "keep":
        raise UsageError("method 'keep' leaves a weight alone: there is nothing to decompose")
    if groups is not None and (array.ndim < 3 or groups < 1 or array.shape[0] % groups):
        raise UsageError(
            f"weight has shape {array.shape} and {groups} groups, expected a kernel "
            "(outputs, inputs/groups, *kernel) with outputs a multiple of the groups"
        )
    metric = choose_metric(
        None if covariance is None else np.asarray(covariance),
        None if importance is None else np.asarray(importance),
    )
    setting = Setting.for_array(array, format, metric, seed, groups)
    return find_method(method).factorize(array, _options(method, options), setting)


def plan(
    model: ModelSource,
    *,
    method: str = "svd",
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
    format: str | None = None,
    activations: str = "float",
    target: str = "onnx",
    seed: int = 0,
    progress: Progress = silent,
    **options: Any,
) -> Plan:
    """Decide what becomes of each layer, without rewriting anything.

    Parameters
    ----------
    model
        The model.
    method, format, activations, target, seed, **options
        As in `rewrite`.
    layers, skip
        Shell patterns of layers to rewrite (all, if none) and to leave alone.

    Raises
    ------
    UsageError
        If an argument cannot be followed.
    ModelError
        If the model cannot be handled.
    """
    opened = _open(model)
    request = Request(
        method,
        _options(method, options),
        format,
        activations,
        target,
        seed,
        Selection(layers, skip),
    )
    proposals = propose(opened, find_layers(opened), request, progress)
    choices = {proposal.layer.name: proposal.choice for proposal in proposals}
    return Plan(choices, opened.sha256, target, seed, VERSION)


def rewrite(
    model: ModelSource,
    output: str | Path | None = None,
    *,
    plan: Plan | str | Path | None = None,
    method: str = "svd",
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
    format: str | None = None,
    activations: str = "float",
    target: str = "onnx",
    seed: int = 0,
    tolerance: str = DEFAULT_TOLERANCE,
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
        What approximates every layer, and how far: for `svd` one of `rank`, `ratio`, `bits`,
        `energy`, `max_error` (default 0.05).
    layers, skip
        Shell patterns of layers to rewrite (all, if none) and to leave alone.
    format
        How factors are kept: `float32`, `float16`, `int8`; the weight's own type if not given.
    activations
        `float`, or `dynamic_int8`: the runtime may round the data of int8 layers.
    target
        `onnx`: standard operators.
    seed
        Of methods, and of random inputs.
    tolerance
        What every float output must hold against the original's, see `Tolerance`.
    data
        Inputs to compare on, see `load_feeds`; random ones if not given.
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
    NothingRewrittenError
        If `require_change` and no layer was rewritten.
    UsageError, DataError, PlanError, OutputError
        If an argument cannot be followed.
    ModelError
        If the model cannot be handled.
    """
    source = _open(model)
    file = _output(source, output, plan)
    check_files(data, signature(source))
    found = find_layers(source)
    plan_seed = seed
    if plan is not None:
        given = plan if isinstance(plan, Plan) else Plan.read(Path(plan))
        asked = (method, format, activations, target)
        if options or layers or skip or asked != ("svd", None, "float", "onnx"):
            raise UsageError(
                "a plan says what to do: give either a plan, or a method with its options, layers, "
                "format, activations and target"
            )
        target, plan_seed = given.target, given.seed
        proposals = follow_plan(source, found, given, progress)
    else:
        selection = Selection(layers, skip)
        chosen = _options(method, options)
        request = Request(method, chosen, format, activations, target, seed, selection)
        proposals = propose(source, found, request, progress)
    delivery = Delivery(
        source=source,
        reopen=lambda: _reopen(model),
        output=file,
        target=target,
        seed=plan_seed,
    )
    conditions = Conditions(Tolerance.parse(tolerance), data, seed, isolate, progress)
    return delivery.carry_out(proposals, conditions, require_change=require_change, keep=keep)


def verify(
    original: ModelSource,
    rewritten: str | Path,
    *,
    tolerance: str = DEFAULT_TOLERANCE,
    data: DataSource | None = None,
    seed: int = 0,
    isolate: bool = True,
    progress: Progress = silent,
) -> Report:
    """Run two models on the same inputs and compare their outputs.

    The emission proof is made if `rewritten` carries the plan that made it out of `original`.

    Parameters
    ----------
    original, rewritten
        The models.
    tolerance, data, seed, isolate, progress
        As in `rewrite`.

    Raises
    ------
    UsageError, DataError
        If an argument cannot be followed.
    ModelError
        If one of the models cannot be handled, or their inputs and outputs are not the same.
    """
    conditions = Conditions(Tolerance.parse(tolerance), data, seed, isolate, progress)
    return verify_files(_open(original), lambda: _reopen(original), Path(rewritten), conditions)


def _open(model: ModelSource) -> Model:
    """Open a model for changing: what the caller holds stays as it is."""
    return _reopen(model) if isinstance(model, Model) else open_model(model)


def _reopen(model: ModelSource) -> Model:
    if not isinstance(model, Model):
        return open_model(model, check=False)
    copy = open_model(model.proto, check=False)
    copy.path, copy.content = model.path, model.content
    return copy


def _options(method: str, values: dict[str, Any]) -> Options:
    kind = find_method(method).options
    for name in values:
        if name not in kind.__dataclass_fields__:
            known = ", ".join(kind.__dataclass_fields__) or "none"
            raise UsageError(f"method '{method}' has no option '{name}'; it has {known}")
    return kind(**values)


def _output(source: Model, output: str | Path | None, plan: Plan | str | Path | None) -> Path:
    if output is not None:
        path = Path(output)
    elif source.path is not None:
        path = source.path.with_suffix(".onnxlr.onnx")
    else:
        raise UsageError("a model without a file needs an output path")
    data = (source.directory / location for location in source.external_files())
    plan_file = None if plan is None or isinstance(plan, Plan) else Path(plan)
    check_output(path, source.path, plan_file, *data)
    return path
