"""What held-out data is judged by: the loss, or a score of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from onnxlr.calibration.data import load_function
from onnxlr.errors import TrainingError
from onnxlr.training.constants import tensor_of
from onnxlr.training.data import Arrays, samples_of
from onnxlr.training.losses import Loss, LossSource, name_of
from onnxlr.training.torch_import import torch
from onnxlr.training.trainable import TrainableModel

__all__ = ["Score", "as_score", "mean_of", "mean_over", "tensors_of"]

Tensor = Any
Score = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Any]
"""Takes outputs by name, and the batch; returns a number, larger is better."""


def as_score(source: LossSource) -> Score:
    """Return a score whose result is checked.

    Raises
    ------
    DataError
        If `module:function` cannot be imported, or is no function.
    """
    name = name_of(source)
    function = load_function(source) if isinstance(source, str) else source

    def score(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> float:
        try:
            found = float(function(outputs, batch))
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TrainingError(f"{name}: failed with {type(error).__name__}: {reason}") from error
        if not np.isfinite(found):
            raise TrainingError(f"{name}: returned {found:g}, expected a finite number")
        return found

    return score


def tensors_of(batch: Arrays, device: Any) -> dict[str, Tensor]:
    """Return a batch's arrays as tensors on a device; texts and the like stay out."""
    found = {}
    for name, array in batch.items():
        if array.dtype.kind in "biuf" or array.dtype == ml_dtypes.bfloat16:
            found[name] = tensor_of(array, f"'{name}' of the data").to(device)
    return found


def mean_of(
    found: Iterable[tuple[Arrays, Mapping[str, Tensor]]], function: Score | Loss, device: Any
) -> float:
    """Return the mean of a function of outputs and batch, each batch weighted by its samples.

    Parameters
    ----------
    found
        Batches, each with the outputs of a model as tensors by name.
    """
    total, count = 0.0, 0
    for batch, outputs in found:
        samples = samples_of(batch)
        total += samples * float(function(outputs, tensors_of(batch, device)))
        count += samples
    return total / count


def mean_over(
    model: TrainableModel, held: Sequence[Arrays], function: Score | Loss, device: Any
) -> float:
    """Return the mean of a function of a model's outputs and batch, see `mean_of`.

    Parameters
    ----------
    model
        Run in `eval()` mode, without gradients.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            found = ((batch, model(tensors_of(batch, device))) for batch in held)
            return mean_of(found, function, device)
    finally:
        model.train(was_training)
