"""How many bits promise an error, against a look at every number of them."""

from __future__ import annotations

from math import inf

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxlr.methods.atoms import Asked, Sizes, Weight
from onnxlr.metrics import Frobenius

WEIGHT = Weight(
    np.random.default_rng(0).standard_normal((48, 64)).astype(np.float32),
    Frobenius(),
    None,
    np.dtype(np.float32),
)


class _Told(Sizes):
    """Is told what to expect, and counts how often it looks."""

    def __init__(self, errors):
        super().__init__(WEIGHT, Asked(), len(errors) / 4)
        self.errors, self.looks = [inf, *errors], 0

    def _expected(self, size):
        self.looks += 1
        return self.errors[size]


@given(
    falls=st.lists(st.floats(0, 12), min_size=1, max_size=40),
    none=st.integers(0, 5),
    first=st.integers(1, 42),
    place=st.floats(-2, 42),
    bits=st.floats(0, 12),
)
def test_the_fewest_are_those_of_a_look_at_each(falls, none, first, place, bits):
    errors = [inf] * min(none, len(falls)) + list(np.exp(-np.cumsum(falls)))[none:]
    sizes = _Told(errors)
    wanted = 0.0 if place < 0 else float(np.exp(-place))
    enough = [k for k in range(first, len(errors) + 1) if sizes.errors[k] <= wanted]
    assert sizes.fewest(first, wanted, bits) == (enough[0] if enough else None)
    last = len(errors)
    expected = last if first <= last and errors[-1] <= wanted else None
    assert sizes.last(first, wanted) == expected


def test_where_errors_fall_as_expected_few_looks_do():
    for wanted in (0.3, 0.01, 1e-5, 1e-9):
        sizes = _Told([0.7 * 2 ** (-k / 2) for k in range(1, 129)])
        found = sizes.fewest(1, wanted, 3)
        assert sizes.errors[found] <= wanted < sizes.errors[found - 1]
        assert sizes.looks <= 4


def test_weights_of_more_bits_promise_less():
    sizes = Sizes(WEIGHT, Asked(), 6)
    size = sizes.fewest(1, 0.05, 3)
    form, error = sizes.best(size)
    assert error <= 0.05 < sizes.best(size - 1)[1]
    assert WEIGHT.bytes(form) * 8 <= size / 4 * WEIGHT.numbers.size
    assert Sizes(WEIGHT, Asked(), 2).fewest(1, 0.001) is None
