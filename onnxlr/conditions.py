"""On what inputs a result is proved, and where what it is compared with lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain as joined
from itertools import islice
from pathlib import Path

from onnxlr.calibration import DataSource, Feeds, load_feeds, random_feeds, signature
from onnxlr.model import Model
from onnxlr.model.saving import copy_model
from onnxlr.progress import Progress
from onnxlr.rewriting import Rewriting
from onnxlr.runtime import MOST_FEEDS
from onnxlr.scratch import scratch
from onnxlr.verification import Report, Subject, TernaryNodes, Tolerance, prove

__all__ = ["REFERENCE", "Conditions", "prove_rewriting", "reference_folder", "stored"]

REFERENCE = "reference.onnx"
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


def reference_folder(place: Path | None = None) -> AbstractContextManager[Path]:
    """Give a folder for the reference model, which is as large as the original, and other files.

    Beside the output, as the system's folder for temporary files may be in memory.
    """
    return scratch("onnxlr-reference-" if place is None else ".onnxlr-reference-", place)


def prove_rewriting(
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
            original_file=original.path or stored(original, aside),
            rewritten_file=rewritten,
            reference_file=aside / REFERENCE,
            pieces=rewriting.pieces,
            dtypes=rewriting.dtypes,
            int8_data=rewriting.int8_data,
            ternary=ternary,
        )
    )


def stored(model: Model, folder: Path) -> Path:
    """Write the original as it is into a folder, and return its file."""
    copy_model(model, folder, "original.onnx")
    return folder / "original.onnx"
