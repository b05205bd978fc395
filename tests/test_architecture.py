"""The code is built as docs/architecture.md says: imports go downwards in its list only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxlr

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "onnxlr"
FILES = sorted(PACKAGE.rglob("*.py"))
ENTRY_POINTS = {"__init__", "__main__"}


def _order() -> dict[str, int]:
    """Return the position of each module or folder in the document's table."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("## Where things are")[2].partition("## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    order: dict[str, int] = {}
    for row in rows:
        for name in re.findall(r"`(\w+)/?`", row):
            order[name] = len(order)
    return order


def _runtime_imports(tree: ast.Module) -> Iterator[str]:
    """Yield the onnxlr modules a file imports; those only type checkers see do not count."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onnxlr"):
            rest = (node.module or "").split(".")[1:]
            yield from [rest[0]] if rest else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("onnxlr."))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file):
    order = _order()
    module = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if module in ENTRY_POINTS:
        return
    assert module in order, f"{module} is not in the table of docs/architecture.md"
    for imported in _runtime_imports(ast.parse(file.read_text(encoding="utf-8"))):
        assert order[imported] <= order[module], f"{module} imports {imported}, which comes later"


def test_the_table_names_only_what_exists():
    present = {path.stem for path in PACKAGE.iterdir()}
    assert set(_order()) <= present


def test_public_names_exist_and_are_documented():
    for name in onnxlr.__all__:
        assert getattr(onnxlr, name).__doc__, name
    assert sorted(onnxlr.__all__) == sorted(set(onnxlr.__all__))


def test_importing_the_package_needs_no_heavy_extra():
    heavy = ("torch", "pandas", "matplotlib")
    code = f"import sys, onnxlr.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_of_tests_have_names_of_their_own():
    names = sorted(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert names == sorted(set(names))  # pytest imports them by these names alone
