"""Samples read, divided and cut into batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.calibration import InputSpec
from onnxlr.errors import DataError
from onnxlr.training.data import read_training_data

SPECS = [InputSpec("x", TensorProto.FLOAT, (None, 3))]
OPEN = [InputSpec("x", TensorProto.FLOAT, (None, None))]


def numbered(count: int, width: int = 3) -> np.ndarray:
    return np.repeat(np.arange(count, dtype=np.float32)[:, None], width, 1)


@given(
    count=st.integers(2, 40),
    batch=st.integers(1, 12),
    holdout=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_each_sample_is_trained_on_or_held_out(
    count: int, batch: int, holdout: float, seed: int
) -> None:
    arrays = {"x": numbered(count), "label": np.arange(count)}
    data = read_training_data(arrays, SPECS, batch, holdout, seed)
    held = [int(row) for piece in data.held for row in piece["label"]]
    trained = [int(row) for piece in data.pieces for row in piece["label"]]
    assert sorted(held + trained) == list(range(count))
    assert len(held) == min(max(round(holdout * count), 1), count - 1)
    for piece in (*data.held, *data.pieces):
        assert (piece["x"][:, 0] == piece["label"]).all()
    assert all(len(piece["x"]) <= batch for piece in data.held)
    seen = [batch["label"] for batch in data.epoch(np.random.default_rng(0))]
    assert len(seen) == data.batches
    flat = [int(label) for labels in seen for label in labels]
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(trained)
    assert {len(labels) for labels in seen} == {min(batch, len(trained))}
    again = read_training_data(arrays, SPECS, batch, holdout, seed)
    assert again.sha256 == data.sha256


def test_batches_of_other_shapes_stay_as_they_are() -> None:
    runs = [{"x": numbered(4, width)} for width in (2, 3, 4, 5)]
    data = read_training_data(runs, OPEN, 4, 0.25)
    shapes = {run["x"].shape for run in (*data.held, *data.pieces)}
    assert shapes == {(4, 2), (4, 3), (4, 4), (4, 5)}
    assert len(data.held) == 1
    assert data.batches == 3
    seen = sorted(batch["x"].shape for batch in data.epoch(np.random.default_rng(1)))
    assert seen == sorted(run["x"].shape for run in data.pieces)
    assert "12 samples, 4 held out" in data.description


def test_held_out_data_of_its_own(tmp_path: Path) -> None:
    np.savez(tmp_path / "held.npz", x=numbered(5) + 100)
    data = read_training_data({"x": numbered(6)}, SPECS, 4, str(tmp_path / "held.npz"))
    assert [len(batch["x"]) for batch in data.held] == [4, 1]
    assert len(data.pieces[0]["x"]) == 6


def test_what_lies_beside_is_kept_only_if_wanted() -> None:
    arrays = {"x": numbered(6), "label": np.arange(6)}
    assert set(read_training_data(arrays, SPECS, 4, 0.5).pieces[0]) == {"x", "label"}
    assert set(read_training_data(arrays, SPECS, 4, 0.5, beside=False).pieces[0]) == {"x"}


def test_more_arrays_beside_the_inputs_follow_their_samples() -> None:
    data = read_training_data({"x": numbered(11)}, SPECS, 4, 0.1)
    more = data.beside(lambda batch: {"twice": 2 * batch["x"][:, 0]})
    for batch in more.epoch(np.random.default_rng(0)):
        assert (batch["twice"] == 2 * batch["x"][:, 0]).all()
    with pytest.raises(ValueError, match="another number of samples"):
        data.beside(lambda _: {"one": np.zeros(1)})


def test_the_hash_is_of_what_is_trained_on() -> None:
    one = read_training_data({"x": numbered(6)}, SPECS, 2, 0.5, seed=0)
    other = read_training_data({"x": numbered(6) + 1e-6}, SPECS, 2, 0.5, seed=0)
    divided = read_training_data({"x": numbered(6)}, SPECS, 2, 0.5, seed=1)
    assert len({one.sha256, other.sha256, divided.sha256}) == 3


@pytest.mark.parametrize("holdout", [0.0, 1.0, -0.5, 1.5])
def test_a_holdout_that_leaves_nothing_is_refused(holdout: float) -> None:
    with pytest.raises(DataError, match="expected a fraction above 0 and below 1"):
        read_training_data({"x": numbered(6)}, SPECS, 2, holdout)


def test_a_model_without_inputs_has_nothing_to_learn_from() -> None:
    with pytest.raises(DataError, match="the given data: the model takes no inputs"):
        read_training_data({"x": numbered(6)}, [], 2, 0.5)


def test_one_sample_cannot_be_divided() -> None:
    with pytest.raises(DataError, match="number of samples is 1, expected some to train on and ot"):
        read_training_data({"x": numbered(1)}, SPECS, 2, 0.1)
    fixed = [InputSpec("x", TensorProto.FLOAT, (2, 3)), InputSpec("y", TensorProto.FLOAT, (3,))]
    with pytest.raises(DataError, match="number of batches is 1"):
        read_training_data({"x": numbered(2), "y": numbered(3)[:, 0]}, fixed, 2, 0.1)


@pytest.mark.parametrize("labels", [np.arange(5), np.zeros((7, 2)), np.arange(1)])
def test_labels_of_another_number_are_refused(labels: np.ndarray) -> None:
    shape = str(list(labels.shape)).replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(DataError, match=rf"'label' has shape {shape}, expected a first .* of 6"):
        read_training_data({"x": numbered(6), "label": labels}, SPECS, 8, 0.5)


def test_one_number_for_all_samples_is_no_label() -> None:
    data = read_training_data(
        {"x": numbered(6), "weight": np.float32(2)}, SPECS, 8, {"x": numbered(2)}
    )
    assert data.batches == 1
    assert float(data.pieces[0]["weight"]) == 2


@pytest.mark.parametrize("batch", [0, -3])
def test_batches_without_samples_are_refused(batch: int) -> None:
    with pytest.raises(DataError, match=f"a batch of {batch} samples"):
        read_training_data({"x": numbered(6)}, SPECS, batch, 0.5)


def fixed(name: str, *dims: Any) -> InputSpec:
    return InputSpec(name, TensorProto.FLOAT, dims)


def test_batches_have_the_size_that_the_model_asks_for() -> None:
    x = numbered(24)
    data = read_training_data({"x": x, "label": np.arange(24)}, [fixed("x", 4, 3)], 16, 0.3)
    assert data.batch == 4
    assert [len(batch["x"]) for batch in data.held] == [4, 4]
    trained = list(data.epoch(np.random.default_rng(0)))
    assert [len(batch["x"]) for batch in trained] == [4] * 4
    labels = np.concatenate([batch["label"] for batch in (*trained, *data.held)])
    assert sorted(labels.tolist()) == list(range(24))
    assert all(np.array_equal(x[batch["label"]], batch["x"]) for batch in trained)


def test_one_batch_of_the_size_that_the_model_asks_for_cannot_be_divided() -> None:
    with pytest.raises(DataError, match="number of batches of 4 samples is 1, expected some to"):
        read_training_data({"x": numbered(4)}, [fixed("x", 4, 3)], 16, 0.3)


def test_inputs_that_ask_for_different_numbers_are_not_cut() -> None:
    specs = [fixed("x", 4, 3), fixed("z", "n", 3)]
    runs = [{"x": numbered(4), "z": numbered(4)} for _ in range(5)]
    data = read_training_data(runs, specs, 2, 0.2)
    assert data.batch is None
    assert {len(batch["x"]) for batch in (*data.pieces, *data.held)} == {4}
