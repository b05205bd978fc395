"""Arrays between processes: every name that a model can have, and no pickles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlr.runtime import read_arrays, store_arrays

NAMES = [
    "a\0b",
    "a",
    "a.npy",
    "names.json",
    "0",
    "0.npy",
    "../../up",
    "/etc/x",
    "n" * 100_000,
    "",
    "?0",
    "?",
    "ä" * 700,
]


def test_names_of_any_kind(tmp_path: Path) -> None:
    stored = {name: np.full(number, number) for number, name in enumerate(NAMES)}
    store_arrays(tmp_path / "a.npz", stored)
    found = read_arrays(tmp_path / "a.npz")
    assert list(found) == NAMES
    for name, array in stored.items():
        np.testing.assert_array_equal(found[name], array)


@settings(max_examples=50)
@given(names=st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True))
def test_all_names(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    file = tmp_path_factory.mktemp("arrays") / "a.npz"
    store_arrays(file, {name: np.array(number) for number, name in enumerate(names)})
    assert {name: int(value) for name, value in read_arrays(file).items()} == {
        name: number for number, name in enumerate(names)
    }


def test_numpy_reads_usual_names(tmp_path: Path) -> None:
    store_arrays(tmp_path / "a.npz", {"x": np.arange(3), "1.0": np.ones((2, 2), np.float16)})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert arrays.files == ["x", "1.0"]
        np.testing.assert_array_equal(arrays["x"], np.arange(3))
        assert arrays["1.0"].dtype == np.float16
