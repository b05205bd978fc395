"""The smallest thing that can be trained: a straight line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.training.data import TrainingData  # noqa: E402


class Line:
    """Fits `y = a x + b`; what it is asked in `judgements`, if given, is what it says instead."""

    def __init__(self, judgements: Sequence[float] = ()) -> None:
        self.values = torch.nn.Parameter(torch.zeros(2))
        self.judgements = list(judgements)
        self.judged = 0
        self.steps = 0
        self.seen: list[list[float]] = []

    def groups(self) -> Sequence[Mapping[str, Any]]:
        return [{"params": [self.values]}]

    def loss(self, batch: Mapping[str, np.ndarray]) -> Any:
        self.seen.append(batch["x"].tolist())
        x, y = (torch.from_numpy(batch[name]) for name in ("x", "y"))
        return (self.values[0] * x + self.values[1] - y).square().mean()

    def judge(self, held: Sequence[Mapping[str, np.ndarray]]) -> float:
        if self.judgements:
            self.judged += 1
            return self.judgements[min(self.judged, len(self.judgements)) - 1]
        with torch.no_grad():
            return float(torch.stack([self.loss(batch) for batch in held]).mean())

    def after_step(self) -> None:
        self.steps += 1

    def state(self) -> dict[str, Any]:
        return {"values": self.values.detach()}

    def restore(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self.values.copy_(state["values"])


def line_data(count: int = 40, batch: int = 8) -> TrainingData:
    x = np.linspace(-1, 1, count).astype(np.float32)
    piece = {"x": x, "y": 2 * x - 1}
    return TrainingData((piece,), batch, (piece,), "a line")


def numbers(state: Line) -> list[float]:
    return [float(value) for value in state.values.detach()]
