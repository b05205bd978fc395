"""What `tools/reproduce_semi_tensor.py` compares, and what it found: as JSON, and as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tools.grids import Grid
from tools.tensor_figures import Approximation

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FORMS", "FULL", "MARK", "ORIGINAL", "QUICK", "USUAL", "Document", "Lengths", "Outcome"]

MARK = "<!-- table by tools/reproduce_semi_tensor.py -->"

FORMS = (
    Approximation("svd spatial", "svd", {"form": "spatial"}),
    Approximation("svd channel", "svd", {"form": "channel"}),
    Approximation("tensor_train", "tensor_train", {}),
    Approximation("semi_tensor_train t=2", "semi_tensor_train", {"t": 2}),
    Approximation("semi_tensor_train t=4", "semi_tensor_train", {"t": 4}),
    Approximation("tensor_ring", "tensor_ring", {}),
    Approximation("semi_tensor_ring t=2", "semi_tensor_ring", {"t": 2}),
    Approximation("semi_tensor_ring t=4", "semi_tensor_ring", {"t": 4}),
)

USUAL = ("svd*", "tensor_*", "*t=2")
"""Patterns of the forms that are compared where none are named."""

ORIGINAL = "no factors"
"""Name of the row of the network itself, trained as long as the factors of the others."""


@dataclass(frozen=True)
class Lengths:
    """How much is trained and fitted.

    Attributes
    ----------
    epochs
        Of the network.
    steps
        Of 128 images, of the factors.
    times
        How many times fewer numbers the factors of a layer are to have, at least.
    """

    epochs: int
    steps: int
    times: tuple[float, ...]


FULL = Lengths(epochs=3, steps=100, times=(3, 9))
QUICK = Lengths(epochs=1, steps=25, times=(9,))


@dataclass(frozen=True)
class Outcome:
    """The network with one form in all layers."""

    name: str
    times: float
    """How many times fewer numbers were asked for."""
    layers: float | None = None
    """How many times fewer numbers the factorized layers have."""
    network: float | None = None
    """The same of the whole network."""
    ranks: str | None = None
    """Of the last layer."""
    error: float | None = None
    """Root mean square over the layers of the relative error of the weight."""
    fitted: float | None = None
    """Accuracy as fitted."""
    tuned: float | None = None
    """Accuracy after a short training."""
    seconds: float | None = None
    """Of the fits."""
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

    def grid(self) -> Grid:
        """Return a line for each form and size, those of one size together."""
        body = [_line(row) for row in sorted(self.rows, key=lambda row: row.times)]
        header = ["", "layers", "network", "ranks", "weight error", "fitted", "tuned", "fits in s"]
        run = self.run
        title = (
            f"ResNet on Fashion-MNIST: {run.get('epochs')} epochs, then {run.get('steps')} steps "
            f"of the factors, seed {run.get('seed')}; accuracy on 10,000 images"
        )
        return Grid(title, header, body)


def _line(row: Outcome) -> list[str]:
    if row.problem is not None:
        problem = row.problem.replace("[", r"\[")
        return [f"{row.name}, {row.times:g}×", *["–"] * 6, problem]
    return [
        row.name if row.name == ORIGINAL else f"{row.name}, {row.times:g}×",
        f"{row.layers:.1f}×",
        f"{row.network:.1f}×",
        row.ranks or "",
        f"{row.error:.3f}",
        f"{row.fitted:.4f}",
        f"{row.tuned:.4f}",
        f"{row.seconds:.0f}",
    ]
