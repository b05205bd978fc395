"""SVD training: planted problems, and what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxlr import open as open_model
from onnxlr import train_svd, verify
from tests.training.small_cnn import images, ort_run, small_cnn, softmax_loss

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.training.svd.factored import Factors  # noqa: E402
from onnxlr.training.svd.request import Cut, SvdRequest  # noqa: E402
from onnxlr.training.svd.run import SvdWish, train_factors  # noqa: E402
from onnxlr.training.svd.trainee import Goal, Penalties  # noqa: E402
from onnxlr.training.svd.training import SvdTraining  # noqa: E402


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
