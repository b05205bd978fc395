"""Rewrites the demo model and prints the verification and the accuracy before and after."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
from rich.console import Console

import onnxlr
from onnxlr.reporting import print_rewrite

MODELS = Path(__file__).parent.parent / "models"


def accuracy(model: Path, samples: Path) -> float:
    """Return the share of samples whose largest logit is at their label."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    with np.load(samples) as arrays:
        logits = session.run(None, {"image": arrays["image"]})[0]
        return float((logits.argmax(axis=1) == arrays["label"]).mean())


def main() -> None:
    """Rewrite `models/demo.onnx` and compare it with the original on the test samples."""
    console = Console()
    samples = MODELS / "demo_test.npz"
    with tempfile.TemporaryDirectory() as folder:
        console.print(
            "[bold]onnxlr rewrite models/demo.onnx --layers classifier.hidden --ratio 0.5 "
            "--format int8 --data models/demo_test.npz[/]"
        )
        result = onnxlr.rewrite(
            MODELS / "demo.onnx",
            Path(folder) / "demo.onnxlr.onnx",
            layers=["classifier.hidden"],
            ratio=0.5,
            format="int8",
            data=samples,
        )
        print_rewrite(console, result)
        before = accuracy(MODELS / "demo.onnx", samples)
        after = accuracy(Path(folder) / "demo.onnxlr.onnx", samples)
    console.print(f"Accuracy on {samples.name}: {before:.2%} before, {after:.2%} after.")


if __name__ == "__main__":
    main()
