"""What is differentiated for Fisher information: noise at the outputs, or a loss on labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, Protocol

from onnxlr.errors import DataError, TrainingError, UsageError
from onnxlr.training.losses import Loss, finite, load_loss
from onnxlr.training.torch_import import torch

__all__ = ["DISTILL", "Direction", "Empirical", "Noise", "Objective", "objective"]

Tensor = Any

DISTILL = "distill"
"""The loss that needs no labels."""

_DRAWS = 2
"""Of noise for each sample: further samples tell more than further draws, but cost more."""


@dataclass(frozen=True)
class Direction:
    """Tensors, and what each is multiplied with before they are summed up and differentiated."""

    tensors: tuple[Tensor, ...]
    factors: tuple[Tensor, ...]


class Objective(Protocol):
    """Says what is differentiated for one sample."""

    @property
    def draws(self) -> int:
        """How many directions there are for each sample."""

    def directions(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], mask: Tensor | None
    ) -> Iterator[Direction]:
        """Yield them; the mean of the squared gradients is the sample's Fisher information."""


class Noise:
    """Relative Gaussian noise at the outputs, for a model that is to keep them.

    At the model itself a distance to its own outputs has gradient 0, and its Fisher information is
    its curvature. That is the information of outputs `y` seen through Gaussian noise, in
    proportion to their length: the expected squared gradient of `Σ_k √(2/K) <ε_k, y_k> / ‖y_k‖`
    with standard normal `ε` is the diagonal of the Gauss–Newton matrix of the distillation loss,
    the mean over the K outputs of `‖y_k − t_k‖² / ‖t_k‖²`. For Gaussian noise the two are the same
    matrix (Martens, JMLR 2020, section 9).

    Parameters
    ----------
    draws
        Of noise for each sample.
    seed
        Of the noise; it is the same on all devices.
    """

    def __init__(self, draws: int, seed: int) -> None:
        self.draws = draws
        self._generator = torch.Generator().manual_seed(seed)

    def directions(
        self,
        outputs: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],  # noqa: ARG002
        mask: Tensor | None,
    ) -> Iterator[Direction]:
        """Yield noise divided by the lengths of the outputs; positions that are masked get none."""
        tensors, scales = [], []
        for name, output in outputs.items():
            if not (output.is_floating_point() and output.requires_grad):
                continue
            scale = _scale(name, output.detach(), mask)
            if scale is not None:
                tensors.append(output)
                scales.append(scale)
        for _ in range(self.draws if tensors else 0):
            factors = (sqrt(2 / len(scales)) * scale * self._noise(scale) for scale in scales)
            yield Direction(tuple(tensors), tuple(factors))

    def _noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._generator).to(like)


def _scale(name: str, output: Tensor, mask: Tensor | None) -> Tensor | None:
    """Return 1 over the length of an output where it counts, 0 elsewhere; None if it is zero."""
    counts = torch.ones_like(output)
    if mask is not None and output.shape[: mask.dim()] == mask.shape:
        shape = (*mask.shape, *[1] * (output.dim() - mask.dim()))
        counts = counts * (mask != 0).reshape(shape)
    length = (output.double() * counts).square().sum().sqrt()
    if not bool(torch.isfinite(length)):
        raise DataError(f"output '{name}' has entries that are NaN or infinite")
    return (counts / length).to(output) if bool(length > 0) else None


class Empirical:
    """A loss of the user's own, on labels or on what it draws: the empirical Fisher information.

    It is near the true one only where labels are as the model says they are (Kunstner, Balles and
    Hennig, NeurIPS 2019). A loss that draws labels from the outputs gives the true one.

    Parameters
    ----------
    source
        `module:function` of outputs and batch, as in `load_loss`.
    draws
        How many times it is called for each sample, which pays if it draws labels.
    """

    def __init__(self, source: str, draws: int) -> None:
        self.draws = draws
        self._source = source
        self._loss: Loss = load_loss(source)

    def directions(
        self,
        outputs: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        mask: Tensor | None,  # noqa: ARG002
    ) -> Iterator[Direction]:
        """Yield the loss of the sample; raises TrainingError if it fails or is not finite."""
        for _ in range(self.draws):
            found = finite(self._loss(outputs, batch), self._source)
            if not found.requires_grad:
                raise TrainingError(
                    f"{self._source}: returned a number that does not depend on the outputs, or "
                    "on them without their gradients (detach, numpy)"
                )
            yield Direction((found,), (torch.ones_like(found),))


def objective(loss: str, draws: int | None, seed: int) -> Objective:
    """Return what `--loss` means: `distill` or `module:function`.

    Parameters
    ----------
    loss
        One of the two.
    draws
        Directions for each sample; if not given, 2 for `distill` and 1 for a function.
    seed
        Of noise.

    Raises
    ------
    DataError
        If the function cannot be imported.
    UsageError
        If not even one draw is asked for.
    """
    if draws is not None and draws < 1:
        raise UsageError(f"{draws} draws were asked for, expected at least 1")
    return Noise(draws or _DRAWS, seed) if loss == DISTILL else Empirical(loss, draws or 1)
