"""`onnxlr sweep`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from onnxlr import sweeping
from onnxlr.plan import Plan
from tests.classifier import samples
from tests.cli.conftest import Run

Refused = Callable[[Sequence[object], int, Sequence[str]], str]
FEW = ("--no-stock", "--jobs", 1, "--layers", "head")


@pytest.fixture
def data(model: Path) -> Path:
    """Return data of 40 samples beside the model."""
    np.savez("c.npz", x=samples(40))
    return Path("c.npz")


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models run in this process."""
    monkeypatch.setattr(sweeping, "sweep", partial(sweeping.sweep, isolate=False))


@pytest.fixture
def _matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra onnxlr[report]")


@pytest.mark.usefixtures("_here")
def test_it_prints_a_table_and_a_chart(run: Run, model: Path, data: Path) -> None:
    ended = run("sweep", model, "--calibration", data, "--budgets", 1e-5, 0.01, *FEW)
    assert (ended.code, ended.err) == (0, "")
    for word in ("original", "drop ≤ 1e-05", "drop ≤ 0.01", "time of it", "drop of cosine", "yes"):
        assert word in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["c.npz", "m.onnx"]


@pytest.mark.usefixtures("_matplotlib", "_here")
def test_it_writes_plans_and_a_plot(run: Run, model: Path, data: Path) -> None:
    files = ("-o", "plans", "--plot", "p.svg", "--cache", "k.sqlite")
    ended = run("sweep", model, "--calibration", data, "--budgets", "0.01", *files, *FEW, "--json")
    assert (ended.code, ended.err) == (0, "")
    document = json.loads(ended.out)
    assert document["schema"] == "onnxlr.sweep/1"
    original, planned = document["points"]
    assert original["name"] == "original"
    assert planned["plan_file"] == str(Path("plans", "m.0.01.plan.json"))
    plan = Plan.read(Path(planned["plan_file"]))
    assert [name for name, choice in plan.layers.items() if not choice.keeps] == ["head"]
    assert "</svg>" in Path("p.svg").read_text(encoding="utf-8")
    again = run("sweep", model, "--calibration", data, "--budgets", "0.01", *files, *FEW)
    assert (again.code, again.err) == (0, "")
    assert "from the cache" in again.out
    assert f"Wrote {planned['plan_file']}" in again.out
    assert "Wrote p.svg" in again.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), ["--calibration"]),
        (("--calibration", "c.npz", "--goal", "tiny"), ["'tiny'", "size, latency, balanced"]),
        (("--calibration", "c.npz", "--goal", "sise"), ["did you mean 'size'"]),
        (("--calibration", "c.npz", "--measure", "cosin"), ["did you mean 'cosine'"]),
        (("--calibration", "c.npz", "--budgets", "2"), ["cosine", "at most 1"]),
        (("--calibration", "c.npz", "--budgets", "much"), ["much"]),
        (("--calibration", "c.npz", "--jobs", "1.5"), ["1.5"]),
        (("--calibration", "c.npz", "--plot", "p.pdf"), ["p.pdf", ".svg or .png"]),
        (("--calibration", "c.npz", "--plot", "no/p.svg"), ["no/p.svg", "does not exist"]),
        (("--calibration", "c.npz", "-o", "m.onnx"), ["m.onnx", "is no folder"]),
        (("--calibration", "c.npz", "-o", "no/plans"), ["no/plans", "does not exist"]),
        (("--calibration", "missing.npz"), ["missing.npz"]),
        (("--calibration", "c.npz", "--layers", "none*"), ["none*"]),
    ],
)
@pytest.mark.usefixtures("data")
def test_what_cannot_be_followed(
    refused: Refused, model: Path, flags: tuple[object, ...], words: Sequence[str]
) -> None:
    if "--plot" in flags:
        pytest.importorskip("matplotlib", reason="plots need the extra onnxlr[report]")
    refused(["sweep", model, *flags], 2, words)


@pytest.mark.parametrize("name", ["c.svg", "s.svg"])
def test_a_plot_is_never_written_over_an_input(
    refused: Refused, model: Path, data: Path, name: str
) -> None:
    Path(name).write_bytes(data.read_bytes())
    given = ("--calibration", "c.svg") if name == "c.svg" else ("--calibration", data)
    more = ("--statistics", "s.svg") if name == "s.svg" else ()
    refused(["sweep", model, *given, *more, "--plot", name], 2, [name, "is the input"])


def test_without_matplotlib_the_extra_is_named(
    refused: Refused, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ["matplotlib", "pip install 'onnxlr[report]'"]
    refused(["sweep", model, "--calibration", data, "--plot", "p.png"], 2, words)
