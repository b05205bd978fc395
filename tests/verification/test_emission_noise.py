"""The emission proof excuses float noise that the reference shows by itself, and nothing more."""

from __future__ import annotations

from math import inf
from pathlib import Path

import numpy as np
import pytest

from onnxlr.model import open_model
from onnxlr.progress import silent
from onnxlr.runtime import Outcome, store_arrays
from onnxlr.verification import Subject
from onnxlr.verification.proof import _emission, _noise, _notes
from onnxlr.verification.runs import Runs as _Runs
from onnxlr.verification.ways import Way, Ways
from tests.fixtures import runnable_model

OUTCOME = Outcome("a runtime", ("y",))
WAYS = Ways((Way(),))


def _stored(folder: Path, run: str, values: np.ndarray) -> None:
    (folder / run).mkdir(parents=True)
    store_arrays(folder / run / "000000.npz", {"0": values})


@pytest.mark.parametrize(
    ("own", "found", "passes"),
    [
        (0.0, 5e-5, True),
        (0.0, 2e-4, False),
        (1e-6, 2e-4, False),
        (1e-3, 3.5e-3, True),
        (1e-3, 4.5e-3, False),
        (0.4, 0.45, True),
        (0.4, 0.55, False),  # four times the noise would excuse anything
        (inf, 0.55, False),  # the reference is zero with optimisation on, and is not without
    ],
)
def test_four_times_the_own_noise_is_allowed(
    own: float, found: float, passes: bool, tmp_path: Path
) -> None:
    """Distances are made along axes of their own, so that they are what they are called."""
    size = 0.0 if own == inf else 1.0
    reference = np.array([size, 0.0, 0.0])
    rewritten = np.array([size, 0.0, found if own != inf else 1.0])
    _stored(tmp_path, "reference/all", reference)
    _stored(tmp_path, "reference/none", np.array([size, min(own, 1.0), 0.0]))
    _stored(tmp_path, "rewritten/all", rewritten)
    model = open_model(runnable_model())
    subject = Subject(model, tmp_path, tmp_path, tmp_path, dtypes=frozenset({"float32"}))
    runs = _Runs(tmp_path, isolate=False, progress=silent, total=1)
    noise = _noise(runs, OUTCOME)
    assert noise["y"] == pytest.approx(own)
    assert _emission(runs, subject, OUTCOME, "all", noise).passed == passes
    said = any("edge of float precision" in note for note in _notes(subject, "data", noise, WAYS))
    assert said == (4 * own > 1e-4)
