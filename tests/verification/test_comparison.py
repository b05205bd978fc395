"""Comparisons against numpy's own words for each measure."""

from __future__ import annotations

from math import inf, isnan
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxlr.verification.comparison import Comparison, compare

Array = np.ndarray[Any, Any]
Pairs = list[tuple[Array, Array]]
FLOATS = (np.float16, np.float32, np.float64)


def by_numpy(pairs: Pairs) -> dict[str, float | None]:
    """Return every measure of pairs of finite floats, by its definition over all entries."""
    y = np.concatenate([a.astype(np.float64).ravel() for a, _ in pairs])
    z = np.concatenate([b.astype(np.float64).ravel() for _, b in pairs])

    def cosine(a: Array, b: Array) -> float:
        sizes = np.linalg.norm(a), np.linalg.norm(b)
        if 0 in sizes:
            return 1.0 if sizes[0] == sizes[1] else 0.0
        return float(np.dot(a / sizes[0], b / sizes[1]))

    noise, norm = np.linalg.norm(y - z), np.linalg.norm(y)
    relative = (0.0 if noise == 0 else inf) if norm == 0 else noise / norm
    tops = [
        np.equal(a.argmax(-1), b.argmax(-1)).ravel()
        for a, b in pairs
        if a.ndim and a.shape[-1] > 1 and a.size
    ]
    return {
        "cosine": cosine(y, z),
        "worst_cosine": min(
            cosine(a.astype(np.float64).ravel(), b.astype(np.float64).ravel()) for a, b in pairs
        ),
        "relative_l2": float(relative),
        "max_abs": float(np.abs(y - z).max()) if y.size else 0.0,
        "sqnr": inf if relative == 0 else -inf if relative == inf else -20 * np.log10(relative),
        "top1": float(np.concatenate(tops).mean()) if tops else None,
        "agreement": float(np.mean(y == z)) if y.size else 1.0,
    }


@st.composite
def float_pairs(draw: st.DrawFn) -> Pairs:
    """Draw runs of one output whose entries are of ordinary size, zeros and equal ones included."""
    dtype = draw(st.sampled_from(FLOATS))
    entries = st.sampled_from([0.0, 1.0, -1.0, 0.5, 2**-10]) | st.floats(-100, 100, width=16)
    pairs = []
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
        y = draw(hnp.arrays(dtype, shape, elements=entries))
        near = draw(st.booleans())
        z = draw(hnp.arrays(dtype, shape, elements=entries))
        pairs.append((y, np.asarray(y + z * dtype(1e-2) if near else z, dtype)))
    return pairs


@given(float_pairs())
def test_floats(pairs: Pairs) -> None:
    found = compare("y", iter(pairs))
    assert found.is_float
    assert found.entries == sum(y.size for y, _ in pairs)
    assert found.fault is None
    for name, value in by_numpy(pairs).items():
        expected = None if value is None else pytest.approx(value, rel=1e-6, abs=1e-9)
        assert getattr(found, name) == expected, name


@given(
    st.sampled_from([np.int8, np.int64, np.uint16, np.bool_, np.str_]),
    hnp.array_shapes(min_dims=0, max_dims=2, min_side=0),
    st.data(),
)
def test_other_types_agree_entry_by_entry(
    dtype: type[Any], shape: tuple[int, ...], data: st.DataObject
) -> None:
    few = st.integers(0, 2)
    y = np.asarray(data.draw(hnp.arrays(np.int64, shape, elements=few)).astype(dtype))
    z = np.asarray(data.draw(hnp.arrays(np.int64, shape, elements=few)).astype(dtype))
    found = compare("y", [(y, z)])
    equal = [a == b for a, b in zip(y.ravel().tolist(), z.ravel().tolist(), strict=True)]
    assert found.agreement == pytest.approx(sum(equal) / len(equal) if equal else 1.0)
    assert found.fault is None
    assert found.entries == y.size
    assert not found.is_float
    assert found.top1 is None


def test_by_hand() -> None:
    y = np.array([[3.0, 4.0], [0.0, 1.0]], np.float32)
    z = np.array([[4.0, 3.0], [0.0, 1.0]], np.float32)
    found = compare("y", [(y, z)])
    assert found.cosine == pytest.approx(25 / 26)
    assert found.relative_l2 == pytest.approx(np.sqrt(2 / 26))
    assert found.max_abs == 1
    assert found.sqnr == pytest.approx(10 * np.log10(13))
    assert found.top1 == 0.5
    assert found.agreement == 0.5


def test_the_worst_run_counts_by_itself() -> None:
    large, small = np.array([1000.0, 0.0]), np.array([1.0, 0.0])
    found = compare("y", [(large, large), (small, -small)])
    assert found.cosine == pytest.approx(1, abs=1e-5)
    assert found.worst_cosine == -1


@pytest.mark.parametrize(
    ("y", "z", "cosine", "relative", "sqnr"),
    [
        ([0, 0], [0, 0], 1, 0, inf),
        ([0, 0], [0, 1], 0, inf, -inf),
        ([0, 1], [0, 0], 0, 1, 0),
        ([2, 1], [2, 1], 1, 0, inf),
    ],
)
def test_zeros(y: list[float], z: list[float], cosine: float, relative: float, sqnr: float) -> None:
    found = compare("y", [(np.array(y, np.float32), np.array(z, np.float32))])
    assert (found.cosine, found.relative_l2) == (pytest.approx(cosine), relative)
    assert found.sqnr == sqnr


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_entries_that_are_not_finite_are_a_fault(bad: float) -> None:
    fine, spoilt = np.array([1.0, 2.0, 3.0]), np.array([1.0, bad, 3.0])
    cases = {
        "found": (fine, spoilt, (1, 0), "1 NaN or infinite entries", "has none"),
        "both": (spoilt, spoilt, (1, 1), "1 NaN or infinite entries", "has some"),
        "expected": (spoilt, fine, (0, 1), "has finite entries where", "1 NaN or infinite ones"),
    }
    for y, z, counts, *words in cases.values():
        found = compare("y", [(fine, fine), (y, z)])
        assert (found.non_finite, found.original_non_finite) == counts
        assert found.fault is not None
        for word in words:
            assert word in found.fault
        assert found.cosine == pytest.approx(1)  # of the entries that are finite in both
        assert found.max_abs == 0


MISMATCHES: list[tuple[Array, Array, str]] = [
    (np.zeros((2, 3)), np.zeros((3, 2)), "shape [3, 2], expected [2, 3]"),
    (np.zeros(0), np.zeros(1), "shape [1], expected [0]"),
    (np.zeros(()), np.zeros(1), "shape [1], expected []"),
    (np.zeros(2), np.zeros(2, int), "integers, expected floats"),
    (np.zeros(2, int), np.zeros(2), "floats, expected integers"),
    (np.zeros(2), np.array(["a", "b"]), "strings, expected floats"),
    (np.array(["1", "2"]), np.zeros(2), "floats, expected strings"),
    (np.zeros(2, bool), np.zeros(2, int), "integers, expected booleans"),
]


@pytest.mark.parametrize(("y", "z", "words"), MISMATCHES, ids=[m[2] for m in MISMATCHES])
def test_what_cannot_be_compared_has_no_measures(y: Array, z: Array, words: str) -> None:
    same = np.zeros((2, 2)).astype(y.dtype)
    found = compare("y", [(same, same), (y, z)])
    assert found.fault == f"output 'y' has {words}"
    measures = [found.cosine, found.worst_cosine, found.relative_l2, found.max_abs, found.sqnr]
    assert all(map(isnan, [*measures, found.agreement]))


def test_the_width_of_floats_and_strings_is_no_mismatch() -> None:
    assert compare("y", [(np.ones(2, np.float32), np.ones(2))]).fault is None
    assert compare("y", [(np.array(["a"]), np.array(["bbb"]))]).agreement == 0


def test_runs_of_several_shapes() -> None:
    pairs = [(np.ones((n, 3)), np.ones((n, 3))) for n in (1, 4)]
    found = compare("y", pairs)
    assert (found.entries, found.top1) == (15, 1)


def test_nothing_at_all() -> None:
    found = compare("y", [])
    assert isinstance(found, Comparison)
    assert (found.entries, found.agreement, found.top1) == (0, 1, None)
