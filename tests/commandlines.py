"""Lines of the shell in pages and help texts: those of onnxlr, and whether they parse."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from onnxlr.cli import app

_REST = {">", ">>", "|", "&&", "||", ";"}


def command_lines(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each line that begins with `onnxlr`, whatever it is indented by."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        tokens = shlex.split(line, comments=True) if line.strip().startswith("onnxlr ") else []
        if tokens:
            ends = [i for i, token in enumerate(tokens) if token in _REST]
            yield tokens[1 : min(ends, default=len(tokens))]


def check_parses(arguments: list[str]) -> None:
    """Parse a command line without running it; raises what cyclopts does where it cannot."""
    app.parse_args(arguments, exit_on_error=False, print_error=False)
