"""Fits one layer: tries what was asked beside what is plain, and judges by held-out inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.evidence import Evidence, View
from onnxlr.methods.method import Method, Options, Setting
from onnxlr.methods.weighted import fisher_variance
from onnxlr.metrics import SHRINKAGE, relative_error, unfold_inputs
from onnxlr.numbers import Format
from onnxlr.stages import Chain

__all__ = ["Fit", "Recipe", "fit_as_told", "fit_best"]

Matrix = npt.NDArray[np.float64]

_SURE = 2.0
"""Standard errors that a fit must be better by than the plain one to be taken instead of it."""

_FEW = 1.5 * SHRINKAGE
"""Shrinkage from which on the number of rows asks for more than the usual one."""

_PAYS = 0.99
"""A bias correction is one more tensor, and at times one more node: it must take the held-out error
below this part of what it is without."""


@dataclass(frozen=True)
class Recipe:
    """How a layer is fitted, beside its method and options.

    Attributes
    ----------
    metric
        What the error is measured in.
    rounding
        How numbers become codes.
    bias_correction
        Whether the mean of the outputs is corrected; the metric `activation` is then centred.
    solver
        Of metric `fisher`.
    shrinkage
        Of metric `activation`, where it is not the usual one.
    """

    metric: str = "frobenius"
    rounding: str = "nearest"
    bias_correction: bool = False
    solver: str | None = None
    shrinkage: float | None = None


@dataclass(frozen=True)
class Fit:
    """A fitted layer.

    Attributes
    ----------
    chain
        The approximation.
    options
        The options that give this very chain again.
    recipe
        How it was fitted.
    corrections
        Bias corrections, `(sites, outputs)`; None if there are none.
    error
        Relative error of the outputs on held-out inputs; None if there are none.
    plain_error
        The same for the plain fit: metric frobenius, rounding to the nearest.
    importance_variance, importance_gain
        Where importance is the metric: its variance inside the matrix, which predicts the gain
        (see `fisher_variance`), and by which part the weighted error is below the plain fit's.
    """

    chain: Chain
    options: Options
    recipe: Recipe
    corrections: Matrix | None = None
    error: float | None = None
    plain_error: float | None = None
    importance_variance: float | None = None
    importance_gain: float | None = None


@dataclass(frozen=True)
class _Task:
    """A layer to fit."""

    method: Method
    weight: npt.NDArray[Any]
    setting: Setting
    evidence: Evidence
    fit_view: View | None
    judge: View | None

    @classmethod
    def of(
        cls, method: Method, weight: npt.NDArray[Any], setting: Setting, evidence: Evidence
    ) -> _Task:
        fit_view, judge = evidence.views(weight, setting.groups)
        return cls(method, weight, setting, evidence, fit_view, judge)

    @property
    def has_one_output(self) -> bool:
        """Whether outputs are one vector for each row, to which one bias can be added."""
        return self.setting.groups is not None or self.weight.ndim == 2

    def chain(self, options: Options, recipe: Recipe) -> Chain:
        """Return the method's chain in the recipe's metric and rounding."""
        centred = recipe.bias_correction and recipe.metric == "activation"
        metric = self.evidence.metric(recipe.metric, centred, recipe.solver, recipe.shrinkage)
        setting = replace(self.setting, metric=metric, format=self.format(recipe))
        return self.method.factorize(self._aim(recipe), options, setting)

    def format(self, recipe: Recipe) -> Format:
        """Return the format with the recipe's rounding."""
        return replace(self.setting.format, rounding=recipe.rounding)

    def fit(self, options: Options, recipe: Recipe) -> Fit:
        """Return a fit by a recipe, not judged yet."""
        return Fit(self.chain(options, recipe), options, recipe)

    def _aim(self, recipe: Recipe) -> npt.NDArray[Any]:
        """Return the weight to approximate: another one behind layers that were rewritten."""
        if self.fit_view is None or recipe.metric == "frobenius" or not self.evidence.is_sequential:
            return self.weight
        parts = self.fit_view.target(unfold_inputs(self.weight, self.setting.groups))
        if self.setting.groups is not None:
            parts = parts.swapaxes(1, 2)
        return np.asarray(parts.reshape(self.weight.shape), self.weight.dtype)

    def parts(self, chain: Chain) -> Matrix:
        """Return what a chain approximates, as matrices over all inputs."""
        return unfold_inputs(chain.reconstruct(), self.setting.groups)

    def corrections(self, parts: Matrix) -> Matrix | None:
        """Return the bias corrections of each site, None where there can be none."""
        if self.fit_view is None or not self.has_one_output:
            return None
        return self.fit_view.corrections(parts)


def fit_as_told(
    method: Method,
    weight: npt.NDArray[Any],
    options: Options,
    setting: Setting,
    evidence: Evidence,
    recipe: Recipe,
) -> Fit:
    """Fit by one recipe, as a plan says.

    Raises
    ------
    UsageError
        If the method cannot follow the options, or the recipe needs what is not known.
    """
    task = _Task.of(method, weight, setting, evidence)
    chain = task.chain(options, recipe)
    parts = task.parts(chain) if recipe.bias_correction or task.judge is not None else None
    corrections = None
    if recipe.bias_correction and parts is not None:
        corrections = task.corrections(parts)
    error = task.judge.error(parts, corrections) if task.judge and parts is not None else None
    return Fit(chain, options, recipe, corrections, error)


def fit_best(
    method: Method,
    weight: npt.NDArray[Any],
    options: Options,
    setting: Setting,
    evidence: Evidence,
    asked: Recipe,
) -> Fit:
    """Fit as asked; where held-out inputs do not show that this is better, by what is plainer.

    What is asked for in metric activation is taken if it is better than the plain fit at the same
    options (metric frobenius, rounding to the nearest), by more than held-out inputs leave open.
    Beside it, they judge rounding to the nearest, bias corrections (if those are asked), and where
    rows are few, a covariance that is shrunk further. Other metrics measure something else than
    outputs: there they judge roundings and bias corrections only.

    Raises
    ------
    UsageError
        As `fit_as_told` does.
    """
    if evidence.fit is None:
        asked = replace(asked, rounding="nearest")
    task = _Task.of(method, weight, setting, evidence)
    plainly = replace(asked, bias_correction=False)
    if not method.heeds_metric(options, replace(setting, format=task.format(asked))):
        plainly = Recipe()
    first = _first(task, options, plainly, asked)
    if plainly.metric in ("fisher", "fisher-rows"):
        first = _with_gain(task, first)
    if task.judge is None:
        return first
    plain, *corrected = _judged(task, _plain(task, first), asked.bias_correction)
    fits = [plain, *corrected] if asked.metric in (plain.recipe.metric, "activation") else []
    for recipe in _recipes(task, first.recipe, asked):
        try:
            fit = first if recipe == first.recipe else task.fit(first.options, recipe)
        except UsageError:
            continue  # inputs that are constant have no covariance beside their mean
        fits += _judged(task, fit, asked.bias_correction)
    sure = [fit for fit in fits if fit is plain or _is_better(task, fit, plain)]
    if asked.metric != "activation":
        sure = fits
    return replace(min(sure, key=_cost), plain_error=plain.error)


def _first(task: _Task, options: Options, plainly: Recipe, asked: Recipe) -> Fit:
    """Return the fit that settles the options.

    Without bias correction, which is judged beside it; of a method whose fits take long with it.
    """
    recipe = plainly
    centred = asked.bias_correction and plainly.metric == "activation" and task.has_one_output
    if task.method.is_slow and centred and task.judge is not None:
        recipe = asked
    try:
        chain = task.chain(options, recipe)
    except UsageError:
        if recipe == plainly:
            raise
        recipe, chain = plainly, task.chain(options, plainly)
    return Fit(chain, task.method.settle(options, chain), recipe)


def _plain(task: _Task, first: Fit) -> Fit:
    """Return the plain fit of the same options."""
    return first if first.recipe == Recipe() else task.fit(first.options, Recipe())


def _is_better(task: _Task, fit: Fit, plain: Fit) -> bool:
    """Return whether held-out inputs leave no doubt that a fit is better than the plain one."""
    if task.judge is None or fit.error is None or plain.error is None:
        return False
    gain = plain.error**2 - fit.error**2
    if gain <= 0:
        return False
    biases = (fit.corrections, plain.corrections)
    doubt = task.judge.doubt(task.parts(fit.chain), task.parts(plain.chain), biases)
    return gain > _SURE * doubt


def _with_gain(task: _Task, fit: Fit) -> Fit:
    """Return a fit by importance with what importance gained, and what predicts that."""
    metric = task.evidence.metric("fisher")
    plain = task.chain(fit.options, Recipe())
    weight, groups = task.weight.astype(np.float64), task.setting.groups
    own, other = (
        relative_error(metric, weight, chain.reconstruct(), groups) for chain in (fit.chain, plain)
    )
    variance = fisher_variance(np.asarray(metric.importance))
    gain = 1 - own / other if other > 0 else 0.0
    return replace(fit, importance_variance=variance, importance_gain=gain)


def _cost(fit: Fit) -> float:
    error = fit.error if fit.error is not None else np.inf
    return error if fit.corrections is None else error / _PAYS


def _recipes(task: _Task, first: Recipe, asked: Recipe) -> list[Recipe]:
    """Return what to try: what was asked, and other ways to the same size."""
    recipes = [first]
    if first == Recipe():
        return recipes
    centred = asked.bias_correction and asked.metric == "activation" and task.has_one_output
    if centred and first != asked:
        recipes.append(asked)
    if asked.rounding != "nearest":
        recipes.append(replace(first, rounding="nearest"))
    shrinkage = task.evidence.oracle_shrinkage()
    if asked.metric == "activation" and shrinkage > _FEW:
        recipes += [replace(recipe, shrinkage=shrinkage) for recipe in recipes]
    return recipes


def _judged(task: _Task, fit: Fit, may_correct: bool) -> Iterator[Fit]:
    """Yield a fit with its error on held-out inputs, without and with bias correction."""
    if task.judge is None:
        raise ValueError("nothing to judge by")
    parts = task.parts(fit.chain)
    if not fit.recipe.bias_correction:
        yield replace(fit, error=task.judge.error(parts))
    corrections = task.corrections(parts) if may_correct else None
    centred = fit.recipe.bias_correction or fit.recipe.metric != "activation"
    if corrections is not None and centred:
        recipe = replace(fit.recipe, bias_correction=True)
        error = task.judge.error(parts, corrections)
        yield replace(fit, recipe=recipe, corrections=corrections, error=error)
