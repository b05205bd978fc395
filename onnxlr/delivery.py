"""Builds the rewritten model beside its place, proves it, and hands it out or not."""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
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
from onnxlr.fits import Workers
from onnxlr.model import Model, open_model
from onnxlr.model.data_file import DataFile
from onnxlr.model.saving import copy_model, data_file, model_bytes, staging, write_model
from onnxlr.plan import Plan, record_training, trained_after
from onnxlr.planning import Findings, Making, take_plan
from onnxlr.progress import Progress
from onnxlr.records import LayerRecord
from onnxlr.rewriting import METADATA_KEY, Rewriting
from onnxlr.runtime import MOST_FEEDS, Footprint, Footprints, ModelFile, measure_footprints
from onnxlr.scratch import scratch
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

_REFERENCE = "reference.onnx"
"""Name of the reference model's file."""


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
        before = _file_bytes(self.source)
        outputs = [value.name for value in self.source.proto.graph.output]
        conditions.tolerance.check_outputs(outputs)
        with staging(self.output) as folder, _reference(self.output.absolute().parent) as aside:
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
            data_file(reference, aside, _REFERENCE) as reference.data,
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
            write_model(reference, aside, _REFERENCE)
        after = model_bytes(folder)
        ternary = TernaryNodes.of(self.source.proto)
        rewriting.release()
        staged, original = folder / self.output.name, self.reopen()
        conditions, again = conditions.twice()
        report = _prove(rewriting, original, staged, ternary, conditions, aside)
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
        with _reference() as aside:
            staged, original = folder / self.output.name, self.reopen()
            shutil.copyfile(self.making.ready, staged)
            after = staged.stat().st_size
            report = conditions.prove(
                Subject(
                    original,
                    original.path or _stored(original, aside),
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


def _reference(place: Path | None = None) -> AbstractContextManager[Path]:
    """Give a folder for the reference model, which is as large as the original, and other files.

    Beside the output, as the system's folder for temporary files may be in memory.
    """
    return scratch("onnxlr-reference-" if place is None else ".onnxlr-reference-", place)


def _forget(model: Model) -> None:
    """Forget what was to be written beside the model."""
    if model.data is not None:
        model.data.close()
        model.data.path.unlink(missing_ok=True)


def _prove(
    rewriting: Rewriting,
    original: Model,
    rewritten: Path,
    ternary: TernaryNodes,
    conditions: Conditions,
    aside: Path,
) -> Report:
    """Prove what a rewriting made, whose reference model is in a folder."""
    return conditions.prove(
        Subject(
            original=original,
            original_file=original.path or _stored(original, aside),
            rewritten_file=rewritten,
            reference_file=aside / _REFERENCE,
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
        with _reference() as aside:
            rewriting = _followed(original, reopen, plan, sources, conditions, aside)
            return _prove(rewriting, reopen(), rewritten, ternary, conditions, aside)
    with tempfile.TemporaryDirectory(prefix="onnxlr-original-") as name:
        file = original.path or _stored(original, Path(name))
        return conditions.prove(
            Subject(original, file, rewritten, None, missing=missing or "", ternary=ternary)
        )


def _followed(
    original: Model,
    reopen: Callable[[], Model],
    plan: Plan,
    sources: Sources,
    conditions: Conditions,
    aside: Path,
) -> Rewriting:
    """Follow a plan once more, for its reference model, which is written into a folder."""
    reference = reopen()
    rewriting = Rewriting(original, reference, plan.target)
    with (
        DataFile(aside / "again.data") as original.data,
        data_file(reference, aside, _REFERENCE) as reference.data,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", OnnxlrWarning)
        making = take_plan(
            original,
            plan,
            sources,
            reopen,
            conditions.isolate,
            conditions.progress,
            Workers(isolate=conditions.isolate),
        )
        for proposal in making.proposals:
            rewriting.add(proposal)
        rewriting.finish(plan)
        write_model(reference, aside, _REFERENCE)
    rewriting.release()
    return rewriting


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
