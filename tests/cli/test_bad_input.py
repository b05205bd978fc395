"""Whatever is wrong: one sentence that names it, the right exit code, and nothing touched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.classifier import (
    BOOL,
    FLOAT,
    INT64,
    STRING,
    classifier,
    one_node,
    samples,
    weight,
    weights,
)
from tests.cli.conftest import Run

Refused = Callable[[Sequence[object], int, Sequence[str]], str]
COMMANDS = (["inspect"], ["plan"], ["rewrite"], ["verify", "m.onnx"])


# --- files that are no models --------------------------------------------------------------------


def content(kind: str) -> bytes:
    whole = classifier().SerializeToString()
    return {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "one_byte_short": whole[:-1],
        "random": np.random.default_rng(0).bytes(5000),
        "zeros": bytes(100),
        "text": b"this is a text file\n",
        "picture": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
        "no_graph": onnx.ModelProto(ir_version=8).SerializeToString(),
    }[kind]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    "kind",
    ["empty", "truncated", "one_byte_short", "random", "zeros", "text", "picture", "no_graph"],
)
def test_a_file_that_is_no_model(
    refused: Refused, model: Path, kind: str, command: list[str]
) -> None:
    Path("bad.onnx").write_bytes(content(kind))
    words = ["bad.onnx", "the file is empty" if kind == "empty" else "not an ONNX model"]
    refused([*command, "bad.onnx"], 3, words)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_path_that_is_no_file(refused: Refused, model: Path, command: list[str]) -> None:
    Path("sub").mkdir()
    refused([*command, "nothere.onnx"], 2, ["nothere.onnx", "no such file"])
    refused([*command, "sub"], 2, ["sub", "is a folder"])
    refused([*command, "m.onnx/x.onnx"], 2, ["m.onnx/x.onnx", "Not a directory"])


# --- models that cannot be handled ---------------------------------------------------------------


def unknown_operator() -> onnx.ModelProto:
    model = classifier()
    model.graph.node[0].op_type = "Bogus"
    return model


def unsorted() -> onnx.ModelProto:
    model = classifier()
    model.graph.node[1].input[0] = "nowhere"
    return model


def matmul_disagrees() -> onnx.ModelProto:
    return classifier(w2=np.ones((31, 32), np.float32))


def gemm_disagrees() -> onnx.ModelProto:
    return classifier(w3=np.ones((33, 10), np.float32))


def conv_disagrees() -> onnx.ModelProto:
    kernel = np.ones((4, 5, 1, 1), np.float32)
    data = ("x", FLOAT, ["N", 3, 8, 8])
    return one_node("Conv", [data], [("y", FLOAT, ["N", 4, 8, 8])], {"w": kernel})


BROKEN = [
    (unknown_operator, ["Bogus", "first"]),
    (unsorted, ["nowhere", "relu1"]),
    (matmul_disagrees, ["second", "MatMul", "'w2'", "31×32", "expected 32"]),
    (gemm_disagrees, ["head", "Gemm", "'w3'", "33×10", "expected 32"]),
    (conv_disagrees, ["node", "Conv", "'w'", "4×5×1×1", "expected 3"]),
]


@pytest.mark.parametrize("command", COMMANDS[:3], ids=" ".join)
@pytest.mark.parametrize(("build", "words"), BROKEN, ids=lambda v: getattr(v, "__name__", ""))
def test_a_model_that_contradicts_itself(
    refused: Refused,
    folder: Path,
    build: Callable[[], onnx.ModelProto],
    words: list[str],
    command: list[str],
) -> None:
    onnx.save(build(), "bad.onnx")
    refused([*command, "bad.onnx"], 3, ["bad.onnx", *words])


def with_bad_weight(value: float) -> onnx.ModelProto:
    """Return the classifier with a layer nothing depends on, whose weight has a bad entry."""
    model = classifier()
    matrix = weight(24, 32, 5)
    matrix[3, 4] = value
    model.graph.initializer.append(numpy_helper.from_array(matrix, "bad"))
    model.graph.node.append(helper.make_node("MatMul", ["x", "bad"], ["unused"], name="broken"))
    return model


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(
    run: Run, refused: Refused, folder: Path, value: float
) -> None:
    onnx.save(with_bad_weight(value), "m.onnx")
    for command in ("plan", "rewrite"):
        words = ["m.onnx", "node 'broken' (MatMul)", "'bad'", "NaN or infinite", "--skip 'broken'"]
        refused([command, "m.onnx"], 3, words)
    layers = json.loads(run("inspect", "m.onnx", "--json").out)["layers"]
    reasons = {layer["name"]: layer["skip"] for layer in layers}
    assert "NaN or infinite" in reasons.pop("broken")
    assert set(reasons.values()) == {None}
    ended = run("rewrite", "m.onnx", "--skip", "broken", "--rank", 4)
    assert (ended.code, ended.err) == (0, "")
    kept = {t.name: numpy_helper.to_array(t) for t in onnx.load("m.onnxlr.onnx").graph.initializer}
    assert not np.isfinite(kept["bad"][3, 4])
    assert "w1" not in kept


def test_outputs_that_are_not_finite_fail(run: Run, folder: Path) -> None:
    matrix = weights()["w2"].copy()
    matrix[3] = np.nan
    onnx.save(classifier(w2=matrix), "m.onnx")
    ended = run("rewrite", "m.onnx", "--skip", "second", "--rank", 4)
    assert ended.code == 1
    assert "output 'logits' has 60 NaN or infinite entries" in ended.err
    assert not Path("m.onnxlr.onnx").exists()


# --- data ----------------------------------------------------------------------------------------

MODULE = """
import numpy as np
good = {"x": np.ones((2, 24), np.float32)}
number = 3
def raises():
    yield good
    raise ValueError("two\\nlines")
def leaves():
    raise SystemExit(0)
def needs(argument):
    pass
def returns_nothing():
    pass
def yields_numbers():
    yield 3
def yields_lists():
    yield [[1.0] * 24]
def empty():
    return []
def ragged():
    yield {"x": [[1.0], [1.0, 2.0]]}
def boom():
    yield {"y": 1}
"""


def make_data() -> None:
    """Write data of every bad kind into the current folder."""
    x = samples(8)
    np.savez("missing.npz", y=x)
    np.savez("dtype.npz", x=x.astype(np.float64))
    np.savez("ints.npz", x=np.ones((8, 24), np.int64))
    np.savez("texts.npz", x=np.full((8, 24), "a"))
    np.savez("shape.npz", x=x[:, :5])
    np.savez("rank.npz", x=x[0])
    np.savez("nothing.npz")
    np.savez("no_samples.npz", x=x[:0])
    np.savez("pickled.npz", x=np.array([{}], object))
    np.save("pickled.npy", np.array([{}], object))
    np.savez_compressed("whole.npz", x=x)
    whole = bytearray(Path("whole.npz").read_bytes())
    Path("cut.npz").write_bytes(whole[:-30])
    whole[len(whole) // 2] ^= 255
    Path("flipped.npz").write_bytes(whole)
    Path("empty.npz").write_bytes(b"")
    Path("text.npy").write_text("text\n")
    Path("data.csv").write_text("1,2\n")
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000000, 24), }"
    Path("huge.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + header.ljust(117) + b"\n")
    Path("empty_folder").mkdir()
    Path("bad_folder").mkdir()
    np.savez("bad_folder/1.npz", x=x)
    np.savez("bad_folder/2.npz", x=x[:, :5])
    Path("feeds_of_mine.py").write_text(MODULE)
    Path("wrong_syntax.py").write_text("def f(:\n")
    Path("wrong_name.py").write_text("unheard_of\n")
    Path("wants_out.py").write_text("import sys; sys.exit(0)\n")


DATA = [
    ("missing.npz", ["'x' float [N, 24] is missing", "found 'y'"]),
    ("dtype.npz", ["'x' has dtype float64, expected float32"]),
    ("ints.npz", ["'x' has dtype int64, expected float32"]),
    ("texts.npz", ["'x' has dtype <U1, expected float32"]),
    ("shape.npz", ["'x' has shape [8, 5], expected [N, 24]"]),
    ("rank.npz", ["'x' has shape [24], expected [N, 24]"]),
    ("nothing.npz", ["'x' float [N, 24] is missing", "found nothing"]),
    ("no_samples.npz", ["no samples"]),
    ("pickled.npz", ["pickles", "never loaded"]),
    ("pickled.npy", ["pickles", "never loaded"]),
    ("cut.npz", ["cannot be read"]),
    ("flipped.npz", ["cannot be read"]),
    ("empty.npz", ["not a file that numpy wrote"]),
    ("text.npy", ["not a file that numpy wrote"]),
    ("data.csv", ["expected a .npz or .npy file"]),
    ("huge.npy", ["cannot be read"]),
    ("m.onnx", ["expected a .npz or .npy file"]),
    ("empty_folder", ["no .npz or .npy files"]),
    ("bad_folder", ["bad_folder/2.npz", "shape [8, 5]"]),
    ("nothere.npz", ["no such file"]),
    ("a" * 5000, ["File name too long"]),
    ("", ["is empty, expected a file"]),
    ("no_module_so:f", ["module 'no_module_so' cannot be imported"]),
    ("wrong_syntax:f", ["cannot be imported", "invalid syntax"]),
    ("wrong_name:f", ["cannot be imported", "unheard_of"]),
    ("wants_out:f", ["cannot be imported"]),
    ("feeds_of_mine:nothing", ["has no function 'nothing'"]),
    ("feeds_of_mine:number", ["has no function 'number'"]),
    ("feeds_of_mine:raises", ["failed with ValueError: two lines"]),
    ("feeds_of_mine:leaves", ["failed with SystemExit"]),
    ("feeds_of_mine:needs", ["failed with TypeError", "argument"]),
    ("feeds_of_mine:returns_nothing", ["returned NoneType, expected mappings"]),
    ("feeds_of_mine:yields_numbers", ["item 0", "found int, expected a mapping"]),
    ("feeds_of_mine:yields_lists", ["item 0", "found list, expected a mapping"]),
    ("feeds_of_mine:empty", ["holds no inputs"]),
    ("feeds_of_mine:ragged", ["'x' is no array"]),
    ("feeds_of_mine:boom", ["'x' float [N, 24] is missing"]),
]


@pytest.mark.parametrize(("data", "words"), DATA, ids=[data[:30] or "empty" for data, _ in DATA])
def test_data_that_does_not_fit(
    refused: Refused,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: str,
    words: list[str],
) -> None:
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    make_data()
    name = data[:50]
    refused(["verify", model, model, "--data", data], 2, [name, *words])
    refused(["rewrite", model, "--rank", 4, "--data", data], 2, [name, *words])


def no_random_inputs(kind: str) -> onnx.ModelProto:
    if kind == "strings":
        return one_node("Equal", [("x", STRING, [2])], [("y", BOOL, [2])], {"c": texts()}, 19)
    model = one_node("SequenceAt", [("x", FLOAT, None), ("i", INT64, [])], [("y", FLOAT, ["N"])])
    model.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", FLOAT, None))
    return model


def texts() -> np.ndarray:
    return np.array(["a", "b"], object)


@pytest.mark.parametrize("kind", ["strings", "sequence"])
def test_inputs_that_cannot_be_made_up(refused: Refused, folder: Path, kind: str) -> None:
    onnx.save(no_random_inputs(kind), "m.onnx")
    words = ["m.onnx", "no random values", "'x'", "--data"]
    refused(["verify", "m.onnx", "m.onnx"], 2, words)


def test_strings_can_be_given(run: Run, refused: Refused, folder: Path) -> None:
    onnx.save(no_random_inputs("strings"), "m.onnx")
    np.savez("s.npz", x=np.array(["a", "c"]))
    np.savez("bytes.npz", x=np.array([b"a", b"\xff"]))
    ended = run("verify", "m.onnx", "m.onnx", "--data", "s.npz")
    assert (ended.code, ended.err) == (0, "")
    refused(["verify", "m.onnx", "m.onnx", "--data", "bytes.npz"], 2, ["bytes.npz", "not UTF-8"])


# --- outputs -------------------------------------------------------------------------------------

OUTPUTS = [
    ("m.onnx", "is the input"),
    ("./m.onnx", "is the input"),
    ("sub/../m.onnx", "is the input"),
    ("link.onnx", "is the input"),
    ("hard.onnx", "is the input"),
    ("nodir/x.onnx", "does not exist"),
    ("m.onnx/x.onnx", "does not exist"),
    ("sub", "is a folder"),
    (".", "is a folder"),
    ("", "is a folder"),
    ("/proc/x.onnx", "cannot be written"),
]


@pytest.mark.parametrize("command", [["rewrite", "-o"], ["plan", "-o"], ["rewrite", "--report"]])
@pytest.mark.parametrize(("path", "word"), OUTPUTS, ids=[path or "empty" for path, _ in OUTPUTS])
def test_outputs_that_cannot_be_written(
    run: Run, refused: Refused, model: Path, path: str, word: str, command: list[str]
) -> None:
    Path("sub").mkdir()
    Path("link.onnx").symlink_to("m.onnx")
    os.link("m.onnx", "hard.onnx")
    if (path, command[1]) == ("/proc/x.onnx", "--report"):
        ended = run("rewrite", model, "--rank", 4, "--report", "/proc/x.json")
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        onnx.checker.check_model("m.onnxlr.onnx")  # the model is whole
        return
    refused([command[0], model, "--rank", 4, command[1], path], 2, [str(Path(path)), word])


def test_the_input_may_be_the_link(refused: Refused, model: Path) -> None:
    Path("link.onnx").symlink_to("m.onnx")
    refused(["rewrite", "link.onnx", "-o", "m.onnx"], 2, ["m.onnx", "is the input"])


def test_nothing_that_is_read_or_written_is_written_over(
    run: Run, refused: Refused, model: Path
) -> None:
    run("plan", model, "--rank", 4, "-o", "p.json")
    np.savez("d.npz", x=samples(4))
    refused(["rewrite", model, "--plan", "p.json", "-o", "p.json"], 2, ["p.json"])
    refused(["rewrite", model, "--plan", "p.json", "--report", "p.json"], 2, ["p.json"])
    refused(["rewrite", model, "--data", "d.npz", "-o", "d.npz"], 2, ["d.npz"])
    both = ["is both the report and the model"]
    refused(["rewrite", model, "-o", "same", "--report", "./same"], 2, both)
    refused(["rewrite", model, "--report", "m.onnxlr.onnx"], 2, both)


# --- plans ---------------------------------------------------------------------------------------


def entry(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda plan: plan["layers"]["second"].update(changes)


def options(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return entry(options=values)


def top(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda plan: plan.update(changes)


SECOND = "q.json: layers['second']"
PLANS: list[tuple[str, Callable[[dict[str, Any]], Any], list[str]]] = [
    ("other version", top(schema="onnxlr.plan/2"), ["q.json", "onnxlr.plan/2", "onnxlr.plan/1"]),
    ("no schema", lambda plan: plan.pop("schema"), ["q.json", "schema is null"]),
    ("unknown key", top(layer={}), ["q.json", "unknown key 'layer'", "expected layers"]),
    ("no layers", lambda plan: plan.pop("layers"), ["q.json: layers: found null"]),
    ("list of layers", top(layers=[]), ["q.json: layers: found [], expected an object"]),
    ("target", top(target="onx"), ["q.json", "target 'onx'", "did you mean 'onnx'"]),
    ("seed text", top(seed="1"), ["q.json: seed", '"1"', "whole number"]),
    ("seed below", top(seed=-1), ["q.json: seed", "-1", "at least 0"]),
    ("seed true", top(seed=True), ["q.json: seed", "true", "whole number"]),
    ("source", top(source="x"), ["q.json: source", "expected an object"]),
    ("sha256", top(source={"sha256": 5}), ["q.json: source.sha256", "expected a string"]),
    ("version", top(onnxlr=1), ["q.json: onnxlr", "expected a string"]),
    ("other model", top(source={"sha256": "0" * 64}), ["m.onnx", "000000"]),
    ("unknown layer", lambda p: p["layers"].update(nix={"method": "svd"}), ["'nix'", "m.onnx"]),
    ("entry", lambda p: p["layers"].update(second=3), [SECOND, "found 3, expected an object"]),
    ("entry key", entry(formt="int8"), [SECOND, "unknown key 'formt'", "format"]),
    ("method", entry(method="sdv"), [SECOND, "method 'sdv'", "did you mean 'svd'"]),
    ("method type", entry(method=3), [f"{SECOND}.method: found 3, expected a string"]),
    ("no method", lambda p: p["layers"]["second"].pop("method"), [f"{SECOND}.method"]),
    ("option", options(rnk=3), [f"{SECOND}.options: unknown key 'rnk'", "rank"]),
    ("options", entry(options=[3]), [f"{SECOND}.options: found [3], expected an object"]),
    ("two budgets", options(rank=3, ratio=0.5), [SECOND, "rank and ratio are both given"]),
    ("rank 0", options(rank=0), [SECOND, "rank 0", "at least 1"]),
    ("rank -1", options(rank=-1), [SECOND, "rank -1", "at least 1"]),
    ("rank 1.5", options(rank=1.5), [f"{SECOND}.options.rank: found 1.5", "whole number"]),
    ("rank text", options(rank="3"), [f'{SECOND}.options.rank: found "3"', "whole number"]),
    ("rank true", options(rank=True), [f"{SECOND}.options.rank: found true", "whole number"]),
    ("rank huge", options(rank=10**400), [f"{SECOND}.options.rank: found 1000", "…"]),
    ("ratio huge", options(ratio=10**400), [f"{SECOND}.options.ratio: found 1000", "…"]),
    ("ratio inf", options(ratio=float("inf")), [f"{SECOND}.options.ratio", "finite number"]),
    ("ratio text", options(ratio="a"), [f'{SECOND}.options.ratio: found "a"', "number"]),
    ("energy nan", options(energy=float("nan")), [f"{SECOND}.options.energy", "finite"]),
    ("energy 2", options(energy=2), [SECOND, "energy 2", "at most 1"]),
    ("format", entry(format="int7"), [SECOND, "format 'int7'", "int8"]),
    ("format type", entry(format=8), [f"{SECOND}.format: found 8, expected a string"]),
    ("metric", entry(metric="x"), [f"{SECOND}.metric", "frobenius"]),
    ("activations", entry(activations=[1]), [f"{SECOND}.activations: found [1]", "dynamic_int8"]),
    ("reason", entry(reason=5), [f"{SECOND}.reason: found 5, expected a string"]),
    ("kept", entry(method="keep"), [f"{SECOND}.options: unknown key 'rank', expected none"]),
]


@pytest.mark.parametrize(("_name", "change", "words"), PLANS, ids=[name for name, *_ in PLANS])
def test_a_plan_that_cannot_be_followed(
    run: Run,
    refused: Refused,
    model: Path,
    _name: str,
    change: Callable[[dict[str, Any]], Any],
    words: list[str],
) -> None:
    plan = json.loads(run("plan", model, "--rank", 4).out)
    change(plan)
    Path("q.json").write_text(json.dumps(plan))
    refused(["rewrite", model, "--plan", "q.json"], 2, words)


TEXTS = [
    ("", ["not JSON", "line 1"]),
    ("{", ["not JSON", "line 1"]),
    ("null", ["schema is null"]),
    ("[]", ["schema is null"]),
    ("[" * 100_000, ["cannot be read"]),
    ('{"schema": ' + "1" * 5000 + "}", ["cannot be read"]),
    ('{"schema": "onnxlr.plan/1", "layers": {"a": {}, "a": {}}}', ["'a'", "twice"]),
]


@pytest.mark.parametrize(("text", "words"), TEXTS, ids=[text[:12] or "empty" for text, _ in TEXTS])
def test_a_plan_that_is_none(refused: Refused, model: Path, text: str, words: list[str]) -> None:
    Path("q.json").write_text(text)
    refused(["rewrite", model, "--plan", "q.json"], 2, ["q.json", *words])


def test_a_plan_that_cannot_be_read(refused: Refused, model: Path) -> None:
    Path("sub").mkdir()
    Path("latin.json").write_bytes("{'é'}".encode("latin-1"))
    refused(["rewrite", model, "--plan", "nothere.json"], 2, ["nothere.json", "No such file"])
    refused(["rewrite", model, "--plan", "sub"], 2, ["sub", "Is a directory"])
    refused(["rewrite", model, "--plan", "latin.json"], 2, ["latin.json", "not UTF-8"])


def test_a_plan_for_a_layer_that_is_skipped(run: Run, refused: Refused, folder: Path) -> None:
    data, output = ("x", FLOAT, ["N", 4, 8, 8]), ("y", FLOAT, ["N", 4, 6, 6])
    kernel = np.ones((4, 1, 3, 3), np.float32)
    onnx.save(one_node("Conv", [data], [output], {"w": kernel}, group=4), "m.onnx")
    plan = json.loads(run("plan", "m.onnx").out)
    assert plan["layers"]["node"]["method"] == "keep"
    plan["layers"]["node"] = {"method": "svd", "options": {"rank": 1}}
    Path("q.json").write_text(json.dumps(plan))
    refused(["rewrite", "m.onnx", "--plan", "q.json"], 2, ["'node'", "depthwise"])


def test_a_plan_and_options(run: Run, refused: Refused, model: Path) -> None:
    run("plan", model, "--rank", 4, "-o", "p.json")
    for more in (["--rank", 3], ["--layers", "first"], ["--skip", "first"]):
        refused(["rewrite", model, "--plan", "p.json", *more], 2, ["plan"])


# --- arguments -----------------------------------------------------------------------------------

TOLERANCES = [
    ("cosin>=0.9", ["'cosin>=0.9'", "unknown measure 'cosin'", "did you mean 'cosine'?"]),
    ("foo>=1", ["unknown measure 'foo'", "cosine, worst_cosine, relative_l2, max_abs"]),
    ("cosine", ["'cosine' cannot be understood", "cosine>=0.99"]),
    ("cosine=0.9", ["'cosine=0.9' cannot be understood"]),
    ("cosine>=", ["cannot be understood"]),
    ("cosine>=x", ["'x' is not a number"]),
    ("cosine>=nan", ["'nan' is not a number"]),
    ("", ["tolerance ''", "cannot be understood"]),
    (" ", ["cannot be understood"]),
    ("cosine>=0.9,", ["tolerance 'cosine>=0.9,'", "cannot be understood"]),
    ("logit:cosine>=0.9", ["no output 'logit'", "did you mean 'logits'?"]),
    ("nix:cosine>=0.9", ["no output 'nix'", "it has logits"]),
]


@pytest.mark.parametrize(("tolerance", "words"), TOLERANCES, ids=[t for t, _ in TOLERANCES])
def test_tolerances_that_mean_nothing(
    refused: Refused, model: Path, tolerance: str, words: list[str]
) -> None:
    refused(["rewrite", model, "--tolerance", tolerance], 2, words)
    refused(["verify", model, model, "--tolerance", tolerance], 2, words)


ARGUMENTS = [
    (["--rank", "3", "--ratio", "0.5"], ["rank and ratio are both given"]),
    (["--rank", "0"], ["rank 0"]),
    (["--rank", "-2"], ["rank -2"]),
    (["--rank", "1.5"], ["rank 1.5", "whole number"]),
    (["--rank", "many"], ["rank many", "whole number"]),
    (["--rank", "8x12"], ["rank 8x12", "whole number", "tensor decompositions"]),
    (["--rank"], ["--rank"]),
    (["--ratio", "0"], ["ratio 0"]),
    (["--ratio", "-1"], ["ratio -1"]),
    (["--ratio", "nan"], ["ratio nan"]),
    (["--ratio", "2"], ["ratio 2 is more than weights take", "above 0 and at most 1"]),
    (["--method", "tucker", "--ratio", "1.01"], ["ratio 1.01", "at most 1"]),
    (["--bits", "0"], ["bits 0"]),
    (["--bits", "65"], ["bits 65 is more than weights take", "at most 64"]),
    (["--method", "ternary_svd", "--bits", "inf"], ["bits inf"]),
    (["--method", "sparse_quantized", "--bits", "100"], ["bits 100", "at most 64"]),
    (["--energy", "2"], ["energy 2"]),
    (["--energy", "0"], ["energy 0"]),
    (["--energy", "nan"], ["energy nan"]),
    (["--max-error", "1"], ["max_error 1"]),
    (["--max-error", "-0.1"], ["max_error -0.1"]),
    (["--max-error", "nan"], ["max_error nan"]),
    (["--seed", "1.5"], ["--seed", "1.5"]),
    (["--seed", "x"], ["--seed", "x"]),
    (["--method", "sdv"], ["method 'sdv'", "did you mean 'svd'?"]),
    (["--method", "wavelet"], ["method 'wavelet'", "expected one of", "svd"]),
    (["--method", "keep", "--rank", "3"], ["'keep' has no option 'rank'"]),
    (["--target", "onx"], ["target 'onx'", "did you mean 'onnx'?"]),
    (["--format", "int9"], ["format 'int9'", "int8"]),
    (["--layers", "frist"], ["pattern 'frist'", "did you mean 'first'?"]),
    (["--skip", "zzz"], ["pattern 'zzz'", "onnxlr inspect"]),
    (["--rnak", "3"], ["--rnak", "--rank"]),
    (["extra"], ["extra"]),
]


@pytest.mark.parametrize("command", ["rewrite", "plan"])
@pytest.mark.parametrize(("arguments", "words"), ARGUMENTS, ids=lambda v: " ".join(map(str, v)))
def test_arguments_that_cannot_be_followed(
    refused: Refused, model: Path, command: str, arguments: list[str], words: list[str]
) -> None:
    refused([command, model, *arguments], 2, words)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["rewrit", "m.onnx"], "'rewrite'"),
        (["bogus"], "bogus"),
        (["rewrite"], "MODEL"),
        (["verify", "m.onnx"], "REWRITTEN"),
        (["rewrite", "m.onnx", "--seed", "-1"], "seed -1"),
        (["verify", "m.onnx", "m.onnx", "--seed", "-1"], "seed -1"),
    ],
)
def test_commands_that_cannot_be_followed(
    refused: Refused, model: Path, arguments: list[str], word: str
) -> None:
    refused(arguments, 2, [word])


# --- two models that do not belong together ------------------------------------------------------


def test_verify_of_another_interface(refused: Refused, model: Path) -> None:
    other = classifier()
    other.graph.output[0].name = other.graph.node[-1].output[0] = "scores"
    onnx.save(other, "other.onnx")
    words = ["other.onnx", "['scores']", "m.onnx", "['logits']"]
    refused(["verify", model, "other.onnx"], 3, words)


@pytest.mark.parametrize(("to", "word"), [(STRING, "strings"), (INT64, "integers")])
def test_verify_of_another_kind_of_output(
    refused: Refused, model: Path, to: int, word: str
) -> None:
    other = classifier()
    other.graph.node[-1].output[0] = "floats"
    other.graph.node.append(helper.make_node("Cast", ["floats"], ["logits"], to=to))
    other.graph.output[0].type.tensor_type.elem_type = to
    onnx.save(other, "other.onnx")
    words = ["other.onnx", f"output 'logits' has {word}, expected floats"]
    refused(["verify", model, "other.onnx"], 1, words)


def test_verify_of_another_shape_of_output(refused: Refused, model: Path) -> None:
    narrow = {"w3": weights()["w3"][:, :7], "bias": weights()["bias"][:7]}
    other = classifier(**narrow)
    other.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    onnx.save(other, "other.onnx")
    words = ["other.onnx", "output 'logits' has shape [2, 7], expected [2, 10]"]
    refused(["verify", model, "other.onnx"], 1, words)
