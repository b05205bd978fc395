"""What is said where training was interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxlr.console import err
from onnxlr.reporting import shown

__all__ = ["telling_what_is_left"]


@contextmanager
def telling_what_is_left(output: Path, checkpoint: Path | None) -> Iterator[None]:
    """Name the checkpoint of a run that is interrupted, if it came to one.

    Parameters
    ----------
    output
        The file to write.
    checkpoint
        As it was asked for: a file, or what the names of several begin with.
    """
    try:
        yield
    except KeyboardInterrupt:
        saved = Path(f"{output}.checkpoint") if checkpoint is None else checkpoint
        left = sorted(file for file in (saved, *_stages(saved)) if file.is_file())
        if left:
            names = ", ".join(shown(str(file)) for file in left)
            holds = "holds" if len(left) == 1 else "hold"
            note = f"{names} {holds} what was reached; the same command goes on from it"
            err.print(f"[yellow]note:[/] {note}", soft_wrap=True, highlight=False)
        raise


def _stages(saved: Path) -> list[Path]:
    return [saved.with_name(f"{saved.name}.{stage}") for stage in (1, 2)]
