"""The forms of a kernel, and what is chosen among them, against decompositions by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import onnxlr
from onnxlr.methods import Setting, Svd, SvdOptions
from onnxlr.stages import Convolution
from tests.kernels import (
    blocks,
    factor_sizes,
    factors,
    forms_of,
    full_rank,
    to_int8,
    to_matrix,
    truncated_kernel,
)
from tests.onelayer import distance

seeds = st.integers(0, 2**16)


def normal(seed, *shape, decay=0.0):
    """Return a random kernel, smooth along its channels and taps if it decays."""
    kernel = np.random.default_rng([seed, *shape]).standard_normal(shape)
    for axis in range(kernel.ndim):
        if decay:
            factor = np.exp(-decay * np.arange(shape[axis]))
            kernel = kernel * factor.reshape([-1 if a == axis else 1 for a in range(kernel.ndim)])
    return kernel.astype(np.float32)


@st.composite
def kernels(draw, least=1, most=6, decay=None):
    """Return a kernel as Conv stores it, and its groups."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    outputs, inputs = (draw(st.integers(least, most)) for _ in range(2))
    extent = draw(st.lists(st.sampled_from([3, 1, 2, 4]), min_size=1, max_size=3))
    seed = draw(seeds)
    falling = draw(st.sampled_from([0.0, 0.3, 1.0])) if decay is None else decay
    return normal(seed, groups * outputs, inputs, *extent, decay=falling), groups


# -- the forms -------------------------------------------------------------------------------------

WRITTEN_OUT = {
    # o, i: channels of one group; a, b: height and width; r: rank
    ("channel", 2): ("oiab->iabo", "riab,or->oiab", "ab", ""),
    ("input", 2): ("oiab->ioab", "ri,orab->oiab", "", "ab"),
    ("spatial", 2): ("oiab->iboa", "rib,ora->oiab", "b", "a"),
    ("spatial_swapped", 2): ("oiab->iaob", "ria,orb->oiab", "a", "b"),
    ("channel", 1): ("oia->iao", "ria,or->oia", "a", ""),
    ("input", 1): ("oia->ioa", "ri,ora->oia", "", "a"),
    ("channel", 3): ("oiabc->iabco", "riabc,or->oiabc", "abc", ""),
    ("input", 3): ("oiabc->ioabc", "ri,orabc->oiabc", "", "abc"),
    ("spatial", 3): ("oiabc->icoab", "ric,orab->oiabc", "c", "ab"),
    ("spatial_swapped", 3): ("oiabc->iaboc", "riab,orc->oiabc", "ab", "c"),
}
"""Of each form: how its matrix is ordered, how the stages multiply, and the axes of both."""


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("form", "axes"), WRITTEN_OUT)
def test_each_form_as_an_einsum(form, axes, groups):
    extent = (2, 3, 4)[:axes]
    kernel = normal(1, 4 * groups, 5, *extent)
    order, product, first_axes, second_axes = WRITTEN_OUT[(form, axes)]
    rank = 3
    first, second = onnxlr.decompose(kernel, rank=rank, form=form, groups=groups).stages
    letters = "abc"[:axes]
    sizes = [
        tuple(k if letter in mine else 1 for letter, k in zip(letters, extent, strict=True))
        for mine in (first_axes, second_axes)
    ]
    assert first.weight.shape == (groups * rank, 5, *sizes[0])
    assert second.weight.shape == (groups * 4, rank, *sizes[1])
    assert [letters[axis] for axis in first.window] == list(first_axes)
    assert [letters[axis] for axis in second.window] == list(second_axes)
    assert first.groups == second.groups == groups
    starts = np.split(first.weight.codes, groups)
    ends = np.split(second.weight.codes, groups)
    for part, start, end in zip(np.split(kernel, groups), starts, ends, strict=True):
        start = start.reshape(rank, 5, *(k for k in sizes[0] if k > 1))
        end = end.reshape(4, rank, *(k for k in sizes[1] if k > 1))
        matrix = np.einsum(order, part.astype(np.float64))
        rows = 5 * int(np.prod(sizes[0]))
        u, s, vt = np.linalg.svd(matrix.reshape(rows, -1), full_matrices=False)
        best = ((u[:, :rank] * s[:rank]) @ vt[:rank]).reshape(matrix.shape)
        found = np.einsum(order, np.einsum(product, start, end).astype(np.float64))
        assert distance(found, best) < 1e-5
        assert np.linalg.norm(matrix - best) > 0.1 * np.linalg.norm(matrix)


@settings(deadline=None, max_examples=100)
@given(weight=kernels(), data=st.data())
def test_every_form_is_the_best_approximation_of_each_group(weight, data):
    kernel, groups = weight
    for form in forms_of(kernel.shape[2:]):
        most = full_rank(kernel, groups, False, form)
        rank = data.draw(st.sampled_from([1, most, most + 1, max(1, most // 2)]))
        chain = onnxlr.decompose(kernel.astype(np.float64), rank=rank, form=form, groups=groups)
        best = truncated_kernel(kernel, groups, False, form, rank)
        assert chain.reconstruct().shape == kernel.shape
        assert distance(chain.reconstruct(), best) < 1e-9
        assert [stage.shape for stage in chain.stages] == [
            (kernel.shape[1] * groups, groups * min(rank, most)),
            (groups * min(rank, most), kernel.shape[0]),
        ]
        sizes = factor_sizes(kernel, groups, False, form, min(rank, most))
        assert [stage.parameters for stage in chain.stages] == list(sizes[:2])


@pytest.mark.parametrize(
    ("extent", "known"),
    [
        ((1,), {"channel"}),
        ((1, 1), {"channel"}),
        ((1, 1, 1), {"channel"}),
        ((3,), {"channel", "input"}),
        ((1, 3), {"channel", "input"}),
        ((3, 1), {"channel", "input"}),
        ((1, 3, 1), {"channel", "input"}),
        ((3, 3), {"channel", "input", "spatial", "spatial_swapped"}),
        ((3, 1, 3), {"channel", "input", "spatial", "spatial_swapped"}),
        ((3, 3, 1), {"channel", "input", "spatial", "spatial_swapped"}),
        ((1, 3, 3), {"channel", "input", "spatial", "spatial_swapped"}),
    ],
)
def test_a_form_the_kernel_has_not_got_is_refused(extent, known):
    kernel = normal(0, 4, 4, *extent)
    for form in ("channel", "input", "spatial", "spatial_swapped"):
        if form in known:
            assert len(onnxlr.decompose(kernel, rank=1, form=form, groups=1).stages) == 2
            continue
        with pytest.raises(onnxlr.UsageError, match=f"has no {form} form, only channel"):
            onnxlr.decompose(kernel, rank=1, form=form, groups=1)


def test_forms_are_for_kernels_and_have_names():
    with pytest.raises(onnxlr.UsageError, match="is for convolutions, the weight is a matrix"):
        onnxlr.decompose(normal(0, 4, 4), rank=1, form="channel")
    with pytest.raises(onnxlr.UsageError, match="form 'chanel' is unknown"):
        onnxlr.decompose(normal(0, 4, 4, 3), rank=1, form="chanel", groups=1)
    matrix = normal(0, 6, 4)
    assert len(onnxlr.decompose(matrix, rank=1, form="auto").stages) == 2


# -- what auto chooses -------------------------------------------------------------------------

BYTES = {"float32": (4, 0), "float16": (2, 0), "int8": (1, 4)}
"""Bytes of an entry and of a scale, where the model computes in float32."""


def spectrum(kernel, groups, form):
    """Return the squared singular values of all groups together, by rank."""
    first = forms_of(kernel.shape[2:])[form]
    values = [
        np.linalg.svd(to_matrix(block, first), compute_uv=False)
        for block in blocks(kernel, groups, False)
    ]
    return np.square(values).sum(axis=0)


def stored(kernel, groups, form, rank, format):
    entry, scale = BYTES[format]
    first, second, scales = factor_sizes(kernel, groups, False, form, rank)
    return entry * (first + second) + scale * scales


def error_of(kernel, groups, form, rank, format):
    """Return the relative error; of int8 with the rounding of both factors."""
    if format != "int8":
        squares = spectrum(kernel, groups, form)
        return float(np.sqrt(squares[rank:].sum() / squares.sum()))
    rounded = truncated_kernel(kernel, groups, False, form, rank, "int8")
    return float(np.linalg.norm(rounded - kernel) / np.linalg.norm(kernel))


def named(chain, extent):
    """Return the form of a chain by the axes of its first stage."""
    window = list(chain.stages[0].window)
    (name,) = [name for name, axes in forms_of(extent).items() if axes == window]
    return name


@pytest.mark.parametrize("format", BYTES)
@pytest.mark.parametrize("budget", ["ratio", "bits"])
def test_auto_takes_the_least_error_within_the_bytes(budget, format):
    chosen = set()

    @settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
    @given(weight=kernels(2, 8), share=st.floats(0.1, 1.0))
    def check(weight, share):
        kernel, groups = weight
        extent = kernel.shape[2:]
        limit = share if budget == "ratio" else share * 8 * BYTES[format][0]
        errors = {}
        for form in forms_of(extent):
            most = full_rank(kernel, groups, False, form)
            fits = []
            for rank in range(1, most + 1):
                first, second, _ = factor_sizes(kernel, groups, False, form, rank)
                used = (
                    (first + second) / kernel.size
                    if budget == "ratio"
                    else 8 * stored(kernel, groups, form, rank, format) / kernel.size
                )
                assume(abs(used - limit) > 1e-6)
                if used <= limit:
                    fits.append(rank)
            if fits:
                errors[form] = (error_of(kernel, groups, form, fits[-1], format), fits[-1])
        options = {budget: limit, "groups": groups, "format": format}
        if not errors:
            with pytest.raises(onnxlr.UsageError, match="leaves less than rank 1"):
                onnxlr.decompose(kernel, **options)
            return
        chain = onnxlr.decompose(kernel, form="auto", **options)
        form = named(chain, extent)
        chosen.add(form)
        least = min(error for error, _ in errors.values())
        # Rounded to float16, factors of one product lose more or less, as they happen to be.
        slack, floor = (0.05, 5e-4) if format == "float16" else (1e-3, 1e-6)
        assert errors[form][0] <= least * (1 + slack) + floor
        assert chain.stages[1].weight.shape[1] == errors[form][1]
        unnamed = onnxlr.decompose(kernel, **options)
        assert [s.weight.codes.tobytes() for s in unnamed.stages] == [
            s.weight.codes.tobytes() for s in chain.stages
        ]

    check()
    assert len(chosen) > 1


@pytest.mark.parametrize("format", ["float32", "float16"])
@pytest.mark.parametrize("budget", ["energy", "max_error", "rank"])
def test_auto_takes_the_least_bytes_within_the_error(budget, format):
    chosen = set()

    @settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
    @given(weight=kernels(2, 8), limit=st.floats(0.02, 0.6), rank=st.integers(1, 20))
    def check(weight, limit, rank):
        kernel, groups = weight
        extent = kernel.shape[2:]
        sizes = {}
        for form in forms_of(extent):
            squares = spectrum(kernel, groups, form)
            kept = np.cumsum(squares) / squares.sum()
            if budget == "rank":
                least = min(rank, len(squares))
            elif budget == "energy":
                assume(np.abs(kept - (1 - limit)).min() > 1e-6)
                least = int(np.argmax(kept >= 1 - limit)) + 1
            else:
                assume(np.abs(1 - kept - limit**2).min() > 1e-6)
                least = int(np.argmax(1 - kept <= limit**2)) + 1
            sizes[form] = (stored(kernel, groups, form, least, format), least)
        value = {"rank": rank, "energy": 1 - limit, "max_error": limit}[budget]
        chain = onnxlr.decompose(kernel, groups=groups, format=format, **{budget: value})
        form = named(chain, extent)
        chosen.add(form)
        assert sizes[form][0] == min(size for size, _ in sizes.values())
        assert chain.stages[1].weight.shape[1] == sizes[form][1]
        assert chain.cost.bytes == sizes[form][0]

    check()
    assert len(chosen) > 1


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(weight=kernels(2, 6, decay=0.3), limit=st.floats(0.05, 0.4))
def test_auto_of_int8_stays_within_the_error_and_no_form_does_so_in_fewer_bytes(weight, limit):
    kernel, groups = weight
    at_full_rank = [
        error_of(kernel, groups, form, full_rank(kernel, groups, False, form), "int8")
        for form in forms_of(kernel.shape[2:])
    ]
    assume(all(abs(error - limit) > 1e-3 * limit for error in at_full_rank))
    if min(at_full_rank) > limit:
        with pytest.raises(onnxlr.UsageError, match="rounding to int8 alone"):
            onnxlr.decompose(kernel, groups=groups, format="int8", max_error=limit)
        return
    chain = onnxlr.decompose(kernel, groups=groups, format="int8", max_error=limit)
    assert distance(chain.reconstruct(), kernel.astype(np.float64)) <= limit
    for form in forms_of(kernel.shape[2:]):
        for rank in range(1, full_rank(kernel, groups, False, form) + 1):
            if stored(kernel, groups, form, rank, "int8") >= chain.cost.bytes:
                break
            assert error_of(kernel, groups, form, rank, "int8") > limit * (1 - 1e-3)


# -- budgets ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    weight=kernels(2, 8),
    share=st.floats(0.2, 1.5),
    format=st.sampled_from([*BYTES]),
    compute=st.sampled_from(["float32", "float16", "float64"]),
)
def test_a_budget_in_bits_counts_codes_and_scales(weight, share, format, compute):
    kernel, groups = weight
    kernel = kernel.astype(compute)
    width = {"float32": 4, "float16": 2, "int8": 1}[format]
    scale = np.dtype(compute).itemsize if format == "int8" else 0
    for form in forms_of(kernel.shape[2:]):
        limit = share * 8 * width
        options = {"form": form, "groups": groups, "format": format, "bits": limit}

        def size(rank, form=form):
            first, second, scales = factor_sizes(kernel, groups, False, form, rank)
            return width * (first + second) + scale * scales

        available = limit * kernel.size / 8
        assume(min(abs(size(rank) - available) for rank in range(1, 60)) > 1e-6)
        if size(1) > available:
            with pytest.raises(onnxlr.UsageError, match="leaves less than rank 1"):
                onnxlr.decompose(kernel, **options)
            continue
        chain = onnxlr.decompose(kernel, **options)
        rank = chain.stages[1].weight.shape[1]
        assert chain.cost.bytes == size(rank) <= available
        most = full_rank(kernel, groups, False, form)
        assert rank == most or size(rank + 1) > available
        written = sum(s.weight.codes.nbytes for s in chain.stages)
        if format == "int8":
            written += sum(s.weight.scales.nbytes for s in chain.stages)
        assert written == size(rank)


@pytest.mark.parametrize("form", ["channel", "input", "spatial", "spatial_swapped"])
def test_int8_factors_have_a_scale_for_each_output_of_each_stage(form):
    kernel, groups, rank = normal(0, 6, 4, 3, 2), 2, 2
    chain = onnxlr.decompose(kernel, rank=rank, form=form, groups=groups, format="int8")
    shapes = [stage.weight.scales.shape for stage in chain.stages]
    assert shapes == [(groups * rank, 1), (6, 1)]
    exact = onnxlr.decompose(
        kernel.astype(np.float64), rank=rank, form=form, groups=groups, format="float64"
    )
    for stage, whole in zip(chain.stages, exact.stages, strict=True):
        expected = to_int8(whole.weight.codes, (1, 2, 3))
        assert np.allclose(stage.weight.decode(), expected, rtol=1e-6, atol=0)


# -- settling --------------------------------------------------------------------------------------

EXTENTS = [
    (1,),
    (3,),
    (1, 1),
    (1, 3),
    (3, 1),
    (3, 2),
    (1, 1, 1),
    (1, 1, 3),
    (1, 3, 1),
    (3, 1, 1),
    (2, 1, 3),
    (2, 3, 1),
    (1, 2, 3),
    (2, 2, 3),
]


def content(chain):
    return [
        (
            stage.weight.codes.tobytes(),
            stage.weight.codes.shape,
            None if stage.weight.scales is None else stage.weight.scales.tobytes(),
            stage.window,
            stage.groups,
        )
        for stage in chain.stages
        if isinstance(stage, Convolution)
    ]


@pytest.mark.parametrize("format", ["float32", "int8"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("extent", EXTENTS, ids=lambda extent: "x".join(map(str, extent)))
@pytest.mark.parametrize("form", ["channel", "input", "spatial", "spatial_swapped", "auto", None])
def test_settled_options_give_the_same_chain_again(form, extent, groups, format):
    kernel = normal(3, 4 * groups, 3, *extent, decay=0.4)
    if form not in (None, "auto", *forms_of(extent)):
        return
    svd, setting = Svd(), Setting.for_array(kernel, format, groups=groups)
    for budget in ({"rank": 2}, {"rank": 99}, {"ratio": 0.9}, {"energy": 0.8}, {"max_error": 0.3}):
        options = SvdOptions(form=form, **budget)
        chain = svd.factorize(kernel, options, setting)
        settled = svd.settle(options, chain)
        assert settled.rank == chain.stages[1].weight.shape[1]
        assert settled == SvdOptions(rank=settled.rank, form=named(chain, extent))
        if form not in (None, "auto"):
            assert settled.form == form
        again = svd.factorize(kernel, settled, setting)
        assert len(content(chain)) == 2
        assert content(again) == content(chain)


def test_settled_options_of_a_matrix_have_no_form():
    matrix = normal(0, 6, 5)
    setting = Setting.for_array(matrix)
    chain = Svd().factorize(matrix, SvdOptions(ratio=0.8), setting)
    assert Svd().settle(SvdOptions(ratio=0.8), chain) == SvdOptions(rank=2)


# -- groups ----------------------------------------------------------------------------------------


def test_groups_share_the_rank_and_nothing_else():
    """One group of rank 1, one of rank 3: the rank is that of both, chosen for both together."""
    u, v = normal(0, 5, 3).astype(np.float64), normal(1, 3, 4).astype(np.float64)
    rich = (u @ v).reshape(5, 2, 2)
    poor = np.outer(u[:, 0], v[0]).reshape(5, 2, 2)
    kernel = np.concatenate([rich, poor])
    chain = onnxlr.decompose(kernel, energy=1.0, form="channel", groups=2)
    assert chain.stages[1].weight.shape == (10, 3, 1)
    assert distance(chain.reconstruct(), kernel) < 1e-9
    first = onnxlr.decompose(kernel, rank=1, form="channel", groups=2).reconstruct()
    assert distance(first[5:], poor) < 1e-9
    left, right = factors(to_matrix(rich.swapaxes(0, 1), [0]), 1)
    expected = (left @ right).reshape(2, 2, 5).transpose(2, 0, 1)
    assert distance(first[:5], expected) < 1e-9
