"""Operators that take numbers from places, and those that put them there."""

from __future__ import annotations

from typing import Any

from onnxlr.training.operators.registry import Run, operator
from onnxlr.training.program import Call
from onnxlr.training.torch_import import torch

__all__: list[str] = []


def _counted(indices: Any, size: int) -> Any:
    """Return places counted from the front, int64."""
    wide = indices.to(torch.int64)
    return torch.where(wide < 0, wide + size, wide)


@operator("Gather")
def gather(run: Run, x: Any, indices: Any) -> Any:
    """Take entries along an axis."""
    axis = run.number("axis", 0) % x.dim()
    taken = x.index_select(axis, _counted(indices.reshape(-1), x.shape[axis]))
    return taken.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@operator("GatherElements")
def gather_elements(run: Run, x: Any, indices: Any) -> Any:
    """Take, at each place, the entry whose number along an axis is given."""
    axis = run.number("axis", 0)
    return x.gather(axis, _counted(indices, x.shape[axis]))


@operator("GatherND")
def gather_nd(run: Run, x: Any, indices: Any) -> Any:
    """Take slices by tuples of numbers, which the last axis holds."""
    shared = run.number("batch_dims", 0)
    return x[_tuples(x, indices, shared)]


def _tuples(x: Any, indices: Any, shared: int = 0) -> tuple[Any, ...]:
    """Return one index tensor for each axis of data that tuples of numbers count along."""
    depth = indices.shape[-1]
    counted = [_counted(indices[..., place], x.shape[shared + place]) for place in range(depth)]
    outer = []
    for axis in range(shared):
        extent = [1] * (indices.dim() - 1)
        extent[axis] = x.shape[axis]
        outer.append(torch.arange(x.shape[axis], device=x.device).reshape(extent))
    return (*outer, *counted)


_REDUCED = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("ScatterElements", "Scatter")
def scatter_elements(run: Run, x: Any, indices: Any, updates: Any) -> Any:
    """Put numbers, at each place, where the given number along an axis says."""
    axis = run.number("axis", 0)
    places = _counted(indices, x.shape[axis])
    how = run.number("reduction", "none")
    if how == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCED[how])


@operator("ScatterND")
def scatter_nd(run: Run, x: Any, indices: Any, updates: Any) -> Any:
    """Put slices where tuples of numbers say."""
    places = _tuples(x, indices)
    how = run.number("reduction", "none")
    if how in ("none", "add"):
        return x.index_put(places, updates, accumulate=how == "add")
    depth = indices.shape[-1]
    strides = [1] * depth
    for axis in reversed(range(depth - 1)):
        strides[axis] = strides[axis + 1] * x.shape[axis + 1]
    rows = sum(place * stride for place, stride in zip(places, strides, strict=True)).reshape(-1)
    flat = x.reshape(strides[0] * x.shape[0], -1)
    given = updates.reshape(len(rows), -1)
    spread = rows[:, None].expand(given.shape)
    return flat.scatter_reduce(0, spread, given, _REDUCED[how]).reshape(x.shape)


@operator("Slice", lists=[1, 2, 3, 4])
def take_slices(run: Run, x: Any, *given: Any) -> Any:
    """Take a range of each of some axes; attributes before opset 10, inputs since."""
    lists = [run.number(name) for name in ("starts", "ends", "axes", "steps")]
    for place, value in enumerate(given):
        lists[place] = value
    starts, ends, axes, steps = lists
    for entry, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = axes[entry] % x.dim() if axes else entry
        places = range(*slice(start, end, steps[entry] if steps else 1).indices(x.shape[axis]))
        x = _taken(x, axis, places)
    return x


def _taken(x: Any, axis: int, places: range) -> Any:
    if not len(places):
        return x.narrow(axis, 0, 0)
    if places.step > 0:
        part = (slice(None),) * axis + (slice(places.start, places[-1] + 1, places.step),)
        return x[part]
    return x.index_select(axis, torch.tensor(places, dtype=torch.int64, device=x.device))


@operator("Compress")
def compress(run: Run, x: Any, condition: Any) -> Any:
    """Take the entries along an axis, or of all, for which a condition holds."""
    axis = run.number("axis")
    places = condition.bool().nonzero().reshape(-1)
    return x.reshape(-1)[places] if axis is None else x.index_select(axis, places)


@operator("NonZero")
def nonzero(run: Run, x: Any) -> Any:  # noqa: ARG001
    """Return the places of numbers that are not 0, one column for each."""
    return x.nonzero().T.contiguous()


@operator("OneHot", lists=[1])
def one_hot(run: Run, indices: Any, depth: Any, values: Any) -> Any:
    """Return a new axis with one value at the place that is given, another elsewhere."""
    count = int(depth[0] if isinstance(depth, list) else depth)
    axis = run.number("axis", -1) % (indices.dim() + 1)
    places = indices.to(torch.int64)
    counted = torch.arange(count, device=indices.device)
    hit = (places.unsqueeze(-1) == counted) | (places.unsqueeze(-1) + count == counted)
    return torch.where(hit.movedim(-1, axis), values[1], values[0])


@operator("Trilu", lists=[1])
def triangle(run: Run, x: Any, diagonal: Any = None) -> Any:
    """Keep the upper or lower triangle of matrices."""
    place = int(diagonal[0] if isinstance(diagonal, list) else diagonal or 0)
    return torch.triu(x, place) if run.number("upper", 1) else torch.tril(x, place)


@operator("ReverseSequence", lists=[1])
def reverse_sequence(run: Run, x: Any, lengths: list[int]) -> Any:
    """Turn the beginning of each sequence round."""
    time, batch = run.number("time_axis", 0), run.number("batch_axis", 1)
    moved = x.movedim((batch, time), (0, 1))
    rows = [
        torch.cat([row[:length].flip(0), row[length:]])
        for row, length in zip(moved, lengths, strict=True)
    ]
    return torch.stack(rows).movedim((0, 1), (batch, time))


def _refuses_sorting(call: Call) -> str | None:
    return None if call.number("sorted", 1) else "entries that are not sorted are in no known order"


@operator("TopK", lists=[1], refuses=_refuses_sorting)
def top_k(run: Run, x: Any, count: Any = None) -> tuple[Any, Any]:
    """Return the largest or smallest numbers along an axis, and their places."""
    wanted = run.number("k") if count is None else count
    wanted = wanted[0] if isinstance(wanted, list) else wanted
    axis, descending = run.number("axis", -1), bool(run.number("largest", 1))
    # ONNX takes the first of equal numbers, which torch.topk does not promise.
    found, places = torch.sort(x, dim=axis, descending=descending, stable=True)
    return found.narrow(axis, 0, wanted), places.narrow(axis, 0, wanted)
