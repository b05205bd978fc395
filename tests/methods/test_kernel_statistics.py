"""Forms of a kernel under statistics of its patches, against patches of real data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

import onnxlr
from onnxlr.methods.matricisation import matricisations
from tests.kernels import factor_sizes, forms_of, full_rank
from tests.onelayer import distance


def normal(seed, *shape):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def im2col(x, extent, strides, pads):
    """Return the windows of `(batch, channels, *spatial)`: `(positions, channels, *extent)`."""
    padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in pads)])
    counts = [
        (size - taps) // step + 1
        for size, taps, step in zip(padded.shape[2:], extent, strides, strict=True)
    ]
    windows = []
    for sample in padded:
        for position in np.ndindex(*counts):
            starts = [i * step for i, step in zip(position, strides, strict=True)]
            window = tuple(slice(s, s + taps) for s, taps in zip(starts, extent, strict=True))
            windows.append(sample[(slice(None), *window)])
    return np.stack(windows)


def grouped(windows, groups):
    """Return `(positions, channels, *extent)` as one matrix of rows for each group."""
    return windows.reshape(len(windows), groups, -1).swapaxes(0, 1)


def convolved(x, kernel, groups, strides, pads):
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], group=groups, strides=strides, pads=[*pads, *pads]
    )
    return ReferenceEvaluator(node).run(None, {"x": x, "w": kernel})[0]


@st.composite
def convolutions(draw):
    """Return a kernel, data whose neighbours are alike, groups, strides and pads; and a rank."""
    groups, inputs, outputs = (draw(st.integers(1, n)) for n in (2, 3, 3))
    extent = draw(st.sampled_from([(3,), (3, 2), (2, 3), (1, 3), (3, 1), (2, 2, 2)]))
    strides = [draw(st.integers(1, 2)) for _ in extent]
    pads = [draw(st.integers(0, 1)) for _ in extent]
    seed = draw(st.integers(0, 2**16))
    kernel = normal(seed, outputs * groups, inputs, *extent)
    spatial = [8 if len(extent) < 3 else 5] * len(extent)
    x = np.random.default_rng(seed).standard_normal((12, inputs * groups, *spatial))
    for axis in range(2, x.ndim):
        x = x + 0.7 * np.roll(x, 1, axis)  # neighbours are alike
    return kernel, x + 0.5, groups, strides, pads, draw(st.integers(1, 3))


@settings(deadline=None, max_examples=30)
@given(convolutions())
def test_the_second_kernel_is_the_least_squares_one_behind_the_first(case):
    kernel, x, groups, strides, pads, rank = case
    extent = kernel.shape[2:]
    patches = grouped(im2col(x, extent, strides, pads), groups)
    covariance = patches.swapaxes(1, 2) @ patches / patches.shape[1]
    wanted = grouped(
        np.moveaxis(convolved(x, kernel, groups, strides, pads), 1, -1).reshape(-1, len(kernel)),
        groups,
    )
    for name, taken in forms_of(extent).items():
        (form,) = matricisations(kernel, groups, name)
        used = min(rank, *form.matrices().shape[1:])
        left = np.linalg.svd(form.matrices(), full_matrices=False)[0][..., :used]
        right = form.solve_second(left, covariance)
        first, second = form.chain(left, right).stages
        # the first stage has the window's strides and pads along its own axes only
        own = [
            [value if axis in taken else other for axis, value in enumerate(values)]
            for values, other in ((strides, 1), (pads, 0))
        ]
        others = [
            [other if axis in taken else value for axis, value in enumerate(values)]
            for values, other in ((strides, 1), (pads, 0))
        ]
        middle = convolved(x, first.dense(), groups, *own)
        seen = grouped(im2col(middle, second.weight.shape[2:], *others), groups)
        expected = [
            np.linalg.lstsq(rows, y, rcond=1e-9)[0] for rows, y in zip(seen, wanted, strict=True)
        ]
        found = second.dense().reshape(groups, len(kernel) // groups, -1).swapaxes(1, 2)
        off = [r @ (f - e) for r, f, e in zip(seen, found, expected, strict=True)]
        assert np.linalg.norm(off) <= 1e-5 * np.linalg.norm(wanted)
        gram = seen.swapaxes(1, 2) @ seen / seen.shape[1]
        assert np.allclose(form.second_covariance(left, covariance), gram, atol=1e-8)
        assert np.allclose(form.left_of(first), left)


@settings(deadline=None, max_examples=30)
@given(convolutions())
def test_the_first_covariance_is_of_its_rows_at_all_taps_of_the_second(case):
    kernel, x, groups, strides, pads, _ = case
    extent = kernel.shape[2:]
    windows = im2col(x, extent, strides, pads)
    patches = grouped(windows, groups)
    covariance = patches.swapaxes(1, 2) @ patches / patches.shape[1]
    for name, taken in forms_of(extent).items():
        (form,) = matricisations(kernel, groups, name)
        rest = [axis for axis in range(len(extent)) if axis not in taken]
        expected = 0.0
        for tap in np.ndindex(*(extent[axis] for axis in rest)):
            picked = windows
            for axis, at in zip(rest, tap, strict=True):
                picked = np.take(picked, [at], axis=axis + 2)
            rows = grouped(picked, groups)
            expected = expected + rows.swapaxes(1, 2) @ rows / rows.shape[1]
        assert np.allclose(form.first_covariance(covariance), expected, atol=1e-9)


def shrunk(covariance):
    """Return each group's covariance moved 2 % towards its mean diagonal."""
    size = covariance.shape[-1]
    scales = np.trace(covariance, axis1=1, axis2=2)[:, None, None] / size
    return 0.98 * covariance + 0.02 * scales * np.eye(size)


def output_error(difference, covariance, groups):
    parts = difference.reshape(groups, len(difference) // groups, -1)
    return float(np.einsum("goi,gij,goj->", parts, covariance, parts))


@settings(deadline=None, max_examples=30)
@given(convolutions())
def test_the_channel_form_loses_the_least_of_its_rank(case):
    kernel, x, groups, strides, pads, rank = case
    patches = grouped(im2col(x, kernel.shape[2:], strides, pads), groups)
    covariance = patches.swapaxes(1, 2) @ patches / patches.shape[1]
    known = shrunk(covariance)
    whole = output_error(kernel, known, groups)
    for form in forms_of(kernel.shape[2:]):
        arguments = {"rank": rank, "form": form, "groups": groups}
        found = onnxlr.decompose(kernel, covariance=covariance, **arguments).reconstruct()
        error = output_error(found - kernel, known, groups)
        if form == "channel":
            least = 0.0
            for part, c in zip(np.split(kernel, groups), known, strict=True):
                root = np.linalg.cholesky(c)
                values = np.linalg.svd(root.T @ part.reshape(len(part), -1).T, compute_uv=False)
                least += np.sum(values[rank:] ** 2)
            assert abs(error - least) <= 1e-7 * whole


def test_a_metric_of_both_sides_is_for_the_channel_form_only():
    kernel = normal(0, 4, 3, 3, 3)
    arguments = {"rank": 2, "groups": 1, "covariance": np.eye(27), "output_covariance": np.eye(4)}
    found = onnxlr.decompose(kernel, form="channel", **arguments).reconstruct()
    expected = onnxlr.decompose(kernel, form="channel", rank=2, groups=1).reconstruct()
    assert distance(found, expected) < 1e-6
    for form in ("input", "spatial", "spatial_swapped"):
        with pytest.raises(onnxlr.UsageError, match=f"kfac needs the form channel, not {form}"):
            onnxlr.decompose(kernel, form=form, **arguments)
    chosen = onnxlr.decompose(kernel, form="auto", **arguments)
    assert [stage.window for stage in chosen.stages] == [(0, 1), ()]


@pytest.mark.parametrize("form", ["channel", "input", "spatial", "spatial_swapped"])
@pytest.mark.parametrize("group", [0, 32])
@pytest.mark.parametrize("kind", ["int4", "int2"])
def test_a_budget_in_bits_counts_groups_of_kernels(form, group, kind):
    kernel, groups = normal(0, 24, 20, 3, 2).astype(np.float32), 2
    bits = {"int4": 4, "int2": 2}[kind]

    def stored(codes, scales):
        return -(-codes * bits // 8) + 4 * scales + -(-scales * bits // 8)

    def size(rank):
        first, second, _ = factor_sizes(kernel, groups, False, form, rank)
        before, behind = (n // m for n, m in ((first, groups * rank), (second, len(kernel))))
        return stored(first, groups * rank * -(-before // (group or before))) + stored(
            second, len(kernel) * -(-behind // (group or behind))
        )

    for share in (0.9, 1.13, 1.9):
        chain = onnxlr.decompose(
            kernel, form=form, groups=groups, format=kind, group_size=group, bits=share * bits
        )
        rank = chain.stages[1].weight.shape[1]
        available = share * bits * kernel.size / 8
        assert chain.cost.bytes == size(rank) <= available
        assert rank == full_rank(kernel, groups, False, form) or size(rank + 1) > available
