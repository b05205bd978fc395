"""What held-out data is judged by: the loss, or a score of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxlr.calibration.data import load_function
from onnxlr.errors import TrainingError
from onnxlr.training.data import Arrays
from onnxlr.training.losses import Loss, checked, load_loss
from onnxlr.training.torch_import import torch
from onnxlr.training.trainable import TrainableModel

__all__ = ["LossSource", "Score", "as_loss", "as_score", "mean_over", "tensors_of"]

Tensor = Any
Score = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Any]
"""Takes outputs by name, and the batch; returns a number, larger is better."""

LossSource = str | Callable[..., Any]
"""`module:function`, or the function itself."""


def as_loss(source: LossSource) -> Loss:
    """Return a loss whose result is checked.

    Raises
    ------
    DataError
        If `module:function` cannot be imported, or is no function.
    """
    if isinstance(source, str):
        return load_loss(source)
    function, name = source, getattr(source, "__name__", "the loss")
    return lambda outputs, batch: checked(function(outputs, batch), name)


def as_score(source: LossSource) -> Score:
    """Return a score whose result is checked.

    Raises
    ------
    DataError
        If `module:function` cannot be imported, or is no function.
    """
    name = source if isinstance(source, str) else getattr(source, "__name__", "the score")
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
    return {
        name: torch.from_numpy(np.array(array)).to(device)
        for name, array in batch.items()
        if array.dtype.kind in "biuf"
    }


def mean_over(
    model: TrainableModel, held: Sequence[Arrays], function: Score | Loss, device: Any
) -> float:
    """Return the mean of a function of outputs and batch, each batch weighted by its samples.

    Parameters
    ----------
    model
        Run in `eval()` mode, without gradients.
    """
    was_training, total, count = model.training, 0.0, 0
    model.eval()
    try:
        with torch.no_grad():
            for batch in held:
                tensors = tensors_of(batch, device)
                outputs = model(tensors)
                own = {name: outputs[name] for name in model.outputs}
                samples = max((len(array) for array in batch.values() if array.ndim), default=1)
                total += samples * float(function(own, tensors))
                count += samples
    finally:
        model.train(was_training)
    return total / count
