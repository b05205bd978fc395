"""Builds the rewritten model beside its place, proves it, and hands it out or not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxlr.conditions import REFERENCE, Conditions, prove_rewriting, reference_folder, stored
from onnxlr.errors import (
    NothingRewrittenError,
    OnnxlrError,
    VerificationError,
)
from onnxlr.model import Model, open_model
from onnxlr.model.saving import copy_model, data_file, model_bytes, staging, write_model
from onnxlr.plan import Plan, record_training
from onnxlr.planning import Findings, Making
from onnxlr.records import LayerRecord
from onnxlr.rewriting import Rewriting
from onnxlr.runtime import Footprint, Footprints, ModelFile, measure_footprints
from onnxlr.scratch import scratch
from onnxlr.stages import Chain, Recombined, Sum
from onnxlr.verification import Report, Subject, TernaryNodes

__all__ = ["Delivery", "RewriteResult"]


@dataclass(frozen=True)
class RewriteResult:
    """A finished rewrite.

    Attributes
    ----------
    output
        The file written; None if the result was not handed out.
    plan
        What was done; the same plan gives the same bytes again.
    layers
        What became of each layer, in graph order.
    report
        The verification; None where nothing was rewritten and the output is a copy.
    bytes_before, bytes_after
        Of the model's files, external data included.
    footprints
        What both models take on disk, in memory, to load and to run, measured where weights are
        recombined from fewer numbers and the result is handed out; None otherwise.
    findings
        What method `auto` measured and compared; None for others.
    """

    output: Path | None
    plan: Plan
    layers: tuple[LayerRecord, ...]
    report: Report | None
    bytes_before: int
    bytes_after: int
    footprints: Footprints | None = None
    findings: Findings | None = None


@dataclass(frozen=True)
class Delivery:
    """A rewrite under way.

    Attributes
    ----------
    source
        The opened model; it is changed.
    reopen
        Opens the same model anew.
    output
        The file to write.
    making
        The plan and its proposals.
    training
        Where the proposals were trained, so that following the plan does not give them again: the
        command that did, and what the model's metadata says of it.
    """

    source: Model
    reopen: Callable[[], Model]
    output: Path
    making: Making
    training: tuple[str, Mapping[str, Any]] | None = None

    def carry_out(self, conditions: Conditions, require_change: bool, keep: bool) -> RewriteResult:
        """Rewrite, prove, save; see `onnxlr.rewrite`."""
        before = self.source.stored_bytes
        outputs = [value.name for value in self.source.proto.graph.output]
        conditions.tolerance.check_outputs(outputs)
        with (
            staging(self.output) as folder,
            reference_folder(self.output.absolute().parent) as aside,
        ):
            result = self._built(folder, aside, before, conditions, require_change, keep)
        report = result.report
        if report is not None and not report.passed:
            failure = _failure(report) + _where_it_held(report, self.making.findings)
            raise VerificationError(f"{self.output}: {failure}", report, result)
        return result

    def _built(
        self,
        folder: Path,
        aside: Path,
        before: int,
        conditions: Conditions,
        require_change: bool,
        keep: bool,
    ) -> RewriteResult:
        """Build what is to be handed out in a folder, and the reference model in another."""
        sha256, reference = self.source.sha256, self.reopen()
        rewriting = Rewriting(self.source, reference, self.making.target)
        choices, measured = {}, False
        with (
            data_file(self.source, folder, self.output.name) as self.source.data,
            data_file(reference, aside, REFERENCE) as reference.data,
        ):
            for proposal in self.making.proposals:
                rewriting.add(proposal)
                choices[proposal.layer.name] = proposal.choice
                measured = measured or _recombines(proposal.chain)
            plan = self.making.plan(choices, sha256)
            if self.making.ready is not None:
                _forget(self.source)
                return self._hand_out(folder, plan, rewriting, before, conditions, keep)
            if plan.is_empty:
                _forget(self.source)
                return self._copy(folder, plan, rewriting, before, require_change)
            rewriting.finish(plan)
            if self.training is not None:
                record_training(self.source.proto, *self.training)
            write_model(self.source, folder, self.output.name)
            write_model(reference, aside, REFERENCE)
        after = model_bytes(folder)
        ternary = TernaryNodes.of(self.source.proto)
        rewriting.release()
        staged, original = folder / self.output.name, self.reopen()
        conditions, again = conditions.twice()
        report = prove_rewriting(rewriting, original, staged, ternary, conditions, aside)
        written = self.output if report.passed or keep else None
        records, findings = tuple(rewriting.records), self.making.findings
        result = RewriteResult(written, plan, records, report, before, after, findings=findings)
        if written is None:
            staged.unlink()
        elif measured:
            result = replace(result, footprints=_measure(original, staged, result, again))
        return result

    def _copy(
        self, folder: Path, plan: Plan, rewriting: Rewriting, before: int, require_change: bool
    ) -> RewriteResult:
        records = tuple(rewriting.records)
        if require_change:
            raise NothingRewrittenError(
                f"{self.source.name}: no layer was rewritten ({len(records)} found), "
                "but --require-change was given"
            )
        copy_model(self.source, folder, self.output.name)
        findings = self.making.findings
        return RewriteResult(self.output, plan, records, None, before, before, findings=findings)

    def _hand_out(
        self,
        folder: Path,
        plan: Plan,
        rewriting: Rewriting,
        before: int,
        conditions: Conditions,
        keep: bool,
    ) -> RewriteResult:
        """Prove a model that others made; the plan's is worse."""
        if self.making.ready is None:
            raise ValueError("there is no model to hand out")
        records = tuple(rewriting.records)
        with reference_folder() as aside:
            staged, original = folder / self.output.name, self.reopen()
            self._take_over(self.making.ready, folder)
            after = model_bytes(folder)
            report = conditions.prove(
                Subject(
                    original,
                    original.path or stored(original, aside),
                    staged,
                    None,
                    missing="ONNX Runtime's own tools made it",
                    ternary=TernaryNodes.of(open_model(staged).proto),
                )
            )
        written = self.output if report.passed or keep else None
        if written is None:
            staged.unlink()
        findings = self.making.findings
        return RewriteResult(written, plan, records, report, before, after, findings=findings)

    def _take_over(self, ready: Path, folder: Path) -> None:
        """Copy a model that others made into a folder, its weights under the output's name."""
        model = open_model(ready, check=False)
        if not model.external_files():
            shutil.copyfile(ready, folder / self.output.name)
            return
        model.data = data_file(self.source, folder, self.output.name)  # not over what it refers to
        write_model(model, folder, self.output.name)


def _forget(model: Model) -> None:
    """Forget what was to be written beside the model."""
    if model.data is not None:
        model.data.close()
        model.data.path.unlink(missing_ok=True)


def _recombines(chain: Chain | None) -> bool:
    """Return whether a weight is made of fewer numbers than are multiplied."""
    return chain is not None and any(
        any(map(_recombines, stage.branches))
        if isinstance(stage, Sum)
        else isinstance(stage, Recombined)
        for stage in chain.stages
    )


def _measure(
    original: Model, staged: Path, result: RewriteResult, conditions: Conditions
) -> Footprints:
    """Measure what both models take; the rewrite stands, whatever becomes of that."""
    try:
        with scratch("onnxlr-original-") as folder:
            file = original.path or stored(original, folder)
            return measure_footprints(
                ModelFile(original.name, file, result.bytes_before),
                ModelFile("the rewritten model", staged, result.bytes_after),
                conditions.first_feeds(original, result.report),
                conditions.isolate,
                conditions.progress,
            )
    except (OnnxlrError, OSError) as error:
        problem = f"memory and speed were not measured: {error}"
        before, after = (
            Footprint(size, problems=(problem,))
            for size in (result.bytes_before, result.bytes_after)
        )
        return Footprints(before, after)


def _failure(report: Report) -> str:
    worst = ", ".join(f"'{drift.layer}'" for drift in report.drifts[:3])
    more = f"; it drifts most at {worst}" if worst else ""
    return f"{report.failures[0]}{more}"


def _where_it_held(report: Report, findings: Findings | None) -> str:
    """Return what a plan lost on the inputs that it was chosen by, where it fails on others."""
    chosen = [each for each in findings.contenders if each.chosen] if findings else []
    failed = {check.proof for check in report.checks if check.failures}
    if not chosen or failed != {"approximation"}:
        return ""
    lost = ", ".join(f"{measure} {drop:.3g}" for measure, drop in chosen[0].drops.items())
    return (
        f"; on held-out calibration data it lost {lost} only: calibrate on inputs like these, or "
        "ask for less with --max-drop"
    )
