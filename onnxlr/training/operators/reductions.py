"""Operators that make one number of many along axes, and running sums."""

from __future__ import annotations

from typing import Any

from onnxlr.training.operators.registry import Run, operator
from onnxlr.training.torch_import import torch

__all__: list[str] = []


def _axes(run: Run, x: Any, axes: Any) -> list[int] | None:
    """Return the axes to reduce, None to reduce none."""
    given = run.number("axes") if axes is None else axes
    if given is not None and not isinstance(given, list):
        given = [given]
    if given:
        return [axis % max(x.dim(), 1) for axis in given]
    return None if run.number("noop_with_empty_axes", 0) else list(range(x.dim()))


def _product(x: Any, axes: list[int], keep: bool) -> Any:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _mean(x: Any, axes: list[int], keep: bool) -> Any:
    if x.is_floating_point():
        return x.mean(axes, keep)
    return x.to(torch.float64).mean(axes, keep).trunc().to(x.dtype)


def _sum(x: Any, axes: list[int], keep: bool) -> Any:
    return x.sum(axes, keep, dtype=x.dtype)


def _extreme(name: str) -> Any:
    function = getattr(torch, name)

    def reduced(x: Any, axes: list[int], keep: bool) -> Any:
        if x.numel():
            return function(x, axes, keep)
        # ONNX knows the extremes of nothing: the least and greatest numbers there are.
        is_float = x.is_floating_point()
        about = (
            None if x.dtype == torch.bool else (torch.finfo if is_float else torch.iinfo)(x.dtype)
        )
        edge = {
            "amax": float("-inf") if is_float else 0 if about is None else about.min,
            "amin": float("inf") if is_float else 1 if about is None else about.max,
        }[name]
        sizes = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        full = torch.full(sizes, edge, dtype=x.dtype, device=x.device)
        return full if keep else full.squeeze(axes)

    return reduced


_BEFORE_AND_AFTER: dict[str, tuple[Any, Any, Any]] = {
    "ReduceSum": (None, _sum, None),
    "ReduceMean": (None, _mean, None),
    "ReduceMax": (None, _extreme("amax"), None),
    "ReduceMin": (None, _extreme("amin"), None),
    "ReduceProd": (None, _product, None),
    "ReduceL1": (torch.abs, _sum, None),
    "ReduceL2": (torch.square, _sum, torch.sqrt),
    "ReduceSumSquare": (torch.square, _sum, None),
    "ReduceLogSum": (None, _sum, torch.log),
    "ReduceLogSumExp": (None, torch.logsumexp, None),
}
"""What is done to numbers, how they are reduced, and what is done to the results."""


def _register(name: str) -> None:
    before, reduce, after = _BEFORE_AND_AFTER[name]

    @operator(name, lists=[1])
    def reduced(run: Run, x: Any, axes: Any = None) -> Any:
        places = _axes(run, x, axes)
        x = x if before is None else before(x)
        if places is not None:
            keep = bool(run.number("keepdims", 1))
            x = reduce(x, places, keep) if places else x
        return x if after is None else after(x)


for _name in _BEFORE_AND_AFTER:
    _register(_name)


def _place_of(run: Run, x: Any, function: Any) -> Any:
    axis, keep = run.number("axis", 0), bool(run.number("keepdims", 1))
    if not run.number("select_last_index", 0):
        return function(x, axis, keep)
    return x.shape[axis] - 1 - function(x.flip(axis), axis, keep)


@operator("ArgMax")
def argmax(run: Run, x: Any) -> Any:
    """Return the place of the largest number along an axis: the first, or the last."""
    return _place_of(run, x, torch.argmax)


@operator("ArgMin")
def argmin(run: Run, x: Any) -> Any:
    """Return the place of the smallest number along an axis: the first, or the last."""
    return _place_of(run, x, torch.argmin)


def _running(run: Run, x: Any, axis: Any, function: Any, nothing: int) -> Any:
    place = axis[0] if isinstance(axis, list) else axis
    turned = x.flip(place) if run.number("reverse", 0) else x
    found = function(turned, place, dtype=x.dtype)
    if run.number("exclusive", 0):
        first = torch.full_like(found.narrow(place, 0, 1), nothing)
        found = torch.cat([first, found.narrow(place, 0, found.shape[place] - 1)], place)
    return found.flip(place) if run.number("reverse", 0) else found


@operator("CumSum", lists=[1])
def running_sum(run: Run, x: Any, axis: Any) -> Any:
    """Return sums of all numbers up to each along an axis."""
    return _running(run, x, axis, torch.cumsum, 0)


@operator("CumProd", lists=[1])
def running_product(run: Run, x: Any, axis: Any) -> Any:
    """Return products of all numbers up to each along an axis."""
    return _running(run, x, axis, torch.cumprod, 1)
