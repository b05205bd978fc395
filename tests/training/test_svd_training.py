"""SVD training: penalties by hand, ranks, what is written, and planted problems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxlr import open as open_model
from onnxlr import train_svd, verify
from onnxlr.errors import DataError, ModelError, TrainingError, UsageError
from tests.training.small_cnn import images, small_cnn, softmax_loss

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.layers import find_layers  # noqa: E402
from onnxlr.training import TrainableModel  # noqa: E402
from onnxlr.training.placement import Placement  # noqa: E402
from onnxlr.training.svd.factored import FactoredWeight, Factors  # noqa: E402
from onnxlr.training.svd.ranks import LayerWork, ranks_of_energy, ranks_within  # noqa: E402
from onnxlr.training.svd.request import Cut, SvdRequest  # noqa: E402
from onnxlr.training.svd.run import SvdWish, train_factors  # noqa: E402
from onnxlr.training.svd.trainee import Goal, Penalties  # noqa: E402
from onnxlr.training.svd.training import SvdTraining  # noqa: E402

Array = np.ndarray[Any, Any]


def ort_run(model: Path | onnx.ModelProto, feeds: dict[str, Array]) -> Array:
    content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": feeds["image"]})[0]
    return np.asarray(found)


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
        with pytest.raises(UsageError, match="expected l1 or hoyer"):
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


def planted(rank: int = 3, sizes: tuple[int, int] = (16, 12)) -> tuple[onnx.ModelProto, Any]:
    """Return a linear model of a noisy weight, and data that a weight of low rank made."""
    rng = np.random.default_rng(5)
    inputs, outputs = sizes
    true = rng.standard_normal((inputs, rank)) @ rng.standard_normal((rank, outputs))
    noisy = true + 0.4 * rng.standard_normal(sizes)
    x = rng.standard_normal((2000, inputs))
    data = {"x": x.astype(np.float32), "target": (x @ true).astype(np.float32)}
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "layer")],
        "linear",
        [helper.make_tensor_value_info("x", float32, ["n", inputs])],
        [helper.make_tensor_value_info("y", float32, ["n", outputs])],
        [numpy_helper.from_array(noisy.astype(np.float32), "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8), (data, true)


def squared(outputs: Any, batch: Any) -> Any:
    return (outputs["y"] - batch["target"]).square().mean()


class TestPlanted:
    @pytest.mark.parametrize("kind", ["l1", "hoyer"])
    def test_rank_is_found(self, kind: str, tmp_path: Path) -> None:
        model, (data, true) = planted()
        result = train_svd(
            model,
            [data],
            squared,
            tmp_path / "out.onnx",
            sparsity=kind,
            sparsity_weight=0.05,
            energy_loss=0.01,
            count="parameters",
            steps=700,
            rate=0.02,
            batch=128,
            isolate=False,
        )
        (layer,) = result.training.layers
        assert layer.rank == 3
        assert result.training.after < 1e-3 * float(np.mean((data["x"] @ true) ** 2))
        weights = [
            numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer
        ]
        assert sorted(w.shape for w in weights) == [(3, 12), (16, 3)]

    def test_orthogonality_is_restored(self) -> None:
        """Vectors that are far from orthonormal become so, by the penalty alone."""
        model, (data, _) = planted()
        goal = Goal(lambda outputs, _: 0.0 * outputs["y"].sum())
        request = SvdRequest(penalties=Penalties(1.0, 0.0))
        training = SvdTraining(open_model(model), request, goal)
        (weight,) = training.weights.values()
        with torch.no_grad():
            torch.manual_seed(0)
            weight.left += 0.3 * torch.randn_like(weight.left)
            weight.right += 0.3 * torch.randn_like(weight.right)
        from onnxlr.training.data import TrainingData
        from onnxlr.training.loop import Schedule

        whole = TrainingData((data,), 64, (data,), "planted")
        training.sparsify(whole, Schedule(0.02, steps=800))
        for factor in (weight.left, weight.right):
            kept = factor.detach().numpy()[0]
            np.testing.assert_allclose(kept.T @ kept, np.eye(12), atol=0.02)


class TestWriting:
    @pytest.mark.parametrize("form", ["channel", "spatial"])
    def test_file_computes_what_was_trained(self, form: str) -> None:
        source = open_model(small_cnn())
        request = SvdRequest(form, Penalties(1.0, 0.02), Cut(ratio=0.4))
        wish = SvdWish(request, softmax_loss, batch=16)
        from dataclasses import replace

        wish = replace(wish, schedule=replace(wish.schedule, steps=12, rate=1e-2))
        training, trained, _ = train_factors(source, [images(64)], wish)
        dense = open_model(small_cnn())
        training.write(dense)
        onnx.checker.check_model(dense.proto)
        feeds = images(20, seed=7)
        with torch.no_grad():
            training.model.eval()
            expected = training.model({"image": feeds["image"]})["logits"].numpy()
        np.testing.assert_allclose(ort_run(dense.proto, feeds), expected, atol=2e-5)
        for layer in trained.layers:
            if layer.rank is None or form == "spatial":
                continue
            weight = numpy_helper.to_array(dense.initializers[layer.name])
            parts = np.split(weight, 2) if layer.name == "grouped" else [weight]
            for part in parts:
                s = np.linalg.svd(part.reshape(len(part), -1), compute_uv=False)
                assert np.all(s[layer.rank :] < 1e-5 * s[0])
        # running statistics and normalisations were trained too
        for name in ("mean", "variance", "scale", "shift", "head.bias", "depthwise"):
            before = numpy_helper.to_array(source.initializers[name])
            assert not np.array_equal(numpy_helper.to_array(dense.initializers[name]), before)

    def test_running_statistics_are_those_of_the_data(self, tmp_path: Path) -> None:
        model, data = small_cnn(), images(256)
        result = train_svd(
            model,
            [data],
            softmax_loss,
            tmp_path / "out.onnx",
            dense=tmp_path / "dense.onnx",
            layers=["head"],
            steps=80,
            rate=1e-6,
            batch=64,
            isolate=False,
        )
        assert result.dense == tmp_path / "dense.onnx"
        found = {
            t.name: numpy_helper.to_array(t) for t in onnx.load(result.dense).graph.initializer
        }
        kernel = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "stem"))
        conv = torch.nn.functional.conv2d(
            torch.from_numpy(data["image"]), torch.tensor(kernel), stride=2, padding=1
        ).numpy()
        np.testing.assert_allclose(found["mean"], conv.mean((0, 2, 3)), atol=0.05)
        np.testing.assert_allclose(found["variance"], conv.var((0, 2, 3)), rtol=0.1)

    def test_result_is_proved_against_the_dense_weights(self, tmp_path: Path) -> None:
        result = train_svd(
            small_cnn(),
            [images(64)],
            softmax_loss,
            tmp_path / "out.onnx",
            dense=tmp_path / "dense.onnx",
            ratio=0.5,
            steps=6,
            isolate=False,
        )
        assert result.rewriting.report is not None
        assert result.rewriting.report.passed
        feeds = images(9, seed=3)
        np.testing.assert_allclose(
            ort_run(tmp_path / "out.onnx", feeds),
            ort_run(tmp_path / "dense.onnx", feeds),
            atol=1e-4,
        )
        again = verify(tmp_path / "dense.onnx", tmp_path / "out.onnx", isolate=False)
        assert again.passed
        assert "emission" in [check.proof for check in again.checks]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["dense.onnx", "out.onnx"]

    def test_no_dense_file_is_left(self, tmp_path: Path) -> None:
        train_svd(
            small_cnn(), [images(40)], softmax_loss, tmp_path / "out.onnx", steps=2, isolate=False
        )
        assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]

    def test_svd_of_the_dense_weight_is_qr_and_a_small_svd(self) -> None:
        """What is written by the one is what the other gives: the paper's re-orthogonalisation."""
        rng = np.random.default_rng(3)
        left, values = rng.standard_normal((1, 30, 5)), rng.random((1, 5))
        right = rng.standard_normal((1, 20, 5))
        found = Factors.of_product(left, values, right)
        dense = ((left * values[:, None]) @ right.swapaxes(1, 2))[0]
        u, s, vt = np.linalg.svd(dense)
        np.testing.assert_allclose(found.values[0], s[:5], rtol=1e-10)
        np.testing.assert_allclose(
            np.abs(np.sum(found.left[0] * u[:, :5], axis=0)), 1.0, rtol=1e-10
        )
        np.testing.assert_allclose(
            np.abs(np.sum(found.right[0] * vt[:5].T, axis=0)), 1.0, rtol=1e-10
        )


class TestRunning:
    def test_interrupted_run_ends_as_an_uninterrupted_one(self, tmp_path: Path) -> None:
        whole, parts = tmp_path / "whole.onnx", tmp_path / "parts.onnx"
        given: dict[str, Any] = {"ratio": 0.5, "steps": 24, "batch": 16, "isolate": False}
        train_svd(small_cnn(), [images(80)], softmax_loss, whole, **given)
        for most in (7, 17):  # in the first stage, and in the second
            count = 0

            def interrupt(name: str, done: int, total: int, most: int = most) -> None:
                nonlocal count
                count += name.startswith("training")
                if count > most:
                    raise KeyboardInterrupt

            parts.unlink(missing_ok=True)
            with pytest.raises(KeyboardInterrupt):
                train_svd(
                    small_cnn(), [images(80)], softmax_loss, parts, progress=interrupt, **given
                )
            assert not parts.exists()
            assert (tmp_path / "parts.onnx.checkpoint.1").exists()
            train_svd(small_cnn(), [images(80)], softmax_loss, parts, **given)
            assert parts.read_bytes() == whole.read_bytes()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["parts.onnx", "whole.onnx"]

    def test_checkpoint_of_another_run(self, tmp_path: Path) -> None:
        def interrupt(name: str, done: int, total: int) -> None:
            if name.startswith("training") and done > 8:
                raise KeyboardInterrupt

        given: dict[str, Any] = {"steps": 24, "batch": 16, "isolate": False}
        out = tmp_path / "out.onnx"
        with pytest.raises(KeyboardInterrupt):
            train_svd(small_cnn(), [images(80)], softmax_loss, out, progress=interrupt, **given)
        with pytest.raises(TrainingError, match=r"another run \(form was channel, now spatial\)"):
            train_svd(small_cnn(), [images(80)], softmax_loss, out, form="spatial", **given)

    def test_nothing_of_the_rank_pays(self, tmp_path: Path) -> None:
        result = train_svd(
            small_cnn(),
            [images(64)],
            softmax_loss,
            tmp_path / "out.onnx",
            energy_loss=0.0,
            steps=4,
            isolate=False,
        )
        dense = [one for one in result.training.layers if one.rank is None]
        assert {"stem", "grouped"} <= {one.name for one in dense}
        assert all(one.reason for one in dense)

    def test_score_judges(self, tmp_path: Path) -> None:
        result = train_svd(
            small_cnn(),
            [images(200)],
            softmax_loss,
            tmp_path / "out.onnx",
            score=lambda o, b: (o["logits"].argmax(1) == b["label"]).float().mean(),
            ratio=0.5,
            steps=120,
            rate=1e-2,
            isolate=False,
        )
        trained = result.training
        assert trained.judged_by == "score"
        assert 0 <= trained.before <= 1
        assert trained.after > max(trained.before, 0.9)
        assert [one.judged for one in trained.stages[1].course][-1] <= 0

    def test_same_seed_same_file(self, tmp_path: Path) -> None:
        files = [tmp_path / f"{number}.onnx" for number in range(2)]
        for file in files:
            train_svd(small_cnn(), [images(50)], softmax_loss, file, steps=4, seed=3, isolate=False)
        assert files[0].read_bytes() == files[1].read_bytes()


class TestBadInput:
    def given(self, tmp_path: Path, **more: Any) -> dict[str, Any]:
        return {
            "model": small_cnn(),
            "data": [images(40)],
            "loss": softmax_loss,
            "output": tmp_path / "out.onnx",
            "steps": 2,
            "isolate": False,
            **more,
        }

    @pytest.mark.parametrize(
        ("more", "error", "message"),
        [
            ({"form": "tucker"}, UsageError, "form 'tucker' is unknown, expected channel, input"),
            ({"sparsity": "l0"}, UsageError, "sparsity 'l0' is unknown, expected l1 or hoyer"),
            ({"ratio": 1.5}, UsageError, "ratio 1.5 is not above 0 and at most 1"),
            ({"ratio": 1e-3}, UsageError, "ratio 0.001 cannot be reached"),
            ({"energy_loss": 1.0}, UsageError, "energy_loss 1 is not at least 0 and below 1"),
            ({"energy_loss": 0.1, "ratio": 0.5}, UsageError, "both given"),
            ({"count": "bytes"}, UsageError, "count 'bytes' is unknown, expected multiply-adds"),
            ({"sparse_part": 1.0}, UsageError, "sparse_part 1 is not at least 0 and below 1"),
            ({"steps": 1}, UsageError, "1 steps cannot be divided between two stages"),
            ({"rate": 0.0}, TrainingError, "rate 0.0 is not a finite number above 0"),
            ({"layers": ["nothing*"]}, UsageError, "matches no layer"),
            ({"layers": ["depthwise"]}, ModelError, "no layer can be factored .*'depthwise': dep"),
            ({"holdout": 0.0}, DataError, "expected a fraction above 0 and below 1"),
            ({"device": "abacus"}, UsageError, "device 'abacus' cannot be used"),
            ({"loss": "nowhere:loss"}, DataError, "nowhere"),
            ({"loss": lambda o, _: o["logits"]}, TrainingError, "expected a torch tensor of one"),
            (
                {"loss": lambda o, _: float("nan") * o["logits"].sum()},
                TrainingError,
                "returned nan, expected a finite number",
            ),
            ({"score": lambda *_: "good"}, TrainingError, "failed with ValueError"),
            ({"score": lambda *_: float("nan")}, TrainingError, "returned nan"),
        ],
    )
    def test_one_clear_sentence(
        self, more: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(error, match=message):
            train_svd(**self.given(tmp_path, **more))
        assert not (tmp_path / "out.onnx").exists()

    def test_dense_file_is_another(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="expected different files"):
            train_svd(**self.given(tmp_path, dense=tmp_path / "out.onnx"))

    def test_uncovered_operator_is_named_before_any_work(self, tmp_path: Path) -> None:
        model = small_cnn()
        model.opset_import.add(domain="elsewhere", version=1)
        model.graph.node.append(
            helper.make_node("Unheard", ["logits"], ["more"], "odd", domain="elsewhere")
        )
        with pytest.raises(ModelError, match=r"elsewhere\.Unheard .*'odd'"):
            train_svd(**self.given(tmp_path, model=model))


def test_factors_survive_autocast() -> None:
    """Under autocast the weight is still made in its own type."""
    training = SvdTraining(open_model(small_cnn()), SvdRequest(), Goal(softmax_loss))
    weight = training.weights["stem"]
    exact = weight().detach()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(weight().detach(), exact)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda(tmp_path: Path) -> None:
    result = train_svd(
        small_cnn(),
        [images(64)],
        softmax_loss,
        tmp_path / "out.onnx",
        ratio=0.5,
        steps=6,
        device="cuda",
        isolate=False,
    )
    assert result.rewriting.report is not None
    assert result.rewriting.report.passed


def test_trainable_model_is_left_as_it_was() -> None:
    model = open_model(small_cnn())
    before = model.proto.SerializeToString()
    SvdTraining(model, SvdRequest(), Goal(softmax_loss))
    assert model.proto.SerializeToString() == before
    assert isinstance(TrainableModel(model), torch.nn.Module)
