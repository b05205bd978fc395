"""Results for people (tables) and for machines (JSON)."""

from onnxlr.reporting.cells import shown
from onnxlr.reporting.documents import error_document, summarise_statistics, to_document
from onnxlr.reporting.findings import print_findings
from onnxlr.reporting.library import print_ops
from onnxlr.reporting.proofs import print_report
from onnxlr.reporting.streams import Stream, tolerate_encodings
from onnxlr.reporting.tables import (
    print_inspection,
    print_plan,
    print_rewrite,
    print_statistics,
)

__all__ = [
    "Stream",
    "error_document",
    "print_findings",
    "print_inspection",
    "print_ops",
    "print_plan",
    "print_report",
    "print_rewrite",
    "print_statistics",
    "shown",
    "summarise_statistics",
    "to_document",
    "tolerate_encodings",
]
