"""Fisher information of weights: mean squared gradients of single samples, and Kronecker factors.

The square of a gradient that was summed over a batch is something else: it grows with what the
samples have in common, and loses what they have not (Kunstner, Balles and Hennig, NeurIPS 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.calibration import DataSource, signature
from onnxlr.errors import DataError, ModelError, TrainingError, UsageError
from onnxlr.layers import find_layers
from onnxlr.methods.weighted import fisher_variance
from onnxlr.model import Model
from onnxlr.planning import Selection
from onnxlr.progress import Progress, silent
from onnxlr.training.device import usable_device
from onnxlr.training.fisher.factors import Factors
from onnxlr.training.fisher.losses import DISTILL, Direction, Objective, objective
from onnxlr.training.fisher.result import FisherInformation, LayerFisher
from onnxlr.training.fisher.samples import Samples, read_samples
from onnxlr.training.fisher.subjects import Choice, Subject, choose
from onnxlr.training.torch_import import torch
from onnxlr.training.trainable import TrainableModel

__all__ = ["Question", "find_fisher"]

Array = npt.NDArray[Any]
Tensor = Any


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes
    ----------
    loss
        `distill` or `module:function`, see `objective`.
    samples
        Most samples to take; None for all.
    draws
        Of noise for each sample, or calls of a loss that draws labels; see `objective`.
    mask
        Name of a tensor of the main graph that is 0 where positions do not count.
    kronecker
        Whether Kronecker factors are found, too.
    selection
        Which layers.
    device
        Where torch computes.
    seed
        Of the noise, and of what a loss draws with torch.
    """

    loss: str = DISTILL
    samples: int | None = None
    draws: int | None = None
    mask: str | None = None
    kronecker: bool = True
    selection: Selection = field(default_factory=Selection)
    device: str = "cpu"
    seed: int = 0


def find_fisher(
    model: Model, calibration: DataSource, asked: Question, progress: Progress = silent
) -> FisherInformation:
    """Differentiate sample by sample, square, and average.

    Parameters
    ----------
    model
        An opened model; it is not changed.
    calibration
        Inputs like those it will meet, with what the loss needs beside them.
    asked
        What is asked.
    progress
        Called before each sample.

    Raises
    ------
    UsageError, DataError
        If an argument cannot be followed or the data does not fit, or outputs or gradients are NaN
        or infinite.
    ModelError
        If the model cannot be run in torch.
    TrainingError
        If the loss fails, or depends on no weight.
    """
    layers = find_layers(model)
    asked.selection.check(layers)
    meant = {layer.name: asked.selection.leaves(layer) for layer in layers}
    choice = choose(model.proto, layers, {name: why for name, why in meant.items() if why})
    if not choice.subjects:
        raise UsageError(f"{model.name}: has no weight to find Fisher information of")
    aim = objective(asked.loss, asked.draws, asked.seed)
    device = usable_device(asked.device)
    trainable = TrainableModel(model).to(device)
    samples = read_samples(calibration, signature(model), asked.samples)
    work = _Work(trainable, choice, aim, asked)
    accelerators = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(accelerators):
        torch.manual_seed(asked.seed)
        for number, run in enumerate(samples.runs):
            progress("squaring gradients", number, len(samples.runs))
            work.add(run, f"{model.name}: sample {number + 1} of {samples.description}")
    progress("squaring gradients", len(samples.runs), len(samples.runs))
    return work.found(samples)


class _Work:
    """Sums over samples."""

    def __init__(
        self, trainable: TrainableModel, choice: Choice, aim: Objective, asked: Question
    ) -> None:
        self._trainable, self._choice, self._aim, self._asked = trainable, choice, aim, asked
        self._factors = Factors(choice.subjects if asked.kronecker else ())
        trainable.requires_grad_(False)
        self._weights = {
            subject.weight: trainable.constant(subject.weight).requires_grad_(True)
            for subject in choice.subjects
        }
        self._totals = {
            name: torch.zeros_like(weight, dtype=torch.float64)
            for name, weight in self._weights.items()
        }
        self._mask_fits = False

    def add(self, run: Mapping[str, Array], where: str) -> None:
        """Take in one sample."""
        asked, factors = self._asked, self._factors
        masks = () if asked.mask is None else (asked.mask,)
        try:
            values = self._trainable(run, (*factors.data, *factors.results, *masks))
            mask = None if asked.mask is None else values[asked.mask]
            outputs = {name: values[name] for name in self._trainable.outputs}
            flat = None if mask is None else mask.detach().cpu().numpy()
            factors.add_inputs(values, flat)
            if mask is not None:
                shapes = [output.shape[: mask.dim()] for output in outputs.values()]
                self._mask_fits = self._mask_fits or mask.shape in shapes
            self._differentiate(values, outputs, run, mask, flat)
        except (DataError, TrainingError) as error:
            raise type(error)(f"{where}: {error}") from error

    def _differentiate(
        self,
        values: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
        run: Mapping[str, Array],
        mask: Tensor | None,
        flat: Array | None,
    ) -> None:
        batch = {name: self._tensor(name, array) for name, array in run.items()}
        results = {name: values[name] for name in self._factors.results}
        results = {name: value for name, value in results.items() if value.requires_grad}
        sought = [*self._weights.values(), *results.values()]
        for direction in self._aim.directions(outputs, batch, mask):
            gradients = self._gradients(direction, sought)
            of_weights = gradients[: len(self._weights)]
            for total, gradient in zip(self._totals.values(), of_weights, strict=True):
                if gradient is not None:
                    total += gradient.double().square_()
            of_results = dict(zip(results, gradients[len(self._weights) :], strict=True))
            self._factors.add_gradients(of_results, flat)

    def _gradients(self, direction: Direction, sought: list[Tensor]) -> tuple[Tensor | None, ...]:
        """Return the gradients of a direction, None where it does not depend on a tensor."""
        tensors, factors = direction.tensors, direction.factors
        try:
            found: tuple[Tensor | None, ...] = torch.autograd.grad(
                tensors, sought, factors, retain_graph=True, allow_unused=True
            )
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ModelError(f"{self._trainable.name}: has no gradient: {reason}") from error
        return found

    def _tensor(self, name: str, array: Array) -> Tensor:
        weight = next(iter(self._weights.values()))
        try:
            return torch.from_numpy(np.array(array)).to(weight.device)
        except TypeError:
            raise DataError(
                f"'{name}' has dtype {array.dtype}, expected one that torch has"
            ) from None

    def found(self, samples: Samples) -> FisherInformation:
        """Return the means."""
        asked = self._asked
        if asked.mask is not None and not self._mask_fits and not any(self._factors.fits.values()):
            raise DataError(
                f"the mask '{asked.mask}' fits no output and the data of no layer; expected a "
                "tensor of their leading dimensions, such as (batch, sequence)"
            )
        arrays: dict[str, Array] = {}
        layers, left = [], dict(self._choice.left)
        for subject in self._choice.subjects:
            mean = self._mean(subject, len(samples.runs))
            if mean.any():
                arrays[subject.weight] = mean
                layers.append(self._layer(subject, mean, arrays))
            else:
                left |= {layer.name: "no gradient reaches it" for layer in subject.layers}
        if not layers:
            raise TrainingError(
                f"the loss '{asked.loss}' depends on the weight of no layer: all gradients are 0"
            )
        return FisherInformation(
            arrays,
            tuple(layers),
            left,
            samples.description,
            len(samples.runs),
            samples.uncut,
            asked.loss,
            self._aim.draws,
            asked.seed,
            self._notes(samples),
        )

    def _mean(self, subject: Subject, samples: int) -> Array:
        total = self._totals[subject.weight] / (samples * self._aim.draws)
        mean: Array = total.float().cpu().numpy()
        if not np.isfinite(mean).all():
            raise DataError(
                f"layer '{subject.layer.name}': the gradient of its weight is NaN or infinite (or "
                f"too large to be squared) in some sample; --skip '{subject.layer.name}' leaves "
                "it out"
            )
        return mean

    def _layer(self, subject: Subject, mean: Array, arrays: dict[str, Array]) -> LayerFisher:
        factors, rows = self._factors.of(subject)
        arrays |= {f"{subject.weight}/{name}": array for name, array in factors.items()}
        why = subject.why
        if self._asked.kronecker and not factors:
            why = why or "no gradient reaches its nodes"
        return LayerFisher(
            subject.layer.name,
            subject.weight,
            mean.shape,
            float(mean.mean(dtype=np.float64)),
            fisher_variance(mean),
            rows,
            why if self._asked.kronecker else None,
        )

    def _notes(self, samples: Samples) -> tuple[str, ...]:
        notes = []
        if samples.uncut:
            notes.append(
                f"{samples.uncut} of {len(samples.runs)} runs may hold several samples and could "
                "not be cut: the gradient of each run is squared as one sample's"
            )
        unmasked = [name for name, fits in self._factors.fits.items() if not fits]
        if self._asked.mask is not None and unmasked:
            names = ", ".join(f"'{name}'" for name in unmasked)
            notes.append(
                f"mask '{self._asked.mask}' does not fit the rows of {names}: all their positions "
                "count in the Kronecker factors"
            )
        return tuple(notes)
