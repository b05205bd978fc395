"""Text lines for PP-OCRv4 recognition: rendered, prepared, decoded and scored.

Lines are words of `tools/corpus.py` in DejaVu fonts, blurred, faded and noisy, so that the original
model makes some mistakes; lines to measure on have other words, from other files, than those to
calibrate with. Rendering needs Pillow.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort

import onnxlr
from tools.corpus import calibration_sentences, held_out_sentences
from tools.fetch_models import MATERIALS, fetch, load_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

__all__ = [
    "Line",
    "alphabet",
    "batches",
    "calibration_lines",
    "character_accuracy",
    "decode",
    "edit_distance",
    "prepare",
    "read_lines",
    "test_lines",
]

HEIGHT = 48
_LETTERS = range(12, 29)
_BATCH = 8
_WIDTH_STEP = 32


@dataclass(frozen=True)
class Line:
    """An image uint8 `(height, width, 3)`, red first, and the text that it shows."""

    text: str
    image: npt.NDArray[np.uint8]


def calibration_lines(count: int) -> list[Line]:
    """Render lines to calibrate with."""
    return _render(_texts(calibration_sentences(count)), seed=1)


def test_lines(count: int) -> list[Line]:
    """Render lines to measure on."""
    return _render(_texts(held_out_sentences(count)), seed=2)


test_lines.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test


def _texts(sentences: Sequence[str]) -> list[str]:
    """Return one line of each sentence: its first words, as many as fit, another start for each."""
    lines = []
    for number, sentence in enumerate(sentences):
        words = sentence.split()
        text = words.pop(min(number % 3, len(words) - 1))
        for word in words[number % 3 :]:
            if len(text) + 1 + len(word) >= _LETTERS.stop:
                break
            text += f" {word}"
        lines.append(text)
    return lines


def _render(texts: Sequence[str], seed: int) -> list[Line]:
    from PIL import ImageFont

    folder = fetch("dejavu-fonts", manifest=MATERIALS).parent
    files = [
        folder / member.file_name for member in load_manifest(MATERIALS)["dejavu-fonts"].members
    ]
    chance = random.Random(seed)  # noqa: S311
    fonts = {}
    lines = []
    for text in texts:
        key = (chance.choice(files), chance.randrange(16, 34))
        if key not in fonts:
            # The basic layout does not depend on which shaping library Pillow was built with.
            fonts[key] = ImageFont.truetype(
                str(key[0]), key[1], layout_engine=ImageFont.Layout.BASIC
            )
        lines.append(Line(text, _image(text, fonts[key], chance)))
    return lines


def _image(text: str, font: Any, chance: random.Random) -> npt.NDArray[np.uint8]:
    """Draw dark text on a light ground (or the other way round), then spoil it."""
    from PIL import Image, ImageDraw, ImageFilter

    left, top, right, bottom = font.getbbox(text)
    margin = [chance.randrange(2, 9) for _ in range(4)]
    size = (right - left + margin[0] + margin[1], bottom - top + margin[2] + margin[3])
    ground = [chance.randrange(150, 256) for _ in range(3)]
    contrast = chance.uniform(0.3, 0.9)
    ink = [round(value * (1 - contrast)) for value in ground]
    if chance.random() < 0.2:
        ground, ink = ink, ground
    image = Image.new("RGB", size, tuple(ground))
    ImageDraw.Draw(image).text((margin[0] - left, margin[2] - top), text, tuple(ink), font)
    image = image.rotate(
        chance.uniform(-1.0, 1.0), Image.Resampling.BILINEAR, fillcolor=tuple(ground)
    )
    image = image.filter(ImageFilter.GaussianBlur(chance.uniform(0.2, 1.4)))
    noise = np.random.default_rng(chance.getrandbits(32)).normal(
        0, chance.uniform(2, 20), (size[1], size[0], 3)
    )
    return np.clip(np.asarray(image, np.float64) + noise, 0, 255).round().astype(np.uint8)


def prepare(images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
    """Return the model's input for one batch, float32 `(batch, 3, 48, width)`.

    Each image is scaled to 48 rows; channels are blue, green, red, values `(v/255 − 0.5)/0.5`;
    narrower images are followed by zeros.
    """
    from PIL import Image

    widths = [max(1, round(image.shape[1] * HEIGHT / image.shape[0])) for image in images]
    width = -(-max(widths) // _WIDTH_STEP) * _WIDTH_STEP
    batch = np.zeros((len(images), 3, HEIGHT, width), np.float32)
    for row, (image, own) in enumerate(zip(images, widths, strict=True)):
        scaled = Image.fromarray(image).resize((own, HEIGHT), Image.Resampling.BILINEAR)
        values = np.asarray(scaled, np.float32)[:, :, ::-1].transpose(2, 0, 1)
        batch[row, :, :, :own] = (values / 255 - 0.5) / 0.5
    return batch


def batches(
    lines: Sequence[Line], size: int = _BATCH
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Yield the model's inputs and the texts they show; lines of like width are together."""
    ordered = sorted(lines, key=lambda line: line.image.shape[1] / line.image.shape[0])
    for start in range(0, len(ordered), size):
        part = ordered[start : start + size]
        yield {"x": prepare([line.image for line in part])}, [line.text for line in part]


def alphabet(model: Path) -> list[str]:
    """Return what each class of the output stands for; the first is the blank, the last a space.

    Raises
    ------
    ValueError
        If the model's metadata has no alphabet.
    """
    for entry in onnx.load(model, load_external_data=False).metadata_props:
        if entry.key == "character":
            return ["", *entry.value.split("\n"), " "]
    raise ValueError(f"{model}: its metadata has no entry 'character', the alphabet")


def decode(probabilities: npt.NDArray[np.floating[Any]], letters: Sequence[str]) -> list[str]:
    """Read `(batch, steps, classes)` greedily: best classes, without repeats and blanks."""
    texts = []
    for best in probabilities.argmax(axis=2):
        starts = np.concatenate(([True], best[1:] != best[:-1]))
        texts.append("".join(letters[k] for k in best[starts & (best != 0)]))
    return texts


def edit_distance(first: str, second: str) -> int:
    """Return how many characters must be inserted, removed or replaced (Levenshtein)."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


def character_accuracy(read: Sequence[str], shown: Sequence[str]) -> float:
    """Return the mean over lines of 1 − edit distance / length, where less than 0 counts as 0."""
    scores = [max(0.0, 1 - edit_distance(a, b) / len(b)) for a, b in zip(read, shown, strict=True)]
    return sum(scores) / len(scores)


def read_lines(
    model: Path, prepared: Sequence[tuple[dict[str, Any], list[str]]], letters: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return what a model reads in prepared batches, and what they show."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = onnxlr.session(model, ["CPUExecutionProvider"], options)
    read: list[str] = []
    shown: list[str] = []
    for feeds, texts in prepared:
        read += decode(session.run(None, feeds)[0], letters)
        shown += texts
    return read, shown
