"""Proves a file that was rewritten before; by its plan, if it holds one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

from onnxlr.calibration import Sources
from onnxlr.conditions import (
    REFERENCE,
    Conditions,
    prove_rewriting,
    reference_folder,
    stored,
)
from onnxlr.errors import ModelError, OnnxlrWarning, PlanError
from onnxlr.fits import Workers
from onnxlr.model import Model, open_model
from onnxlr.model.data_file import DataFile
from onnxlr.model.saving import data_file, write_model
from onnxlr.plan import Plan, trained_after
from onnxlr.planning import take_plan
from onnxlr.rewriting import METADATA_KEY, Rewriting
from onnxlr.scratch import scratch
from onnxlr.verification import Report, Subject, TernaryNodes

__all__ = ["check_interface", "verify_files"]

_PLAN_KEY = re.compile(rf"{re.escape(METADATA_KEY)}(\.\d+)?")
"""Keys under which a rewritten model holds plans."""


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
        with reference_folder() as aside:
            rewriting = _followed(original, reopen, plan, sources, conditions, aside)
            return prove_rewriting(rewriting, reopen(), rewritten, ternary, conditions, aside)
    with scratch("onnxlr-original-") as folder:
        file = original.path or stored(original, folder)
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
        data_file(reference, aside, REFERENCE) as reference.data,
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
        write_model(reference, aside, REFERENCE)
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
