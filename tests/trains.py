"""Weights of known structure, and what chains are held against, by numpy and scipy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import signal

from onnxlr.metrics import Activation, Fisher, FisherRows, Kfac, Metric
from onnxlr.stages import Chain, Convolution, Fold, ModeProduct
from tests.onelayer import distance

Array = np.ndarray[Any, Any]


def drawn(seed: int, *shape: int) -> Array:
    """Return a random array whose entries fall off along each axis."""
    array = np.random.default_rng([seed, *shape]).standard_normal(shape)
    for axis, size in enumerate(shape):
        falling = np.exp(-1.5 * np.arange(size) / size)
        array = array * falling.reshape(-1, *[1] * (len(shape) - axis - 1))
    return array


def cores(seed: int, sizes: Sequence[int], ranks: Sequence[int]) -> list[Array]:
    """Return random cores `(left, size, right)`; `ranks` has one more than there are sizes."""
    generator = np.random.default_rng([seed, *sizes, *ranks])
    pairs = zip(ranks, sizes, ranks[1:], strict=False)
    return [generator.standard_normal(shape) for shape in pairs]


def product(parts: Sequence[Array]) -> Array:
    """Return the sum over the inner indices: `(left, *sizes, right)`."""
    whole = parts[0]
    for part in parts[1:]:
        whole = np.tensordot(whole, part, (-1, 0))
    return whole


def ring(parts: Sequence[Array]) -> Array:
    """Return the sum over the inner indices and around."""
    return np.trace(product(parts), axis1=0, axis2=len(parts) + 1)


def unpaired(tensor: Array, inputs: Sequence[int], outputs: Sequence[int]) -> Array:
    """Return the matrix of a tensor whose axes are pairs `(inputs, outputs)` of modes."""
    count = len(inputs)
    apart = tensor.reshape([size for pair in zip(inputs, outputs, strict=True) for size in pair])
    order = [*range(0, 2 * count, 2), *range(1, 2 * count, 2)]
    return apart.transpose(order).reshape(int(np.prod(inputs)), int(np.prod(outputs)))


def kernel_of(tensor: Array, inputs: int, outputs: int, window: Sequence[int]) -> Array:
    """Return a kernel from a tensor of axes of inputs, the window and outputs."""
    return np.moveaxis(tensor.reshape(inputs, *window, outputs), -1, 0)


def covariance(seed: int, size: int, parts: int | None = None) -> Array:
    """Return a covariance, or one for each part, of directions that differ in size."""
    generator = np.random.default_rng([seed, size])
    shape = (size, size) if parts is None else (parts, size, size)
    root = generator.standard_normal(shape) * np.exp(-0.1 * np.arange(size))
    return np.asarray(root @ np.swapaxes(root, -1, -2) / size)


def metrics_of(weight: Array) -> list[Metric]:
    """Return each metric that is not the plain one, for a matrix or a kernel of one group."""
    generator = np.random.default_rng(weight.size)
    importance = generator.random(weight.shape) * np.exp(-4 * generator.random(weight.shape[-2:]))
    inputs = weight.shape[0] if weight.ndim == 2 else int(np.prod(weight.shape[1:]))
    outputs = weight.shape[1] if weight.ndim == 2 else weight.shape[0]
    of_inputs = covariance(1, inputs)
    return [
        Activation(of_inputs),
        Kfac(of_inputs, covariance(2, outputs)),
        FisherRows(importance),
        Fisher(importance),
    ]


def check_applied(chain: Chain, weight: Array, groups: int | None, seed: int = 0) -> None:
    """Check that the steps do what the weight that they reconstruct does."""
    dense = chain.reconstruct()
    assert dense.shape == weight.shape
    generator = np.random.default_rng(seed)
    if groups is None:
        x = generator.standard_normal((3, 2, weight.shape[0]))
        assert distance(chain.apply(x), x @ dense) < 1e-9
        return
    places = [size + 2 for size in weight.shape[2:]]
    x = generator.standard_normal((2, groups * weight.shape[1], *places))
    assert distance(chain.apply(x), convolved(x, dense, groups)) < 1e-9
    assert sorted(taken(chain)) == list(range(len(places)))


def convolved(x: Array, kernel: Array, groups: int) -> Array:
    """Return the convolution in groups, of stride 1 and without padding, by scipy."""
    outputs, inputs = kernel.shape[0] // groups, kernel.shape[1]
    rows = []
    for sample in x:
        for number, filters in enumerate(kernel):
            first = number // outputs * inputs
            pairs = zip(sample[first : first + inputs], filters, strict=True)
            rows.append(sum(signal.correlate(image, taps, "valid") for image, taps in pairs))
    return np.stack(rows).reshape(len(x), len(kernel), *rows[0].shape)


def taken(chain: Chain) -> list[int]:
    """Return the spatial axes that stages take the window of."""
    found: list[int] = []
    for stage in chain.stages:
        if isinstance(stage, Convolution | ModeProduct):
            found += stage.window
    return found


def count_folds(chain: Chain) -> int:
    """Return how many steps only move data."""
    return sum(isinstance(stage, Fold) for stage in chain.stages)
