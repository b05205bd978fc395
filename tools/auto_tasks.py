"""The models that `tools/bench_auto.py` plans for, each with its data, its score and its limit."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import onnxlr
from tools import demo, photographs
from tools.fetch_models import fetch
from tools.measured_tasks import TASKS, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["AUTO_TASKS", "AutoTask", "demo_score", "magika_score", "minilm", "nsfw", "ocr"]

_BLOCK, _TAKEN, _PADDING = 4096, 1024, 256
"""What magika looks at: so many bytes at both ends of a file, without blanks around them, of which
it takes so many, and what stands for none."""


@dataclass(frozen=True)
class AutoTask:
    """A model to plan for.

    Attributes
    ----------
    name
        What the command line calls it.
    model
        Returns its file, fetched if need be.
    calibration
        Returns inputs, a run each.
    score
        `module:function` that returns how good a file is, the higher the better.
    drop
        How much worse than the original it may be.
    words
        The score in words.
    mask
        Input that is 0 where positions do not count.
    """

    name: str
    model: Callable[[], Path]
    calibration: Callable[[], Sequence[Mapping[str, Array]]]
    score: str
    drop: float
    words: str
    mask: str | None = None


@cache
def _task(name: str) -> Task:
    return TASKS[name]()


def minilm(model: str) -> float:
    """Return the mean cosine of 300 sentences' embeddings to the original's."""
    return _task("minilm").score(Path(model))


def ocr(model: str) -> float:
    """Return the part of the characters of 200 lines that are read rightly."""
    return _task("ocr").score(Path(model))


def nsfw(model: str) -> float:
    """Return the largest difference of a probability to the original's, negative."""
    feeds = photographs.held_out_photographs()
    original, found = (_outputs(path, feeds) for path in (fetch("open-nsfw"), Path(model)))
    return -float(np.abs(original - found).max())


def magika_score(model: str) -> float:
    """Return the part of held-out files that are taken for what the original takes them for."""
    feeds = [{"bytes": batch} for batch in _batches(_tokens(1))]
    kinds = [_outputs(path, feeds).argmax(axis=1) for path in (fetch("magika-v3.3"), Path(model))]
    return float(np.mean(kinds[0] == kinds[1]))


def demo_score(model: str) -> float:
    """Return the part of the 512 test samples that are taken for what they are."""
    return demo.accuracy(Path(model), demo.SAMPLES)


def _outputs(model: Path, feeds: Sequence[Mapping[str, Array]]) -> Array:
    session = onnxlr.session(model, ["CPUExecutionProvider"])
    return np.concatenate([session.run(None, dict(feed))[0] for feed in feeds])


def _demo_calibration() -> list[dict[str, Array]]:
    with np.load(demo.CALIBRATION) as arrays:
        return [{"image": arrays["image"]}]


def _magika_calibration() -> list[dict[str, Array]]:
    return [{"bytes": batch} for batch in _batches(_tokens(0))]


def _tokens(part: int) -> Array:
    """Return what magika takes of files of this Python: every second one, from a place on."""
    rows = [_row(file) for file in _files()[part::2]]
    return np.stack(rows).astype(np.int32)


@cache
def _files() -> list[Path]:
    """Return files of many kinds, a few of each: those of the standard library and packages."""
    roots = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platlib", "scripts")]
    by_kind: dict[str, list[Path]] = {}
    for file in _walk(roots):
        by_kind.setdefault(file.suffix or file.name, []).append(file)
    chosen = [file for _, files in sorted(by_kind.items()) for file in _spread(files, 16)]
    return sorted(chosen)


def _walk(roots: Sequence[Path]) -> Iterator[Path]:
    for root in roots:
        files = (path for path in root.rglob("*") if path.is_file() and path.stat().st_size > 16)
        yield from sorted(files)


def _spread(files: Sequence[Path], most: int) -> list[Path]:
    places = np.linspace(0, len(files) - 1, min(most, len(files))).round().astype(int)
    return [files[place] for place in places]


def _row(file: Path) -> Array:
    """Return the bytes at both ends of a file, as magika takes them."""
    content = file.read_bytes()
    first = content[:_BLOCK].lstrip()[:_TAKEN]
    last = content[-_BLOCK:].rstrip()[-_TAKEN:]
    row = np.full(2 * _TAKEN, _PADDING)
    row[: len(first)] = np.frombuffer(first, np.uint8)
    row[len(row) - len(last) :] = np.frombuffer(last, np.uint8)
    return row


def _batches(rows: Array, size: int = 32) -> list[Array]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


AUTO_TASKS = (
    AutoTask(
        "minilm",
        lambda: _task("minilm").model,
        lambda: _task("minilm").calibration,
        f"{__name__}:minilm",
        0.01,
        "mean cosine of embeddings",
        "attention_mask",
    ),
    AutoTask(
        "ocr",
        lambda: _task("ocr").model,
        lambda: _task("ocr").calibration,
        f"{__name__}:ocr",
        0.01,
        "character accuracy",
    ),
    AutoTask(
        "nsfw",
        lambda: fetch("open-nsfw"),
        photographs.calibration_photographs,
        f"{__name__}:nsfw",
        0.01,
        "largest error of a probability, negative",
    ),
    AutoTask(
        "magika",
        lambda: fetch("magika-v3.3"),
        _magika_calibration,
        f"{__name__}:magika_score",
        0.01,
        "agreement with the original",
    ),
    AutoTask(
        "demo",
        lambda: demo.MODEL,
        _demo_calibration,
        f"{__name__}:demo_score",
        0.005,
        "accuracy",
    ),
)
