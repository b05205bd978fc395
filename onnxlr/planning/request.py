"""What is asked of a rewrite: one method, and how it is to be fitted and kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from onnxlr.errors import UsageError, check_known
from onnxlr.layers import Layer
from onnxlr.lowering import ACTIVATIONS, find_target
from onnxlr.methods import Options, Recipe, Rounding, SvdOptions, find_method, format_of
from onnxlr.methods.method import NoOptions
from onnxlr.metrics import METRICS, SOLVERS
from onnxlr.numbers import Format
from onnxlr.planning.selection import Selection

__all__ = ["ALLOCATIONS", "Request"]

ALLOCATIONS = ("uniform", "global")
"""One budget for each layer, or one for the whole model."""

_TERNARY_TARGETS = ("onnxlr", "ort")
"""Targets with operators that take ternary numbers and round the data they come with."""

_OF_INPUTS = ("activation", "kfac")
"""Metrics that know the covariance of the inputs."""


@dataclass(frozen=True)
class Request:
    """What is asked of every layer.

    Attributes
    ----------
    method, options, format, group_size
        As in `Choice`.
    rounding
        As in `Choice`; None is what is usual for the method where there are statistics.
    activations
        As in `Choice`; None is `dynamic_int8` for ternary numbers on targets with operators for
        them, where these can be written so, and `float` elsewhere.
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
    activations: str | None = None
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
        if self.activations is not None:
            check_known("activations", self.activations, ACTIVATIONS)
        check_known("allocate", self.allocate, ALLOCATIONS)
        if self.metric is not None:
            check_known("metric", self.metric, METRICS)
        if self.solver is not None:
            check_known("solver", self.solver, SOLVERS)
            if self.metric != "fisher":
                raise UsageError(f"solver '{self.solver}' is for metric fisher: give that as well")
        if self.rounding == "gptq" and self.metric not in (None, *_OF_INPUTS):
            raise UsageError(
                f"rounding gptq feeds errors on by the covariance of the inputs, which metric "
                f"{self.metric} does not use: leave the metric out, or give activation or kfac"
            )
        encoding = self.encoding
        if encoding is not None and encoding.is_float and self.activations not in (None, "float"):
            raise UsageError(
                f"activations {self.activations} are for int8, int4, int2 and ternary formats, not "
                f"{self.format}"
            )

    @property
    def encoding(self) -> Format | None:
        """The format; None for each weight's own type."""
        method = find_method(self.method)
        return format_of(method, self.format, self.group_size, self.rounding)

    @property
    def data(self) -> tuple[str, ...]:
        """What data may be computed in, the first that can be written."""
        if self.activations is not None:
            return (self.activations,)
        encoding = self.encoding
        fast = encoding is not None and encoding.is_ternary and self.target in _TERNARY_TARGETS
        return ("dynamic_int8", "float") if fast else ("float",)

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
        method, usual = find_method(self.method), "nearest"
        if isinstance(method, Rounding) and metric in _OF_INPUTS:
            usual = method.default_rounding
        return Recipe(metric, self.rounding or usual, self.bias_correction, self.solver)
