"""What `tools/measure_fisher.py` found: as JSON, and as tables."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scipy.stats import spearmanr

from tools.grids import Grid
from tools.minilm import LINEARS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["KINDS", "MARK", "METRICS", "RATIO", "Found", "LayerFigure", "ModelFigure"]

MARK = "<!-- tables by tools/measure_fisher.py -->"
"""What is between this line of a page and its end is written anew."""

RATIO = 0.5
KINDS = ("frobenius", "fisher-rows", "fisher")
"""What each layer is fitted in."""

METRICS = (*KINDS, "kfac", "activation")
"""What the whole model is fitted in."""


@dataclass
class ModelFigure:
    """The model in one metric."""

    metric: str
    plain: float | None
    """Mean cosine of the embeddings to the original's, without bias corrections."""
    corrected: float | None
    """The same with them."""
    seconds: float
    """What it took to make the first of the two."""
    error: str | None = None


@dataclass
class LayerFigure:
    """One matrix; lists have an entry for each of `KINDS`."""

    layer: str
    shape: tuple[int, ...]
    variance: float
    """Of the information inside the matrix, over its squared mean."""
    within_rows: float
    """The same where each row's information is divided by its mean."""
    own: list[float]
    """Weighted relative errors, by the information that was fitted to."""
    other: list[float]
    """Weighted relative errors, by the information of other sentences."""
    damage: list[float]
    """1 − mean cosine of the embeddings, with this layer alone approximated."""

    def gain(self, over: str, errors: str = "other") -> float:
        """Return by which part fitting by entries makes something smaller."""
        values = getattr(self, errors)
        return float(1 - values[KINDS.index("fisher")] / values[KINDS.index(over)])


@dataclass
class Found:
    """All figures, and what the Fisher information took."""

    models: list[ModelFigure] = field(default_factory=list)
    layers: list[LayerFigure] = field(default_factory=list)
    samples: int = 0
    seconds: float = 0.0

    @classmethod
    def read(cls, file: Path) -> Found:
        """Read figures; raises ValueError."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            models = [ModelFigure(**row) for row in content.pop("models")]
            layers = [LayerFigure(**row) for row in content.pop("layers")]
            return cls(models, layers, **content)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} holds no figures of this tool ({error})") from None

    def grids(self) -> list[Grid]:
        """Return the tables of what was measured."""
        tables = [_models(self.models), _layers(self.layers), _ranking(self.layers)]
        return [table for table in tables if table.rows]


def _models(rows: Sequence[ModelFigure]) -> Grid:
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.4f}"

    body = [[row.metric, number(row.plain), number(row.corrected), row.error or ""] for row in rows]
    header = ["metric", "mean cosine", "with bias corrections", ""]
    return Grid(f"MiniLM by svd at {RATIO:g} of the parameters", header, body)


def _layers(rows: Sequence[LayerFigure]) -> Grid:
    body = [
        [
            row.layer.removeprefix(LINEARS[:-1]).replace("attention.self.", ""),
            "×".join(map(str, row.shape)),
            f"{row.variance:.1f}",
            " / ".join(f"{value:.3f}" for value in row.other),
            f"{100 * row.gain('frobenius'):.1f} %",
            f"{100 * row.gain('fisher-rows'):.1f} %",
            f"{100 * row.gain('fisher-rows', 'own'):.1f} %",
            " / ".join(f"{1000 * value:.2f}" for value in row.damage),
        ]
        for row in sorted(rows, key=lambda row: -row.variance)
    ]
    header = ["layer", "", "variance", "weighted error: plain / rows / entries"]
    header += ["entries gain over plain", "over rows", "over rows, own sentences"]
    return Grid("Layer by layer", [*header, "1 − cosine, ‰: plain / rows / entries"], body)


def _ranking(rows: Sequence[LayerFigure]) -> Grid:
    """Return how well each predictor ranks each gain."""
    if len(rows) < 3:
        return Grid("", [], [])
    body = []
    for what, errors in (("weighted error", "other"), ("1 − cosine", "damage")):
        for over in ("frobenius", "fisher-rows"):
            gains = [row.gain(over, errors) for row in rows]
            better = sum(gain > 0 for gain in gains)
            ranks = [
                f"{spearmanr([getattr(row, name) for row in rows], gains).statistic:.2f}"
                for name in ("variance", "within_rows")
            ]
            body.append([f"{what}, over {over}", f"{better} of {len(rows)}", *ranks])
    header = ["gain of fisher in", "layers that gain", "Spearman: variance", "within rows"]
    return Grid("What the variance of the information predicts", header, body)
