"""Weights as `U diag(s) Vᵀ`: penalties and their gradients by hand, products, placements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxlr import open as open_model
from onnxlr.errors import UsageError
from tests.training.small_cnn import images, ort_run, small_cnn, softmax_loss

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.layers import find_layers  # noqa: E402
from onnxlr.training import TrainableModel  # noqa: E402
from onnxlr.training.placement import Placement  # noqa: E402
from onnxlr.training.svd.factored import FactoredWeight, Factors  # noqa: E402
from onnxlr.training.svd.request import SvdRequest  # noqa: E402
from onnxlr.training.svd.trainee import Goal, Penalties  # noqa: E402
from onnxlr.training.svd.training import SvdTraining  # noqa: E402

Array = np.ndarray[Any, Any]


def factored(stack: Array, dims: tuple[int, ...] | None = None) -> FactoredWeight:
    """Return a stack of matrices, stored as it is, as full-rank factors in float64."""
    batch, rows, columns = stack.shape
    placement = Placement(None, (batch, rows, columns), np.arange(stack.size), dims or stack.shape)
    return FactoredWeight(placement, Factors.of(stack), torch.zeros(1, dtype=torch.float64))


class TestPenalties:
    @settings(max_examples=20, deadline=None)
    @given(
        batch=st.integers(1, 3),
        rows=st.integers(1, 6),
        columns=st.integers(1, 6),
        seed=st.integers(0, 99),
    )
    def test_orthogonality_and_its_gradient(
        self, batch: int, rows: int, columns: int, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        weight = factored(rng.standard_normal((batch, rows, columns)))
        rank = min(rows, columns)
        with torch.no_grad():
            for factor in (weight.left, weight.right):
                factor.copy_(torch.from_numpy(rng.standard_normal(tuple(factor.shape))))
        weight.orthogonality().backward()
        expected = 0.0
        for factor in (weight.left, weight.right):
            kept = factor.detach().numpy()
            grams = np.stack([one.T @ one for one in kept]) - np.eye(rank)
            expected += float(np.sum(grams**2)) / rank**2
            by_hand = np.stack([4 * u @ g for u, g in zip(kept, grams, strict=True)]) / rank**2
            np.testing.assert_allclose(factor.grad.numpy(), by_hand, rtol=1e-9, atol=1e-9)
        assert weight.orthogonality().item() == pytest.approx(expected, rel=1e-9)

    def test_singular_vectors_cost_nothing(self) -> None:
        weight = factored(np.random.default_rng(0).standard_normal((2, 5, 7)))
        assert weight.orthogonality().item() == pytest.approx(0.0, abs=1e-20)

    def test_l1(self) -> None:
        weight = factored(np.diag([3.0, 2.0, 1.0])[None])
        with torch.no_grad():
            weight.values[0, 1] = -2.0
        found = weight.sparsity("l1")
        found.backward()
        assert found.item() == pytest.approx(6.0)
        np.testing.assert_allclose(weight.values.grad.numpy(), [[1.0, -1.0, 1.0]])

    def test_hoyer_and_its_gradient(self) -> None:
        weight = factored(np.diag([4.0, 3.0, 0.5])[None])
        found = weight.sparsity("hoyer")
        found.backward()
        s = np.array([4.0, 3.0, 0.5])
        norm = np.sqrt(np.sum(s**2))
        assert found.item() == pytest.approx(s.sum() / norm - 1)
        by_hand = 1 / norm - s.sum() * s / norm**3
        np.testing.assert_allclose(weight.values.grad.numpy()[0], by_hand, rtol=1e-9)

    def test_hoyer_knows_no_scale_and_is_0_for_rank_1(self) -> None:
        stack = np.random.default_rng(1).standard_normal((1, 6, 4))
        assert factored(stack).sparsity("hoyer").item() == pytest.approx(
            factored(100 * stack).sparsity("hoyer").item()
        )
        one = np.outer(np.arange(1.0, 7.0), [1.0, -2.0, 0.5])[None]
        assert factored(one).sparsity("hoyer").item() == pytest.approx(0.0, abs=1e-6)

    def test_matrices_of_a_stack_share_the_rank(self) -> None:
        weight = factored(np.stack([np.diag([4.0, 0.0]), np.diag([3.0, 2.0])]))
        sizes = [5.0, 2.0]  # of the first values of both, of the second ones
        assert weight.sparsity("l1").item() == pytest.approx(sum(sizes))

    def test_zeros_have_finite_gradients(self) -> None:
        for kind in ("l1", "hoyer"):
            weight = factored(np.zeros((1, 3, 3)))
            weight.sparsity(kind).backward()
            assert bool(torch.isfinite(weight.values.grad).all())

    @pytest.mark.parametrize("kind", ["l2", ""])
    def test_unknown_kind(self, kind: str) -> None:
        with pytest.raises(UsageError, match="is unknown; expected one of l1, hoyer"):
            Penalties(kind=kind)

    def test_weights_below_0(self) -> None:
        with pytest.raises(UsageError, match="sparsity is -1, expected a weight of 0 or more"):
            Penalties(sparsity=-1.0)


class TestFactors:
    @settings(max_examples=20, deadline=None)
    @given(
        rows=st.integers(1, 8),
        columns=st.integers(1, 8),
        rank=st.integers(1, 8),
        seed=st.integers(0, 99),
    )
    def test_product_of_any_factors(self, rows: int, columns: int, rank: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        left, values = rng.standard_normal((1, rows, rank)), rng.standard_normal((1, rank))
        right = rng.standard_normal((1, columns, rank))
        found = Factors.of_product(left, values, right)
        product = left[0] @ np.diag(values[0]) @ right[0].T
        again = found.left[0] @ np.diag(found.values[0]) @ found.right[0].T
        np.testing.assert_allclose(again, product, atol=1e-12)
        kept = found.values.shape[1]
        expected = np.linalg.svd(product, compute_uv=False)[:kept]
        np.testing.assert_allclose(found.values[0], expected, atol=1e-12)
        for factor in (found.left[0], found.right[0]):
            np.testing.assert_allclose(factor.T @ factor, np.eye(kept), atol=1e-12)

    def test_energy_counts_the_stack_together(self) -> None:
        factors = Factors.of(np.stack([np.diag([2.0, 0.0]), np.diag([1.0, 2.0])]))
        # singular values (2, 0) and (2, 1)
        np.testing.assert_allclose(factors.energies(), [8 / 9, 1.0])


@pytest.mark.parametrize("form", ["channel", "spatial", "input", "spatial_swapped"])
def test_full_rank_factors_change_nothing(form: str) -> None:
    """The stored tensors come back, whatever the form, the groups, and the way they are stored."""
    model, feeds = small_cnn(), images(6)
    training = SvdTraining(open_model(model), SvdRequest(form), Goal(softmax_loss))
    assert set(training.weights) == {"stem", "grouped", "pointwise", "head"}
    found = training.model({"image": feeds["image"]})["logits"].detach().numpy()
    np.testing.assert_allclose(found, ort_run(model, feeds), atol=2e-5)


def test_matrices_of_forms() -> None:
    """The matrices are the textbook's: (I k1 k2) × O for a channel, (I k2) × (O k1) in space."""
    model = open_model(small_cnn())
    layers = {layer.name: layer for layer in find_layers(model)}
    kernel = numpy_helper.to_array(model.initializers["stem"])
    channel = Placement.of(layers["stem"], "channel").matrices(kernel)
    np.testing.assert_array_equal(channel[0], kernel.reshape(12, 27).T)
    spatial = Placement.of(layers["stem"], "spatial").matrices(kernel)
    expected = kernel.transpose(1, 3, 0, 2).reshape(9, 36)
    np.testing.assert_array_equal(spatial[0], expected)
    grouped = numpy_helper.to_array(model.initializers["grouped"])
    both = Placement.of(layers["grouped"], "channel").matrices(grouped)
    np.testing.assert_array_equal(both[1], grouped[8:].reshape(8, 54).T)
    # a 1×1 kernel has no spatial form
    assert Placement.of(layers["pointwise"], "spatial").form == "channel"


def test_factors_survive_autocast() -> None:
    """Under autocast the weight is still made in its own type."""
    training = SvdTraining(open_model(small_cnn()), SvdRequest(), Goal(softmax_loss))
    weight = training.weights["stem"]
    exact = weight().detach()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(weight().detach(), exact)


def test_trainable_model_is_left_as_it_was() -> None:
    model = open_model(small_cnn())
    before = model.proto.SerializeToString()
    SvdTraining(model, SvdRequest(), Goal(softmax_loss))
    assert model.proto.SerializeToString() == before
    assert isinstance(TrainableModel(model), torch.nn.Module)
