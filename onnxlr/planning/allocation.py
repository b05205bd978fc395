"""Spreads one budget of parameters over all layers, by how much the outputs suffer from each.

Each layer alone is cut to a few ranks and the model is run; between them the damage is taken to
follow the layer's own squared output error, which its spectrum gives for every rank. What is left
is a choice for each layer of one of its ranks, or to keep it, of least damage in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxlr.calibration import Sources
from onnxlr.errors import UsageError
from onnxlr.evidence import Knowledge
from onnxlr.layers import Layer, read_weight
from onnxlr.methods import Keep, Options, Setting, Spectrum, Svd, SvdOptions
from onnxlr.methods.matricisation import Matricisation, matricisations
from onnxlr.model import Model
from onnxlr.model.saving import write_model
from onnxlr.planning.opened import open_weights
from onnxlr.planning.sensitivity import Sensitivity, store_feeds
from onnxlr.planning.uniform import kept
from onnxlr.progress import Progress
from onnxlr.runtime import run_task, store_arrays
from onnxlr.scratch import scratch

if TYPE_CHECKING:
    from onnxlr.planning.request import Request

__all__ = ["Curve", "allocate", "spread"]

Vector = npt.NDArray[np.float64]

_CUTS = (0.15, 0.3, 0.5, 0.75)
"""Ranks to measure, as parts of the rank at which factors have as many parameters as the weight."""


@dataclass(frozen=True)
class Curve:
    """What a layer's ranks cost and break.

    Attributes
    ----------
    parameters
        Of ranks 1, 2, … below break-even, and last of the layer as it is.
    damages
        Of each of them, expected at the model's outputs; 0 for the layer as it is.
    """

    parameters: Vector
    damages: Vector


def spread(curves: Sequence[Curve], budget: float) -> list[int]:
    """Return for each curve the position of least damage in all within a budget of parameters.

    By a common price of a parameter (Lagrange multiplier), found by bisection; what the price
    leaves over is spent where it mends most.

    Raises
    ------
    UsageError
        If even the least ranks take more than the budget.
    """
    if sum(curve.parameters.min() for curve in curves) > budget:
        raise UsageError("the ratio leaves less than rank 1 of every layer")

    def choose(price: float) -> list[int]:
        return [int(np.argmin(c.damages + price * c.parameters)) for c in curves]

    def taken(chosen: Sequence[int]) -> float:
        return float(sum(c.parameters[i] for c, i in zip(curves, chosen, strict=True)))

    low, high = 0.0, 1.0
    if taken(choose(low)) <= budget:
        return choose(low)
    while taken(choose(high)) > budget:
        high *= 8
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if taken(choose(middle)) <= budget else (middle, high)
    chosen = choose(high)
    _spend(curves, chosen, budget - taken(chosen))
    return chosen


def _spend(curves: Sequence[Curve], chosen: list[int], left: float) -> None:
    """Raise ranks by what is left, the best use of a parameter first; in place."""
    while True:
        best, gain = None, 0.0
        for index, curve in enumerate(curves):
            here = chosen[index]
            costs = curve.parameters - curve.parameters[here]
            gains = curve.damages[here] - curve.damages
            usable = (costs > 0) & (costs <= left) & (gains > 0)
            if not usable.any():
                continue
            rates = np.where(usable, gains / np.where(usable, costs, 1), -np.inf)
            if rates.max() > gain:
                best, gain = (index, int(np.argmax(rates))), float(rates.max())
        if best is None:
            return
        index, position = best
        left -= curves[index].parameters[position] - curves[index].parameters[chosen[index]]
        chosen[index] = position


@dataclass(frozen=True)
class _Layer:
    """A layer with the spectrum of its weight in its metric."""

    layer: Layer
    form: Matricisation
    spectrum: Spectrum
    covariance: Any
    ranks: tuple[int, ...]

    @property
    def parameters(self) -> Vector:
        """Parameters of ranks 1, 2, … below break-even, and of the layer."""
        *_, rows, columns = self.form.matrices().shape
        whole = self.form.matrices().size
        one = whole // (rows * columns) * (rows + columns)
        ranks = np.arange(1, (whole - 1) // one + 1)
        return np.append(ranks * one, whole).astype(np.float64)

    def approximation(self, rank: int) -> npt.NDArray[np.float64]:
        """Return the dense weight of a rank."""
        left, right = self.spectrum.factors(rank)
        if self.covariance is not None and not self.form.is_whole:
            right = self.form.solve_second(left, self.covariance)
        return self.form.chain(left, right).reconstruct()

    def curve(self, damages: Sequence[float]) -> Curve:
        """Return the damage at every rank from that at the ranks that were tried.

        Between them the damage for a squared error is interpolated, both in logarithms.
        """
        parameters = self.parameters
        squares = np.square(self.spectrum.errors()[: len(parameters) - 1])
        tiny = 1e-16
        tried = np.log(np.maximum(squares[[rank - 1 for rank in self.ranks]], tiny))
        factors = np.log(np.maximum(damages, tiny)) - tried
        order = np.argsort(tried)
        logs = np.log(np.maximum(squares, tiny))
        expected = np.exp(logs + np.interp(logs, tried[order], factors[order]))
        falling = np.minimum.accumulate(expected)
        return Curve(parameters, np.append(falling, 0.0))


def allocate(
    model: Model,
    layers: Sequence[Layer],
    request: Request,
    knowledge: Knowledge,
    sources: Sources,
    reopen: Callable[[], Model],
    isolate: bool,
    progress: Progress,
) -> dict[str, Options]:
    """Return the options of each layer that is meant, such that together they have the ratio asked.

    Layers that are best kept get the options of no factorization (`Keep`).

    Raises
    ------
    UsageError
        If the request is not one for a ratio, or there is no calibration data to run.
    """
    options = request.options
    if not isinstance(options, SvdOptions) or options.ratio is None:
        raise UsageError(
            "global allocation spreads a ratio of parameters over the layers: give --method svd "
            "and --ratio"
        )
    if sources.calibration is None:
        raise UsageError("global allocation runs the model on calibration data: give --calibration")
    meant = [layer for layer in layers if kept(layer, request) is None and not layer.is_table]
    with scratch("onnxlr-sensitivity-") as folder:
        opened, inputs = open_weights(reopen(), meant)
        write_model(opened, folder, "opened.onnx")
        found: list[_Layer] = []
        originals: dict[str, npt.NDArray[Any]] = {}
        trials: list[str] = []
        fixed = 0
        for position, layer in enumerate(meant):
            progress("preparing trials", position, len(meant))
            weight = read_weight(model, layer)
            if layer.name not in inputs:
                continue
            originals |= inputs[layer.name].arranged(weight)
            try:
                tried = _prepare(layer, weight, request, knowledge)
            except UsageError:  # kept, with this very reason when it is fitted as asked
                fixed += weight.size
                continue
            found.append(tried)
            for rank in tried.ranks:
                file = folder / f"trial-{len(trials):06}.npz"
                store_arrays(file, inputs[layer.name].arranged(tried.approximation(rank)))
                trials.append(str(file))
        progress("preparing trials", 1, 1)
        store_arrays(folder / "weights.npz", originals)
        feeds = store_feeds(folder, model, sources)
        task = Sensitivity(str(folder / "opened.onnx"), str(folder / "weights.npz"), trials, feeds)
        progress(f"measuring sensitivity, {len(trials)} trials", 0, 1)
        damages = iter(run_task(task, model.name, isolate)["damages"])
        progress(f"measuring sensitivity, {len(trials)} trials", 1, 1)
    curves = [t.curve([next(damages) for _ in t.ranks]) for t in found]
    budget = options.ratio * (fixed + sum(curve.parameters[-1] for curve in curves))
    chosen = spread(curves, budget - fixed)
    return {
        t.layer.name: _options(t, curve, position)
        for t, curve, position in zip(found, curves, chosen, strict=True)
    }


def _options(tried: _Layer, curve: Curve, position: int) -> Options:
    if position == len(curve.parameters) - 1:
        return Keep.options()
    return SvdOptions(rank=position + 1, form=tried.form.name)


def _prepare(
    layer: Layer, weight: npt.NDArray[Any], request: Request, knowledge: Knowledge
) -> _Layer:
    """Return a layer with its spectrum, in the form that is best at the ratio asked."""
    evidence = knowledge.of(layer)
    recipe = request.recipe(evidence.default_metric)
    metric = evidence.metric(recipe.metric, solver=recipe.solver)
    setting = replace(Setting.for_layer(layer), metric=metric)
    options = request.options
    if not isinstance(options, SvdOptions):
        raise TypeError("only svd has ranks to allocate")
    name = None
    if layer.groups is not None:
        settled = Svd().settle(options, Svd().factorize(weight, options, setting))
        name = settled.form
    form = matricisations(weight, layer.groups, name, setting.whole_window)[0]
    spectrum = Spectrum.of(form.matrices(), form.weighings(metric))
    *_, rows, columns = form.matrices().shape
    most = (rows * columns - 1) // (rows + columns)
    if most < 1:
        raise UsageError(f"no factors of a {rows}×{columns} weight are smaller than itself")
    ranks = tuple(sorted({max(round(cut * most), 1) for cut in _CUTS}))
    return _Layer(layer, form, spectrum, metric.covariance, ranks)
