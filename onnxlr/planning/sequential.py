"""Fitting layers one after the other, each behind those that were rewritten before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from onnxlr.calibration import Sources, observe_pairs
from onnxlr.errors import UsageError
from onnxlr.evidence import Evidence
from onnxlr.layers import Layer
from onnxlr.model import Model, Splice, splice
from onnxlr.model.liveness import read_by
from onnxlr.model.saving import copy_model, write_model
from onnxlr.plan import Proposal
from onnxlr.progress import Progress
from onnxlr.reference import with_dense_weight
from onnxlr.scratch import scratch

__all__ = ["SequentialTask", "fit_in_sequence"]

Fitter = Callable[[Layer, "Evidence | None"], Proposal]
"""Fits a layer by evidence, or by what is known of it anyway."""


@dataclass(frozen=True)
class SequentialTask:
    """A model whose layers are to be fitted in sequence.

    Attributes
    ----------
    model, layers
        The opened model and its layers.
    sources
        With the calibration data to run.
    reopen
        Opens the same model anew.
    isolate, progress
        As in `onnxlr.rewrite`.
    kept
        Names of layers that stay as they are, and are not observed.
    """

    model: Model
    layers: Sequence[Layer]
    sources: Sources
    reopen: Callable[[], Model]
    isolate: bool
    progress: Progress
    kept: frozenset[str] = frozenset()


def fit_in_sequence(work: SequentialTask, fit: Fitter) -> Iterator[Proposal]:
    """Yield a proposal for each layer, in graph order.

    Layers that do not depend on each other are fitted at once: those of the same depth, counted in
    layers. Before each depth, the original and the model rewritten so far run side by side.

    Raises
    ------
    UsageError
        If there is no calibration data to run.
    """
    if work.sources.calibration is None:
        raise UsageError(
            "sequential fitting runs the model on calibration data: give --calibration (statistics "
            "alone know only the original's inputs)"
        )
    depths = _depths(work.model, work.layers)
    done: dict[str, Proposal] = {}
    for step, depth in enumerate(sorted(set(depths.values()))):
        work.progress("fitting in sequence", step, len(set(depths.values())))
        group = [layer for layer in work.layers if depths[layer.name] == depth]
        evidence = _evidence(work, group, list(done.values()))
        for layer in group:
            done[layer.name] = fit(layer, evidence.get(layer.name))
    work.progress("fitting in sequence", 1, 1)
    yield from (done[layer.name] for layer in work.layers)


def _evidence(
    work: SequentialTask, group: Sequence[Layer], done: Sequence[Proposal]
) -> dict[str, Evidence]:
    """Return what pairs of inputs say of layers, for those whose inputs have changed."""
    layers = [layer for layer in group if layer.skip is None and layer.name not in work.kept]
    if not layers or all(proposal.chain is None for proposal in done):
        return {}
    with scratch("onnxlr-sequence-") as folder:
        prefix = _rewritten(work, done)
        write_model(prefix, folder, "prefix.onnx")
        original = work.model.path
        if original is None:
            copy_model(work.reopen(), folder, "original.onnx")
            original = folder / "original.onnx"
        found = observe_pairs(
            work.model,
            original,
            folder / "prefix.onnx",
            layers,
            work.sources.calibration or (),
            holdout=work.sources.holdout,
            mask=work.sources.mask,
            isolate=work.isolate,
        )
    return {name: Evidence(fit, holdout) for name, (fit, holdout) in found.items()}


def _rewritten(work: SequentialTask, done: Sequence[Proposal]) -> Model:
    """Return the model with the dense approximation of every layer that was fitted."""
    prefix, change = work.reopen(), Splice()
    for proposal in done:
        if proposal.chain is not None:
            change.merge(with_dense_weight(proposal, proposal.chain.reconstruct(), prefix))
    splice(prefix, change)
    return prefix


def _depths(model: Model, layers: Sequence[Layer]) -> dict[str, int]:
    """Return how many layers lie one behind the other before each; all in subgraphs are first."""
    sites = {site.index: layer.name for layer in layers for site in layer.sites if site.scope == 0}
    depths = {layer.name: 0 for layer in layers}
    behind: dict[str, int] = {}
    for index, node in enumerate(model.proto.graph.node):  # in topological order
        depth = max((behind.get(name, 0) for name in read_by(node)), default=0)
        if index in sites:
            depths[sites[index]] = max(depths[sites[index]], depth)
            depth += 1
        for name in node.output:
            behind[name] = depth
    return depths
