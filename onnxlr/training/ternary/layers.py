"""Layers as ternary chains that can be trained: out of a proposal, and back into one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.errors import UsageError, check_known
from onnxlr.layers import Layer, read_weight
from onnxlr.methods import TernaryOptions, TernarySvdOptions
from onnxlr.methods.matricisation import Matricisation, matricisations
from onnxlr.methods.scaled_rows import smallest_kept
from onnxlr.methods.semidiscrete import Terms
from onnxlr.methods.ternary_svd import ternary_stage
from onnxlr.model import Model
from onnxlr.numbers import Encoded
from onnxlr.plan import Choice, Proposal
from onnxlr.stages import Chain, Convolution, Linear
from onnxlr.training.placement import Placement
from onnxlr.training.ternary.codes import SCALES, TernaryCodes
from onnxlr.training.ternary.factors import Renewal, TernaryFactors

__all__ = ["Manner", "TernaryLayer", "chain_of_terms", "fit_to_train", "terms_of_chain"]

_MOST = 16.0
"""Most trits a weight, as method `ternary_svd` has it."""


@dataclass(frozen=True)
class Manner:
    """How ternary layers are trained.

    Attributes
    ----------
    eta
        See `Renewal`; of ternary_svd.
    scales
        One of `SCALES`; of ternary.
    seed
        Of random starts.
    feedback
        See `Renewal`; of ternary_svd.
    """

    eta: float = 3.0
    scales: str = SCALES[0]
    seed: int = 0
    feedback: float = 1.0

    def __post_init__(self) -> None:
        if not self.eta > 0:
            raise UsageError(f"eta {self.eta:g} is not a number above 0")
        if not 0 <= self.feedback <= 1:
            raise UsageError(f"feedback {self.feedback:g} is not a fraction from 0 to 1")
        check_known("scales", self.scales, SCALES)


@dataclass(frozen=True)
class TernaryLayer:
    """A layer that is trained as a ternary chain.

    Attributes
    ----------
    proposal
        The chain that it starts as.
    module
        Gives the constant while it is trained.
    """

    proposal: Proposal
    module: TernaryFactors | TernaryCodes

    @classmethod
    def of(
        cls,
        model: Model,
        proposal: Proposal,
        manner: Manner,
        tolerance: float | None = None,
        dtype: Any = None,
    ) -> TernaryLayer:
        """Return a layer with the module of its proposal.

        Parameters
        ----------
        model
            That the layer is of.
        proposal
            With a chain of method `ternary_svd` without a Scale, or of `ternary`.
        manner
            How it is trained.
        tolerance
            Of ternary_svd: the spectral error to be held; the number of terms is if not given.
        dtype
            Torch type of the constant.
        """
        layer, chain, options = proposal.layer, proposal.chain, proposal.choice.options
        if layer.weight is None or chain is None:
            raise ValueError(f"layer '{layer.name}' has no chain")
        placement = Placement.of(layer, getattr(options, "form", None))
        stack = placement.matrices(model.read(layer.weight.tensor)).astype(np.float32)
        if isinstance(options, TernarySvdOptions):
            parts = terms_of_chain(_form(model, layer, options), chain)
            rows, columns = stack.shape[1:]
            most = max(int(_MOST * rows * columns / (rows + columns)), 1)
            rule = Renewal(
                manner.eta,
                tolerance,
                options.fit or "alternating",
                most,
                manner.seed,
                manner.feedback,
            )
            return cls(proposal, TernaryFactors(stack, parts, placement, rule, dtype))
        kept = chain.stages[0].weight  # type: ignore[attr-defined]  # Linear or Convolution
        numbers = _by_parts(kept, layer.groups)
        codes = TernaryCodes(
            stack, *numbers, kept.format.group, placement, manner.scales == "trained", dtype
        )
        return cls(proposal, codes)

    @property
    def constant(self) -> str:
        """Name of the constant."""
        return str(self.proposal.layer.weight.name)  # type: ignore[union-attr]  # see `of`

    @property
    def trains_scales(self) -> bool:
        """Whether scales are trained, and not solved."""
        return isinstance(self.module, TernaryCodes) and self.module.trained

    def proposed(self, model: Model, layer: Layer) -> Proposal:
        """Return the proposal of what it was trained to.

        Parameters
        ----------
        model
            The model in which the layer is to be rewritten.
        layer
            The same layer, found in that model.
        """
        choice = self.proposal.choice
        if isinstance(self.module, TernaryCodes):
            chain = self._coded(layer)
            return Proposal(layer, replace(choice, options=_terms(chain)), chain)
        options = choice.options
        if not isinstance(options, TernarySvdOptions):
            raise ValueError(f"layer '{layer.name}' is trained as factors and is of {choice}")
        form = _form(model, layer, options)
        chain = chain_of_terms(form, self.module.parts, layer.dtype)
        rank = max((terms.count for terms in self.module.parts), default=0)
        return Proposal(layer, replace(choice, options=replace(options, rank=rank)), chain)

    def _coded(self, layer: Layer) -> Chain:
        if not isinstance(self.module, TernaryCodes):
            raise ValueError(f"layer '{layer.name}' is not trained as codes")
        trits, scales = self.module.numbers()
        scales = np.maximum(scales, smallest_kept(layer.dtype)).astype(layer.dtype)
        shape, group = layer.shape or (), self.module.group
        if layer.groups is None:
            batch = shape[:-2]
            encoded = Encoded.of_trits(
                trits.reshape(len(trits), *shape),
                scales.reshape(*batch, *scales.shape[1:]) if batch else scales[0],
                group,
            )
            return Chain((Linear(encoded),))
        kernels = trits.swapaxes(2, 3).reshape(len(trits), *shape)
        # (groups, terms, blocks, outputs) → (groups · outputs, blocks, terms)
        kept = scales.transpose(0, 3, 2, 1).reshape(shape[0], scales.shape[2], len(trits))
        encoded = Encoded.of_trits(kernels, kept, group, kernel=True)
        return Chain((Convolution(encoded, layer.groups, tuple(range(len(shape) - 2))),))


def fit_to_train(proposals: Iterable[Proposal]) -> list[Proposal]:
    """Return proposals with those to keep layers in place of those that cannot be trained."""
    every = list(proposals)
    uses = Counter(one.layer.weight.name for one in every if one.layer.weight is not None)
    found = []
    for proposal in every:
        weight, reason = proposal.layer.weight, None
        if proposal.chain is not None and weight is not None:
            if weight.scope != 0 or proposal.layer.in_function:
                reason = "its weight is not in the main graph"
            elif uses[weight.name] > 1:
                reason = "nodes use its weight in different arrangements"
        kept = None if reason is None else Proposal(proposal.layer, Choice("keep", reason=reason))
        found.append(kept or proposal)
    return found


def _form(model: Model, layer: Layer, options: TernarySvdOptions) -> Matricisation:
    return matricisations(read_weight(model, layer), layer.groups, options.form)[0]


def _terms(chain: Chain) -> TernaryOptions:
    return TernaryOptions(chain.stages[0].weight.format.terms)  # type: ignore[attr-defined]


def terms_of_chain(form: Matricisation, chain: Chain) -> list[Terms]:
    """Return the terms of each part of a form that a chain of two ternary stages is.

    Parameters
    ----------
    form
        The form that the chain was made in.
    chain
        Two stages, the first with a strength for each of its outputs.
    """
    first, second = chain.stages
    *batch, rows, columns = form.matrices().shape
    parts = prod(batch)
    rank = first.dense().size // (parts * rows)
    left, right = (parts, rows, rank), (parts, rank, columns)
    # Which entry of its factor each entry of a stage is: factors that count their own entries.
    counted = form.chain(
        np.arange(float(prod(left))).reshape(*batch, *left[1:]),
        np.arange(float(prod(right))).reshape(*batch, *right[1:]),
    )
    found = []
    for stage, places, shape in zip((first, second), counted.stages, (left, right), strict=True):
        factor = np.zeros(prod(shape))
        factor[places.dense().astype(np.int64).reshape(-1)] = stage.dense().reshape(-1)
        found.append(factor.reshape(shape))
    strengths = np.abs(found[0]).max(axis=1)
    return [
        Terms(
            np.ascontiguousarray(np.sign(found[0][part].T), np.float32),
            np.sign(found[1][part]).astype(np.float32),
            strengths[part],
        ).present()
        for part in range(parts)
    ]


def chain_of_terms(
    form: Matricisation, parts: Sequence[Terms], compute: npt.DTypeLike = np.float32
) -> Chain:
    """Return the two ternary stages of the terms of each part of a form."""
    kept = np.dtype(compute)
    present = [terms.present() for terms in parts]
    count = max(*(terms.count for terms in present), 1)
    filled = [terms.filled(count) for terms in present]
    batch = form.matrices().shape[:-2]
    left = np.stack([terms.left.T for terms in filled]).astype(np.float64)
    right = np.stack([terms.right for terms in filled]).astype(np.float64)
    strengths = np.stack([terms.strengths for terms in filled])
    strengths = np.maximum(strengths, smallest_kept(kept)).astype(kept)
    first, second = form.chain(
        left.reshape(*batch, *left.shape[1:]), right.reshape(*batch, *right.shape[1:])
    ).stages
    return Chain((ternary_stage(first, strengths), ternary_stage(second, None, kept)))


def _by_parts(
    kept: Encoded, groups: int | None
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float64]]:
    """Return trits `(terms, parts, inputs, outputs)`, scales `(parts, terms, blocks, outputs)`."""
    if kept.scales is None:
        raise ValueError("ternary numbers have scales")
    trits, scales = kept.trits, np.asarray(kept.scales, np.float64)
    if groups is None:
        trits = trits.reshape(len(trits), -1, *trits.shape[-2:])
        return trits, scales.reshape(-1, *scales.shape[-3:])
    outputs = trits.shape[1] // groups
    by_group = trits.reshape(len(trits), groups, outputs, -1).swapaxes(2, 3)
    own = scales.reshape(groups, outputs, *scales.shape[1:]).transpose(0, 3, 2, 1)
    return by_group, own
