"""What became of layers, for reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from onnxlr.plan import Choice, Proposal

__all__ = ["LayerRecord", "Parameters"]


@dataclass(frozen=True)
class LayerRecord:
    """What became of a layer.

    Attributes
    ----------
    name, operator, nodes, shape
        As in `Layer`.
    choice
        The plan's entry.
    error
        Relative Frobenius error `‖W − Ŵ‖/‖W‖`; None where the layer is kept.
    output_error, plain_error, importance_variance, importance_gain
        As in `Proposal`.
    bytes_before, bytes_after
        Of its nodes and tensors in the file.
    trits_per_weight
        Numbers −1, 0 and 1 for each entry of the weight; None, as what follows, where the chain has
        none.
    nonzeros
        Of these numbers, those that are not 0.
    additions, multiplications
        Of the chain for one row of data, or for one place in the output of each stage of a
        convolution. They are counts, and no measure of time.
    parameters_before, parameters_after
        Entries of the weight, and the numbers that the chain stores instead, without scales of
        formats; the same where the layer is kept, and 0 where a skipped node has no weight.
    """

    name: str
    operator: str
    nodes: tuple[str, ...]
    shape: tuple[int, ...] | None
    choice: Choice
    error: float | None
    bytes_before: int
    bytes_after: int
    output_error: float | None = None
    plain_error: float | None = None
    importance_variance: float | None = None
    importance_gain: float | None = None
    trits_per_weight: float | None = None
    nonzeros: int | None = None
    additions: int | None = None
    multiplications: int | None = None
    parameters_before: int = 0
    parameters_after: int = 0

    @classmethod
    def of(
        cls, proposal: Proposal, error: float | None, bytes_before: int, bytes_after: int
    ) -> LayerRecord:
        """Return the record of a layer for which this was chosen."""
        layer, chain, cost = proposal.layer, proposal.chain, proposal.ternary_cost
        entries = 0 if layer.shape is None else prod(layer.shape)
        return cls(
            layer.name,
            layer.operator,
            layer.nodes,
            layer.shape,
            proposal.choice,
            error,
            bytes_before,
            bytes_after,
            proposal.error,
            proposal.plain_error,
            proposal.importance_variance,
            proposal.importance_gain,
            proposal.trits_per_weight,
            None if cost is None else cost.nonzeros,
            None if cost is None else cost.additions,
            None if cost is None else cost.multiplications,
            entries,
            entries if chain is None else chain.cost.parameters,
        )

    @property
    def ratio(self) -> float | None:
        """Numbers stored for each entry of the weight; None where the layer is kept."""
        return None if self.choice.keeps else Parameters.of([self]).ratio


@dataclass(frozen=True)
class Parameters:
    """Entries of the weights of some layers, and the numbers that are stored instead.

    Attributes
    ----------
    before, after
        As in `LayerRecord`, added up.
    """

    before: int
    after: int

    @classmethod
    def of(cls, records: Iterable[LayerRecord]) -> Parameters:
        """Return those of layers."""
        pairs = [(record.parameters_before, record.parameters_after) for record in records]
        return cls(sum(before for before, _ in pairs), sum(after for _, after in pairs))

    @property
    def ratio(self) -> float | None:
        """Numbers stored for each entry; None where there is none."""
        return self.after / self.before if self.before else None
