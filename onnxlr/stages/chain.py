"""Stages in order, and the one place where scales fold into their neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxlr.numbers import Format
from onnxlr.stages.linear import Linear
from onnxlr.stages.scale import Scale

__all__ = ["Chain", "Cost", "Stage", "simplify"]


class Stage(Protocol):
    """One step of a chain: a linear map of the last axis."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the map as a matrix, `(*batch, inputs, outputs)`."""

    @property
    def parameters(self) -> int:
        """Stored numbers."""

    @property
    def nbytes(self) -> int:
        """Bytes of the stored numbers."""

    def apply(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the step's output for `x` of shape `(..., inputs)`."""

    def operations(self, positions: int) -> int:
        """Return the multiply-adds for that many rows."""

    def encoded(self, format: Format, compute: npt.DTypeLike) -> Stage:
        """Return the step with its numbers kept in `format`."""


@dataclass(frozen=True)
class Cost:
    """What a chain costs: stored numbers, their bytes, and multiply-adds for one row of input."""

    parameters: int
    bytes: int
    operations: int


@dataclass(frozen=True)
class Chain:
    """Stages applied one after the other, for a weight of shape `(*batch, inputs, outputs)`."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        for before, after in zip(self.stages, self.stages[1:], strict=False):
            if before.shape[-1] != after.shape[-2]:
                raise ValueError(f"stages {before.shape} and {after.shape} do not fit together")

    @property
    def cost(self) -> Cost:
        """Parameters, bytes and multiply-adds."""
        return Cost(
            parameters=sum(stage.parameters for stage in self.stages),
            bytes=sum(stage.nbytes for stage in self.stages),
            operations=sum(stage.operations(1) for stage in self.stages),
        )

    @property
    def approximation(self) -> npt.NDArray[np.float64]:
        """The dense weight the chain stands for; computed anew each time, see `reconstruct`."""
        return self.reconstruct()

    def apply(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the chain's output in float64 for `x` of shape `(..., inputs)`."""
        for stage in self.stages:
            x = stage.apply(x)
        return np.asarray(x, np.float64)

    def reconstruct(self) -> npt.NDArray[np.float64]:
        """Return the dense approximation, shape `(*batch, inputs, outputs)`, in float64."""
        first, *rest = self.stages
        if isinstance(first, Linear):
            return Chain(tuple(rest)).apply(first.weight.decode())
        return self.apply(np.eye(first.shape[-2]))

    def encoded(self, format: Format, compute: npt.DTypeLike = np.float32) -> Chain:
        """Return the chain with its stages kept in `format`; `compute` is the model's type."""
        return Chain(tuple(stage.encoded(format, compute) for stage in self.stages))


def simplify(chain: Chain) -> Chain:
    """Fold every scale into a neighbouring matrix that is still exact, the one before it first.

    Folding into the columns before it costs nothing in any format that has a scale per column.
    """
    stages: list[Stage] = []
    pending: npt.NDArray[Any] | None = None
    for stage in chain.stages:
        if isinstance(stage, Scale):
            if stages and _is_exact(stages[-1]):
                stages[-1] = _scaled(stages[-1], stage.factors[..., None, :])
            elif pending is None:
                pending = stage.factors
            else:
                pending = pending * stage.factors
        elif pending is not None and _is_exact(stage):
            stages.append(_scaled(stage, pending[..., :, None]))
            pending = None
        else:
            stages.extend((Scale(pending), stage) if pending is not None else (stage,))
            pending = None
    if pending is not None:
        stages.append(Scale(pending))
    return Chain(tuple(stages))


def _is_exact(stage: Stage) -> bool:
    return isinstance(stage, Linear) and stage.weight.format == Format("float64")


def _scaled(stage: Stage, factors: npt.NDArray[Any]) -> Linear:
    if not isinstance(stage, Linear):
        raise TypeError(f"cannot scale a {type(stage).__name__}")
    return Linear.of(stage.weight.decode() * factors)
