"""Operators that give numbers another shape, and those that tell shapes."""

from __future__ import annotations

from math import prod
from typing import Any

from onnxlr.training.operators.registry import Run, operator
from onnxlr.training.torch_import import torch

__all__: list[str] = []


@operator("Shape")
def shape(run: Run, x: Any) -> Any:
    """Return the sizes of axes, int64; they stay on the CPU, where they are needed."""
    return torch.tensor(x.shape[run.number("start", 0) : run.number("end")], dtype=torch.int64)


@operator("Size")
def size(run: Run, x: Any) -> Any:  # noqa: ARG001
    """Return how many numbers there are; on the CPU, like a shape."""
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("Reshape", lists=[1])
def reshape(run: Run, x: Any, sizes: list[int]) -> Any:
    """Give another shape: 0 is the size that was, −1 what is left."""
    wanted = sizes
    if not run.number("allowzero", 0):
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    if 0 in wanted and -1 in wanted:  # torch does not say what is left of nothing
        known = prod(size for size in wanted if size > 0)
        left = x.numel() // known if 0 not in x.shape else 0
        wanted = [left if size < 0 else size for size in wanted]
    return x.reshape(wanted)


@operator("Flatten")
def flatten(run: Run, x: Any) -> Any:
    """Return a matrix: axes before one are its rows."""
    axis = run.number("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


@operator("Transpose")
def transpose(run: Run, x: Any) -> Any:
    """Order the axes anew."""
    return x.permute(run.number("perm", list(reversed(range(x.dim())))))


@operator("Unsqueeze", lists=[1])
def unsqueeze(run: Run, x: Any, axes: Any = None) -> Any:
    """Put in axes of size 1."""
    places = run.number("axes") if axes is None else _listed(axes)
    rank = x.dim() + len(places)
    for place in sorted(place % rank for place in places):
        x = x.unsqueeze(place)
    return x


@operator("Squeeze", lists=[1])
def squeeze(run: Run, x: Any, axes: Any = None) -> Any:
    """Take out axes of size 1: some, or all."""
    places = run.number("axes") if axes is None else _listed(axes)
    if places is None:
        return x.squeeze()
    large = [place for place in places if x.shape[place] != 1]
    if large:
        raise ValueError(f"axis {large[0]} has size {x.shape[large[0]]}, expected 1")
    kept = {place % x.dim() for place in places}
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in kept])


def _listed(axes: Any) -> list[int]:
    return axes if isinstance(axes, list) else [axes]


@operator("Expand", lists=[1])
def expand(run: Run, x: Any, sizes: list[int]) -> Any:  # noqa: ARG001
    """Repeat axes of size 1; those of the data are kept where 1 is wanted."""
    return x.expand(torch.broadcast_shapes(x.shape, sizes))


@operator("Tile", lists=[1])
def tile(run: Run, x: Any, repeats: list[int]) -> Any:  # noqa: ARG001
    """Repeat the whole along axes."""
    return x.repeat(repeats)


@operator("Concat")
def concat(run: Run, *values: Any) -> Any:
    """Put tensors behind each other along an axis."""
    return torch.cat(values, run.number("axis", 1))


@operator("Split", lists=[1])
def split(run: Run, x: Any, sizes: list[int] | None = None) -> tuple[Any, ...]:
    """Cut along an axis, into parts of given or equal sizes (the last may be shorter)."""
    axis = run.number("axis", 0)
    sizes = run.number("split") if sizes is None else sizes
    if sizes is None:
        count = run.number("num_outputs", len(run.call.outputs))
        each = -(-x.shape[axis] // count)
        sizes = [each] * count
        sizes[-1] = x.shape[axis] - each * (count - 1)
    return tuple(torch.split(x, sizes, axis))


@operator("DepthToSpace")
def depth_to_space(run: Run, x: Any) -> Any:
    """Move channels into squares of space."""
    side = run.number("blocksize")
    batch, channels, height, width = x.shape
    if run.number("mode", "DCR") == "DCR":
        apart = x.reshape(batch, side, side, channels // side**2, height, width)
        apart = apart.permute(0, 3, 4, 1, 5, 2)
    else:
        apart = x.reshape(batch, channels // side**2, side, side, height, width)
        apart = apart.permute(0, 1, 4, 2, 5, 3)
    return apart.reshape(batch, channels // side**2, height * side, width * side)


@operator("SpaceToDepth")
def space_to_depth(run: Run, x: Any) -> Any:
    """Move squares of space into channels."""
    side = run.number("blocksize")
    batch, channels, height, width = x.shape
    apart = x.reshape(batch, channels, height // side, side, width // side, side)
    order = (0, 3, 5, 1, 2, 4) if run.number("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return apart.permute(order).reshape(batch, channels * side**2, height // side, width // side)
