"""The models that `tools/measure_accuracy.py` measures, each with its data and its score."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

import onnxlr
from tools import minilm, ocr_lines
from tools.corpus import calibration_sentences, held_out_sentences
from tools.fetch_models import fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "TASKS",
    "Task",
    "mean_cosine",
    "minilm_task",
    "ocr_task",
    "sentences_of_lengths",
    "write_feeds",
]

Feeds = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A model, what to calibrate, compare and time it on, and how good another file of it is."""

    name: str
    model: Path
    score_name: str
    score: Callable[[Path], float]
    calibration: Sequence[Feeds]
    comparison: Sequence[Feeds]
    """Held-out inputs on which a rewritten model is compared with the original."""
    timing: Sequence[Feeds]
    mask: str | None = None
    """The input that marks the samples' real positions."""
    held_out: Sequence[Feeds] = ()
    """What the score is of, where single layers are to be judged on the same."""


def minilm_task(calibration: int = 512, held_out: int = 300) -> Task:
    """Sentence embeddings: the score is their mean cosine to the original's.

    Parameters
    ----------
    calibration, held_out
        Numbers of sentences.
    """
    model = minilm.minilm_model()
    sentences = held_out_sentences(held_out)
    feeds = list(minilm.batches(sentences))
    original = _embeddings(model, feeds)
    return Task(
        name="minilm",
        model=model,
        score_name="mean cosine",
        score=lambda path: mean_cosine(_embeddings(path, feeds), original),
        calibration=list(minilm.batches(calibration_sentences(calibration))),
        comparison=feeds[:1],
        timing=list(minilm.batches(sentences[:8], size=1)),
        mask="attention_mask",
        held_out=feeds,
    )


def sentences_of_lengths(task: Task, least: int = 16, most: int = 64, count: int = 8) -> Task:
    """Return MiniLM's task with other sentences to time: held out, evenly from short to long.

    Parameters
    ----------
    task
        What `minilm_task` returns.
    least, most
        Tokens of a sentence, with the two that mark its ends.
    count
        Sentences, each a batch of its own.

    Raises
    ------
    ValueError
        If there are fewer of such lengths.
    """
    rows = []
    for feeds in task.held_out:
        for row, mask in enumerate(feeds["attention_mask"]):
            length = int(mask.sum())
            if least <= length <= most:
                cut = {name: value[row : row + 1, :length] for name, value in feeds.items()}
                rows.append(cut)
    if len(rows) < count:
        raise ValueError(f"{len(rows)} held-out sentences have {least} to {most} tokens")
    rows.sort(key=lambda feeds: feeds["attention_mask"].size)
    places = np.linspace(0, len(rows) - 1, count).round().astype(int)
    return replace(task, timing=[rows[place] for place in places])


def ocr_task(calibration: int = 128, held_out: int = 200) -> Task:
    """Text lines: the score is the character accuracy, the original's included.

    Parameters
    ----------
    calibration, held_out
        Numbers of lines.
    """
    model = fetch("ppocr-v4-rec")
    letters = ocr_lines.alphabet(model)
    lines = ocr_lines.test_lines(held_out)
    prepared = list(ocr_lines.batches(lines))
    return Task(
        name="ocr",
        model=model,
        score_name="character accuracy",
        score=lambda path: ocr_lines.character_accuracy(
            *ocr_lines.read_lines(path, prepared, letters)
        ),
        calibration=[
            feeds for feeds, _ in ocr_lines.batches(ocr_lines.calibration_lines(calibration))
        ],
        comparison=[prepared[0][0]],
        timing=[feeds for feeds, _ in ocr_lines.batches(lines[:3], size=1)],
    )


TASKS = {"minilm": minilm_task, "ocr": ocr_task}


def mean_cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean over rows of the cosine between the rows of two arrays `(rows, width)`."""
    a, b = (np.asarray(array, np.float64) for array in (first, second))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / lengths).mean())


def write_feeds(feeds: Iterable[Mapping[str, Any]], folder: Path) -> Path:
    """Write one `.npz` for each set of inputs, in their order, and return the folder."""
    folder.mkdir(parents=True)
    for number, arrays in enumerate(feeds):
        np.savez(folder / f"{number:04}.npz", **arrays)
    return folder


def _embeddings(model: Path, feeds: Sequence[Feeds]) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = onnxlr.session(model, ["CPUExecutionProvider"], options)
    found = [session.run(["sentence_embedding"], inputs)[0] for inputs in feeds]
    return np.concatenate(found)
