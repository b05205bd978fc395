"""Distances to a teacher, and losses of a user's own."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.errors import DataError, TrainingError  # noqa: E402
from onnxlr.training.losses import counted, distillation, finite, load_loss, squares  # noqa: E402


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_distances_are_relative_and_averaged_over_tensors() -> None:
    y, z = {"a": drawn(0, 4, 3), "b": 100 * drawn(1, 5)}, {"a": drawn(2, 4, 3), "b": drawn(3, 5)}
    expected = np.mean([np.sum((z[k] - y[k]) ** 2) / np.sum(y[k] ** 2) for k in y])
    found = distillation(
        {k: torch.from_numpy(v) for k, v in z.items()} | {"c": torch.ones(1)},
        {k: torch.from_numpy(v) for k, v in y.items()},
    )
    assert float(found) == pytest.approx(expected, rel=1e-5)


@given(samples=st.integers(1, 4), positions=st.integers(1, 5), width=st.integers(1, 3))
def test_masked_positions_do_not_count(samples: int, positions: int, width: int) -> None:
    random = np.random.default_rng(samples * 10 + positions)
    mask = random.integers(0, 2, (samples, positions))
    y, z = drawn(1, samples, positions, width), drawn(2, samples, positions, width)
    rows = mask.ravel() != 0
    for shape in ((samples, positions, width), (samples * positions, width)):
        noise, size = squares(
            torch.from_numpy(z).reshape(shape),
            torch.from_numpy(y).reshape(shape),
            torch.from_numpy(mask),
        )
        apart = (z - y).reshape(-1, width)[rows], y.reshape(-1, width)[rows]
        if positions > 1 or width > 1:
            assert float(noise) == pytest.approx(np.square(apart[0]).sum(), rel=1e-4, abs=1e-6)
            assert float(size) == pytest.approx(np.square(apart[1]).sum(), rel=1e-4, abs=1e-6)


def test_a_mask_of_other_dimensions_counts_everything() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert counted(mask, torch.ones(2, 3)) is None  # one embedding for each sample
    assert counted(mask, torch.ones(2, 4, 5)) is None
    assert counted(mask, torch.ones(6)) is None
    found = counted(mask, torch.ones(2, 3, 4))
    assert found is not None
    assert found.shape == (2, 3, 1)


def test_half_precision_does_not_overflow() -> None:
    y = torch.full((2, 3), 300.0, dtype=torch.float16)
    assert float(distillation({"y": 2 * y}, {"y": y})) == pytest.approx(1.0)


def test_a_target_of_zeros_gives_a_finite_loss() -> None:
    zero = torch.zeros(3)
    assert float(distillation({"y": zero}, {"y": zero})) == 0


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    found = ModuleType("users_losses")
    monkeypatch.setitem(sys.modules, "users_losses", found)
    return found


OUTPUTS = {"y": torch.arange(6.0).reshape(3, 2).requires_grad_()}
BATCH = {"label": torch.tensor([0, 1, 1])}


def use(module: ModuleType, function: Any) -> Any:
    module.loss = function  # type: ignore[attr-defined]
    return load_loss("users_losses:loss")(OUTPUTS, BATCH)


def test_a_loss_on_labels(module: ModuleType) -> None:
    found = use(
        module, lambda out, batch: torch.nn.functional.cross_entropy(out["y"], batch["label"])
    )
    y = OUTPUTS["y"].detach().numpy()
    expected = np.mean(
        [np.log(np.exp(row).sum()) - row[k] for row, k in zip(y, [0, 1, 1], strict=True)]
    )
    assert float(found.detach()) == pytest.approx(expected)
    assert found.requires_grad


def cross_entropy_of(labels: Any) -> Any:
    return torch.nn.functional.cross_entropy(OUTPUTS["y"], labels)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda y, _: y, r"returned shape \[3, 2\], expected .* one number"),
        (lambda *_: 0.5, "returned float"),
        (lambda *_: {}["z"], r"failed with KeyError: 'z' .*'y' \[3, 2\].*'label' \[3\]"),
        (lambda _, labels: cross_entropy_of(labels[:2]), "failed with ValueError"),
        (
            lambda y, labels: torch.nn.functional.mse_loss(y, labels[:, None].float()),
            "failed with UserWarning: Using a target size",
        ),
    ],
)
def test_what_is_no_loss_is_refused(module: ModuleType, function: Any, words: str) -> None:
    with pytest.raises(TrainingError, match=f"users_losses:loss: {words}"):
        use(module, lambda out, batch: function(out["y"], batch["label"]))


def test_a_function_is_refused_like_its_name() -> None:
    def wrong(outputs: Any, batch: Any) -> Any:
        return torch.nn.functional.mse_loss(outputs["y"], batch["label"][:, None].float())

    with pytest.raises(TrainingError, match=r"wrong: failed with UserWarning: Using a target"):
        load_loss(wrong)(OUTPUTS, BATCH)
    with pytest.raises(TrainingError, match=r"<lambda>: returned float, expected a torch tensor"):
        load_loss(lambda *_: 0.5)(OUTPUTS, BATCH)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_where_it_must_be(number: float) -> None:
    found = load_loss(lambda out, _: out["y"].sum() * number)(OUTPUTS, BATCH)
    with pytest.raises(TrainingError, match=f"m:f: returned {number:g}, expected a finite number"):
        finite(found, "m:f")
    assert finite(OUTPUTS["y"].sum(), "m:f").item() == 15


@pytest.mark.parametrize("source", ["nowhere:loss", "users_losses:none", "users_losses", "a b:c"])
def test_what_cannot_be_found_is_refused(module: ModuleType, source: str) -> None:
    with pytest.raises(DataError, match=source.split(":")[0]):
        load_loss(source)


def test_a_loss_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_loss_file.py").write_text(
        "def loss(outputs, batch):\n    return outputs['y'].sum()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert float(load_loss("my_loss_file:loss")(OUTPUTS, BATCH).detach()) == 15
