"""Tests of `tools/corpus.py`: what counts as prose, and that calibration and held-out are apart."""

from __future__ import annotations

import pytest

from tools.corpus import calibration_sentences, held_out_sentences, sentences_of
from tools.fetch_models import MATERIALS, Unavailable, load_manifest

DOCUMENT = """\
A Title That Is Not a Sentence of Prose
=======================================

:Author: Somebody who has a name and a field list

The first sentence has *some* **markup** in it.  The `second one`_ has a
:role:`name <target>` and a ``literal``, e.g. Python code, that stays text.

- A list item that is long enough to be taken for a sentence.

.. note:: A directive that is long enough to be taken for a sentence.

Too short a sentence.

A paragraph before a literal block has two colons at its end::

    The literal block is code, whatever it looks like at first.
      It is indented unevenly.

   An indented paragraph is running text as well as any other.

=====  ===================================
Table  A table has cells and rules around.
=====  ===================================

A sentence with a stray_ reference and a [1]_ footnote is cleaned of both.
A sentence with | a stray | bar is dropped as a whole from it.
"""


def test_sentences_are_those_of_paragraphs_without_markup():
    assert list(sentences_of(DOCUMENT)) == [
        "The first sentence has some markup in it.",
        "The second one has a name and a literal, e.g. Python code, that stays text.",
        "An indented paragraph is running text as well as any other.",
        "A sentence with a stray reference and a footnote is cleaned of both.",
    ]


@pytest.fixture
def both() -> tuple[list[str], list[str]]:
    try:
        return calibration_sentences(1500), held_out_sentences(800)
    except Unavailable as reason:
        pytest.skip(f"the texts cannot be had: {reason}")


@pytest.mark.models
def test_calibration_and_held_out_share_no_sentence(both):
    calibration, held_out = both
    everything = [sentence.casefold() for sentence in calibration + held_out]
    assert len(set(everything)) == len(everything) == 2300


@pytest.mark.models
def test_sentences_are_prose_and_a_smaller_count_begins_a_larger_one(both):
    for sentence in both[0] + both[1]:
        assert 5 <= len(sentence.split()) <= 60
        assert sentence[0].isupper()
        assert sentence[-1] in ".!?"
        assert not set("`*|<>{}[]=\\@#_~") & set(sentence)
    assert calibration_sentences(7) == both[0][:7]
    with pytest.raises(ValueError, match="1000000 sentences were asked for"):
        calibration_sentences(1_000_000)


def test_the_two_sets_are_pinned_in_different_files():
    materials = load_manifest(MATERIALS)
    calibration, held_out = (
        {member.sha256 for member in materials[name].members}
        for name in ("english-calibration", "english-held-out")
    )
    assert calibration
    assert held_out
    assert not calibration & held_out
