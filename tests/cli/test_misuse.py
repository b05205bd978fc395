"""A command line that does not parse is answered in one sentence of ours, with how it goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from onnxlr.cli import app
from onnxlr.planning import making
from onnxlr.planning.auto import preparing
from tests.classifier import samples
from tests.cli.conftest import Run

Refused = Callable[[Sequence[object], int, Sequence[str]], str]

COMMANDS = sorted(name for name in app if not name.startswith("-"))

MISSING = {
    "bench": "MODEL is missing; usage: onnxlr bench MODEL [OTHERS ...] [OPTIONS]",
    "completion": "SHELL is missing; usage: onnxlr completion SHELL [OPTIONS]",
    "fisher": "MODEL is missing; usage: onnxlr fisher MODEL --calibration CALIBRATION "
    "--output OUTPUT [OPTIONS]",
    "inspect": "MODEL is missing; usage: onnxlr inspect MODEL [OPTIONS]",
    "observe": "MODEL is missing; usage: onnxlr observe MODEL --calibration CALIBRATION "
    "--output OUTPUT [OPTIONS]",
    "plan": "MODEL is missing; usage: onnxlr plan MODEL [OPTIONS]",
    "rewrite": "MODEL is missing; usage: onnxlr rewrite MODEL [OPTIONS]",
    "sweep": "MODEL is missing; usage: onnxlr sweep MODEL --calibration CALIBRATION [OPTIONS]",
    "train-svd": "MODEL is missing; usage: onnxlr train-svd MODEL --data DATA --loss LOSS "
    "[OPTIONS]",
    "train-ternary": "MODEL is missing; usage: onnxlr train-ternary MODEL --data DATA [OPTIONS]",
    "tune": "ORIGINAL is missing; usage: onnxlr tune ORIGINAL REWRITTEN --data DATA [OPTIONS]",
    "verify": "ORIGINAL is missing; usage: onnxlr verify ORIGINAL REWRITTEN [OPTIONS]",
}
"""What each command says that is given nothing; `ops` needs nothing."""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_without_its_arguments_says_how_it_goes(refused: Refused, command: str) -> None:
    if command not in MISSING:
        assert command == "ops"
        return
    assert refused([command], 2, []) == f"error: onnxlr {command}: {MISSING[command]}"


SAID = [
    ("verify m.onnx", "REWRITTEN is missing; usage: onnxlr verify ORIGINAL REWRITTEN [OPTIONS]"),
    (
        "observe m.onnx --output s.npz",
        (
            "--calibration is missing; usage: onnxlr observe MODEL --calibration CALIBRATION "
            "--output OUTPUT [OPTIONS]"
        ),
    ),
    (
        "inspect m.onnx n.onnx",
        "'n.onnx' is one argument too many; usage: onnxlr inspect MODEL [OPTIONS]",
    ),
    ("observe m.onnx --calibration", "--calibration needs a value (onnxlr observe --help)"),
    ("rewrite m.onnx -o", "--output needs a value (onnxlr rewrite --help)"),
    ("rewrite m.onnx --ratio", "--ratio needs a number (onnxlr rewrite --help)"),
    ("rewrite m.onnx --ratio half", "--ratio takes a number, found 'half' (onnxlr rewrite --help)"),
    (
        "rewrite m.onnx --seed 1.5",
        "--seed takes a whole number, found '1.5' (onnxlr rewrite --help)",
    ),
    ("plan m.onnx --jobs many", "--jobs takes a whole number, found 'many' (onnxlr plan --help)"),
    ("plan m.onnx --json=3", "--json takes no value (onnxlr plan --help)"),
    (
        "sweep m.onnx --calibration c.npz --budgets 0.1 a",
        "--budgets takes a number, found 'a' (onnxlr sweep --help)",
    ),
    (
        "plan m.onnx --ratio 0.5 --ratio 0.4",
        "--ratio is given more than once, expected it once (onnxlr plan --help)",
    ),
    (
        "rewrite m.onnx --tolerence 1",
        "there is no option --tolerence; did you mean --tolerance? (onnxlr rewrite --help)",
    ),
    ("rewrite m.onnx --xyz", "there is no option --xyz (onnxlr rewrite --help)"),
    ("inspect --model m.onnx", "there is no option --model (onnxlr inspect --help)"),
    (
        "completion bahs",
        "SHELL 'bahs' is unknown; did you mean 'bash'? (onnxlr completion --help)",
    ),
    (
        "completion 4dos",
        "SHELL '4dos' is unknown; expected one of bash, zsh, fish (onnxlr completion --help)",
    ),
]


@pytest.mark.parametrize(("line", "said"), SAID, ids=[line for line, _ in SAID])
def test_what_is_wrong_is_said_with_where_to_look(
    refused: Refused, model: Path, line: str, said: str
) -> None:
    command = line.partition(" ")[0]
    assert refused(line.split(), 2, []) == f"error: onnxlr {command}: {said}"


def test_budgets_that_are_none(refused: Refused, model: Path) -> None:
    refused(
        ["sweep", model, "--calibration", "c.npz", "--budgets"], 2, ["--budgets needs a number"]
    )


def test_a_command_that_there_is_not(refused: Refused, folder: Path) -> None:
    said = refused(["rewrit", "m.onnx"], 2, [])
    assert said == "error: there is no command 'rewrit'; did you mean 'rewrite'? (onnxlr --help)"
    said = refused(
        ["m.onnx"], 2, ["there is no command 'm.onnx'; expected one of", "(onnxlr --help)"]
    )
    assert all(command in said for command in COMMANDS)
    refused(["--verbose", "inspect"], 2, ["--verbose", "onnxlr --help"])


def test_it_is_a_document_where_json_is_asked_for(run: Run, folder: Path) -> None:
    ended = run("verify", "m.onnx", "--json")
    document = json.loads(ended.out)
    assert (ended.code, document["exit_code"], document["error"]) == (2, 2, "UsageError")
    assert document["schema"] == "onnxlr.error/1"
    assert ended.err == f"error: {document['message']}\n"


FIRST = [
    ("rewrite none.onnx --rank x", "rank x is not a whole number"),
    ("rewrite none.onnx --method svdd", "did you mean 'svd'?"),
    ("rewrite none.onnx --rank 2 --target onx", "did you mean 'onnx'?"),
    ("rewrite none.onnx --rank 2 --tolerance cosin>=0.9", "did you mean 'cosine'?"),
    ("rewrite none.onnx --goal sise", "did you mean 'size'?"),
    ("rewrite none.onnx --plan none.json", "none.json"),
    ("rewrite none.onnx --holdout 0.5", "holdout 0.5 is of calibration data"),
    ("plan none.onnx --calibration none.npz --holdout 2", "holdout of 2"),
    ("plan none.onnx --rank 2 --format int5", "format 'int5' is unknown"),
    ("verify none.onnx none.onnx --tolerance 3", "tolerance '3'"),
    ("verify none.onnx none.onnx --mask m", "mask 'm' is for calibration data"),
    ("sweep none.onnx --calibration c.npz --goal sise", "did you mean 'size'?"),
    ("sweep none.onnx --calibration c.npz --holdout 2", "holdout of 2"),
]


@pytest.mark.parametrize(("line", "said"), FIRST, ids=[line for line, _ in FIRST])
def test_what_needs_no_model_is_said_before_one_is_read(
    refused: Refused, folder: Path, line: str, said: str
) -> None:
    refused(line.split(), 2, [said])


@pytest.mark.parametrize(
    "line",
    [
        "rewrite m.onnx --rank 2 --calibration none.npz",
        "rewrite m.onnx --rank 2 --data none.npz",
        "rewrite m.onnx --calibration c.npz --holdout none.npz",
        "plan m.onnx --calibration none.npz",
        "sweep m.onnx --calibration c.npz --holdout none.npz",
    ],
)
def test_data_is_looked_at_before_layers_are(
    refused: Refused, model: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    def find(_: object) -> NoReturn:
        raise AssertionError("layers are looked for")

    for module in (making, preparing):
        monkeypatch.setattr(module, "find_layers", find)
    np.savez("c.npz", x=samples(16))
    refused(line.split(), 2, ["none.npz: no such file or folder"])
    refused(line.replace("none.npz", "nowhere:data").split(), 2, ["'nowhere' cannot be imported"])
