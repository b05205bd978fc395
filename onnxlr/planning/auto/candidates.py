"""What each layer could become: every offer of every method, fitted."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.evidence import Evidence, Knowledge
from onnxlr.fits import Order, Wish, Workers, fit_side_by_side, usual_jobs
from onnxlr.layers import Layer, read_weight
from onnxlr.methods import METHODS, Fit
from onnxlr.methods.offering import Occasion, Offer, Offering
from onnxlr.model import Model
from onnxlr.plan import Choice, Plan, Proposal
from onnxlr.planning.auto.request import AutoRequest
from onnxlr.planning.following import piece_of
from onnxlr.planning.request import Request
from onnxlr.planning.uniform import propose_fit, setting_of
from onnxlr.progress import Progress
from onnxlr.rewriting import emitted_bytes, follow_fit, released_bytes
from onnxlr.scratch import temporary
from onnxlr.version import VERSION

__all__ = ["Candidate", "Workshop", "offers_for"]

_LONG = 2048
"""Inputs from which on fits under a covariance take seconds each."""


@dataclass
class Candidate:
    """One way to write one layer.

    Attributes
    ----------
    layer
        The layer.
    request
        What was asked of the method.
    choice
        What came of it, as a plan records it; `keep` with the reason where nothing did.
    size
        Bytes in the file.
    fit_error
        Relative error of the outputs on held-out inputs with float data, as the fit knows it; that
        of the weight where there are none, which is the same for white inputs.
    """

    layer: Layer
    request: Request
    choice: Choice
    size: int
    fit_error: float | None = None

    @property
    def refused(self) -> str | None:
        """Why it cannot be had; None if it can."""
        return (self.choice.reason or "refused") if self.choice.keeps else None

    @property
    def content(self) -> str:
        """What the candidate is, as text."""
        return json.dumps(self.choice.to_json(), sort_keys=True)

    def record(self) -> dict[str, Any]:
        """Return what a cache keeps of it."""
        choice = self.choice.to_json()
        return {"choice": choice, "size": self.size, "fit_error": self.fit_error}


def offers_for(layer: Layer, request: AutoRequest, observed: bool) -> Iterator[tuple[str, Offer]]:
    """Yield what all methods offer for a layer, with the methods' names.

    Parameters
    ----------
    observed
        Whether the layer's inputs are known. Where they are not, only what is safe is offered.
    """
    if layer.shape is None:
        return
    occasion = Occasion(
        layer.shape, layer.groups, layer.is_table, layer.stored, observed, request.target
    )
    for name, method in METHODS.items():
        if isinstance(method, Offering):
            for offer in method.offers(occasion):
                if observed or offer.safe:
                    yield name, offer


@dataclass(frozen=True)
class Workshop:
    """Fits candidates, and keeps their chains on disk: all of them would not fit in memory.

    Attributes
    ----------
    model
        The opened model.
    request, knowledge
        What is asked, and what layers are fitted by.
    folder
        Of the chains.
    judged
        Whether there are inputs to judge candidates by; only what is safe is offered otherwise.
    """

    model: Model
    request: AutoRequest
    knowledge: Knowledge
    folder: Path
    judged: bool
    files: dict[tuple[str, str], Path] = field(default_factory=dict)

    def requests(self, layer: Layer) -> list[Request]:
        """Return what is asked of methods for a layer, each thing once."""
        # Tables have no inputs to observe: what their rows lose is measured all the same.
        observed = self.judged and (layer.is_table or self.knowledge.of(layer).fit is not None)
        found = [self.request.of(*pair) for pair in offers_for(layer, self.request, observed)]
        return list({repr(request): request for request in found}.values())

    def fit(
        self, wanted: Sequence[tuple[Layer, Sequence[Request]]], isolate: bool, progress: Progress
    ) -> list[list[Candidate]]:
        """Fit the candidates of layers side by side; those that differ in data alone share a fit.

        Parameters
        ----------
        wanted
            Layers, each with what is asked of it.
        isolate
            Whether to use child processes.
        progress
            Told of each layer.

        Returns
        -------
        list
            The candidates of each layer, in order.

        Raises
        ------
        RuntimeFailureError
            If a process dies.
        """
        jobs = self.request.jobs or usual_jobs()
        shares = [
            (number, share)
            for number, (layer, requests) in enumerate(wanted)
            for share in self._shares(layer, _wishes(requests), jobs)
        ]
        orders = (self._order(wanted[number][0], share.values()) for number, share in shares)
        fits: list[dict[str, Fit | str]] = [{} for _ in wanted]
        room = Workers(memory=self.request.memory).room([])
        done = fit_side_by_side(orders, self.folder, self.model.name, jobs, isolate, room)
        for count, (place, results) in enumerate(done, 1):
            number, share = shares[place]
            fits[number] |= dict(zip(share, results, strict=True))
            progress("fitting candidates", count * len(wanted) // len(shares), len(wanted))
        return [
            self._candidates(layer, requests, by_wish)
            for (layer, requests), by_wish in zip(wanted, fits, strict=True)
        ]

    def _shares(
        self, layer: Layer, wishes: dict[str, Request], jobs: int
    ) -> Iterator[dict[str, Request]]:
        """Yield what is asked of a layer, in parts for a process each where fits take long.

        What fits of one layer have in common is then found by each process.
        """
        moments = self.knowledge.of(layer).fit
        is_long = moments is not None and moments.covariance.shape[-1] >= _LONG
        parts = min(jobs if is_long else 1, len(wishes))
        for first in range(parts):
            yield dict(list(wishes.items())[first::parts])

    def _order(self, layer: Layer, requests: Iterable[Request]) -> Order:
        evidence = self.knowledge.of(layer)
        return Order(
            read_weight(self.model, layer),
            evidence,
            [
                Wish(
                    request.method,
                    request.options,
                    setting_of(layer, request),
                    request.recipe(evidence.default_metric),
                )
                for request in requests
            ],
        )

    def _candidates(
        self, layer: Layer, requests: Sequence[Request], fits: Mapping[str, Fit | str]
    ) -> list[Candidate]:
        evidence = self.knowledge.of(layer)
        return [
            self._candidate(layer, request, fits[_wish(request)], evidence) for request in requests
        ]

    def _candidate(
        self, layer: Layer, request: Request, fit: Fit | str, evidence: Evidence
    ) -> Candidate:
        """Return a fit as a candidate, and keep its chain."""
        if isinstance(fit, str):
            return Candidate(layer, request, Choice("keep", reason=fit), released_bytes(layer))
        proposal = propose_fit(self.model, layer, request, fit, evidence)
        if proposal.chain is None:
            return Candidate(layer, request, proposal.choice, released_bytes(layer))
        size = emitted_bytes(proposal, self.model, self.request.target)
        error = proposal.error
        if error is None:
            error = _distance(read_weight(self.model, layer), proposal.chain.reconstruct())
        found = Candidate(layer, request, proposal.choice, size, error)
        self._store(found, proposal)
        return found

    def restored(self, layer: Layer, request: Request, record: dict[str, Any]) -> Candidate:
        """Return a candidate of which a cache has a record; it is fitted again where needed."""
        choice = Choice.from_json(record["choice"], "cache")
        return Candidate(layer, request, choice, record["size"], record["fit_error"])

    def proposal(self, candidate: Candidate) -> Proposal:
        """Return a candidate with its chain; one that is known from a cache is fitted once more."""
        layer = candidate.layer
        file = self.files.get(_place(candidate))
        if file is not None:
            # Written by this very process, in a folder of its own.
            stored: Proposal = pickle.loads(file.read_bytes())  # noqa: S301
            return replace(stored, layer=layer)
        plan = Plan(
            {layer.name: candidate.choice},
            None,
            self.request.target,
            self.request.seed,
            VERSION,
        )
        fit = Workers(store=self.request.store).fit(
            self.model, piece_of(layer, plan, self.knowledge)
        )
        found = follow_fit(self.model, layer, plan, fit, self.knowledge.of(layer))
        self._store(candidate, found)
        return found

    def _store(self, candidate: Candidate, proposal: Proposal) -> None:
        file = self.folder / f"candidate-{len(self.files):06}.pickle"
        with temporary():  # without the layer, which holds on to the whole model
            file.write_bytes(pickle.dumps(replace(proposal, layer=None)))  # type: ignore[arg-type]
        self.files[_place(candidate)] = file


def _distance(weight: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Return the relative Frobenius distance of an approximation to a weight."""
    exact = np.asarray(weight, np.float64)
    norm = np.linalg.norm(exact)
    return float(np.linalg.norm(np.asarray(other, np.float64) - exact) / norm) if norm else 0.0


def _place(candidate: Candidate) -> tuple[str, str]:
    return candidate.layer.name, candidate.content


def _wish(request: Request) -> str:
    """Return what a fit depends on: all but what the data is computed in."""
    return repr(replace(request, activations=None))


def _wishes(requests: Sequence[Request]) -> dict[str, Request]:
    """Return the requests that ask for different fits."""
    return {_wish(request): request for request in reversed(requests)}
