"""What training makes small: distances to a teacher's outputs, or a loss of the user's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import onnx

from onnxlr.calibration.data import load_function
from onnxlr.errors import ModelError, TrainingError
from onnxlr.model import Model
from onnxlr.training.torch_import import torch

__all__ = [
    "Loss",
    "LossSource",
    "counted",
    "distillation",
    "finite",
    "float_outputs",
    "load_loss",
    "name_of",
    "squares",
]

Tensor = Any
Loss = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]
"""Takes outputs by name, and the batch (inputs, and what lies beside them in the data); returns a
number."""

LossSource = str | Callable[..., Any]
"""`module:function`, or the function itself."""


_FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
}


def float_outputs(model: Model, needed: bool) -> list[str]:
    """Return the names of a model's outputs that are tensors of floats.

    Parameters
    ----------
    model
        The model to learn from.
    needed
        Whether nothing else is learnt from.

    Raises
    ------
    ModelError
        If some are needed, and there are none.
    """
    found = [
        value.name
        for value in model.proto.graph.output
        if value.type.tensor_type.elem_type in _FLOATS
    ]
    if needed and not found:
        raise ModelError(
            f"{model.name} has no output of floats to learn from: give a loss on labels"
        )
    return found


def distillation(
    outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], mask: Tensor | None = None
) -> Tensor:
    """Return the mean over tensors of their squared distance, relative to that of the target to 0.

    Parameters
    ----------
    outputs, targets
        Float tensors by name; those of `targets` are compared.
    mask
        0 where positions do not count, see `counted`.
    """
    found = []
    for name, target in targets.items():
        noise, size = squares(outputs[name], target, mask)
        found.append(noise / size.clamp_min(torch.finfo(size.dtype).tiny))
    return torch.stack(found).mean()


def squares(output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the squared distance of an output to its target, and that of the target to 0.

    Parameters
    ----------
    output, target
        Float tensors of one shape.
    mask
        0 where positions do not count, see `counted`.
    """
    weights = None if mask is None else counted(mask, target)
    noise, size = _wide(output - target).square(), _wide(target).square()
    if weights is not None:
        noise, size = noise * weights, size * weights
    return noise.sum(), size.sum()


def _wide(tensor: Tensor) -> Tensor:
    """Return half precision as float32, in which squares do not overflow."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def counted(mask: Tensor, tensor: Tensor) -> Tensor | None:
    """Return 1 where a tensor's positions count and 0 where they do not, to multiply it with.

    Parameters
    ----------
    mask
        Not 0 where positions count, such as `(samples, positions)`.
    tensor
        Has the mask's dimensions first, or as one, and at least one more; None is returned for any
        other, all of whose entries count.
    """
    rest = tensor.ndim - mask.ndim
    shape = list(mask.shape)
    if list(tensor.shape[: mask.ndim]) != shape or rest < 1:
        if tensor.ndim < 2 or mask.ndim < 2 or tensor.shape[0] != mask.numel():
            return None
        shape, rest = [mask.numel()], tensor.ndim - 1
    return (mask != 0).to(tensor.dtype).reshape(*shape, *(1,) * rest)


def load_loss(source: LossSource) -> Loss:
    """Return a loss whose result is checked; what goes wrong inside of it names it.

    It may return NaN or infinity: whoever calls it knows what that means at this point.

    Parameters
    ----------
    source
        A function of outputs and batch, or `module:function`, found as Python finds modules.

    Raises
    ------
    DataError
        If it cannot be imported, or is no function.
    """
    function = load_function(source) if isinstance(source, str) else source
    words = name_of(source)

    def loss(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        try:
            with warnings.catch_warnings():
                # torch would repeat labels of another shape until they fit, and only warn.
                warnings.filterwarnings("error", "Using a target size", UserWarning)
                found = function(outputs, batch)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TrainingError(
                f"{words}: failed with {type(error).__name__}: {reason} (it got outputs "
                f"{_shapes(outputs)} and the batch {_shapes(batch)})"
            ) from error
        return _one_number(found, words)

    return loss


def name_of(source: LossSource) -> str:
    """Return what messages and checkpoints call a function of the user's own."""
    if isinstance(source, str):
        return source
    own = getattr(source, "__qualname__", None)
    return "a function" if own is None else f"{getattr(source, '__module__', '?')}:{own}"


def finite(loss: Tensor, source: LossSource) -> Tensor:
    """Return a loss that is finite.

    Raises
    ------
    TrainingError
        If it is NaN or infinite.
    """
    if not bool(torch.isfinite(loss.detach())):
        raise TrainingError(
            f"{name_of(source)}: returned {loss.item():g}, expected a finite number"
        )
    return loss


def _one_number(loss: Tensor, words: str) -> Tensor:
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        what = (
            f"shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        )
        raise TrainingError(f"{words}: returned {what}, expected a torch tensor of one number")
    return loss.reshape(())


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return (
        ", ".join(f"'{name}' {list(value.shape)}" for name, value in tensors.items()) or "nothing"
    )
