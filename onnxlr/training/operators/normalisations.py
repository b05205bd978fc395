"""Operators that subtract a mean and divide by a deviation, or by a norm."""

from __future__ import annotations

from typing import Any

from onnxlr.training.operators.registry import Run, operator
from onnxlr.training.torch_import import torch

__all__: list[str] = []

functional = torch.nn.functional


@operator("LayerNormalization")
def layer_normalization(run: Run, x: Any, scale: Any, bias: Any = None) -> tuple[Any, Any, Any]:
    """Normalise over the axes from one on; the mean and the inverse deviation are returned too."""
    axis = run.number("axis", -1) % x.dim()
    return _over_last(x, axis, scale, bias, run.number("epsilon", 1e-5))


def _over_last(x: Any, axis: int, scale: Any, bias: Any, epsilon: float) -> tuple[Any, Any, Any]:
    shape = x.shape[axis:]
    fits = scale.shape == shape and (bias is None or bias.shape == shape)
    found = torch.native_layer_norm(
        x, shape, scale if fits else None, bias if fits else None, epsilon
    )
    if fits:
        return found
    plain, mean, inverse = found
    scaled = plain * scale
    return (scaled if bias is None else scaled + bias), mean, inverse


def _by_squares(x: Any, axes: list[int], epsilon: float) -> Any:
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon)


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(run: Run, x: Any, scale: Any) -> Any:
    """Divide by the root of the mean square over the axes from one on."""
    axes = list(range(run.number("axis", -1) % x.dim(), x.dim()))
    return _by_squares(x, axes, run.number("epsilon", 1e-5)) * scale


@operator("SkipLayerNormalization", domain="com.microsoft")
def skip_layer_normalization(
    run: Run, x: Any, skip: Any, scale: Any, bias: Any = None, added: Any = None
) -> tuple[Any, Any, Any, Any]:
    """Add what was skipped, and a bias, and normalise the sum, which is the last output."""
    total = x + skip if added is None else x + skip + added
    epsilon = run.number("epsilon", 1e-12)
    return (*_over_last(total, x.dim() - 1, scale, bias, epsilon), total)


@operator("SkipSimplifiedLayerNormalization", domain="com.microsoft")
def skip_rms_normalization(
    run: Run, x: Any, skip: Any, scale: Any, added: Any = None
) -> tuple[Any, None, None, Any]:
    """Add what was skipped, and a bias, and divide the sum by the root of its mean square."""
    total = x + skip if added is None else x + skip + added
    return _by_squares(total, [-1], run.number("epsilon", 1e-12)) * scale, None, None, total


@operator("BatchNormalization")
def batch_normalization(
    run: Run, x: Any, scale: Any, bias: Any, mean: Any, variance: Any
) -> tuple[Any, ...]:
    """Normalise channels: by running statistics, in train() mode by the batch's own.

    Running statistics are moved in place, `running · momentum + batch · (1 − momentum)` with the
    batch's variance divided by its size, as ONNX defines it (torch divides by one less).
    """
    epsilon, momentum = run.number("epsilon", 1e-5), run.number("momentum", 0.9)
    by_batch = bool(run.number("training_mode", 0))
    if not run.training and not by_batch:
        factors = [value.to(x.dtype) for value in (mean, variance, scale, bias)]
        return (functional.batch_norm(x, *factors, False, 0.0, epsilon),)
    middle, spread = torch.zeros_like(mean), torch.ones_like(variance)
    # a momentum of 1 hands out the batch's own, which it has found anyway
    result = functional.batch_norm(x, middle, spread, scale, bias, True, 1.0, epsilon)
    with torch.no_grad():
        count = x.numel() // x.shape[1]
        spread = spread * ((count - 1) / count)
        moved = [
            old * momentum + new.to(old.dtype) * (1 - momentum)
            for old, new in ((mean, middle), (variance, spread))
        ]
        if run.training:
            for old, new in ((mean, moved[0]), (variance, moved[1])):
                # a step that is left out must leave no NaN behind
                old.copy_(torch.where(torch.isfinite(new), new, old))
    return (result, *moved)


@operator("InstanceNormalization")
def instance_normalization(run: Run, x: Any, scale: Any, bias: Any) -> Any:
    """Normalise each channel of each sample."""
    return _over_groups(x, x.shape[1], scale, bias, run.number("epsilon", 1e-5))


@operator("GroupNormalization")
def group_normalization(run: Run, x: Any, scale: Any, bias: Any) -> Any:
    """Normalise groups of channels."""
    return _over_groups(x, run.number("num_groups"), scale, bias, run.number("epsilon", 1e-5))


def _over_groups(x: Any, groups: int, scale: Any, bias: Any, epsilon: float) -> Any:
    return functional.group_norm(x, groups, scale, bias, epsilon)


@operator("LRN")
def local_response_normalization(run: Run, x: Any) -> Any:
    """Divide by a power of the sum of squares of channels nearby."""
    size = run.number("size")
    squares = x.square()
    near = torch.zeros_like(x)
    for step in range(-((size - 1) // 2), size // 2 + 1):
        count = x.shape[1] - abs(step)
        if count > 0:
            part = squares.narrow(1, max(step, 0), count)
            rest = (0, 0) * (x.dim() - 2)
            near = near + functional.pad(part, (*rest, max(-step, 0), max(step, 0)))
    inner = run.number("bias", 1.0) + run.number("alpha", 1e-4) / size * near
    return x / inner ** run.number("beta", 0.75)


@operator("LpNormalization")
def norm_normalization(run: Run, x: Any) -> Any:
    """Divide by the norm along an axis; what has none is left 0."""
    axis, power = run.number("axis", -1), run.number("p", 2)
    squares = x.abs() if power == 1 else x.square()
    total = squares.sum(axis, keepdim=True)
    safe = torch.where(
        total > 0, total, torch.ones_like(total)
    )  # else the root's slope is infinite
    return x / (safe if power == 1 else safe.sqrt())


@operator("MeanVarianceNormalization")
def mean_variance_normalization(run: Run, x: Any) -> Any:
    """Subtract the mean over axes, divide by the deviation."""
    axes = run.number("axes", [0, 2, 3])
    apart = x - x.mean(axes, keepdim=True)
    return apart / (apart.square().mean(axes, keepdim=True).sqrt() + 1e-9)
