"""The command line with tensor decompositions: ranks, modes, help, plans, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxlr.methods import METHODS, option_names
from tests.classifier import HIDDEN
from tests.cli.conftest import Run

Refused = Callable[[Sequence[object], int, Sequence[str]], str]
ANY = ("--tolerance", "cosine>=-1")
MODES = f"8x{HIDDEN // 8},4x{HIDDEN // 4}"


def options_of(file: str) -> dict[str, Any]:
    """Return the options that the plan in a model has for the layer `second`."""
    entries = {e.key: e.value for e in onnx.load(file).metadata_props}
    return dict(json.loads(entries["onnxlr.plan"])["layers"]["second"]["options"])


def help_of(run: Run, command: str = "rewrite") -> dict[str, str]:
    """Return what help says of each flag, by its name."""
    lines = run(command, "--help").out.splitlines()
    cells = [line.strip("│").rstrip() for line in lines if line.startswith("│")]
    texts: dict[str, str] = {}
    name = ""
    for cell in cells:
        found = re.match(r"[ *]*(?:MODEL )?(--[\w-]+)", cell)
        if found and not cell.startswith(" " * 20):
            name = found.group(1)
        texts[name] = f"{texts.get(name, '')} {cell[found.end() if found else 0 :].strip()}".strip()
    return texts


def test_ranks_and_modes(run: Run, model: Path) -> None:
    """The factors are those of the modes: 8·3 + 4·2 + 3·2·2·3 + 4·2 + 8·3 numbers."""
    arguments = ("--method", "tucker", "--rank", "3x2x2x3", "--modes", MODES)
    ended = run("rewrite", model, "-o", "o.onnx", *arguments, "--layers", "second", "--json", *ANY)
    assert ended.code == 0, ended
    assert options_of("o.onnx") == {"rank": "3x2x2x3", "modes": MODES}
    records = {record["name"]: record for record in json.loads(ended.out)["layers"]}
    numbers = 8 * 3 + 4 * 2 + 3 * 2 * 2 * 3 + 4 * 2 + 8 * 3
    assert records["second"]["parameters_after"] == numbers
    assert records["second"]["ratio"] == pytest.approx(numbers / HIDDEN**2)


def test_one_rank_is_a_number_and_meant_for_all(run: Run, model: Path) -> None:
    for rank in ("3", "3x3x3x3"):
        arguments = ("--method", "tucker", "--rank", rank, "--modes", MODES, "--layers", "second")
        assert run("rewrite", model, "-o", f"{rank}.onnx", *arguments, *ANY).code == 0
        assert options_of(f"{rank}.onnx")["rank"] == "3x3x3x3"


def test_a_plan_holds_ranks_and_gives_the_same_bytes(run: Run, model: Path) -> None:
    arguments = ("--method", "tucker", "--ratio", 0.5, "--layers", "second")
    assert run("rewrite", model, "-o", "a.onnx", *arguments, *ANY).code == 0
    assert run("plan", model, "-o", "p.json", *arguments).code == 0
    rank = json.loads(Path("p.json").read_text())["layers"]["second"]["options"]["rank"]
    assert re.fullmatch(r"\d+(x\d+){3}", rank)
    assert run("rewrite", model, "-o", "b.onnx", "--plan", "p.json", *ANY).code == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert rank in run("plan", model, "-o", "q.json", *arguments).out


def test_help_says_all_that_methods_say(run: Run) -> None:
    for command in ("rewrite", "plan"):
        texts = help_of(run, command)
        form = texts["--form"]
        assert form.index("spatial_swapped") < form.index("Of tucker")
        assert "full, where the window's axes" in form
        rank = texts["--rank"]
        assert "never more than the weight's smaller side" in rank
        assert "Of tensor decompositions: one rank for all, or several, as in 8x12" in rank
        assert "8x8x6,16x16x6" in texts["--modes"]


def test_every_option_of_every_method_is_a_flag_with_help_of_its_own(run: Run) -> None:
    texts = help_of(run)
    names = {name for method in METHODS.values() for name in option_names(method.options)}
    assert len(names) > 10
    for name in names:
        text = texts[f"--{name.replace('_', '-')}"]
        assert len(re.sub(r"^(INT|STR|FLOAT|BOOL|\|)+", "", text).strip()) > 20, name
        sentences = re.split(r"(?<=\.) ", text)
        assert len(sentences) == len(set(sentences)), name


def test_the_terminal_says_what_is_asked(run: Run, model: Path) -> None:
    arguments = ("--method", "tucker", "--rank", "2x2x2x2", "--layers", "second")
    assert "tucker, rank 2x2x2x2 per layer" in run("rewrite", model, *arguments, *ANY).out


@pytest.mark.parametrize("command", ["rewrite", "plan"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rank", "8x"), ("rank 8x", "nor several as in 8x12")),
        (("--rank", "0x2"), ("rank 0x2", "at least 1")),
        (("--rank", "2.5x2"), ("rank 2.5x2", "whole number")),
        (("--rank", "1.5"), ("rank 1.5", "whole number")),
        (("--rank", "-3"), ("rank -3",)),
        (("--rank", "2x2", "--ratio", 0.5), ("rank and ratio are both given",)),
        (("--modes", "8x8"), ("modes 8x8", "8x8x6,16x16x6")),
        (("--modes", "8x8,a"), ("modes 8x8,a", "8x8x6,16x16x6")),
        (("--modes", "8x8,4x4,2x2"), ("modes 8x8,4x4,2x2",)),
        (("--form", "spatial"), ("form 'spatial'", "channels, full")),
        (("--sweeps", 2), ("'tucker' has no option 'sweeps'",)),
    ],
)
def test_what_makes_no_sense_is_refused(
    refused: Refused, model: Path, command: str, arguments: Sequence[object], words: Sequence[str]
) -> None:
    refused((command, model, "--method", "tucker", *arguments), 2, words)


@pytest.mark.parametrize("method", ["svd", "ternary_svd"])
def test_one_rank_is_all_that_a_matrix_has(refused: Refused, model: Path, method: str) -> None:
    words = ("rank 8x12 is not a whole number", "several ranks are for tensor decompositions")
    refused(("rewrite", model, "--method", method, "--rank", "8x12"), 2, words)
    refused(("rewrite", model, "--method", method, "--modes", "8x8,8x8"), 2, ("modes",))


def test_flags_of_whole_numbers_take_nothing_else(refused: Refused, model: Path) -> None:
    for flag, method in (("--sweeps", "ternary_svd"), ("--terms", "ternary")):
        for value in ("1.5", "2x2", "many"):
            refused(("rewrite", model, "--method", method, flag, value), 2, (flag, value))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": "8y2"}, ("layers['second'].options: rank 8y2", "nor several as in 8x12")),
        ({"rank": 2.5}, ("layers['second'].options.rank: found 2.5", "a whole number or a string")),
        ({"rank": [2, 2]}, ("layers['second'].options.rank: found [2, 2]",)),
        ({"rank": True}, ("layers['second'].options.rank: found true",)),
        ({"modes": 8}, ("layers['second'].options.modes: found 8, expected a string",)),
        ({"modes": "8x8"}, ("layers['second'].options: modes 8x8",)),
        ({"rank": "2x2x2"}, ("'second'", "cannot be followed")),
        ({"rank": "2x2x2x2", "modes": "8x8,8x8"}, ("'second'", "multiply to 64")),
    ],
)
def test_plans_that_cannot_be_followed(
    refused: Refused, model: Path, options: dict[str, Any], words: Sequence[str]
) -> None:
    layers = {"second": {"method": "tucker", "options": options}}
    document = {"schema": "onnxlr.plan/1", "layers": layers}
    Path("p.json").write_text(json.dumps(document), encoding="utf-8")
    refused(("rewrite", model, "--plan", "p.json"), 2, words)
