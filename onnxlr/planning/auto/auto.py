"""The plan that a careful engineer would have found: candidates, measurements, the exact choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from onnxlr.calibration import Sources
from onnxlr.evidence import Knowledge
from onnxlr.model import Model
from onnxlr.plan import Choice, Proposal
from onnxlr.planning.auto.decision import Deciding, Decision
from onnxlr.planning.auto.prepared import Prepared
from onnxlr.planning.auto.preparing import prepare
from onnxlr.planning.auto.report import Findings
from onnxlr.planning.auto.request import AutoRequest
from onnxlr.progress import Progress
from onnxlr.scratch import Scratch

__all__ = ["Automatic", "plan_automatically"]


@dataclass(frozen=True)
class Automatic:
    """What the planner decided.

    Attributes
    ----------
    choices
        What was chosen for each layer, by its name, in graph order.
    proposals
        The same as proposals, whose chains are made as they are asked for.
    knowledge
        What the layers were fitted by.
    meant
        Names of the layers that it was about.
    findings
        What was measured and compared.
    ready
        File of a model that is better than the plan's; None where the plan's is the best.
    folder
        Keeps files until this is gone.
    """

    choices: Mapping[str, Choice]
    proposals: Iterator[Proposal]
    knowledge: Knowledge
    meant: tuple[str, ...]
    findings: Findings
    ready: Path | None
    folder: Scratch


def plan_automatically(
    model: Model,
    request: AutoRequest,
    sources: Sources,
    reopen: Callable[[], Model],
    isolate: bool,
    progress: Progress,
) -> Automatic:
    """Choose among the candidates of all layers by what was measured of them.

    Raises
    ------
    UsageError, DataError
        If the request contradicts itself, a pattern matches no layer, or a source cannot be used.
    ModelError
        If the model cannot be run.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(Scratch("onnxlr-auto-"))
        with prepare(model, request, sources, reopen, isolate, progress, folder.path) as prepared:
            decided = _decided(prepared, request, folder)
        stack.pop_all()  # the folder stays as long as what was decided
    return decided


def _decided(prepared: Prepared, request: AutoRequest, folder: Scratch) -> Automatic:
    """Search, compare, and return what was decided."""
    contest = prepared.contest(request.goal)
    deciding = Deciding(
        prepared.choices,
        contest,
        request.goal,
        prepared.build,
        folder.path,
        prepared.cache,
        request.stock,
    )
    decide = deciding.decide if prepared.feeds.compared else deciding.decide_unseen
    decision = decide(prepared.candidates, prepared.from_cache)
    layers, chosen, ready = prepared.layers, decision.chosen, decision.ready
    return Automatic(
        {layer.name: prepared.choice(layer, chosen, ready) for layer in layers},
        _proposals(prepared, decision, prepared.progress),
        prepared.knowledge,
        tuple(layer.name for layer in prepared.meant),
        decision.findings,
        None if ready is None else contest.file(ready),
        folder,
    )


def _proposals(prepared: Prepared, decision: Decision, progress: Progress) -> Iterator[Proposal]:
    """Yield what was decided for each layer, with the reasons."""
    layers = prepared.layers
    for position, layer in enumerate(layers):
        progress("factorizing", position, len(layers))
        yield prepared.proposal(layer, decision.chosen, decision.ready)
    progress("factorizing", len(layers), len(layers))
