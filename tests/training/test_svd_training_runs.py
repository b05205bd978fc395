"""Runs of SVD training: interruptions, scores, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from onnxlr import train_svd
from onnxlr.errors import DataError, ModelError, TrainingError, UsageError
from tests.training.small_cnn import images, small_cnn, softmax_loss

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")


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
            ({"form": "tucker"}, UsageError, "form 'tucker' is unknown; expected one of channel"),
            ({"sparsity": "l0"}, UsageError, "sparsity 'l0' is unknown; expected one of l1, hoyer"),
            ({"ratio": 1.5}, UsageError, "ratio 1.5 is not above 0 and at most 1"),
            ({"ratio": 1e-3}, UsageError, "ratio 0.001 cannot be reached"),
            ({"energy_loss": 1.0}, UsageError, "energy_loss 1 is not at least 0 and below 1"),
            ({"energy_loss": 0.1, "ratio": 0.5}, UsageError, "both given"),
            ({"count": "bytes"}, UsageError, "count 'bytes' is unknown; expected one of multiply"),
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
                "held-out data is judged by .* before anything is trained, expected a finite",
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
