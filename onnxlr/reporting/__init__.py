"""Results for people (tables) and for machines (JSON)."""

from onnxlr.reporting.documents import error_document, to_document
from onnxlr.reporting.tables import (
    print_inspection,
    print_plan,
    print_report,
    print_rewrite,
)

__all__ = [
    "error_document",
    "print_inspection",
    "print_plan",
    "print_report",
    "print_rewrite",
    "to_document",
]
