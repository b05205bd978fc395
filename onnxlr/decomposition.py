"""Factorizes one array, without any model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.errors import UsageError, expected_one_of
from onnxlr.methods import Rounding, Setting, find_method, format_of, options_for
from onnxlr.metrics import METRICS, Activation, Fisher, FisherRows, Frobenius, Kfac, Metric
from onnxlr.stages import Chain

__all__ = ["decompose"]


def decompose(
    weight: npt.ArrayLike,
    method: str = "svd",
    *,
    covariance: npt.ArrayLike | None = None,
    importance: npt.ArrayLike | None = None,
    output_covariance: npt.ArrayLike | None = None,
    metric: str | None = None,
    solver: str | None = None,
    format: str | None = None,
    group_size: int | None = None,
    rounding: str | None = None,
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
        measured in the outputs. For a convolution of patches, `(groups, patch, patch)`.
    importance
        Importance of each entry, in the weight's shape, for instance Fisher information.
    output_covariance
        `E[g gᵀ]` of the output's gradients, shape `(outputs, outputs)`, beside the covariance.
    metric
        What the error is measured in; what the arrays given allow if not given: `activation`,
        `kfac`, or `fisher-rows`.
    solver
        Of metric `fisher`: `als`, `em` or `adam-sgd`.
    format
        How the factors are kept: `float64`, `float32`, `float16`, `int8`, `int4`, `int2`,
        `ternary`; the weight's own type if not given. Method `ternary` has no other than that.
    group_size, rounding
        Of a format of few bits: inputs that share a scale (0 for all), and `nearest` or `gptq`,
        which needs the covariance; method `ternary` takes it where there is one.
    groups
        Of a convolution.
    seed
        Of methods that draw random numbers.
    **options
        The method's options: for `svd` one of `rank`, `ratio`, `bits`, `energy`, `max_error`, and
        for convolutions `form`; for `ternary` `terms`.

    Returns
    -------
    Chain
        With `.stages`, `.reconstruct()`, `.approximation`, `.cost.bytes`.

    Raises
    ------
    UsageError
        If an argument cannot be followed.
    """
    array = _checked_weight(weight, method, groups)
    chosen = find_method(method)
    known = _metric(metric, solver, covariance, importance, output_covariance)
    known.expect(array, groups)
    if rounding is None and isinstance(chosen, Rounding) and known.covariance is not None:
        rounding = chosen.default_rounding
    parsed = format_of(chosen, format, group_size, rounding)
    setting = Setting.for_array(array, parsed, known, seed, groups)
    return chosen.factorize(array, options_for(method, options), setting)


def _checked_weight(weight: npt.ArrayLike, method: str, groups: int | None) -> npt.NDArray[Any]:
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
    return array


def _metric(
    name: str | None,
    solver: str | None,
    covariance: npt.ArrayLike | None,
    importance: npt.ArrayLike | None,
    output_covariance: npt.ArrayLike | None,
) -> Metric:
    """Return the metric of arrays given for one weight."""
    if covariance is not None and importance is not None and name is None:
        raise UsageError(
            "covariance and importance belong to two different metrics: give either, or the metric"
        )
    if name is None:
        both = "activation" if output_covariance is None else "kfac"
        none = "frobenius" if importance is None else "fisher-rows"
        name = both if covariance is not None else none
    if solver is not None and name != "fisher":
        raise UsageError(f"solver '{solver}' is for metric fisher, not {name}")
    if name == "frobenius":
        return Frobenius()
    if name in ("fisher", "fisher-rows"):
        if importance is None:
            raise UsageError(f"metric {name} needs importance")
        rows = name == "fisher-rows"
        return FisherRows(importance) if rows else Fisher(importance, solver or "als")
    if covariance is None or (name == "kfac" and output_covariance is None):
        needed = "covariance" if name == "activation" else "covariance and output_covariance"
        raise UsageError(f"metric {name} needs {needed}")
    if name == "activation":
        return Activation(covariance)
    if name == "kfac" and output_covariance is not None:
        return Kfac(covariance, output_covariance)
    raise UsageError(f"metric '{name}' is unknown; {expected_one_of(METRICS, name)}")
