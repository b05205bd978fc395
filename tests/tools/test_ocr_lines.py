"""Tests of `tools/ocr_lines.py`: decoding and scoring by definition, then the real model."""

from __future__ import annotations

from functools import cache
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, save

from tools import ocr_lines
from tools.fetch_models import Unavailable, fetch


@cache
def _distance(a: str, b: str) -> int:
    """Return the edit distance straight from its recursive definition."""
    if not a or not b:
        return len(a) + len(b)
    same = _distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(same, _distance(a[1:], b) + 1, _distance(a, b[1:]) + 1)


@given(st.text("abc", max_size=7), st.text("abc", max_size=7))
def test_edit_distance_is_the_recursive_definition(a, b):
    assert ocr_lines.edit_distance(a, b) == _distance(a, b)


@pytest.mark.parametrize(
    ("a", "b", "expected"), [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2)]
)
def test_edit_distance_of_textbook_pairs(a, b, expected):
    assert ocr_lines.edit_distance(a, b) == expected


def test_character_accuracy_is_a_mean_over_lines_and_never_negative():
    read = ["abcd", "abxd", "far too long"]
    assert ocr_lines.character_accuracy(read, ["abcd", "abcd", "no"]) == pytest.approx(1.75 / 3)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_decoding_collapses_repeats_before_it_drops_blanks(classes):
    letters = ["", "a", "b", "c"]
    probabilities = np.eye(4, dtype=np.float32)[classes][None]
    expected = "".join(letters[k] for k, _ in groupby(classes))
    assert ocr_lines.decode(probabilities, letters) == [expected]


def test_decoding_keeps_doubled_letters_that_a_blank_separates():
    probabilities = np.eye(3)[[[1, 1, 0, 1, 2], [0, 0, 0, 0, 0]]]
    assert ocr_lines.decode(probabilities, ["", "l", "o"]) == ["llo", ""]


def test_preparation_is_blue_first_from_minus_one_to_one_and_padded_with_zeros():
    pytest.importorskip("PIL", reason="rendering needs Pillow")
    red = np.zeros((24, 30, 3), np.uint8)
    red[:, :, 0] = 255
    narrow = np.full((48, 20, 3), 255, np.uint8)
    batch = ocr_lines.prepare([red, narrow])
    assert batch.shape == (2, 3, 48, 64)
    assert batch.dtype == np.float32
    # 24×30 is scaled to 48×60: the last four columns are padding.
    np.testing.assert_array_equal(batch[0, :, 5, 5], [-1, -1, 1])
    np.testing.assert_array_equal(batch[0, :, :, 60:], 0)
    np.testing.assert_array_equal(batch[1, :, :, :20], 1)
    np.testing.assert_array_equal(batch[1, :, :, 20:], 0)


def test_alphabet_is_in_the_metadata_with_blank_and_space_around(tmp_path):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    model = helper.make_model(
        helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    )
    path = tmp_path / "model.onnx"
    save(model, path)
    with pytest.raises(ValueError, match="no entry 'character'"):
        ocr_lines.alphabet(path)
    helper.set_model_props(model, {"character": "a\nb"})
    save(model, path)
    assert ocr_lines.alphabet(path) == ["", "a", "b", " "]


@pytest.mark.models
def test_the_original_reads_most_characters_of_the_noisy_lines():
    pytest.importorskip("PIL", reason="rendering needs Pillow")
    try:
        model = fetch("ppocr-v4-rec")
        lines = ocr_lines.test_lines(60)
        calibration = ocr_lines.calibration_lines(60)
    except Unavailable as reason:
        pytest.skip(f"the model, texts or fonts cannot be had: {reason}")
    prepared = list(ocr_lines.batches(lines))
    assert sum(len(texts) for _, texts in prepared) == 60
    read, shown = ocr_lines.read_lines(model, prepared, ocr_lines.alphabet(model))
    assert sorted(shown) == sorted(line.text for line in lines)
    assert 0.88 < ocr_lines.character_accuracy(read, shown) < 0.98
    assert not {line.text for line in lines} & {line.text for line in calibration}
    again = ocr_lines.test_lines(60)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(lines, again, strict=True))
