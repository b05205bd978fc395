"""Every covered operator against ONNX's own cases, and its gradient against differences."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test import loader

pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

import torch

from onnxlr.errors import ModelError
from onnxlr.training import TrainableModel
from onnxlr.training.operators import OPERATORS
from tests.training.operators.cases import Case, cases_of

STANDARD = sorted(name for domain, name in OPERATORS if not domain)

WITHOUT_CASES = {
    "GlobalLpPool": "onnx has none",
    "SimplifiedLayerNormalization": "it is ONNX Runtime's own",
}

REFUSED = (
    r"type (u?int[24]|float[468]\w+|string|complex\w+) is not covered",
    r"codes of type float\w+ are not covered",
    r"the places of largest numbers \(its second output\) are not covered",
    r"unsigned numbers of more than 8 bits are not covered",
    r"entries that are not sorted are in no known order",
    r"broadcasting as it was before opset 7 is not covered",
    r"the operator is not covered",  # in the same model: loops, sequences
    r"is of type object, which is not covered",
)

RANDOM = re.compile("test_training_dropout.*")
"""They say what numbers a generator draws."""

SHORTENED = re.compile("test_(averagepool_2d_ceil_last_window_starts_on_pad|gridsample_.*)")
"""Their numbers are written with four places."""

PRECISION = {"float16": 2e-3, "bfloat16": 1.6e-2}


def trainable(case: Case) -> TrainableModel | None:
    """Return the model, None if it is refused for one of the known reasons."""
    try:
        return TrainableModel(case.model)
    except ModelError as error:
        reason = str(error)
    if not any(re.search(known, reason) for known in REFUSED):
        pytest.fail(reason)
    return None


def close(found: torch.Tensor, expected: np.ndarray[Any, Any], name: str) -> None:
    values = found.detach().to(torch.float64).numpy()
    assert values.shape == expected.shape, name
    precision = PRECISION.get(expected.dtype.name, 1e-4)
    beside = 1e-4 if SHORTENED.match(name) else precision / 10
    np.testing.assert_allclose(values, expected.astype(np.float64), precision, beside, err_msg=name)


def compare(case: Case) -> int:
    """Compare all outputs; return how many there were."""
    model = None if RANDOM.fullmatch(case.name) else trainable(case)
    if model is None:
        return 0
    found = model(case.feeds)
    for name, expected in case.expected.items():
        close(found[name], expected, f"{case.name} {name}")
    return len(case.expected)


@pytest.mark.parametrize("operator", STANDARD)
def test_outputs_are_those_of_the_cases(operator: str) -> None:
    compared = sum(map(compare, cases_of(operator)))
    assert (compared > 0) != (operator in WITHOUT_CASES)


def test_operators_spelt_out_in_others() -> None:
    assert sum(map(compare, cases_of(""))) > 300


# -- Cases of older opsets -----------------------------------------------------------------------

STORED = sorted(
    path.parent
    for path in Path(loader.DATA_DIR).glob("*/*/model.onnx")
    if (path.parent / "test_data_set_0").exists()
)


def stored_case(folder: Path) -> Case:
    model = onnx.load(folder / "model.onnx")
    held = {tensor.name for tensor in model.graph.initializer}
    infos = [value for value in model.graph.input if value.name not in held]
    data = folder / "test_data_set_0"
    return Case(
        folder.name,
        model,
        {info.name: tensor_in(data / f"input_{n}.pb") for n, info in enumerate(infos)},
        {i.name: tensor_in(data / f"output_{n}.pb") for n, i in enumerate(model.graph.output)},
    )


def tensor_in(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(numpy_helper.to_array(onnx.load_tensor(path)))


@pytest.mark.parametrize("folder", STORED, ids=lambda folder: folder.name)
def test_stored_cases(folder: Path) -> None:
    compare(stored_case(folder))
