"""The rounding of trained values, their gradients, and how codes lie in bytes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.operators import TernaryConv, pack  # noqa: E402
from onnxlr.training import TrainableModel  # noqa: E402
from onnxlr.training.storage import StoredCodes, stored_codes, whole  # noqa: E402
from onnxlr.training.storage.layouts import Bits, Blocks, TernaryKernel, TernaryMatrix  # noqa: E402
from onnxlr.training.storage.terms import SumOfTerms, TermCodes  # noqa: E402
from tests.training.low_bit_models import convolutions, data_of, matrices, rewritten  # noqa: E402

Array = np.ndarray[Any, Any]


def test_whole_numbers_and_gradients_that_pass_unless_they_lead_outwards() -> None:
    values = torch.tensor([-3.0, -3.0, -1.2, 0.4, 1.49, 2.6, 2.6], requires_grad=True)
    pull = torch.tensor([1.0, -1.0, 5.0, -7.0, 2.0, 3.0, -3.0])
    found = whole(values, -1, 2)
    found.backward(pull)
    assert found.tolist() == [-1, -1, -1, 0, 1, 2, 2]
    # A step goes against the gradient: of the two at each end one would leave the range further.
    assert values.grad.tolist() == [0, -1, 0, -7, 2, 3, 0]


class Unrounded(torch.nn.Module):
    """What stands in for codes, without the rounding."""

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self) -> Any:
        return self.make()


def unrounded(module: StoredCodes) -> Unrounded:
    if not isinstance(module, TermCodes):
        return Unrounded(lambda: module.values / module.unit + module.storage.zero)
    start, scales = module.values.detach().clone(), module.sum.scales
    codes = module().detach()

    def moved() -> Any:
        change = (module.values - start) * scales / (scales**2).sum(0)
        return codes + (change if module._term is None else change[module._term])

    return Unrounded(moved)


@pytest.mark.parametrize(
    ("make", "target", "method", "choice"),
    [
        (matrices, "onnx", "quantize", {"format": "int8"}),
        (matrices, "onnx", "quantize", {"format": "int4"}),
        (matrices, "ort", "quantize", {"format": "int4"}),
        (convolutions, "onnx", "quantize", {"format": "int2"}),
        (matrices, "onnxlr", "ternary", {"options": {"terms": 1}}),
        (matrices, "onnxlr", "ternary", {"options": {"terms": 2}}),
        (convolutions, "onnxlr", "ternary", {"options": {"terms": 2}}),
        (matrices, "onnx", "ternary", {"options": {"terms": 2}}),
    ],
)
def test_gradients_are_those_of_the_unrounded_values(
    make: Any, target: str, method: str, choice: dict[str, Any]
) -> None:
    model = rewritten(make(), target, method, **choice)
    x = data_of(model.proto).astype(np.float64)

    def trained(stand_in: Callable[[StoredCodes], Any]) -> tuple[Any, list[Any]]:
        trainable = TrainableModel(model, floating=torch.float64)
        modules = stored_codes(model, trainable)
        for module in modules:
            trainable.replace(module.name, stand_in(module))
        values = list({id(module.values): module.values for module in modules}.values())
        return lambda: trainable({"x": x})["y"].sin().sum(), values

    loss, values = trained(lambda module: module)
    loss().backward()
    surrogate, free = trained(unrounded)
    generator = np.random.default_rng(3)
    for value, other in zip(values, free, strict=True):
        assert value.grad.dtype == torch.float64
        direction = torch.from_numpy(generator.standard_normal(value.shape))
        step = 1e-6
        with torch.no_grad():
            other.add_(step * direction)
            above = surrogate()
            other.sub_(2 * step * direction)
            below = surrogate()
            other.add_(step * direction)
        expected = float(above - below) / (2 * step)
        assert float((value.grad * direction).sum()) == pytest.approx(expected, rel=1e-5)


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_a_sum_of_terms_takes_the_nearest_value(terms: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    trits = generator.integers(-1, 2, (terms, 5, 4))
    scales = np.exp(generator.standard_normal((terms, 1, 4))) * np.ones((terms, 5, 4))
    module = SumOfTerms(trits, scales, torch.float64)
    np.testing.assert_array_equal(module().detach().numpy(), trits)
    patterns = np.array(list(product((-1, 0, 1), repeat=terms)))
    every = np.einsum("pt,tkn->pkn", patterns, scales)
    for size in (0.3, 0.01, 2.0):  # what holds after a small step is not looked for again
        wanted = module.values.detach().numpy() + size * generator.standard_normal((5, 4))
        with torch.no_grad():
            module.values.copy_(torch.from_numpy(wanted))
        found = (module().detach().numpy() * scales).sum(0)
        np.testing.assert_allclose(
            np.abs(wanted - found), np.abs(wanted - every).min(0), rtol=1e-9, atol=1e-12
        )


def test_two_trits_of_the_same_scale_stay_as_they_came() -> None:
    trits = np.array([[1, 0, -1, 1], [0, 1, 1, -1]])[:, :, None]
    module = SumOfTerms(trits, np.full((2, 4, 1), 0.3))
    np.testing.assert_array_equal(module().detach().numpy(), trits)


@given(st.sampled_from([1, 2, 4]), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_bits_of_bytes(bits: int, count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    size = 3 + -(-count * bits // 8)
    slots = generator.permutation(size * 8 // bits)[:count]
    layout = Bits(bits, slots * bits // 8, (slots * bits % 8).astype(np.uint8))
    array = generator.integers(0, 256, (1, size), np.uint8)
    codes = generator.integers(0, 1 << bits, count)
    found = layout.write(array, codes)

    def as_bits(held: Array) -> Array:
        return np.unpackbits(held.reshape(-1), bitorder="little").reshape(-1, bits)

    expected = as_bits(array)
    expected[slots] = codes[:, None] >> np.arange(bits) & 1
    np.testing.assert_array_equal(as_bits(found), expected)
    np.testing.assert_array_equal(layout.read(found), codes)
    assert found.shape == array.shape


@given(st.sampled_from([2, 4, 8]), st.integers(1, 70), st.integers(1, 4), st.integers(0, 99))
def test_blocks_keep_what_fills_the_last_group(
    bits: int, inputs: int, outputs: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    groups, each = -(-inputs // 32), 8 // bits
    array = generator.integers(0, 256, (outputs, groups, 32 // each), np.uint8)
    layout = Blocks(bits, inputs, outputs)
    np.testing.assert_array_equal(layout.write(array, layout.read(array)), array)
    codes = generator.integers(0, 1 << bits, (outputs, inputs))
    found = layout.write(array, codes)
    for output, place in product(range(outputs), range(groups * 32)):
        byte = int(found.reshape(outputs, -1)[output, place // each])
        code = byte >> (bits * (place % each)) & ((1 << bits) - 1)
        if place < inputs:
            assert code == codes[output, place]
        else:
            old = int(array.reshape(outputs, -1)[output, place // each])
            assert code == old >> (bits * (place % each)) & ((1 << bits) - 1)


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 3), st.integers(0, 99))
def test_ternary_matrices(inputs: int, outputs: int, terms: int, seed: int) -> None:
    trits = np.random.default_rng(seed).integers(-1, 2, (terms, inputs, outputs))
    layout, packed = TernaryMatrix(inputs, outputs), pack(trits.astype(np.int8))
    np.testing.assert_array_equal(layout.read(packed), trits)
    np.testing.assert_array_equal(layout.write(packed, trits), packed)


@pytest.mark.parametrize(("channels", "group"), [(40, 1), (20, 2), (1, 3)])
def test_the_scale_of_each_trit_of_a_kernel(channels: int, group: int) -> None:
    """By the operator itself: a kernel of a single 1 shows the scale that it is multiplied by."""
    outputs, kernel, size = 2 * group, (2, 3), 32
    shape = (outputs, channels, *kernel)
    inputs = channels * 6
    generator = np.random.default_rng(0)
    groups = -(-inputs // size) if inputs > size else 1
    size = size if inputs > size else inputs
    scales = generator.uniform(1, 2, (2, groups, outputs)).astype(np.float32)
    found = TernaryKernel(shape, group).scales(scales, size)
    assert found.shape == (2, *shape)
    for _ in range(20):
        term, output, channel, row, column = (generator.integers(n) for n in (2, *shape))
        trits = np.zeros((2, *shape), np.int8)
        trits[term, output, channel, row, column] = 1
        ones, zeros = np.ones(channels * group, np.float32), np.zeros(outputs, np.float32)
        operator = TernaryConv(
            trits, scales, ones, zeros, size, 0, (1, 1), (0, 0, 0, 0), (1, 1), group
        )
        result = operator.reference(np.ones((1, channels * group, *kernel), np.float32))
        assert found[term, output, channel, row, column] == pytest.approx(result.max())


def test_training_of_codes_finds_better_ones() -> None:
    """Towards the original's outputs, in 60 steps; scales and biases stay as they are."""
    original = matrices()
    model = rewritten(original, "onnx", "quantize", format="int2")
    teacher, student = TrainableModel(original), TrainableModel(model)
    modules = stored_codes(model, student)
    for module in modules:
        student.replace(module.name, module)
    generator = torch.Generator().manual_seed(0)  # inputs of which few directions count
    x = torch.randn(256, 8, generator=generator) @ torch.randn(8, 40, generator=generator) / 3
    wanted = teacher({"x": x})["y"].detach()

    def error() -> Any:
        return (student({"x": x})["y"] - wanted).square().mean() / wanted.square().mean()

    optimizer = torch.optim.Adam([module.values for module in modules], 3e-3)
    before = error().item()
    for _ in range(60):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
        for module in modules:
            module.settle()
            low, high = module.storage.low, module.storage.high
            assert low <= module().min() <= module().max() <= high
    assert error().item() < 0.6 * before
