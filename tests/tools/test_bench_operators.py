"""Tests of `tools/bench_operators.py`: what it times is right, and its ratios are what they say."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxlr.operators.packing import unpack
from onnxlr.runtime.library import describe_ops
from tools import bench_operators, operator_convolutions
from tools import operator_tables as tables
from tools.operator_chains import Chain, WrongResultError, build, forced, model_of, open_session
from tools.operator_contenders import PEERS, Float32, Piece, Ternary
from tools.operator_tables import READ, Cell
from tools.operator_timing import Bench, Effort, lengths, measure, settled

LIBRARY = describe_ops().problem
needs_library = pytest.mark.skipif(LIBRARY is not None, reason=f"no op library: {LIBRARY}")
TWICE = Effort(rounds=2, seconds=60, megabytes=0.01)


def _data(rows: int, inputs: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((rows, inputs), np.float32)


def _built(name: str, *arguments) -> Chain:
    try:
        return build(PEERS[name], *arguments)
    except Exception as error:
        if "onnxruntime" in type(error).__module__:
            pytest.skip(f"ONNX Runtime {ort.__version__} has no {name}: {error}")
        raise


# What is timed


@pytest.mark.parametrize("shape", [(128, 128), (256, 384), (384, 256)])
@pytest.mark.parametrize("name", PEERS)
def test_peers_compute_what_their_piece_says(name, shape):
    for nodes in (1, 4):
        chain = _built(name, shape, nodes, _data(40, shape[0]))
        for rows in (1, 9, 40):
            chain.runner(rows)
    # Rows from the first to the last are looked at.
    assert chain.sample[0] == 0
    assert chain.sample[-1] == 39


@pytest.mark.parametrize("name", PEERS)
def test_long_chains_keep_the_size_of_the_data(name):
    chain = _built(name, (128, 128), 150, _data(4, 128))
    found = np.abs(chain.session.run(None, {"x0": chain.data})[0])
    assert np.isfinite(found).all()
    assert 0.02 < np.sqrt((found**2).mean()) < 50


def test_every_product_has_weights_of_its_own():
    for contender in (*PEERS.values(), Ternary("any", 32)):
        rng = np.random.default_rng(0)
        weights = []
        for place in range(2):
            tensors = contender.piece(rng, 64, 64, place).tensors
            weights.append(max((numpy_helper.to_array(t) for t in tensors), key=np.size))
        assert (weights[0] != weights[1]).any(), contender.name


@pytest.mark.parametrize("group", [None, 32, 64])
def test_ternary_pieces_follow_the_specification(group):
    inputs, outputs = 80, 21
    piece = Ternary("any", group).piece(np.random.default_rng(0), inputs, outputs, 3)
    tensors = {t.name: numpy_helper.to_array(t) for t in piece.tensors}
    (node,) = piece.nodes
    assert node.domain == "onnxlr"
    assert (node.input[0], list(node.output)) == ("x3", ["x4"])
    kept = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    size = kept["group_size"]
    assert (kept["K"], kept["N"], size) == (inputs, outputs, group or inputs)
    ternary = unpack(tensors["codes3"], inputs, outputs)[0]
    x = _data(3, inputs)
    expected = np.zeros((3, outputs))
    for row in range(3):
        largest = float(np.abs(x[row]).max())
        for k in range(inputs):
            code = float(np.round(x[row, k] * np.float32(127 / largest)))
            scale = tensors["scales3"][0, k // size].astype(np.float64)
            expected[row] += largest / 127 * code * scale * ternary[k]
    np.testing.assert_allclose(piece.apply(x), expected, rtol=1e-4, atol=1e-5)


class WrongColumn(Float32):
    """A product whose node has one column of 384 wrong."""

    def piece(self, rng, inputs, outputs, place) -> Piece:
        right = super().piece(rng, inputs, outputs, place)
        weight = numpy_helper.to_array(right.tensors[0]).copy()
        weight[:, 7] *= -1
        return Piece(right.nodes, [numpy_helper.from_array(weight, f"weight{place}")], right.apply)


class Root(Float32):
    """Something that is not finite for negative data."""

    def piece(self, rng, inputs, outputs, place) -> Piece:  # noqa: ARG002  # the protocol's
        node = helper.make_node("Sqrt", [f"x{place}"], [f"x{place + 1}"])
        return Piece([node], [], np.sqrt)


def test_a_wrong_column_is_not_timed():
    bench = Bench(TWICE)
    good, wrong = Float32("good"), WrongColumn("wrong")
    data = _data(8, 384)
    built = {c.name: build(c, (384, 384), 1, data) for c in (good, wrong)}
    bench.time("384x384", built, 8, {})
    (cell,) = bench.cells
    assert list(cell.seconds) == ["good"]
    assert bench.wrong == ["wrong at 384x384, M=8"]


def test_a_row_that_is_not_finite_is_found_even_if_it_is_not_compared():
    data = np.ones((8, 16), np.float32)
    chain = build(Root(), (16, 16), 1, data)
    chain.runner(8)
    assert 1 not in chain.sample
    chain.data[1] = -1
    with pytest.raises(WrongResultError, match="no infinities"):
        chain.runner(8)


def test_dynamic_int8_is_the_fused_operator():
    assert bench_operators.int8_is_fused()


def test_forcing_an_instruction_set_ends_where_it_did_not_begin(monkeypatch):
    monkeypatch.delenv("ONNXLR_ISA", raising=False)
    with forced("scalar"):
        assert os.environ["ONNXLR_ISA"] == "scalar"
    assert "ONNXLR_ISA" not in os.environ
    monkeypatch.setenv("ONNXLR_ISA", "avx2")
    with pytest.raises(KeyError), forced("scalar"):
        raise KeyError
    assert os.environ["ONNXLR_ISA"] == "avx2"


def test_convolutions_of_one_window_compute_the_same():
    bench = Bench(TWICE)
    windows = [
        operator_convolutions.Window(3, 16, 16, 9),
        operator_convolutions.Window(1, 8, 24, 5),
    ]
    operator_convolutions.time_convolutions(bench, [], windows)
    assert not bench.wrong
    assert [list(cell.seconds) for cell in bench.cells] == [["Conv", "QLinearConv"]] * 2


def test_the_weights_of_a_convolution_are_compared():
    window = operator_convolutions.Window(3, 16, 16, 9)
    rng = np.random.default_rng(0)
    kernels = [operator_convolutions.Kernel.draw(rng, window, k) for k in range(4)]
    data = _data(16, 81).reshape(1, 16, 9, 9)
    session, other = (
        open_session(
            model_of(
                [operator_convolutions.float_piece(kernel, k) for k, kernel in enumerate(order)],
                data.shape[1:],
                data.shape[1:],
            )
        )
        for order in (kernels, kernels[::-1])
    )
    expected = session.run(None, {"x0": data})[0]
    Chain(session, 4, data, [0], expected, 0.06).runner(1)
    with pytest.raises(WrongResultError, match="off"):
        Chain(other, 4, data, [0], expected, 0.06).runner(1)


# How it is timed


@given(st.integers(1, 600), st.integers(1, 600), st.integers(1, 600), st.floats(0.001, 4))
def test_chains_are_as_long_as_their_bytes_and_their_work_ask(inputs, outputs, rows, megabytes):
    few, many = lengths((inputs, outputs), rows, megabytes)
    step = 1 if inputs == outputs else 2
    assert few % step == many % step == 0
    assert step <= many <= few
    size = inputs * outputs / 4
    assert few == 512 or few * size >= megabytes * 2**20 * (1 - 1e-12)
    assert (few - step) * size < megabytes * 2**20
    work = 2 * rows * inputs * outputs * many
    assert many == step or work <= 4e9


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def run(self, *seconds: float):
        """Take these seconds in turn."""
        turns = 0

        def one(_: object) -> None:
            nonlocal turns
            self.now += seconds[turns % len(seconds)]
            turns += 1

        return one


def test_rounds_end_when_they_were_asked_to():
    clock = Clock()
    runs = {"a": clock.run(1, 9), "b": clock.run(2)}
    taken = measure(runs, Effort(rounds=5, seconds=0, megabytes=1), clock)
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 5, "b": 5}
    assert taken["b"] == pytest.approx([2] * 5)


def test_rounds_end_when_the_ratios_have_settled():
    clock = Clock()
    runs = {"a": clock.run(1), "b": clock.run(2)}
    taken = measure(runs, Effort(rounds=None, seconds=1e9, megabytes=1), clock)
    assert len(taken["a"]) == 8


def test_ratios_have_settled_when_their_median_is_known_to_a_hundredth():
    # Quartiles of 0.9 and 1.1: the standard error of the median is .93 * .2 / sqrt(rounds).
    for rounds, expected in ((200, False), (400, True)):
        noisy = [0.85, 0.9, 1.0, 1.1, 1.15] * (rounds // 5)
        assert settled([[1.0] * rounds, noisy]) is expected


# What is made of it


def _cell(shape, rows, kernels=None, **seconds) -> Cell:
    named = {name.replace("_", " "): times for name, times in seconds.items()}
    return Cell(shape, rows, 10, named, {"amx gK": "amx"} if kernels is None else kernels)


def test_ratios_and_times_of_a_cell():
    cell = _cell("8x8", 1, amx_gK=[1.0, 2.0, 30.0], fp32=[2.0, 4.0, 60.0])
    assert cell.microseconds("amx gK") == 2e5
    assert cell.ratio("amx gK", "fp32").ratio == 0.5


def test_means_are_geometric_over_shapes_and_groups():
    kernels = {"amx gK": "amx", "amx g128": "amx"}
    cells = [
        _cell("8x8", 8, kernels, amx_gK=[1.0] * 3, amx_g128=[2.0] * 3, int8=[10.0] * 3),
        _cell("9x9", 8, {"amx gK": "amx"}, amx_gK=[4.0] * 3, int8=[10.0] * 3),
        _cell("9x9", 1, {"amx gK": "amx"}, amx_gK=[5.0] * 3, read=[1.0] * 3),
    ]
    means = {(m["isa"], m["peer"], m["rows"]): m for m in tables.summary(cells)}
    assert set(means) == {("amx", "int8", 8), ("amx", READ, 1)}
    eight = means["amx", "int8", 8]
    assert eight["ratio"] == pytest.approx(math.prod([0.1, 0.2, 0.4]) ** (1 / 3))
    assert eight["target"] == tables.TARGETS["amx", "int8"][8]
    # The share of a read is the other way round: the larger the better.
    assert means["amx", READ, 1]["ratio"] == pytest.approx(0.2)
    assert means["amx", READ, 1]["target"] == tables.SHARE_TARGET


def test_means_are_judged_by_their_targets():
    cells = [
        _cell("8x8", 8, amx_gK=[1.0] * 3, int8=[2.0] * 3),
        _cell("8x8", 32, amx_gK=[1.0] * 3, int8=[4.0] * 3),
        _cell("8x8", 1, amx_gK=[1.0] * 3, read=[0.8] * 3),
    ]
    grid = tables.summary_grid(tables.summary(cells))
    assert grid.header == ["", "M=1", "M=8", "M=32"]
    assert grid.rows == [
        ["amx / int8", "", "[red].500 > .35[/]", "[green].250 ≤ .46[/]"],
        ["read / amx", "[green].800 ≥ .70[/]", "", ""],
    ]
    assert "| amx / int8 |  | .500 > .35 | .250 ≤ .46 |" in grid.markdown()


def test_tables_leave_open_what_was_not_timed():
    cells = [
        _cell("8x8", 1, amx_gK=[1.0] * 3, fp32=[2.0] * 3, read=[0.5] * 3),
        _cell("8x8", 8, {}, fp32=[3.0] * 3),
    ]
    assert tables.times_grid(cells, "times").rows == [
        ["8x8", "amx gK", "1e+05", ""],
        ["8x8", "fp32", "2e+05", "3e+05"],
        ["8x8", "read", "5e+04", ""],
    ]
    assert tables.ratio_grid(cells, "amx", "fp32").rows == [["8x8", "gK", ".50 .50–.50"]]
    assert tables.share_grid(cells).rows == [["8x8", "0.50"]]


def test_scaling_is_one_thread_to_two():
    kernels = {"amx, 1": "amx", "amx, 2": "amx"}
    cell = Cell("8x8", 32, 1, {"amx, 1": [1.8, 1.8], "amx, 2": [1.0, 1.0]}, kernels)
    assert tables.scaling_grid([cell]).rows[0][3] == "1.80 1.80–1.80"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "3"], "expected a list like 384x384,768x3072"),
        (["--rows", "0"], "expected a list like 1,32"),
        (["--peers", "fp23"], "expected of 4-bit, 2-bit"),
        (["--rounds", "1"], "two rounds or more"),
    ],
)
def test_arguments_that_cannot_be_followed(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench_operators.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


TINY = ["--shapes", "64x64,32x96", "--rows", "1,40", "--rounds", "2", "--megabytes", "0.005"]


def test_it_runs_without_the_library(tmp_path, capsys):
    file = tmp_path / "out.json"
    arguments = ["--isas", "", "--peers", "fp32,int8", "--json", str(file)]
    assert bench_operators.main([*TINY, *arguments]) == 0
    found = json.loads(file.read_text())
    labels = [(c["shape"], c["rows"]) for c in found["products"]]
    assert labels == [(s, rows) for s in ("64x64", "32x96") for rows in (1, 40)]
    assert [list(c["seconds"]) for c in found["products"][:2]] == [
        ["fp32", "int8", READ],
        ["fp32", "int8"],
    ]
    assert "64x64" in capsys.readouterr().out


def test_without_the_library_it_says_so():
    environment = {**os.environ, "ONNXLR_OPS_LIBRARY": "off"}
    done = subprocess.run(
        [sys.executable, bench_operators.__file__],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "--isas ''" in done.stderr


@needs_library
def test_it_times_the_kernels(tmp_path, capsys):
    isa = describe_ops().available[0]
    arguments = ["--isas", f"{isa},scalar", "--groups", "K,32", "--peers", "fp32"]
    files = ["--json", str(tmp_path / "out.json"), "--markdown", str(tmp_path / "out.md")]
    assert bench_operators.main([*TINY, *arguments, *files]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    names = [f"{name} g{group}" for name in dict.fromkeys((isa, "scalar")) for group in ("K", 32)]
    for cell in found["products"]:
        assert set(cell["seconds"]) == {"fp32", *names} | ({READ} if cell["rows"] == 1 else set())
        assert set(cell["kernels"]) == set(names)
        assert all(len(times) == 2 and min(times) > 0 for times in cell["seconds"].values())
    for mean in found["means"]:
        assert mean["ratio"] > 0
    assert (tmp_path / "out.md").read_text().startswith("## Microseconds")


@needs_library
def test_an_instruction_set_that_is_not_there_is_left_out(tmp_path, capsys):
    arguments = ["--isas", "z80,scalar", "--peers", "fp32", "--groups", "K"]
    file = tmp_path / "out.json"
    assert bench_operators.main([*TINY, *arguments, "--json", str(file)]) == 0
    for cell in json.loads(file.read_text())["products"]:
        assert set(cell["kernels"]) == {"scalar gK"}
    assert "z80 gK cannot be run" in capsys.readouterr().err


@needs_library
def test_it_times_convolutions_of_the_library(capsys):
    bench = Bench(TWICE)
    operator_convolutions.time_convolutions(
        bench, ["scalar"], [operator_convolutions.Window(3, 8, 24, 5)]
    )
    said = capsys.readouterr().err
    if "TernaryConv(-1) is not a registered function/op" in said:
        pytest.skip("this op library has no TernaryConv")
    assert not bench.wrong
    (cell,) = bench.cells
    assert cell.ours("scalar") == ["scalar"]
    assert set(cell.seconds) == {"Conv", "QLinearConv", "scalar"}
    assert len(tables.convolution_grid([cell]).rows) == 3
