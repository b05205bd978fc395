"""Ranks by energy and by a budget, and what they cost in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlr import train_svd
from onnxlr.errors import UsageError
from tests.training.small_cnn import images, small_cnn, softmax_loss

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.training.svd.ranks import LayerWork, ranks_of_energy, ranks_within  # noqa: E402

WORKS = {"a": LayerWork(100, 20, 1000, 200.0), "b": LayerWork(100, 20, 100, 20.0)}


class TestRanks:
    def test_least_rank_that_holds_the_energy(self) -> None:
        energies = {"a": np.array([0.5, 0.9, 0.99, 1.0]), "b": np.array([0.999, 1.0])}
        found = ranks_of_energy(energies, WORKS, 0.1, "parameters")
        assert found == {"a": 2, "b": 1}
        assert ranks_of_energy(energies, WORKS, 0.0, "parameters") == {"a": 4, "b": 2}

    def test_a_rank_that_costs_as_much_stays_dense(self) -> None:
        energies = {"a": np.array([0.1, 0.2, 0.3, 0.4, 1.0])}
        assert ranks_of_energy(energies, WORKS, 0.0, "parameters") == {"a": None}

    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 999), ratio=st.floats(0.55, 1.0))
    def test_budget(self, seed: int, ratio: float) -> None:
        """What is found is within the budget, and nothing with less loss of energy would be."""
        rng = np.random.default_rng(seed)
        works, energies = {}, {}
        for name in "abcd":
            rank = int(rng.integers(2, 9))
            values = np.sort(rng.random(rank) ** 3)[::-1] ** 2
            energies[name] = np.cumsum(values) / values.sum()
            each = int(rng.integers(1, 5))
            works[name] = LayerWork(each * rank, each, each * rank * 7, each * 7.0)
        found, loss = ranks_within(energies, works, ratio, "multiply-adds")

        def cost(ranks: dict[str, int | None]) -> float:
            return sum(works[n].of(r, "multiply-adds") for n, r in ranks.items())

        limit = ratio * cost(dict.fromkeys(works))
        assert cost(found) <= limit
        less = [x for x in np.concatenate([1 - e for e in energies.values()]) if x < loss - 1e-9]
        for smaller in (*less, 0.0) if loss > 1e-9 else ():
            ranks = ranks_of_energy(energies, works, max(smaller, 0.0), "multiply-adds")
            assert cost(ranks) > limit

    def test_budget_that_cannot_be_reached(self) -> None:
        with pytest.raises(UsageError, match=r"ratio 0\.1 cannot be reached: rank 1 .* 0\.2 of"):
            ranks_within({"a": np.ones(5)}, {"a": WORKS["a"]}, 0.1, "parameters")

    @pytest.mark.parametrize("form", ["channel", "spatial", "input", "spatial_swapped"])
    def test_multiply_adds_are_those_of_the_file(self, form: str, tmp_path: Path) -> None:
        """They are counted anew from the nodes of the written model and the shapes of its data."""
        (tmp_path / "m.onnx").write_bytes(small_cnn().SerializeToString())
        result = train_svd(
            tmp_path / "m.onnx",
            [images(48)],
            softmax_loss,
            form=form,
            ratio=0.5,
            sparse_part=0,
            steps=1,
            isolate=False,
        )
        assert result.rewriting.output is not None
        before = counted(onnx.load(tmp_path / "m.onnx"))
        after = counted(onnx.load(result.rewriting.output))
        layers = [one for one in result.training.layers if one.full_rank is not None]
        skipped = before["depthwise"]
        assert sum(one.multiply_adds[0] for one in layers) == sum(before.values()) - skipped
        assert sum(one.multiply_adds[1] for one in layers) == sum(after.values()) - skipped


def counted(model: onnx.ModelProto) -> dict[str, int]:
    """Return the multiply-adds of one sample by the name of the node's result."""
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {
        value.name: [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
        for value in (*inferred.graph.value_info, *inferred.graph.output)
    }
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    found = {}
    for number, node in enumerate(model.graph.node):
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        size = int(np.prod(shapes[node.output[0]]))
        dims = weights[node.input[1]]
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        if node.op_type == "Conv":
            inner = int(np.prod(dims[1:]))
        else:
            inner = dims[1] if transposed else dims[0]
        found[node.name or str(number)] = size * inner
    return found
