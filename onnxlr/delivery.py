"""Builds the rewritten model beside its place, proves it, and hands it out or not."""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain as joined
from itertools import islice
from pathlib import Path
from typing import Any

from onnxlr.calibration import (
    DataSource,
    Feeds,
    Sources,
    load_feeds,
    random_feeds,
    signature,
)
from onnxlr.errors import (
    ModelError,
    NothingRewrittenError,
    OnnxlrError,
    OnnxlrWarning,
    PlanError,
    VerificationError,
)
from onnxlr.model import Model, open_model
from onnxlr.model.saving import copy_model, staging, write_model
from onnxlr.plan import Plan, record_training, trained_after
from onnxlr.planning import Findings, Making, take_plan
from onnxlr.progress import Progress
from onnxlr.records import LayerRecord
from onnxlr.rewriting import METADATA_KEY, Rewriting
from onnxlr.runtime import MOST_FEEDS, Footprint, Footprints, ModelFile, measure_footprints
from onnxlr.stages import Chain, Recombined, Sum
from onnxlr.verification import Report, Subject, TernaryNodes, Tolerance, prove

__all__ = [
    "Conditions",
    "Delivery",
    "RewriteResult",
    "check_interface",
    "record_training",
    "verify_files",
]

_PLAN_KEY = re.compile(rf"{re.escape(METADATA_KEY)}(\.\d+)?")
"""Keys under which a rewritten model holds plans."""


@dataclass(frozen=True)
class Conditions:
    """How a result is verified; the fields are the arguments of `onnxlr.verify`."""

    tolerance: Tolerance
    data: DataSource | None
    seed: int
    isolate: bool
    progress: Progress

    def prove(self, subject: Subject) -> Report:
        """Make both proofs."""
        return prove(subject, self.tolerance, self.data, self.seed, self.isolate, self.progress)

    def twice(self) -> tuple[Conditions, Conditions]:
        """Return these, and others for the first inputs: some data can be read only once."""
        if not isinstance(self.data, Iterator):
            return self, self
        first = list(islice(self.data, MOST_FEEDS))
        return replace(self, data=joined(first, self.data)), replace(self, data=first)

    def first_feeds(self, original: Model, report: Report | None) -> list[Feeds]:
        """Return a few of the inputs that a proof was made on."""
        if self.data is not None:
            return list(islice(load_feeds(self.data, signature(original)), MOST_FEEDS))
        attempts = random_feeds(original, self.seed)
        known = "" if report is None else report.data
        return next((feeds for description, feeds in attempts if description == known), [])


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
        sha256, before = self.source.sha256, _file_bytes(self.source)
        outputs = [value.name for value in self.source.proto.graph.output]
        conditions.tolerance.check_outputs(outputs)
        rewriting = Rewriting(self.source, self.reopen(), self.making.target)
        choices, measured = {}, False
        for proposal in self.making.proposals:
            rewriting.add(proposal)
            choices[proposal.layer.name] = proposal.choice
            measured = measured or _recombines(proposal.chain)
        plan, findings = self.making.plan(choices, sha256), self.making.findings
        if self.making.ready is not None:
            return self._hand_out(self.making.ready, plan, rewriting, before, conditions, keep)
        if plan.is_empty:
            return self._copy(plan, rewriting, before, require_change)
        rewriting.finish(plan)
        if self.training is not None:
            record_training(self.source.proto, *self.training)
        with staging(self.output) as folder:
            write_model(self.source, folder, self.output.name)
            after = sum(file.stat().st_size for file in folder.iterdir())
            ternary = TernaryNodes.of(self.source.proto)
            staged, original = folder / self.output.name, self.reopen()
            conditions, again = conditions.twice()
            report = _prove(rewriting, original, staged, ternary, conditions)
            written = self.output if report.passed or keep else None
            records = tuple(rewriting.records)
            result = RewriteResult(written, plan, records, report, before, after, findings=findings)
            if written is None:
                staged.unlink()
            elif measured:
                result = replace(result, footprints=_measure(original, staged, result, again))
        if not report.passed:
            raise VerificationError(f"{self.output}: {_failure(report)}", report, result)
        return result

    def _copy(
        self, plan: Plan, rewriting: Rewriting, before: int, require_change: bool
    ) -> RewriteResult:
        records = tuple(rewriting.records)
        if require_change:
            raise NothingRewrittenError(
                f"{self.source.name}: no layer was rewritten ({len(records)} found), "
                "but --require-change was given"
            )
        with staging(self.output) as folder:
            copy_model(self.source, folder, self.output.name)
        findings = self.making.findings
        return RewriteResult(self.output, plan, records, None, before, before, findings=findings)

    def _hand_out(
        self,
        ready: Path,
        plan: Plan,
        rewriting: Rewriting,
        before: int,
        conditions: Conditions,
        keep: bool,
    ) -> RewriteResult:
        """Prove and save a model that others made; the plan's is worse."""
        records = tuple(rewriting.records)
        with staging(self.output) as folder, tempfile.TemporaryDirectory() as name:
            staged, original = folder / self.output.name, self.reopen()
            shutil.copyfile(ready, staged)
            after = staged.stat().st_size
            report = conditions.prove(
                Subject(
                    original,
                    original.path or _stored(original, Path(name)),
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
        result = RewriteResult(written, plan, records, report, before, after, findings=findings)
        if not report.passed:
            raise VerificationError(f"{self.output}: {_failure(report)}", report, result)
        return result


def _prove(
    rewriting: Rewriting,
    original: Model,
    rewritten: Path,
    ternary: TernaryNodes,
    conditions: Conditions,
) -> Report:
    """Prove what a rewriting made; the reference model exists only meanwhile."""
    with tempfile.TemporaryDirectory(prefix="onnxlr-reference-") as name:
        folder = Path(name)
        write_model(rewriting.reference, folder, "reference.onnx")
        rewriting.release()
        return conditions.prove(
            Subject(
                original=original,
                original_file=original.path or _stored(original, folder),
                rewritten_file=rewritten,
                reference_file=folder / "reference.onnx",
                pieces=rewriting.pieces,
                dtypes=rewriting.dtypes,
                int8_data=rewriting.int8_data,
                ternary=ternary,
            )
        )


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
        with tempfile.TemporaryDirectory(prefix="onnxlr-original-") as name:
            file = original.path or _stored(original, Path(name))
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


def verify_files(
    original: Model,
    reopen: Callable[[], Model],
    rewritten: Path,
    sources: Sources,
    conditions: Conditions,
) -> Report:
    """Prove a rewritten file; see `onnxlr.verify`."""
    other = open_model(rewritten)
    check_interface(original, other)
    key, plan = _plan_of(other, original)
    ternary = TernaryNodes.of(other.proto)
    missing = trained_after(other.proto, key)
    if missing is None:
        missing = "it holds no plan for it" if plan is None else _lacks(plan, sources)
    if plan is not None and missing is None:
        rewriting = Rewriting(original, reopen(), plan.target)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OnnxlrWarning)
            making = take_plan(
                original, plan, sources, reopen, conditions.isolate, conditions.progress
            )
            for proposal in making.proposals:
                rewriting.add(proposal)
        rewriting.finish(plan)
        return _prove(rewriting, reopen(), rewritten, ternary, conditions)
    with tempfile.TemporaryDirectory(prefix="onnxlr-original-") as name:
        file = original.path or _stored(original, Path(name))
        return conditions.prove(
            Subject(original, file, rewritten, None, missing=missing or "", ternary=ternary)
        )


def _lacks(plan: Plan, sources: Sources) -> str | None:
    """Return what is missing to follow a plan again, None if nothing is."""
    if plan.sequential and sources.calibration is None:
        return "its layers were fitted in sequence, on calibration data (give it: --calibration)"
    if plan.needs_statistics and not sources.knows_inputs:
        return "its plan needs the statistics it was made with (--statistics, or --calibration)"
    if plan.needs_importance and sources.importance is None:
        return "its plan needs the importance it was made with (--importance)"
    return None


def _plan_of(rewritten: Model, original: Model) -> tuple[str | None, Plan | None]:
    """Return the plan in a model's metadata that made it out of the original, with its key."""
    for entry in reversed(rewritten.proto.metadata_props):
        if not _PLAN_KEY.fullmatch(entry.key):
            continue
        try:
            plan = Plan.loads(entry.value, f"{rewritten.name}: metadata '{entry.key}'")
        except PlanError:
            continue
        if plan.source_sha256 == original.sha256:
            return entry.key, plan
    return None, None


def check_interface(original: Model, other: Model) -> None:
    """Check that two models have the same inputs and outputs; raises ModelError."""
    for kind in ("input", "output"):
        expected = [v.name for v in getattr(original.proto.graph, kind)]
        found = [v.name for v in getattr(other.proto.graph, kind)]
        initializers = original.initializers.keys() | other.initializers.keys()
        expected = [name for name in expected if name not in initializers or kind == "output"]
        found = [name for name in found if name not in initializers or kind == "output"]
        if expected != found:
            raise ModelError(
                f"{other.name}: its {kind}s are {found}, expected those of {original.name}: "
                f"{expected}"
            )


def _stored(model: Model, folder: Path) -> Path:
    copy_model(model, folder, "original.onnx")
    return folder / "original.onnx"


def _file_bytes(model: Model) -> int:
    if model.path is None:
        return int(model.proto.ByteSize())
    files = (model.path, *(model.directory / name for name in model.external_files()))
    return sum(file.stat().st_size for file in files)


def _failure(report: Report) -> str:
    worst = ", ".join(f"'{drift.layer}'" for drift in report.drifts[:3])
    more = f"; it drifts most at {worst}" if worst else ""
    return f"{report.failures[0]}{more}"
