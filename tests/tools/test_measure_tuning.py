"""The table of `tools/measure_tuning.py`, from figures made up here, and its batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tools import tuning_figures
from tools.measure_tuning import choose, main
from tools.tuning_figures import ROWS, Figure, read, tables, training_batches, write


def figures() -> list[Figure]:
    """Return a row that was tuned and one that was not."""
    return [
        Figure("svd 0.5", "factors", 0.8, 0.91234, 0.6, 0.4321, 120, 200, 61.4, 5000),
        Figure("svd 0.5", "scales", 0.8, problem="nothing was gained"),
    ]


def test_it_shows_and_writes_what_a_file_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page = tmp_path / "f.json", tmp_path / "page.md"
    write(file, figures())
    assert read(file) == figures()
    assert main(["--show", "--json", str(file), "--write", str(page)]) == 1
    shown = capsys.readouterr()
    assert "0.9123" in shown.out
    assert "svd 0.5, scales: nothing was gained" in shown.err
    line = "| svd 0.5 | factors | 0.8000 | 0.9123 | 0.600 | 0.432 | 120 of 200 | 61 | 5,000 |"
    assert line in page.read_text()
    failed = tables(figures())[0].rows[1]
    assert failed[2:6] == ["0.8000", "–", "–", "–"]


def test_a_file_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "f.json").write_text('[{"row": 1}]')
    assert main(["--show", "--json", str(tmp_path / "f.json")]) == 3
    assert "holds no figures of this tool" in capsys.readouterr().err


def test_rows_are_chosen_by_name_and_by_what_is_trained() -> None:
    assert {(row.name, row.train) for row in choose(["ternary ×1"], "scales")} == {
        ("ternary ×1", "scales")
    }
    assert choose([], None) == list(ROWS)
    assert len({(row.name, row.train) for row in ROWS}) == len(ROWS)
    with pytest.raises(SystemExit):
        main(["--rows", "no such row"])


def test_sentences_of_one_length_are_together_and_held_out_evenly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = [f"{'x' * (place * 7 % 400)}." for place in range(400)]
    monkeypatch.setattr(tuning_figures, "calibration_sentences", lambda _: asked)

    def batches(sentences: list[str], size: int) -> list[dict[str, np.ndarray]]:
        lengths = np.array([len(sentence) for sentence in sentences])
        return [{"x": lengths[at : at + size]} for at in range(0, len(lengths), size)]

    monkeypatch.setattr(tuning_figures.minilm, "batches", batches)
    data, held = training_batches()
    every = sorted(int(length) for batch in [*data, *held] for length in batch["x"])
    assert every == sorted(map(len, asked))
    assert all(np.ptp(batch["x"]) <= 16 for batch in [*data, *held])
    assert [batch["x"].mean() // 100 for batch in held] == [1, 2]
    assert len(data) + len(held) == 25
