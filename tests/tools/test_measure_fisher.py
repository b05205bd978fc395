"""The tables of `tools/measure_fisher.py`, from figures made up here."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tools.fisher_tables import Found, LayerFigure, ModelFigure
from tools.measure_fisher import main


def figures() -> Found:
    """Return three layers whose gains over rows rise with the variance, and over plain fall."""
    layers = [
        LayerFigure(
            f"encoder.layer.{place}.attention.self.key",
            (4, 4),
            variance,
            1 / variance,
            own=[0.5, 0.4, 0.2],
            other=[other, 0.4, 0.4 * (1 - gain)],
            damage=[0.002, 0.001, 0.0045 / variance],
        )
        for place, (variance, other, gain) in enumerate(
            [(1.0, 0.9, -0.1), (2.0, 0.5, 0.0), (9.0, 0.375, 0.25)]
        )
    ]
    return Found([ModelFigure("fisher", 0.5, 0.75, 12.4)], layers, 256, 60.0)


def test_gains_are_parts_of_what_is_bettered() -> None:
    last = figures().layers[-1]
    assert last.gain("fisher-rows") == pytest.approx(0.25)
    assert last.gain("fisher-rows", "own") == pytest.approx(0.5)
    assert last.gain("frobenius", "damage") == pytest.approx(0.75)


def test_tables_rank_layers_by_what_predicts() -> None:
    models, layers, ranking = figures().grids()
    assert models.rows == [["fisher", "0.5000", "0.7500", ""]]
    assert [row[0] for row in layers.rows] == [f"layer.{n}.key" for n in (2, 1, 0)]
    assert layers.rows[0][3:7] == ["0.375 / 0.400 / 0.300", "20.0 %", "25.0 %", "50.0 %"]
    over_rows = next(row for row in ranking.rows if row[0] == "weighted error, over fisher-rows")
    assert over_rows[1:] == ["1 of 3", "1.00", "-1.00"]
    over_plain = next(row for row in ranking.rows if row[0] == "weighted error, over frobenius")
    assert over_plain[2] == "-1.00"


def test_it_shows_and_writes_what_a_file_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page = tmp_path / "f.json", tmp_path / "page.md"
    file.write_text(json.dumps(asdict(figures())))
    assert Found.read(file).grids() == figures().grids()
    assert main(["--show", "--json", str(file), "--write", str(page)]) == 0
    assert "0.7500" in capsys.readouterr().out
    assert "| layer.2.key | 4×4 | 9.0 |" in page.read_text()
    file.write_text("{}")
    assert main(["--show", "--json", str(file)]) == 3
    assert "holds no figures of this tool" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["--show"], ["layers", "--show", "--json", "f"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
