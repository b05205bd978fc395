"""The arithmetic of docs/operators.md in plain numpy, independent of onnxlr."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def codes_of(ternary: Array) -> Array:
    """Pack (terms, K, N) entry by entry, as the document describes bytes and bits."""
    terms, inputs, outputs = ternary.shape
    panels, blocks = -(-outputs // 16), -(-inputs // 16)
    codes = np.zeros((terms, panels, blocks, 64), np.uint8)
    for t, k, n in np.ndindex(terms, blocks * 16, panels * 16):
        inside = k < inputs and n < outputs
        code = int(ternary[t, k, n]) + 1 if inside else 1
        g, j = divmod(k % 16, 4)
        codes[t, n // 16, k // 16, 4 * (n % 16) + j] |= code << (2 * g)
    return codes


def rounded_rows(rows: Array) -> tuple[Array, Array]:
    """Return int8 codes of float32 rows and what one step is worth, as level 4 says."""
    largest = np.maximum(np.abs(rows).max(axis=-1, keepdims=True), np.float32(1e-30))
    codes = np.rint(rows * (np.float32(127) / largest))
    return codes.astype(np.int8), largest / np.float32(127)


def products(rows: Array, ternary: Array, scales: Array, group_size: int, level: int) -> Array:
    """Return rows (M, K) of float32 times scaled ternary matrices (terms, K, N), in float64."""
    step = np.ones((len(rows), 1))
    values: Array = rows
    if level == 4:
        values, step = rounded_rows(rows)
    total = np.zeros((len(rows), ternary.shape[2]))
    for t in range(len(ternary)):
        for g in range(scales.shape[1]):
            part = slice(g * group_size, min((g + 1) * group_size, ternary.shape[1]))
            sums = values[:, part].astype(np.float64) @ ternary[t, part].astype(np.float64)
            total += scales[t, g].astype(np.float64) * sums
    return step.astype(np.float64) * total


def matmul(
    x: Array,
    ternary: Array,
    scales: Array,
    input_scale: Array,
    bias: Array,
    group_size: int,
    level: int,
) -> Array:
    """Return TernaryMatMul of x (…, K)."""
    rows = (x * input_scale).reshape(-1, ternary.shape[1])
    result = products(rows, ternary, scales, group_size, level) + bias
    return result.reshape(*x.shape[:-1], ternary.shape[2])


def patches(x: Array, kernel: tuple[int, ...], window: dict[str, Any]) -> tuple[Array, tuple]:
    """Return every patch (batch, places, positions, channels) of a padded image, and its space."""
    axes = len(kernel)
    pads, strides, dilations = window["pads"], window["strides"], window["dilations"]
    padded = np.pad(x, [(0, 0), (0, 0), *((pads[i], pads[i + axes]) for i in range(axes))])
    space = tuple(
        (padded.shape[2 + i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1
        for i in range(axes)
    )
    found = [
        [
            padded[
                (
                    slice(None),
                    slice(None),
                    *(place[i] * strides[i] + position[i] * dilations[i] for i in range(axes)),
                )
            ]
            for position in np.ndindex(*kernel)
        ]
        for place in np.ndindex(*space)
    ]
    return np.array(found, np.float32).transpose(2, 0, 1, 3), space


def conv(
    x: Array,
    ternary: Array,
    scales: Array,
    input_scale: Array,
    bias: Array,
    group_size: int,
    level: int,
    group: int,
    **window: Any,
) -> Array:
    """Return TernaryConv of x (batch, channels, *space) by weights (terms, N, C/group, *kernel)."""
    terms, outputs, channels, *kernel = ternary.shape
    scaled = x * input_scale.reshape(-1, *[1] * len(kernel))
    found, space = patches(scaled, tuple(kernel), window)
    results = []
    for g in range(group):
        own = slice(g * outputs // group, (g + 1) * outputs // group)
        rows = found[..., g * channels : (g + 1) * channels]
        matrices = ternary[:, own].reshape(terms, outputs // group, channels, -1)
        matrices = matrices.transpose(0, 3, 2, 1).reshape(terms, -1, outputs // group)
        rows = rows.reshape(-1, matrices.shape[1])
        results.append(products(rows, matrices, scales[..., own], group_size, level) + bias[own])
    image = np.concatenate(results, axis=-1).reshape(len(x), *space, outputs)
    return np.moveaxis(image, -1, 1)
