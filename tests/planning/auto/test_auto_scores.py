"""Drops of models, against their outputs in ONNX Runtime and numpy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxlr.errors import DataError, ModelError, RuntimeFailureError, UsageError
from onnxlr.planning.auto.goal import Limit
from onnxlr.planning.auto.scores import Scores
from onnxlr.runtime import store_arrays
from tests.classifier import FEATURES, classifier, weights
from tests.onelayer import Array, model_of

ALL = (Limit("cosine", 0.1), Limit("relout", 0.1), Limit("top1", 0.1))


def measure_drops(
    original: Path,
    models: Sequence[Path],
    feeds: Sequence[str],
    limits: Sequence[Limit],
    name: str,
    isolate: bool = True,
) -> list[dict[str, float] | str]:
    """Return how much worse models are than the original; see `Scores`."""
    with Scores(original, feeds, limits, name, isolate) as scores:
        return [scores.drops(model) for model in models]


def two_outputs(scale: float = 1.0, other: float = 1.0, seed: int = 3) -> onnx.ModelProto:
    """Return `x (N, 24) → y (N, 6), z (N, 1)`, each with a part of noise, and ids of integers."""
    random = np.random.default_rng(0)
    w, v = random.standard_normal((24, 6)), random.standard_normal((24, 1))
    noise = np.random.default_rng(seed)
    w = w + (scale - 1) * noise.standard_normal(w.shape)
    v = v + (other - 1) * noise.standard_normal(v.shape)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("MatMul", ["x", "v"], ["z"]),
        helper.make_node("ArgMax", ["y"], ["ids"], axis=-1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 24])
    outputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, None),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, None),
    ]
    constants = [numpy_helper.from_array(a.astype(np.float32), n) for a, n in ((w, "w"), (v, "v"))]
    graph = helper.make_graph(nodes, "g", [x], outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def feeds(tmp_path: Path) -> list[str]:
    """Store three sets of inputs of different sizes."""
    random = np.random.default_rng(5)
    files = []
    for number, rows in enumerate((4, 7, 1)):
        files.append(str(tmp_path / f"feed{number}.npz"))
        store_arrays(
            Path(files[-1]), {"x": random.standard_normal((rows, FEATURES)).astype(np.float32)}
        )
    return files


def save(model: onnx.ModelProto, folder: Path, name: str) -> Path:
    onnx.save(model, folder / name)
    return folder / name


def outputs_of(file: Path, feeds: Sequence[str]) -> dict[str, Array]:
    """Return each output of all runs, one below the other, in float64."""
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    runs = [session.run(None, {"x": np.load(feed)["x"]}) for feed in feeds]
    return {n: np.concatenate([r[k] for r in runs]).astype(float) for k, n in enumerate(names)}


def test_drops_are_of_the_worst_output(tmp_path, feeds):
    original = save(two_outputs(), tmp_path, "o.onnx")
    models = [
        save(two_outputs(1.3, 1.1), tmp_path, "a.onnx"),
        save(two_outputs(1.05, 1.6), tmp_path, "b.onnx"),
    ]
    found = measure_drops(original, models, feeds, ALL, "m", isolate=False)
    one = outputs_of(original, feeds)
    for model, drops in zip(models, found, strict=True):
        assert isinstance(drops, dict)
        two = outputs_of(model, feeds)
        floats = [(one[name].ravel(), two[name].ravel()) for name in ("y", "z")]
        cosines = [p @ q / np.linalg.norm(p) / np.linalg.norm(q) for p, q in floats]
        distances = [np.linalg.norm(p - q) / np.linalg.norm(p) for p, q in floats]
        assert drops["cosine"] == pytest.approx(1 - min(cosines), rel=1e-5)
        assert drops["relout"] == pytest.approx(max(distances), rel=1e-5)
        # z has rows of one entry, whose largest is no news
        same = one["y"].argmax(-1) == two["y"].argmax(-1)
        assert drops["top1"] == pytest.approx(1 - same.mean())
        assert list(drops) == ["cosine", "relout", "top1"]
    assert 0 < found[0]["top1"] < 1
    assert min(d["relout"] for d in found) > 0.03


def test_the_original_loses_nothing(tmp_path, feeds):
    original = save(classifier(), tmp_path, "o.onnx")
    found = measure_drops(original, [original, original], feeds, ALL, "m", isolate=False)
    assert found == [{"cosine": 0.0, "relout": 0.0, "top1": 0.0}] * 2


def test_only_what_is_asked_is_measured(tmp_path, feeds):
    original = save(classifier(), tmp_path, "o.onnx")
    (found,) = measure_drops(original, [original], feeds, ALL[2:], "m", isolate=False)
    assert found == {"top1": 0.0}
    assert measure_drops(original, [original], feeds, (), "m", isolate=False) == [{}]


def test_models_that_cannot_run_say_why(tmp_path, feeds):
    original = save(classifier(), tmp_path, "o.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"no model")
    wrong = classifier()
    del wrong.graph.initializer[0]
    models = [
        tmp_path / "noise.onnx",
        save(wrong, tmp_path, "wrong.onnx"),
        tmp_path / "missing.onnx",
        save(two_outputs(), tmp_path, "other.onnx"),
        original,
    ]
    found = measure_drops(original, models, feeds, ALL, "m", isolate=False)
    assert all(isinstance(drops, str) and "\n" not in drops for drops in found[:4])
    assert all("cannot load it" in str(drops) for drops in found[:3])
    assert "output 'logits' has" in str(found[3])
    assert found[4] == {"cosine": 0.0, "relout": 0.0, "top1": 0.0}


def test_models_run_in_processes_of_their_own(tmp_path, feeds):
    original = save(two_outputs(), tmp_path, "o.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"no model")
    models = [tmp_path / "noise.onnx", save(two_outputs(1.2, 1.1), tmp_path, "m.onnx")]
    found = measure_drops(original, models, feeds, ALL, "m")
    assert found == measure_drops(original, models, feeds, ALL, "m", isolate=False)


def test_outputs_that_are_not_finite_are_no_drop(tmp_path, feeds):
    original = save(classifier(), tmp_path, "o.onnx")
    broken = weights()["w3"].copy()
    broken[0, 0] = np.inf
    model = save(classifier(w3=broken), tmp_path, "m.onnx")
    (found,) = measure_drops(original, [model], feeds, ALL, "m", isolate=False)
    assert "NaN or infinite" in str(found)
    with pytest.raises(ModelError, match=r"m: output 'logits' has .* NaN or infinite"):
        measure_drops(model, [original], feeds, ALL, "m", isolate=False)


def test_an_original_that_cannot_run_is_an_error(tmp_path, feeds):
    (tmp_path / "noise.onnx").write_bytes(b"no model")
    with pytest.raises(RuntimeFailureError, match="name of it"):
        measure_drops(tmp_path / "noise.onnx", [], feeds, ALL, "name of it", isolate=False)


def test_nothing_is_compared_without_inputs(tmp_path):
    original = save(classifier(), tmp_path, "o.onnx")
    with pytest.raises(DataError, match="m: there are no inputs"):
        measure_drops(original, [original], [], ALL, "m", isolate=False)


def test_measures_need_outputs_they_are_about(tmp_path, feeds):
    x = np.ones((3, 4), np.float32)
    file = tmp_path / "feed.npz"
    store_arrays(file, {"x": x})
    flat = model_of([helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], {"x": x}, ["y"], {})
    original = save(flat, tmp_path, "flat.onnx")
    assert measure_drops(original, [original], [str(file)], ALL[:2], "m", isolate=False) == [
        {"cosine": 0.0, "relout": 0.0}
    ]
    with pytest.raises(UsageError, match="no float output with rows of entries, which 'top1'"):
        measure_drops(original, [original], [str(file)], ALL, "m", isolate=False)
    whole = two_outputs()
    del whole.graph.output[1:]
    original = save(whole, tmp_path, "whole.onnx")
    with pytest.raises(UsageError, match="no float output, which 'cosine'"):
        measure_drops(original, [original], feeds, ALL, "m", isolate=False)


FUNCTIONS = """
import numpy as np, onnx
calls = []
def size(path):
    assert isinstance(path, str)
    calls.append(path)
    model = onnx.load(path)
    arrays = map(onnx.numpy_helper.to_array, model.graph.initializer)
    return np.float32(sum(np.abs(array).sum() for array in arrays))
def picky(path):
    if path.endswith("m.onnx"):
        raise RuntimeError("not this\\none")
    return 1
def fails(path): return 1 / 0
def leaves(path): raise SystemExit(3)
def nothing(path): pass
def text(path): return "0.5"
def many(path): return np.ones(1)
def complicated(path): return 1j
def nan(path): return float("nan")
def infinite(path): return np.float32("inf")
def tensor(path): return np.array(2.5)
number = 3
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """Let a module `scores_of_mine` be found, and return it."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "scores_of_mine.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "scores_of_mine", raising=False)
    import scores_of_mine

    yield scores_of_mine
    sys.modules.pop("scores_of_mine", None)


def mine(function: str) -> tuple[Limit, ...]:
    return (Limit(f"scores_of_mine:{function}", 1),)


def test_functions_score_files(tmp_path, feeds, functions):
    original = save(classifier(), tmp_path, "o.onnx")
    larger = {name: 2 * value for name, value in weights().items()}
    models = [save(classifier(**larger), tmp_path, "m.onnx"), original]
    limits = (*mine("size"), Limit("cosine", 1))
    found = measure_drops(original, models, feeds, limits, "m", isolate=False)
    total = sum(np.abs(value).sum() for value in weights().values())
    assert isinstance(found[0], dict)
    assert found[0]["scores_of_mine:size"] == pytest.approx(-total, rel=1e-5)
    assert found[0]["cosine"] > 0
    assert found[1] == {"scores_of_mine:size": 0.0, "cosine": 0.0}
    # the original once for both
    assert functions.calls == [str(original), str(models[0]), str(models[1])]


def test_functions_do_not_see_models_that_cannot_run(tmp_path, feeds, functions):
    original = save(classifier(), tmp_path, "o.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"no model")
    found = measure_drops(
        original, [tmp_path / "noise.onnx", original], feeds, mine("size"), "m", isolate=False
    )
    assert "cannot load it" in str(found[0])
    assert found[1] == {"scores_of_mine:size": 0.0}
    assert functions.calls == [str(original)] * 2


def test_functions_may_need_no_inputs(tmp_path, functions):
    original = save(classifier(), tmp_path, "o.onnx")
    assert measure_drops(original, [original], [], mine("tensor"), "m", isolate=False) == [
        {"scores_of_mine:tensor": 0.0}
    ]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("fails", "scores_of_mine:fails: failed with ZeroDivisionError: division by zero"),
        ("leaves", "scores_of_mine:leaves: failed with SystemExit: 3"),
        ("nothing", "returned NoneType, expected a number"),
        ("text", "returned str, expected a number"),
        ("many", "returned ndarray, expected a number"),
        ("complicated", "returned complex, expected a number"),
        ("nan", "scores_of_mine:nan: returned nan, expected a finite number"),
        ("infinite", "returned inf, expected a finite number"),
        ("number", "has no function 'number'"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_functions_that_give_no_score_of_the_original_are_refused(
    tmp_path, feeds, functions, function, said
):
    original = save(classifier(), tmp_path, "o.onnx")
    with pytest.raises(DataError, match=said) as caught:
        measure_drops(original, [], feeds, mine(function), "m", isolate=False)
    assert "\n" not in str(caught.value)


def test_modules_that_cannot_be_found_are_refused(tmp_path, feeds):
    original = save(classifier(), tmp_path, "o.onnx")
    limits = (Limit("no_such_module_anywhere:f", 1),)
    with pytest.raises(DataError, match="no_such_module_anywhere"):
        measure_drops(original, [], feeds, limits, "m", isolate=False)


def test_a_function_that_fails_on_a_model_says_so_of_that_model(tmp_path, feeds, functions):
    original = save(classifier(), tmp_path, "o.onnx")
    models = [save(classifier(), tmp_path, "m.onnx"), original]
    found = measure_drops(original, models, feeds, mine("picky"), "m", isolate=False)
    assert found == [
        "scores_of_mine:picky: failed with RuntimeError: not this one",
        {"scores_of_mine:picky": 0.0},
    ]


def test_models_may_come_one_by_one(tmp_path, feeds, monkeypatch):
    original = save(two_outputs(), tmp_path, "o.onnx")
    model = save(two_outputs(1.2), tmp_path, "m.onnx")
    expected = measure_drops(original, [model], feeds, ALL, "m", isolate=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = sorted(tmp_path.iterdir())
    with Scores(original, feeds, ALL, "m", isolate=False) as scores:
        original.unlink()  # it has been run
        assert [scores.drops(model), scores.drops(model)] == expected * 2
    assert sorted(tmp_path.iterdir()) == [file for file in before if file != original]
