"""A rewrite as a page of HTML: one file, without anything from elsewhere."""

from onnxlr.reporting.page.document import (
    Origin,
    check_report,
    is_page,
    page_of,
    page_with_spectra,
)
from onnxlr.reporting.page.spectra import Spectra, spectra_of

__all__ = [
    "Origin",
    "Spectra",
    "check_report",
    "is_page",
    "page_of",
    "page_with_spectra",
    "spectra_of",
]
