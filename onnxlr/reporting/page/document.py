"""From the JSON document of a rewrite to a page: one file that needs no other."""

from __future__ import annotations

import hashlib
import json
import platform
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from onnxlr.errors import MissingExtraError, UsageError
from onnxlr.progress import Progress, silent
from onnxlr.reporting.cells import count_of, size_of
from onnxlr.reporting.page import layers, results
from onnxlr.reporting.page.spectra import Spectra, spectra_of
from onnxlr.reporting.page.text import legible, parts
from onnxlr.version import VERSION

__all__ = ["Origin", "check_report", "is_page", "page_of", "page_with_spectra"]

_FOLDER = Path(__file__).parent
_ENDINGS = (".json", ".html")
_FEW = 12
"""Layers left alone that are listed at once; more are folded away."""


@dataclass(frozen=True)
class Origin:
    """What a document does not say of itself.

    Attributes
    ----------
    model
        The original.
    options
        Those that were given, by name.
    """

    model: Path
    options: Mapping[str, str] = field(default_factory=dict)


def check_report(path: Path, *, may_be_page: bool = True) -> None:
    """Refuse, before any work, a report that cannot be made.

    Parameters
    ----------
    path
        Of the report.
    may_be_page
        Whether there is a page on what it is about, and not only a document.

    Raises
    ------
    UsageError
        If the file's name does not end as a report's does.
    MissingExtraError
        If a page is asked for, and jinja2 is not installed.
    """
    endings = _ENDINGS if may_be_page else _ENDINGS[:1]
    if path.suffix.lower() not in endings:
        raise UsageError(
            f"{path}: cannot be a report, expected a name that ends in {' or '.join(endings)}"
        )
    if is_page(path) and find_spec("jinja2") is None:
        raise MissingExtraError(
            "a report in HTML needs jinja2, which is not installed: pip install 'onnxlr[report]'"
        )


def page_of(document: Mapping[str, Any], origin: Origin, spectra: Spectra) -> str:
    """Return a page on a rewrite, or on what was found where no plan does what was asked.

    It holds all it needs, allows nothing to be fetched, and what others wrote is text in it.

    Parameters
    ----------
    document
        As `to_document` makes it of a `RewriteResult` or of `Findings`.
    origin
        Where it comes from.
    spectra
        Of the rewritten weights.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=legible,
    )
    environment.filters["parts"] = parts
    files = {name: (_FOLDER / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    text: str = environment.get_template("page.html.j2").render(
        # Files of our own, which the policy lets the browser heed by their hashes alone.
        style=Markup(files["css"]),  # noqa: S704
        script=Markup(files["js"]),  # noqa: S704
        style_hash=_hash(files["css"]),
        script_hash=_hash(files["js"]),
        **_view(document, origin, spectra),
    )
    return text


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{b64encode(digest).decode()}"


def _view(document: Mapping[str, Any], origin: Origin, spectra: Spectra) -> dict[str, Any]:
    """Return the names that the template knows."""
    records: Sequence[Mapping[str, Any]] = document.get("layers", ())
    # Of a goal that is not met there are findings only, and they are the document.
    findings = document["findings"] if "layers" in document else document
    columns, axis = layers.columns_of(records), layers.spectrum_axis(spectra)
    kept = layers.kept_of(records)
    return {
        "name": origin.model.name,
        "verdict": results.verdict_of(document),
        "tiles": _tiles(document),
        "facts": _facts(document, origin),
        "options": tuple(origin.options.items()),
        "pairs": results.pairs_of(document),
        "outputs": results.outputs_of(document),
        "goal": None if findings is None else findings["goal"],
        "candidates": None if findings is None else findings["candidates"],
        "contest": None if findings is None else results.contest_of(findings),
        "rounds": None if findings is None else results.rounds_of(findings),
        "columns": columns,
        "rows": layers.rows_of(records, columns),
        "errors": layers.error_chart(records),
        "cards": tuple(layers.card_of(spectrum, axis) for spectrum in spectra.found),
        "axis": axis.ticks,
        "spectra_notes": spectra.notes,
        "report": document.get("report"),
        "measures": results.MEASURES,
        "proofs": results.proofs_of(document),
        "kept": kept,
        "kept_open": len(kept) <= _FEW,
        "plan": _lines(document.get("plan")),
        "version": VERSION,
    }


def _lines(plan: object) -> list[str]:
    return [] if plan is None else json.dumps(plan, indent=2, ensure_ascii=False).split("\n")


def _tiles(document: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return what matters most: what it is, the number, and what it is of."""
    if "layers" not in document:
        return []
    before, after = document["bytes_before"], document["bytes_after"]
    numbers, records = document["parameters"]["all"], document["layers"]
    rewritten = sum(record["choice"]["method"] != "keep" for record in records)
    tiles = [
        ("file size", _of(after, before), f"{size_of(before)} → {size_of(after)}"),
        (
            "numbers in the layers",
            _of(numbers["after"], numbers["before"]),
            f"{count_of(numbers['before'])} → {count_of(numbers['after'])}",
        ),
        ("layers rewritten", str(rewritten), f"of {len(records)}"),
    ]
    if document["report"] is not None:
        checks = document["report"]["checks"]
        passed = sum(check["passed"] for check in checks)
        tiles.append(("checks passed", str(passed), f"of {len(checks)}"))
    return tiles


def _of(after: float, before: float) -> str:
    return f"{after / before:.1%}" if before else "–"


def _facts(document: Mapping[str, Any], origin: Origin) -> list[tuple[str, str]]:
    """Return what the header says beside the verdict."""
    facts = [("model", str(origin.model))]
    plan, report = document.get("plan"), document.get("report")
    if plan is not None:
        facts.append(("written to", document["output"] or "nothing was written"))
    if report is not None:
        asked = dict.fromkeys((check["proof"], check["tolerance"]) for check in report["checks"])
        facts += [
            ("tolerance", "; ".join(f"{proof} {tolerance}" for proof, tolerance in asked)),
            ("verified on", report["data"]),
            ("verified with", report["runtime"]),
        ]
    if plan is not None:
        facts += [
            ("target", plan["target"]),
            ("seed", str(plan["seed"])),
            ("SHA-256 of the model", plan["source"].get("sha256", "not known")),
        ]
    versions = ", ".join(f"{name} {version(name)}" for name in ("onnx", "numpy", "scipy"))
    facts.append(("made with", f"onnxlr {VERSION}, {versions}, Python {platform.python_version()}"))
    return facts


def is_page(report: Path) -> bool:
    """Return whether a report of that name is a page."""
    return report.suffix.lower() == ".html"


def page_with_spectra(
    document: Mapping[str, Any], origin: Origin, progress: Progress = silent
) -> str:
    """Return a page as `page_of` does, with the spectra of the largest weights of the original."""
    choices = document["plan"]["layers"] if "plan" in document else {}
    return page_of(document, origin, spectra_of(origin.model, choices, progress))
