"""The two proofs: that the file computes the approximation, and that the approximation holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, isnan, nan

from onnxlr.calibration import Batches, DataSource, label_of, load_feeds, random_feeds, signature
from onnxlr.errors import DataError, RuntimeFailureError
from onnxlr.progress import Progress, silent
from onnxlr.runtime import LEVELS, Outcome
from onnxlr.scratch import scratch
from onnxlr.verification.equivalence import equivalence
from onnxlr.verification.local import inside_others, local_emission
from onnxlr.verification.report import Check, Drift, Report
from onnxlr.verification.runs import Runs
from onnxlr.verification.subject import Subject, faults, rewritten_name
from onnxlr.verification.tolerance import Tolerance
from onnxlr.verification.ways import FUNCTIONS, Way, Ways, run_rewritten

__all__ = ["EMISSION_LIMITS", "Subject", "prove"]

EMISSION_LIMITS = {"float64": 1e-4, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Relative L2 distance allowed between a rewritten model and the dense approximation, by the
coarsest float type of the rewritten weights."""

NOISE_FACTOR = 4
"""How much further than the reference is from itself, run with and without graph optimisation, a
rewritten model may be from it: both only differ in the order in which floats are added."""

_SHOWN = 5
"""Layers listed in a note."""

NOISE_LIMIT = 0.5
"""The most that float noise can excuse: inputs on which an output is nothing else prove nothing."""


def prove(
    subject: Subject,
    tolerance: Tolerance,
    data: DataSource | None = None,
    seed: int = 0,
    isolate: bool = True,
    progress: Progress = silent,
) -> Report:
    """Run the models one after the other on the same inputs, with graph optimisation on and off.

    A rewritten model with ternary operators runs twice where the op library is installed: by its
    kernels, and by the functions of standard operators that the model carries.

    Raises
    ------
    DataError
        If the data does not fit the model.
    RuntimeFailureError
        If the original cannot be run.
    UsageError
        If the tolerance names an output the model has not.
    """
    tolerance.check_outputs([value.name for value in subject.original.proto.graph.output])
    with scratch("onnxlr-verify-") as folder:
        total = 2 + (subject.reference_file is not None) + bool(subject.ternary)
        run = Runs(folder, isolate, progress, total)
        description, feeds, outcome = _run_original(run, subject, data, seed)
        noise: dict[str, float] = {}
        if subject.reference_file is not None:
            run.model(subject.reference_file, "the reference model", "reference", feeds)
            noise = _noise(run, outcome)
        ways = run_rewritten(run, subject, feeds)
        checks: list[Check] = []
        for way in ways.made:
            found = _emissions(run, subject, outcome, way, noise, feeds)
            found += [_approximation(run, tolerance, outcome, level, way.key) for level in LEVELS]
            checks += [replace(check, run_by=way.run_by) for check in found]
        drifts: tuple[Drift, ...] = ()
        failed = [check for check in checks if not check.passed]
        if failed:
            kernels = any(check.run_by != FUNCTIONS for check in failed)
            drifts = _drifts(run, subject, feeds, kernels)
        progress("verifying", run.total, run.total)
        return Report(
            description,
            data is None,
            outcome.runtime,
            tuple(checks),
            drifts,
            _notes(subject, data, noise, ways),
        )


def _emissions(
    run: Runs,
    subject: Subject,
    outcome: Outcome,
    way: Way,
    noise: Mapping[str, float],
    feeds: Sequence[str],
) -> list[Check]:
    """Return the checks that the file computes the approximation, run in one way.

    Functions that run beside kernels are also compared with these; where data is rounded to int8,
    that takes the place of comparing them with the reference model.
    """
    checks = []
    if subject.reference_file is not None:
        if not subject.int8_data:
            checks += [_emission(run, subject, outcome, level, noise, way.key) for level in LEVELS]
        elif not way.is_second:
            checks += local_emission(run, subject, feeds)
    if way.is_second:
        checks += equivalence(run, subject, feeds)
    return checks


def _notes(
    subject: Subject, data: DataSource | None, noise: Mapping[str, float], ways: Ways
) -> tuple[str, ...]:
    limit = _emission_limit(subject)
    notes = [
        f"output '{output}' is at the edge of float precision on these inputs: graph optimisation "
        f"alone changes it by {distance:.2g}, and the emission proof allows for that"
        for output, distance in noise.items()
        if NOISE_FACTOR * distance > limit
    ]
    if data is None:
        notes.append(
            "random inputs: they show that the model runs and is wired right, and say little about "
            "its quality on real data (give --data)"
        )
    if isinstance(data, Batches) and data.are_fitted:
        notes.append(
            "layers were fitted to these very inputs, as nothing of the calibration data is held "
            "out: they say little about others (give more of it, or --data)"
        )
    if subject.reference_file is None:
        notes.append(f"the emission proof was not made: {subject.missing}")
    elif subject.int8_data and (inside := inside_others(subject)):
        notes.append(
            "the emission proof was not made of layers in subgraphs and functions: the plan rounds "
            "data to int8, so that layers are proved one by one, which these cannot be: "
            f"{_listed(inside)}"
        )
    if any(way.is_second for way in ways.made) and subject.ternary.inside:
        notes.append(
            "these ternary nodes, in subgraphs or functions or with computed weights, were not "
            f"compared one by one, function against kernel: {_listed(subject.ternary.inside)}"
        )
    if ways.note is not None:
        notes.append(ways.note)
    return tuple(notes)


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return "; ".join(labels[:_SHOWN]) + more


def _run_original(
    run: Runs, subject: Subject, data: DataSource | None, seed: int
) -> tuple[str, list[str], Outcome]:
    name = subject.original.name
    if data is not None:
        feeds = run.store(load_feeds(data, signature(subject.original)))
        description = f"{label_of(data)}: {len(feeds)} run{'s' if len(feeds) != 1 else ''}"
        return description, feeds, run.model(subject.original_file, name, "original", feeds)
    problem: RuntimeFailureError | None = None
    for description, attempt in random_feeds(subject.original, seed):
        feeds = run.store(attempt)
        try:
            return description, feeds, run.model(subject.original_file, name, "original", feeds)
        except RuntimeFailureError as error:
            if "cannot load" in str(error):
                raise
            problem = problem or error
    raise DataError(f"{problem}; random inputs do not fit this model, give --data") from problem


def _noise(run: Runs, outcome: Outcome) -> dict[str, float]:
    """Return how far each float output of the reference is from itself, optimised and not."""
    own = run.compare("reference/all", "reference/none", outcome.outputs)
    return {c.output: c.relative_l2 for c in own if c.is_float and not c.fault}


def _emission_limit(subject: Subject) -> float:
    return max((EMISSION_LIMITS[name] for name in subject.dtypes), default=1e-4)


def _emission(
    run: Runs,
    subject: Subject,
    outcome: Outcome,
    level: str,
    noise: Mapping[str, float],
    key: str = "rewritten",
) -> Check:
    limit = _emission_limit(subject)
    comparisons = run.compare(f"reference/{level}", f"{key}/{level}", outcome.outputs)
    failures = faults(comparisons)
    sound = [c for c in comparisons if not c.fault]
    for comparison in [c for c in sound if c.is_float] or sound:
        excused = min(NOISE_FACTOR * noise.get(comparison.output, 0.0), NOISE_LIMIT)
        allowed = max(limit, excused)
        failures += Tolerance.parse(f"relative_l2<={allowed:.6g}").failures([comparison])
    text = f"relative_l2<={limit:g}"
    return Check("emission", level, text, tuple(comparisons), tuple(failures))


def _approximation(
    run: Runs, tolerance: Tolerance, outcome: Outcome, level: str, key: str
) -> Check:
    comparisons = run.compare(f"original/{level}", f"{key}/{level}", outcome.outputs)
    sound = [c for c in comparisons if not c.fault]
    failures = (*faults(comparisons), *tolerance.failures(sound))
    return Check("approximation", level, tolerance.text, tuple(comparisons), failures)


def _drifts(run: Runs, subject: Subject, feeds: Sequence[str], kernels: bool) -> tuple[Drift, ...]:
    """Compare the outputs of the rewritten layers inside both models, worst first."""
    sites = {p.output: p.site.label for p in subject.pieces if p.site.scope == 0}
    if not sites:
        return ()
    taps = list(sites)
    try:
        before = run.model(subject.original_file, subject.original.name, "tapped", feeds, taps)
        name = rewritten_name(subject)
        run.model(subject.rewritten_file, name, "tapped-rewritten", feeds, taps, kernels)
    except RuntimeFailureError:
        return ()  # some versions load no model with taps and external data in subgraphs
    drifts = [
        Drift(sites[c.output], nan if c.fault else c.relative_l2, nan if c.fault else c.cosine)
        for c in run.compare(f"tapped/{LEVELS[0]}", f"tapped-rewritten/{LEVELS[0]}", before.outputs)
        if c.output in sites
    ]
    return tuple(sorted((drift for drift in drifts if drift.relative_l2 != 0), key=_likeness))


def _likeness(drift: Drift) -> float:
    """Order drifts, worst first: what cannot be compared at all is the worst."""
    return -inf if isnan(drift.relative_l2) else -drift.relative_l2
