"""English sentences out of the documentation of docutils, to calibrate with and to measure on.

The two sets come from different files (`english-calibration` and `english-held-out` of
`models/materials.json`), and no sentence is in both. They are the sentences of paragraphs: no
titles, lists, tables, directives or literal blocks, and none that markup is left in.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from typing import TYPE_CHECKING

from tools.fetch_models import MATERIALS, fetch, load_manifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["calibration_sentences", "held_out_sentences", "sentences_of"]

_WORDS = range(5, 61)
_MARKUP = (
    (re.compile(r"``(.+?)``"), r"\1"),
    (re.compile(r":[\w:-]+:`([^`<]+?)(\s*<[^>]*>)?`"), r"\1"),
    (re.compile(r"`([^`<]+?)(\s*<[^>]*>)?`_{0,2}"), r"\1"),
    (re.compile(r"\*\*(.+?)\*\*"), r"\1"),
    (re.compile(r"\*(\S.*?)\*"), r"\1"),
    (re.compile(r"\s*\[[#\w]+\]_"), ""),
    (re.compile(r"\b(\w+)_{1,2}(?!\w)"), r"\1"),
)
_LEFT_OVER = re.compile(r"[`*|<>{}\[\]=\\@#$_~^]|::|://|--|\.\.")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]?\s+(?=[\"'(]?[A-Z])")
_ABBREVIATION = re.compile(r"\b(e\.g|i\.e|etc|cf|vs|resp|Mr|Dr|Sa|Fr|[A-Z])\.$")


def calibration_sentences(count: int) -> list[str]:
    """Return `count` sentences to calibrate with; of two counts, the smaller one begins the other.

    Raises
    ------
    tools.fetch_models.Unavailable
        If the files cannot be had here.
    ValueError
        If there are not that many sentences.
    """
    return _take(_calibration(), count)


def held_out_sentences(count: int) -> list[str]:
    """Return `count` sentences to measure on, none of which can be had for calibration.

    Raises
    ------
    tools.fetch_models.Unavailable
        If the files cannot be had here.
    ValueError
        If there are not that many sentences.
    """
    return _take(_held_out(), count)


def sentences_of(text: str) -> Iterator[str]:
    """Yield the sentences of a reStructuredText document's paragraphs, in order, without markup."""
    for block in re.split(r"\n\s*\n", text.expandtabs()):
        lines = block.strip("\n").split("\n")
        if not _is_paragraph(lines):
            continue
        prose = _without_markup(" ".join(line.strip() for line in lines))
        yield from (sentence for sentence in _split(prose) if _is_prose(sentence))


def _is_paragraph(lines: list[str]) -> bool:
    """Say whether a block is running text: even indentation, and a sentence from its first line."""
    indents = {len(line) - len(line.lstrip()) for line in lines}
    return len(indents) == 1 and re.match(r"\s*[\"'(]?[A-Z]\w*[ ,']", lines[0]) is not None


def _without_markup(text: str) -> str:
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return re.sub(r"\s+", " ", text).strip()


def _split(text: str) -> Iterator[str]:
    start = 0
    for end in _SENTENCE_END.finditer(text):
        sentence = text[start : end.end()].strip()
        if not _ABBREVIATION.search(sentence):
            yield sentence
            start = end.end()
    yield text[start:].strip()


def _is_prose(sentence: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in sentence)
    return (
        sentence.isascii()
        and sentence[:1].isupper()
        and sentence[-1:] in (".", "!", "?")
        and len(sentence.split()) in _WORDS
        and letters >= 0.9 * len(sentence)
        and not _LEFT_OVER.search(sentence)
    )


@cache
def _calibration() -> tuple[str, ...]:
    return _shuffled(set(_sentences_of_material("english-calibration")))


@cache
def _held_out() -> tuple[str, ...]:
    known = {sentence.casefold() for sentence in _calibration()}
    found = set(_sentences_of_material("english-held-out"))
    return _shuffled(sentence for sentence in found if sentence.casefold() not in known)


def _sentences_of_material(name: str) -> Iterator[str]:
    folder = fetch(name, manifest=MATERIALS).parent
    for member in load_manifest(MATERIALS)[name].members:
        yield from sentences_of((folder / member.file_name).read_text(encoding="utf-8"))


def _shuffled(sentences: Iterable[str]) -> tuple[str, ...]:
    """Order sentences by their hash: any first few come from all files, on every machine alike."""
    first = {sentence.casefold(): sentence for sentence in sorted(sentences)}
    return tuple(sorted(first.values(), key=lambda s: hashlib.sha256(s.encode()).digest()))


def _take(sentences: tuple[str, ...], count: int) -> list[str]:
    if not 0 < count <= len(sentences):
        raise ValueError(f"{count} sentences were asked for, there are 1 to {len(sentences)}")
    return list(sentences[:count])
