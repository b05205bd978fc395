"""Random ternary nodes, right and wrong: a fixed few; tests/operators/fuzz.py tries any seed."""

from __future__ import annotations

import pytest

from tests.operators.fuzz import Tried, try_seed
from tests.operators.oplibrary import installed_library

PER_TEST = 100


@pytest.mark.parametrize("first", range(0, 6 * PER_TEST, PER_TEST))
def test_random_nodes(first: int) -> None:
    installed_library()
    tried = Tried()
    for seed in range(first, first + PER_TEST):
        tried += try_seed(seed)
    assert tried.right > PER_TEST / 3
    assert tried.refused > PER_TEST / 5
    assert tried.computed > PER_TEST / 20
