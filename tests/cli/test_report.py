"""`onnxlr rewrite --report`: by the ending of its name a document or a page."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxlr import pipeline
from onnxlr.errors import GoalNotMetError
from onnxlr.planning import Contender, Findings
from tests.classifier import samples
from tests.cli.conftest import Run, contents

Refused = Callable[[Sequence[object], int, Sequence[str]], str]


@pytest.fixture
def _jinja2() -> None:
    pytest.importorskip("jinja2", reason="pages need the extra onnxlr[report]")


@pytest.mark.usefixtures("_jinja2")
@pytest.mark.parametrize("name", ["r.html", "R.HTML"])
def test_a_page_says_what_was_asked(run: Run, model: Path, name: str) -> None:
    np.savez("d.npz", x=samples(32))
    flags = ("--rank", 4, "--data", "d.npz", "--skip", "head", "--no-bias-correction")
    ended = run("rewrite", model, *flags, "--tolerance", "cosine>=0.9", "--report", name)
    assert (ended.code, ended.err) == (0, "")
    text = Path(name).read_text(encoding="utf-8")
    assert "<title>Verified: m.onnx</title>" in text
    options = text.partition("options given")[2].partition("</div>")[0]
    given = [part.partition("</code>")[0] for part in options.split("<code>")[1:]]
    assert sorted(given) == sorted(
        [
            "--rank 4",
            "--data d.npz",
            "--skip head",
            "--no-bias-correction",
            "--tolerance cosine&gt;=0.9",
            f"--report {name}",
        ]
    )
    assert text.count('<figure class="card">') == 2


@pytest.mark.usefixtures("_jinja2")
def test_a_refused_model_leaves_its_page(run: Run, model: Path) -> None:
    ended = run("rewrite", model, "--rank", 1, "--report", "r.html", "--json")
    assert ended.code == 1
    assert sorted(contents(Path())) == ["m.onnx", "r.html"]
    document = json.loads(ended.out)
    text = Path("r.html").read_text(encoding="utf-8")
    assert "<title>Refused: m.onnx</title>" in text
    for record in document["layers"]:
        assert f'data-value="{record["error"]}"' in text


def test_other_endings_are_refused_before_any_work(refused: Refused, model: Path) -> None:
    for name in ("r.txt", "report", "r.html.gz"):
        words = [name, ".json or .html"]
        refused(["rewrite", model, "--rank", 4, "--report", name], 2, words)


def test_without_jinja2_the_extra_is_named(
    run: Run, refused: Refused, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    words = ["jinja2", "pip install 'onnxlr[report]'"]
    refused(["rewrite", model, "--rank", 4, "--report", "r.html"], 2, words)
    ended = run("rewrite", model, "--rank", 4, "--tolerance", "cosine>=0.9", "--report", "r.json")
    assert ended.code == 0
    onnx.checker.check_model("m.onnxlr.onnx")
    assert json.loads(Path("r.json").read_text())["schema"] == "onnxlr.rewrite/1"


@pytest.mark.usefixtures("_jinja2")
def test_a_page_is_never_written_over_what_is_read(refused: Refused, model: Path) -> None:
    Path("m.html").write_bytes(model.read_bytes())
    refused(["rewrite", "m.html", "--rank", 4, "--report", "m.html"], 2, ["is the input"])


@pytest.mark.parametrize(
    ("weights", "command"),
    [
        ("w.json", ["rewrite", "--rank", 4, "--report"]),
        ("w.json", ["tune", "--data", "d.npz", "--report"]),
        ("w.png", ["sweep", "--calibration", "d.npz", "--plot"]),
    ],
)
def test_nothing_is_written_over_the_weights_beside_a_model(
    refused: Refused, model: Path, weights: str, command: list[Any]
) -> None:
    onnx.save(
        onnx.load(model), "out.onnx", save_as_external_data=True, location=weights, size_threshold=0
    )
    before = Path(weights).read_bytes()
    verb, *flags = command
    given = [verb, model, "out.onnx", *flags] if verb == "tune" else [verb, "out.onnx", *flags]
    refused([*given, weights], 2, [weights, "is the input"])
    assert Path(weights).read_bytes() == before


@pytest.mark.usefixtures("_jinja2")
def test_a_goal_that_is_not_met_leaves_a_page_of_what_was_found(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Findings("the smallest file", (Contender("nearest", 10, 0.5),), (), 3)

    def rewrite(*arguments: object, **options: object) -> None:
        raise GoalNotMetError("no plan does", found)

    monkeypatch.setattr(pipeline, "rewrite", rewrite)
    ended = run("rewrite", model, "--max-size", 0.1, "--report", "r.html")
    assert (ended.code, ended.err) == (1, "error: no plan does\n")
    text = Path("r.html").read_text(encoding="utf-8")
    assert "<title>Goal not met: m.onnx</title>" in text
    assert "--max-size 0.1" in text
    assert "nearest" in text
