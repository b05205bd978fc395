"""The command `onnxlr`, also `python -m onnxlr`: what is said before anything large is imported."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

from onnxlr.version import VERSION

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line; Ctrl-C ends it quietly even while it is still being imported."""
    if sys.argv[1:] == ["--version"]:
        print(VERSION)  # what follows takes most of a second
        sys.exit(0)
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from onnxlr.cli import main as run

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
