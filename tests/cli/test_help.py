"""Help texts, pages and completion say what the command line takes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cyclopts import CycloptsError

from onnxlr.cli import app
from onnxlr.errors import ExitCode
from tests.cli.conftest import Run
from tests.commandlines import check_parses, command_lines

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md"))]
COMMANDS = sorted(name for name in app if not name.startswith("-"))
SHOWN = 76
"""Columns of a line of code in help that is 80 wide."""


def fenced(text: str) -> str:
    """Return the code of a page that is lines of a shell."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return "\n".join(code for language, code in blocks if language in ("", "sh"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_examples_that_parse(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ended = run(command, "--help")
    assert ended.code == 0
    assert max(map(len, ended.out.splitlines())) <= 80
    examples = ended.out.partition("For example:")[2].partition("╭")[0]
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    assert 2 <= len(lines) <= 5
    assert all(line.startswith("onnxlr ") for line in lines)  # none is broken in two
    assert max(map(len, lines)) <= SHOWN + 2
    found = list(command_lines(examples))
    assert len(found) == len(lines)
    assert command in {arguments[0] for arguments in found}
    for arguments in found:
        check_parses(arguments)


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_pages_parse(page: str) -> None:
    found = list(command_lines(fenced((ROOT / page).read_text(encoding="utf-8"))))
    for arguments in found:
        check_parses(arguments)
    if page == "README.md":
        assert len(found) > 20


def test_the_check_of_pages_can_fail() -> None:
    with pytest.raises(CycloptsError):
        check_parses(["rewrite", "m.onnx", "--no-such-flag", "3"])
    assert list(command_lines("  onnxlr plan m.onnx --layers '*a b*' > p.json  # why\n")) == [
        ["plan", "m.onnx", "--layers", "*a b*"]
    ]


@pytest.mark.parametrize("page", ["help", "README.md", "docs/deployment.md"])
def test_exit_codes_are_told(run: Run, page: str) -> None:
    text = run("--help").out if page == "help" else (ROOT / page).read_text(encoding="utf-8")
    text = " ".join(text.replace("|", " ").replace("`", " ").split())
    text = text[text.lower().index("exit codes") :]
    for code in ExitCode:
        assert re.search(rf"\b{int(code)} [a-z]", text), code


def test_what_was_probably_meant(run: Run, model: Path) -> None:
    for arguments, meant in (
        (["rewrit", model], "'rewrite'"),
        (["rewrite", model, "--tolerence", "1"], "--tolerance"),
        (["rewrite", model, "--method", "svdd"], "'svd'"),
        (["rewrite", model, "--method", "Tuckr"], "'tucker'"),
        (["rewrite", model, "--goal", "sise"], "'size'"),
        (["rewrite", model, "--max-drop", "cosin=0.1"], "'cosine'"),
        (["rewrite", model, "--rank", "2", "--format", "flota16"], "'float16'"),
        (["rewrite", model, "--rank", "2", "--target", "onx"], "'onnx'"),
        (["rewrite", model, "--rank", "2", "--metric", "activaton"], "'activation'"),
        (["rewrite", model, "--rank", "2", "--tolerance", "cosin>=0.9"], "'cosine'"),
        (["rewrite", model, "--rank", "2", "--layers", "secnd"], "'second'"),
        (["rewrite", model, "--rank", "2", "--skip", "*hed"], "'*head'"),
    ):
        ended = run(*arguments)
        assert ended.code == 2
        assert "did you mean" in ended.err.lower()
        assert meant in ended.err, ended.err


def test_what_training_knows_is_what_its_commands_offer() -> None:
    pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")
    from onnxlr.methods.matricisation import FORMS
    from onnxlr.training import selection
    from onnxlr.training.svd.factored import SPARSITIES
    from onnxlr.training.svd.ranks import COUNTS
    from onnxlr.training.ternary import wish
    from onnxlr.training.ternary.codes import SCALES

    for command, flag, known in (
        ("train-svd", "--form", FORMS),
        ("train-svd", "--sparsity", SPARSITIES),
        ("train-svd", "--count", COUNTS),
        ("train-ternary", "--method", wish.METHODS),
        ("train-ternary", "--train", wish.TRAINED),
        ("train-ternary", "--scales", SCALES),
        ("tune", "--train", selection.TRAINED),
    ):
        arguments = app[command].assemble_argument_collection()
        (found,) = [each for each in arguments if flag in each.names]
        assert set(found.get_choices(force=True) or ()) == set(known), (command, flag)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_every_command(run: Run, shell: str) -> None:
    ended = run("completion", shell)
    assert (ended.code, ended.err) == (0, "")
    for command in COMMANDS:
        assert command in ended.out


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["re"], {"rewrite"}),
        (["rewrite", "m.onnx", "--max-d"], {"--max-drop"}),
        (["verify", "--stat"], {"--statistics"}),
        (["completion", ""], {"bash", "fish", "zsh"}),
        (["inspect", "m.on"], {"m.onnx"}),
        (["rewrite", "m.onnx", "--method", "ternary"], {"ternary", "ternary_svd"}),
        (["plan", "m.onnx", "--target", ""], {"onnx", "ort", "onnxlr"}),
        (["plan", "m.onnx", "--format", "float1"], {"float16"}),
        (["plan", "m.onnx", "--goal", ""], {"size", "latency", "balanced"}),
        (["plan", "m.onnx", "--group-size", ""], {"0", "32", "64", "128"}),
        (["plan", "m.onnx", "--order", ""], {"forward", "backward"}),
        (["sweep", "m.onnx", "--measure", ""], {"cosine", "relout", "top1"}),
        (["tune", "m.onnx", "m.onnx", "--train", ""], {"scales", "factors", "all"}),
        (["rewrite", "m.onnx", "--data", "m.o"], {"m.onnx"}),
        (["observe", "m.onnx", "--calibration", "m.o"], {"m.onnx"}),
        (["observe", "m.onnx", "--calibration", "m.onnx", "--holdout", "m."], {"m.onnx"}),
    ],
)
def test_bash_completes(run: Run, model: Path, words: list[str], expected: set[str]) -> None:
    script = run("completion", "bash").out
    asked = """
        COMP_WORDS=(onnxlr "$@"); COMP_CWORD=$#; COMPREPLY=()
        $(complete -p onnxlr | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    command = ["bash", "--norc", "-c", f"{script}\n{asked}", "bash", *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(ended.stdout.split()) == expected


def test_a_shell_that_nobody_knows(run: Run) -> None:
    ended = run("completion", "csh")
    assert ended.code == 2
    assert "csh" in ended.err
    assert ended.out == ""


def imported(*arguments: str) -> set[str]:
    code = f"""
import sys
sys.argv = ['onnxlr', *{list(arguments)}]
from onnxlr.__main__ import main
try:
    main()
except SystemExit:
    print(*(name.partition('.')[0] for name in sys.modules), file=sys.stderr)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ended.stderr.split())


def test_the_version_needs_no_libraries() -> None:
    libraries = {"numpy", "onnx", "onnxruntime", "scipy", "tensorly", "rich", "cyclopts"}
    assert not libraries & imported("--version")
    assert {"numpy", "cyclopts"} <= imported("--help")  # or the above finds nothing
