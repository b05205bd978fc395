"""What is asked of a rewrite: one method, and how it is to be fitted and kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from onnxlr.errors import UsageError
from onnxlr.layers import Layer
from onnxlr.lowering import ACTIVATIONS, find_target
from onnxlr.methods import Options, Recipe, SvdOptions, find_method
from onnxlr.methods.method import NoOptions
from onnxlr.metrics import METRICS, SOLVERS
from onnxlr.numbers import Format
from onnxlr.planning.selection import Selection

__all__ = ["ALLOCATIONS", "Request"]

ALLOCATIONS = ("uniform", "global")
"""One budget for each layer, or one for the whole model."""


@dataclass(frozen=True)
class Request:
    """What is asked of every layer.

    Attributes
    ----------
    method, options, format, group_size, rounding, activations
        As in `Choice`.
    target, seed
        As in `Plan`.
    selection
        The layers meant.
    metric, solver
        As in `Choice`; None is `activation` for layers with statistics, `frobenius` for others.
    bias_correction
        Whether means may be corrected, where held-out inputs say that it pays.
    allocate
        One of `ALLOCATIONS`.
    sequential
        Whether each layer is fitted behind those that were rewritten before it.
    """

    method: str = "svd"
    options: Options = field(default_factory=SvdOptions)
    format: str | None = None
    activations: str = "float"
    target: str = "onnx"
    seed: int = 0
    selection: Selection = field(default_factory=Selection)
    group_size: int | None = None
    rounding: str | None = None
    metric: str | None = None
    solver: str | None = None
    bias_correction: bool = True
    allocate: str = "uniform"
    sequential: bool = False

    def check(self) -> None:
        """Refuse what is unknown or contradicts itself.

        Raises
        ------
        UsageError
            Saying what was found and what was expected.
        """
        find_method(self.method)
        find_target(self.target)
        _expect("activations", self.activations, ACTIVATIONS)
        _expect("allocate", self.allocate, ALLOCATIONS)
        if self.metric is not None:
            _expect("metric", self.metric, METRICS)
        if self.solver is not None:
            _expect("solver", self.solver, SOLVERS)
            if self.metric != "fisher":
                raise UsageError(f"solver '{self.solver}' is for metric fisher: give that as well")
        if self.rounding == "gptq" and self.metric not in (None, "activation", "kfac"):
            raise UsageError(
                f"rounding gptq feeds errors on by the covariance of the inputs, which metric "
                f"{self.metric} does not use: leave the metric out, or give activation or kfac"
            )
        if self.format is None and (self.group_size is not None or self.rounding is not None):
            raise UsageError("group size and rounding are of a format of few bits: give --format")
        if self.encoding is not None and self.encoding.is_float and self.activations != "float":
            raise UsageError(
                f"activations {self.activations} are for int8, int4 and int2 formats, not "
                f"{self.format}"
            )

    @property
    def encoding(self) -> Format | None:
        """The format; None for each weight's own type."""
        if self.format is None:
            return None
        return Format.parse(self.format, self.group_size, self.rounding)

    def with_options(self, layer: Layer, options: Mapping[str, Options] | None) -> Request:
        """Return the request for a layer, with options of its own if it has some."""
        if options is None or layer.name not in options:
            return self
        own = options[layer.name]
        if isinstance(own, NoOptions):
            return replace(self, method="keep", options=own)
        return replace(self, options=own)

    def recipe(self, default_metric: str) -> Recipe:
        """Return how a layer is to be fitted."""
        metric = self.metric or default_metric
        return Recipe(metric, self.rounding or "nearest", self.bias_correction, self.solver)


def _expect(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{what} '{value}' is unknown, expected one of {', '.join(known)}")
