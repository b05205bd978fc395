"""From what is asked and what is known to proposals, one for each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnxlr.calibration import Sources, gather
from onnxlr.errors import UsageError
from onnxlr.evidence import Evidence, Knowledge
from onnxlr.fits import ALONE, Workers
from onnxlr.layers import Layer, find_layers
from onnxlr.model import Model
from onnxlr.plan import Choice, Plan, Proposal
from onnxlr.planning.allocation import allocate
from onnxlr.planning.auto.auto import plan_automatically
from onnxlr.planning.auto.goal import Limit
from onnxlr.planning.auto.prepared import Prepared
from onnxlr.planning.auto.report import Findings
from onnxlr.planning.auto.request import AutoRequest
from onnxlr.planning.auto.sweeping import SweepResult, sweep_budgets
from onnxlr.planning.following import follow_with
from onnxlr.planning.ordering import OrderTask, in_fastest_order
from onnxlr.planning.request import Request
from onnxlr.planning.sequential import SequentialTask, fit_in_sequence
from onnxlr.planning.uniform import kept, propose, propose_one
from onnxlr.planning.whole import WholeTask, judge_by_whole
from onnxlr.progress import Progress, silent
from onnxlr.rewriting import check_plan, follow_choice
from onnxlr.version import VERSION

__all__ = ["Making", "make_plan", "make_sweep", "take_plan"]


@dataclass(frozen=True)
class Making:
    """A plan in the making.

    Attributes
    ----------
    proposals
        One for each layer in graph order, made as they are asked for.
    target, seed, sequential
        As in the plan.
    knowledge
        What the layers are fitted by.
    observed
        Layers that were observed, None for all that can be rewritten: what others hand out changes
        how the runtime fuses nodes, and with that the last bits.
    choices
        What is chosen for each layer, where that is known before its chain is made.
    findings
        What method `auto` measured; None for others.
    ready
        File of a model to hand out in place of the plan's, which is worse; None where that is best.
    folder
        Keeps files until the making is gone.
    """

    proposals: Iterable[Proposal]
    target: str
    seed: int
    sequential: bool
    knowledge: Knowledge
    observed: tuple[str, ...] | None = None
    choices: Mapping[str, Choice] | None = None
    findings: Findings | None = None
    ready: Path | None = None
    folder: object = None

    def decided(self) -> Mapping[str, Choice]:
        """Return all choices; layers are fitted for that where it has to be."""
        if self.choices is not None:
            return self.choices
        return {proposal.layer.name: proposal.choice for proposal in self.proposals}

    def plan(self, choices: Mapping[str, Choice], source_sha256: str) -> Plan:
        """Return the plan of all choices."""
        known = self.knowledge.statistics
        sha256 = known.sha256 if known is not None else None
        return Plan(
            choices,
            source_sha256,
            self.target,
            self.seed,
            VERSION,
            sha256,
            self.sequential,
            self.observed if known is not None else None,
        )


def make_plan(
    model: Model,
    request: Request | AutoRequest,
    sources: Sources,
    reopen: Callable[[], Model],
    isolate: bool = True,
    progress: Progress = silent,
    workers: Workers = ALONE,
) -> Making:
    """Return the making of a plan that does what is asked.

    Parameters
    ----------
    workers
        Who fits the layers of a single method.

    Raises
    ------
    UsageError, DataError
        If the request contradicts itself, a pattern matches no layer, or a source cannot be used.
    ModelError
        If the model cannot be run on the calibration data.
    """
    if isinstance(request, AutoRequest):
        return _automatic(model, request, sources, reopen, isolate, progress)
    request.check()
    layers = find_layers(model)
    request.selection.check(layers)
    meant = [layer for layer in layers if kept(layer, request) is None]
    knowledge = gather(model, layers, sources, isolate, progress, meant)
    _check_known(request, knowledge)
    options = None
    if request.allocate == "global":
        options = allocate(model, layers, request, knowledge, sources, reopen, isolate, progress)
    orders = OrderTask(model, request, knowledge, sources, isolate, progress)
    if request.sequential:
        left = frozenset(layer.name for layer in layers if kept(layer, request) is not None)
        work = SequentialTask(model, layers, sources, reopen, isolate, progress, left)
        proposals = fit_in_sequence(
            work,
            lambda layer, evidence: _one(
                orders, layer, request.with_options(layer, options), evidence, workers
            ),
        )
    else:
        whole = WholeTask(model, request, knowledge, sources, reopen, isolate, progress)
        fitted = propose(model, layers, request, knowledge, progress, options, workers)
        proposals = judge_by_whole(whole, in_fastest_order(orders, fitted))
    observed = _observed(layers, [layer.name for layer in meant], sources)
    return Making(proposals, request.target, request.seed, request.sequential, knowledge, observed)


def _automatic(
    model: Model,
    request: AutoRequest,
    sources: Sources,
    reopen: Callable[[], Model],
    isolate: bool,
    progress: Progress,
) -> Making:
    """Return the making of the plan that measurements say is best."""
    found = plan_automatically(model, request, sources, reopen, isolate, progress)
    return Making(
        found.proposals,
        request.target,
        request.seed,
        False,
        found.knowledge,
        _observed(find_layers(model), found.meant, sources),
        found.choices,
        found.findings,
        found.ready,
        found.folder,
    )


def make_sweep(
    model: Model,
    request: AutoRequest,
    limits: Sequence[Limit],
    sources: Sources,
    reopen: Callable[[], Model],
    isolate: bool = True,
    progress: Progress = silent,
) -> SweepResult:
    """Return the plans of the least cost within each of some limits; see `sweep_budgets`."""

    def plan_of(prepared: Prepared, choices: Mapping[str, Choice]) -> Plan:
        meant = [layer.name for layer in prepared.meant]
        observed = _observed(prepared.layers, meant, sources)
        known = prepared.knowledge
        making = Making((), request.target, request.seed, False, known, observed)
        return making.plan(choices, model.sha256)

    return sweep_budgets(model, request, limits, sources, reopen, plan_of, isolate, progress)


def _observed(
    layers: Sequence[Layer], meant: Sequence[str], sources: Sources
) -> tuple[str, ...] | None:
    """Return which layers were observed, None for all that can be rewritten."""
    everything = len(meant) == sum(layer.skip is None for layer in layers)
    return None if everything or sources.statistics is not None else tuple(meant)


def take_plan(
    model: Model,
    plan: Plan,
    sources: Sources,
    reopen: Callable[[], Model],
    isolate: bool = True,
    progress: Progress = silent,
    workers: Workers = ALONE,
) -> Making:
    """Return the making of a plan that there is already.

    Parameters
    ----------
    workers
        Who fits its layers.

    Raises
    ------
    PlanError
        If the plan is for another model or other statistics.
    UsageError, DataError, ModelError
        As `make_plan` does.
    """
    layers = find_layers(model)
    observed = plan.observed if sources.statistics is None else None
    meant = [layer for layer in layers if observed is None or layer.name in observed]
    knowledge = gather(model, layers, sources, isolate, progress, meant)
    if plan.sequential:
        check_plan(model, layers, plan, knowledge)
        written = {name for name, choice in plan.layers.items() if not choice.keeps}
        left = frozenset(layer.name for layer in layers if layer.name not in written)
        work = SequentialTask(model, layers, sources, reopen, isolate, progress, left)
        proposals: Iterable[Proposal] = fit_in_sequence(
            work,
            lambda layer, evidence: follow_choice(
                model,
                layer,
                plan,
                _with_importance(layer, knowledge, evidence),
                knowledge.of(layer).fit,
            ),
        )
    else:
        proposals = follow_with(workers, model, layers, plan, progress, knowledge)
    return Making(proposals, plan.target, plan.seed, plan.sequential, knowledge, observed)


def _one(
    orders: OrderTask,
    layer: Layer,
    request: Request,
    evidence: Evidence | None,
    workers: Workers,
) -> Proposal:
    """Return the proposal of one layer, in its fastest order."""
    model, knowledge = orders.model, orders.knowledge
    known = _with_importance(layer, knowledge, evidence)
    proposal = kept(layer, request) or propose_one(
        model, layer, request, knowledge, known, workers=workers
    )
    return next(in_fastest_order(orders, [proposal], known))


def _with_importance(layer: Layer, knowledge: Knowledge, pairs: Evidence | None) -> Evidence:
    """Return what is known of a layer, its inputs by pairs if there are some."""
    known = knowledge.of(layer)
    return known if pairs is None else replace(known, fit=pairs.fit, holdout=pairs.holdout)


def _check_known(request: Request, knowledge: Knowledge) -> None:
    """Refuse what needs knowledge that no source gives for any layer; raises UsageError."""
    has_statistics = knowledge.statistics is not None
    wanted = {
        "metric activation": request.metric == "activation",
        "metric kfac": request.metric == "kfac" and not knowledge.input_covariance,
        f"rounding {request.rounding}": request.rounding == "gptq",
        f"activations {request.activations}": request.activations == "static_int8",
    }
    for what, is_wanted in wanted.items():
        if is_wanted and not has_statistics:
            raise UsageError(
                f"{what} needs statistics of the layers' inputs: give --calibration or --statistics"
            )
    heeded = request.metric in ("fisher", "fisher-rows", "kfac")
    if not heeded and (knowledge.importance or knowledge.output_covariance):
        raise UsageError(
            f"importance is given, but metric {request.metric or 'activation or frobenius'} does "
            "not use it: give --metric fisher, fisher-rows or kfac"
        )
    if request.metric in ("fisher", "fisher-rows") and not knowledge.importance:
        raise UsageError(f"metric {request.metric} needs importance: give --importance")
    if request.metric == "kfac" and not knowledge.output_covariance:
        raise UsageError(
            "metric kfac needs covariances of output gradients: give --importance with arrays "
            "named '<weight>/output_covariance'"
        )
