"""What `tools/reproduce_svd_training.py` compares, and what it found: as JSON, and as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tools.grids import Grid

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "FULL",
    "MARK",
    "ORIGINAL",
    "QUICK",
    "WAYS",
    "Document",
    "Lengths",
    "Outcome",
    "Way",
    "comparison",
]

MARK = "<!-- tables by tools/reproduce_svd_training.py -->"

ORIGINAL = "no factors"
"""Name of the row of the network itself, trained as long as the others."""


@dataclass(frozen=True)
class Way:
    """How the network gets few operations.

    Attributes
    ----------
    name
        What the tables call it.
    form
        That convolutions are factored in; None for tensor decompositions.
    sparsity, weight
        Penalty on singular values of SVD training, and its weight; None for truncated SVD.
    method, options
        Of `onnxlr.rewrite`, for tensor decompositions.
    """

    name: str
    form: str | None = None
    sparsity: str | None = None
    weight: float = 0.0
    method: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


WAYS = (
    Way("SVD training, Hoyer, channel", "channel", "hoyer", 0.03),
    Way("SVD training, L1, channel", "channel", "l1", 0.01),
    Way("truncated SVD, channel", "channel"),
    Way("SVD training, Hoyer, spatial", "spatial", "hoyer", 0.03),
    Way("SVD training, L1, spatial", "spatial", "l1", 0.01),
    Way("truncated SVD, spatial", "spatial"),
    Way("tensor train (TT)", method="tensor_train"),
    Way("semi-tensor train (STT) t=2", method="semi_tensor_train", options={"t": 2}),
    Way("tensor ring (TR)", method="tensor_ring"),
    Way("semi-tensor ring (STR) t=2", method="semi_tensor_ring", options={"t": 2}),
)


@dataclass(frozen=True)
class Lengths:
    """How much is trained.

    Attributes
    ----------
    sparse, tune
        Steps with penalties, and after ranks were cut; other ways are trained for as many as both
        together.
    batch
        Images of a step.
    budgets
        Multiply-adds of the factored layers, as a fraction of those that they have dense.
    """

    sparse: int
    tune: int
    batch: int
    budgets: tuple[float, ...]


FULL = Lengths(sparse=200, tune=200, batch=64, budgets=(0.4, 0.25, 0.15))
QUICK = Lengths(sparse=30, tune=30, batch=64, budgets=(0.25,))


@dataclass(frozen=True)
class Outcome:
    """The network in one way, within one budget."""

    name: str
    budget: float
    """Multiply-adds of the factored layers that were allowed, relative to dense ones."""
    multiply_adds: int | None = None
    """Of the whole network, for one image."""
    parameters: int | None = None
    """Of the whole network."""
    energy_loss: float | None = None
    """Share of the energy that each layer lost at most, where ranks were cut."""
    cut: float | None = None
    """Accuracy before what is left is trained."""
    tuned: float | None = None
    """Accuracy in the end."""
    seconds: float | None = None
    """Of training, by the processor's clock; a stage that budgets share is counted in each."""
    problem: str | None = None


@dataclass
class Document:
    """What a run was, and what it found."""

    run: dict[str, Any] = field(default_factory=dict)
    rows: list[Outcome] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path) -> Document:
        """Read figures.

        Raises
        ------
        ValueError
            If the file does not hold such figures.
        """
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return cls(dict(content["run"]), [Outcome(**row) for row in content["rows"]])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file} holds no figures of this tool ({error}): name another file, or remove it"
            ) from None

    def write(self, file: Path) -> None:
        """Write figures."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def grids(self) -> list[Grid]:
        """Return a table of all rows, those of one budget together, and one of what beats what."""
        run = self.run
        title = (
            f"Accuracy against multiply-adds: {run.get('sparse')} + {run.get('tune')} steps of "
            f"{run.get('batch')} images, seed {run.get('seed')}"
        )
        header = ["", "M mul-adds", "of all", "k numbers", "energy lost", "cut", "tuned", "CPU s"]
        whole = max((row.multiply_adds or 0 for row in self.rows), default=0)
        budgets = sorted({row.budget for row in self.rows}, reverse=True)
        body = [
            _line(row, whole) for budget in budgets for row in self.rows if row.budget == budget
        ]
        grids = [Grid(title, header, body)]
        pairs = comparison(self.rows)
        if pairs:
            names = ["", *(f"{budget:g}" for budget in budgets if budget < 1)]
            lines = [
                [form, *(pairs.get((form, b), "–") for b in budgets if b < 1)]
                for form in dict.fromkeys(form for form, _ in pairs)
            ]
            grids.append(Grid("SVD training less truncated SVD, points of accuracy", names, lines))
        return grids


def comparison(rows: list[Outcome]) -> dict[tuple[str, float], str]:
    """Return by penalty and form, and by budget, how much better SVD training is, in points."""
    tuned = {(row.name, row.budget): row.tuned for row in rows if row.tuned is not None}
    found = {}
    for way in WAYS:
        if way.sparsity is None:
            continue
        for name, budget in tuned:
            plain = tuned.get((f"truncated SVD, {way.form}", budget))
            if name == way.name and plain is not None:
                what = name.removeprefix("SVD training, ")
                found[what, budget] = f"{100 * (tuned[name, budget] - plain):+.2f}"
    return found


def _line(row: Outcome, whole: int) -> list[str]:
    name = row.name if row.name == ORIGINAL else f"{row.name}, {row.budget:g}"
    if row.problem is not None:
        return [f"{name} (refused)", *["–"] * 7]
    return [
        name,
        f"{(row.multiply_adds or 0) / 1e6:.2f}",
        f"{(row.multiply_adds or 0) / whole:.3f}" if whole else "",
        f"{(row.parameters or 0) / 1e3:.1f}",
        "" if row.energy_loss is None else f"{row.energy_loss:.3f}",
        "" if row.cut is None else f"{row.cut:.4f}",
        "" if row.tuned is None else f"{row.tuned:.4f}",
        "" if row.seconds is None else f"{row.seconds:.0f}",
    ]
