"""What `tools/reproduce_ternary_svd.py` compares, and what it found: as JSON, and as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from onnxlr.stages import Convolution
from tools.grids import Grid

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from onnxlr.plan import Proposal

__all__ = ["MARK", "ORIGINAL", "Counts", "Document", "Row", "count"]

MARK = "<!-- table by tools/reproduce_ternary_svd.py -->"

ORIGINAL = "float32"
"""Name of the row of the network as it is."""


@dataclass(frozen=True)
class Counts:
    """What a network consists of; counts are no measure of time.

    Attributes
    ----------
    layers, weights
        That are ternary, and the entries of their weights.
    trits, nonzeros
        Of the ternary layers.
    additions, multiplications
        Of all layers for one image: those that stay as they are have one of both for each product.
    """

    layers: int = 0
    weights: int = 0
    trits: int = 0
    nonzeros: int = 0
    additions: int = 0
    multiplications: int = 0


def count(proposals: Iterable[Proposal]) -> Counts:
    """Return the counts of a network whose layers become what is proposed.

    Raises
    ------
    ValueError
        If a convolution's data or output has no known size.
    """
    found = dict.fromkeys(asdict(Counts()), 0)
    for proposal in proposals:
        layer, chain = proposal.layer, proposal.chain
        if chain is None:
            work = layer.multiply_adds()
            found["additions"] += 0 if work is None else work[0]
            found["multiplications"] += 0 if work is None else work[0]
            continue
        found["layers"] += 1
        found["weights"] += prod(layer.shape or ())
        found["trits"] += chain.cost.trits
        found["nonzeros"] += chain.cost.nonzeros
        for stage, places in zip(chain.stages, _places(proposal), strict=True):
            found["additions"] += stage.cost.additions * places
            found["multiplications"] += stage.cost.multiplications * places
    return Counts(**found)


def _places(proposal: Proposal) -> list[int]:
    """Return the places in the output of each stage: each axis shrinks in the stage that has it."""
    if proposal.chain is None or proposal.layer.groups is None:
        return [1] * (0 if proposal.chain is None else len(proposal.chain.stages))
    (site,) = proposal.layer.sites
    sizes, ends = (list((dims or ())[2:]) for dims in (site.data_dims, site.output_dims))
    places = []
    for stage in proposal.chain.stages:
        if isinstance(stage, Convolution):
            for axis in stage.window:
                sizes[axis] = ends[axis]
        if not all(isinstance(size, int) for size in sizes):
            raise ValueError(f"layer '{proposal.layer.name}' has data of no known size")
        places.append(prod(int(str(size)) for size in sizes))
    return places


@dataclass(frozen=True)
class Row:
    """The network with one kind of layers."""

    name: str
    accuracy: float
    """On the 10,000 test images, in ONNX Runtime."""
    counts: Counts
    bytes: int
    """Of the file."""
    seconds: float
    """Of fits and training."""
    steps: int | None = None
    """Of training, up to the state that was kept."""
    held: tuple[float, float, float] | None = None
    """Of training, the distance on held-out images: as fitted, and as kept; and steps made."""


@dataclass
class Document:
    """What a run was, and what it found."""

    run: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

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
            rows = [{**row, "counts": Counts(**row["counts"])} for row in content["rows"]]
            return cls(dict(content["run"]), [Row(**row) for row in rows])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file} holds no figures of this tool ({error}): name another file, or remove it"
            ) from None

    def write(self, file: Path) -> None:
        """Write figures."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @property
    def passed(self) -> bool:
        """Whether each trained row is within .3 points of the network as it is."""
        whole = next((row.accuracy for row in self.rows if row.name == ORIGINAL), None)
        trained = [row.accuracy for row in self.rows if row.held is not None]
        return whole is not None and all(one >= whole - 0.003 for one in trained)

    def grid(self) -> Grid:
        """Return a line for each row, the network as it is first."""
        run = self.run
        title = (
            f"{run.get('network')} on Fashion-MNIST: {run.get('steps')} steps of "
            f"{run.get('batch')} images, seed {run.get('seed')}; accuracy on 10,000 images"
        )
        header = [
            *("", "accuracy", "trits", "a weight", "not 0", "additions", "multiplications"),
            *("kB", "steps", "s"),
        ]
        ordered = sorted(self.rows, key=lambda row: (row.name != ORIGINAL, row.name))
        return Grid(title, header, [_line(row) for row in ordered])


def _line(row: Row) -> list[str]:
    found = row.counts
    ternary = found.layers > 0
    return [
        row.name,
        f"{row.accuracy:.4f}",
        f"{found.trits / 1e6:.3f} M" if ternary else "–",
        f"{found.trits / found.weights:.2f}" if ternary else "–",
        f"{found.nonzeros / found.trits:.1%}" if ternary else "–",
        f"{found.additions / 1e6:.2f} M",
        f"{found.multiplications / 1e6:.2f} M",
        f"{row.bytes / 1e3:.0f}",
        "–" if row.steps is None or row.held is None else f"{row.steps} of {row.held[2]:.0f}",
        f"{row.seconds:.0f}",
    ]
