"""Tests of `tools/reproduce_ternary_svd.py`: counts, figures, and a run on a small network."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxlr.evidence import UNKNOWN
from onnxlr.layers import find_layers
from onnxlr.methods import TernarySvdOptions
from onnxlr.model import open_model
from onnxlr.plan import Choice, Proposal
from onnxlr.planning import Request
from onnxlr.planning.uniform import propose
from tests.onelayer import model_of
from tests.training.ternary_net import samples, ternary_net
from tools import reproduce_ternary_svd as tool
from tools.ternary_svd_rows import MARK, ORIGINAL, Counts, Document, Row, count

has_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch, of extra train, is not installed"
)

FOUND = Document(
    {"network": "net", "steps": 5, "batch": 8, "seed": 3},
    [
        Row(ORIGINAL, 0.93, Counts(additions=9_000_000, multiplications=9_000_000), 1000, 0.0),
        Row("direct", 0.92, Counts(2, 500, 2000, 600, 4_000_000, 30_000), 500, 12.5),
        Row("trained", 0.9275, Counts(2, 500, 1500, 600, 3_000_000, 20_000), 400, 60, 4, (2, 1, 5)),
    ],
)


def test_figures_are_written_and_read_as_they_are(tmp_path):
    file = tmp_path / "figures.json"
    FOUND.write(file)
    found = Document.read(file)
    assert found.run == FOUND.run
    assert [vars(row) | {"held": None} for row in found.rows] == [
        vars(row) | {"held": None} for row in FOUND.rows
    ]
    assert found.grid() == FOUND.grid()
    file.write_text('{"rows": [{}]}')
    with pytest.raises(ValueError, match="holds no figures of this tool"):
        Document.read(file)


def test_the_table():
    assert FOUND.grid().rows == [
        [ORIGINAL, "0.9300", "–", "–", "–", "9.00 M", "9.00 M", "1", "–", "0"],
        ["direct", "0.9200", "0.002 M", "4.00", "30.0%", "4.00 M", "0.03 M", "0", "–", "12"],
        ["trained", "0.9275", "0.002 M", "3.00", "40.0%", "3.00 M", "0.02 M", "0", "4 of 5", "60"],
    ]


def test_what_is_within_three_tenths_of_a_point():
    assert FOUND.passed
    lower = Row("trained", 0.9269, FOUND.rows[2].counts, 400, 60.0, 4, (2.0, 1.0, 5.0))
    assert not Document(FOUND.run, [*FOUND.rows, lower]).passed
    assert not Document(FOUND.run, FOUND.rows[1:]).passed


@pytest.mark.parametrize(
    ("form", "first", "second"),
    [
        ("channel", 5 * 4, 5 * 4),
        ("input", 11 * 9, 5 * 4),
        ("spatial", 11 * 4, 5 * 4),
        ("spatial_swapped", 5 * 9, 5 * 4),
    ],
)
def test_counts_are_of_every_place_of_every_stage(form, first, second):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((40, 32, 3, 3)).astype(np.float32)
    data = rng.standard_normal((1, 32, 11, 9)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], "layer", strides=[2, 2])
    model = open_model(model_of([node], {"x": data}, ["y"], {"w": weight}))
    request = Request("ternary_svd", TernarySvdOptions(rank=20, form=form, fit="published"))
    (proposal,) = propose(model, find_layers(model), request, UNKNOWN)
    one, other = (stage.weight.trits for stage in proposal.chain.stages)
    nonzeros = [int(np.count_nonzero(trits)) for trits in (one, other)]
    found = count([proposal])
    assert found.trits == one.size + other.size
    assert found.nonzeros == sum(nonzeros)
    assert found.additions == nonzeros[0] * first + nonzeros[1] * second
    assert found.multiplications == 20 * first
    kept = count([Proposal(proposal.layer, Choice("keep"))])
    assert kept.additions == kept.multiplications == 40 * 32 * 9 * 5 * 4
    assert kept.trits == 0


def test_wrong_usage(capsys):
    for arguments in (["--show"], ["--steps", "0"], ["--nothing"]):
        with pytest.raises(SystemExit) as ended:
            tool.main(arguments)
        assert ended.value.code == 2
    assert "--show needs --json" in capsys.readouterr().err


def test_figures_can_be_shown_and_put_into_a_page(tmp_path, capsys):
    file, page = tmp_path / "f.json", tmp_path / "page.md"
    FOUND.write(file)
    assert tool.main(["--json", str(file), "--show", "--write", str(page)]) == 0
    assert "trained" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert text.startswith(MARK)
    assert "| direct | 0.9200 |" in text
    assert tool.main(["--json", str(tmp_path / "none.json"), "--show"]) == 3


def test_without_a_model(tmp_path, capsys):
    pytest.importorskip("torch", reason="torch, of extra train, is not installed")
    assert tool.main(["--model", str(tmp_path / "none.onnx")]) == 3
    assert "no such file" in capsys.readouterr().err


@has_torch
def test_a_quick_run_on_a_small_network(tmp_path, monkeypatch):
    from tools import train_demo_model
    from tools.train_demo_model import Split

    model, file = tmp_path / "net.onnx", tmp_path / "figures.json"
    onnx.save(ternary_net(), model)
    made = {"train": samples(60), "t10k": samples(40, seed=2)}
    monkeypatch.setattr(train_demo_model, "fetch_idx", lambda cache: cache)
    monkeypatch.setattr(
        train_demo_model,
        "load_split",
        lambda _folder, name: Split(made[name]["image"], made[name]["label"]),
    )
    monkeypatch.setattr(tool, "HELD_OUT", 12)
    monkeypatch.setattr(tool, "TRAINED", 0.5)
    monkeypatch.setattr(tool, "AGREEMENT", "cosine>=-1")
    monkeypatch.setattr(
        tool, "QUICK", tool.Lengths((0.5,), steps=3, every=2, fits=("published",), batch=16)
    )
    arguments = ["--quick", "--model", model, "--json", file, "--threads", 1, "--cache", tmp_path]
    assert tool.main([str(one) for one in arguments]) in (0, 1)
    run = json.loads(file.read_text())["run"]
    assert run["network"] == "net"
    assert {"torch", "onnxruntime", "numpy", "onnxlr"} <= run.keys()
    whole, direct, trained = Document.read(file).rows
    assert (whole.name, whole.counts.trits) == (ORIGINAL, 0)
    assert direct.name == "direct, published, 50%"
    assert trained.name == "trained, published, 50%"
    for row in (direct, trained):
        assert row.counts.layers == 4
        assert row.counts.multiplications < whole.counts.multiplications
        assert row.bytes < whole.bytes
        assert row.steps is None or row.steps <= 3
    assert trained.held[1] <= trained.held[0]
