"""What a decision is made from, and what becomes of decisions: models and plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from onnxlr.evidence import Knowledge
from onnxlr.layers import Layer
from onnxlr.model import Model
from onnxlr.plan import Choice, Proposal
from onnxlr.planning.auto.building import Whole, write_proposals
from onnxlr.planning.auto.cache import Cache, key_of
from onnxlr.planning.auto.candidates import Workshop
from onnxlr.planning.auto.contest import Contest
from onnxlr.planning.auto.decision import Choices
from onnxlr.planning.auto.feeds import FeedFiles
from onnxlr.planning.auto.goal import Goal
from onnxlr.planning.auto.reasons import chosen_because, kept_because, rejected
from onnxlr.planning.auto.scores import content_of
from onnxlr.progress import Progress

__all__ = ["Prepared"]


@dataclass(frozen=True)
class Prepared:
    """What there is to choose among, and what whole models are measured by.

    Attributes
    ----------
    layers, meant
        All layers in graph order, and those that it is about.
    left
        By the name of each layer why it is left alone; None for those that are meant.
    knowledge
        What layers are fitted by.
    workshop
        What makes candidates.
    feeds
        Files of inputs.
    whole
        What whole models are measured by.
    choices
        What there is to choose.
    candidates, from_cache
        Numbers of candidates, and of those that were not measured in this run.
    reopen, target, progress
        As the planner was given them.
    folder
        Of everything that is written meanwhile.
    cache
        What was measured before.
    key
        What all measurements of whole models depend on.
    """

    layers: Sequence[Layer]
    meant: Sequence[Layer]
    left: Mapping[str, Proposal | None]
    knowledge: Knowledge
    workshop: Workshop
    feeds: FeedFiles
    whole: Whole
    choices: Choices
    candidates: int
    from_cache: int
    reopen: Callable[[], Model]
    target: str
    progress: Progress
    folder: Path
    cache: Cache
    key: str

    def build(self, chosen: Sequence[int], place: Path) -> Path:
        """Write the model that is made of what was chosen."""
        entries = self.choices.entries(chosen)
        proposals = (self.workshop.proposal(e.candidate) for e in entries if e is not None)
        return write_proposals(self.reopen(), proposals, self.target, place, "model.onnx")

    def contest(self, goal: Goal) -> Contest:
        """Return the comparison with the simple options; `goal` has the measures of the request."""
        return Contest(
            self.whole,
            goal,
            self.feeds.fitted,
            self.folder / "stock",
            self.cache,
            key_of(self.key, [content_of(limit) for limit in goal.measured]),
            self.progress,
        )

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {row.layer.name: number for number, row in enumerate(self.choices.rows)}

    def choice(self, layer: Layer, chosen: Sequence[int], ready: str | None = None) -> Choice:
        """Return what was chosen for a layer, and why.

        Parameters
        ----------
        ready
            Name of a model that is better than the plan's; None where the plan's is the best.
        """
        alone = self.left[layer.name]
        if alone is not None:
            return alone.choice
        number = self._numbers[layer.name]
        row, options = self.choices.rows[number], self.choices.options[number]
        items = self.choices.menu.layers[number]
        place = chosen[number]
        known = {
            row.entries.index(option): item
            for option, item in zip(options, items, strict=True)
            if option is not None
        }
        others = rejected(row, items[place], known)
        entry = options[place]
        if entry is None:
            reason = (
                kept_because(row) if ready is None else f"{ready} makes a better model of the whole"
            )
            return Choice("keep", reason=reason, rejected=others)
        reason = chosen_because(row, entry, items[place])
        return replace(entry.candidate.choice, reason=reason, rejected=others)

    def proposal(self, layer: Layer, chosen: Sequence[int], ready: str | None = None) -> Proposal:
        """Return what was chosen for a layer as a proposal; the arguments are as in `choice`."""
        alone = self.left[layer.name]
        if alone is not None:
            return alone
        choice = self.choice(layer, chosen, ready)
        number = self._numbers[layer.name]
        entry = self.choices.options[number][chosen[number]]
        if entry is None:
            return Proposal(layer, choice)
        return replace(self.workshop.proposal(entry.candidate), choice=choice)
