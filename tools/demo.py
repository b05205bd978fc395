"""Rewrites the demo model to a quarter in three ways, with the proofs and the accuracy of each."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import onnxlr
from onnxlr.errors import VerificationError
from onnxlr.reporting import print_rewrite

MODELS = Path(__file__).parent.parent / "models"
MODEL = MODELS / "demo.onnx"
CALIBRATION = MODELS / "demo_calibration.npz"
SAMPLES = MODELS / "demo_test.npz"

TRIES: Sequence[tuple[str, Mapping[str, Any]]] = (
    ("--ratio 0.25", {}),
    (f"--ratio 0.25 --calibration {CALIBRATION.name}", {"calibration": CALIBRATION}),
    (
        f"--ratio 0.25 --calibration {CALIBRATION.name} --allocate global",
        {"calibration": CALIBRATION, "allocate": "global"},
    ),
)
"""The same budget, without calibration, with it, and spread over the layers by it."""

SKIPPED = ("features.conv1", "classifier.logits")
"""Layers that are left alone: two in a thousand of the parameters, at either end of the model."""


def accuracy(model: Path, samples: Path) -> float:
    """Return the share of samples whose largest logit is at their label."""
    session = onnxlr.session(model, ["CPUExecutionProvider"])
    with np.load(samples) as arrays:
        logits = session.run(None, {"image": arrays["image"]})[0]
        return float((logits.argmax(axis=1) == arrays["label"]).mean())


def rewrite(output: Path, **options: Any) -> onnxlr.RewriteResult:
    """Rewrite the demo model; the file is kept even if it does not hold, to measure it."""
    try:
        return onnxlr.rewrite(
            MODEL, output, skip=SKIPPED, ratio=0.25, data=SAMPLES, keep=True, **options
        )
    except VerificationError as error:
        if error.result is None:
            raise
        return error.result


def main() -> None:
    """Rewrite the demo model in each way, and compare on the test samples."""
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("onnxlr rewrite demo.onnx", "size", "proofs", "accuracy"):
        table.add_column(title, justify="left" if title.startswith("onnxlr") else "right")
    table.add_row("(the original)", _size(MODEL), "", f"{accuracy(MODEL, SAMPLES):.2%}")
    console.print(f"Rewriting {MODEL.name} in three ways takes up to a minute; the last of them:")
    statistics = onnxlr.observe(MODEL, CALIBRATION)  # once for all, as the command observe does
    with tempfile.TemporaryDirectory() as folder:
        for number, (command, options) in enumerate(TRIES):
            file = Path(folder) / f"demo{number}.onnx"
            known = {"statistics": statistics} if options else {}
            result = rewrite(file, **options, **known)
            held = result.report is not None and result.report.passed
            table.add_row(
                command,
                _size(file),
                "[green]hold[/]" if held else "[red]refused[/]",
                f"{accuracy(file, SAMPLES):.2%}",
            )
        console.print(f"[bold]onnxlr rewrite demo.onnx {command}[/]")
        print_rewrite(console, result)
    console.print(f"\nAccuracy on {SAMPLES.name}, with {' and '.join(SKIPPED)} left alone:")
    console.print(table)


def _size(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.2f} MB"


if __name__ == "__main__":
    main()
