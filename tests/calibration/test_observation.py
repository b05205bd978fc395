"""Observation: against moments that numpy computes from the very same data."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxlr.calibration import observation, observe
from onnxlr.errors import DataError, RuntimeFailureError, UsageError
from onnxlr.layers import find_layers, layer_keys
from onnxlr.model import open_model
from onnxlr.statistics import LayerStatistics, Moments, Statistics
from tests.classifier import classifier, samples, weights
from tests.fixtures import save_external
from tests.onelayer import model_of, run

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(0)


def normal(*shape: int, dtype: Any = np.float32) -> Array:
    return np.asarray(RANDOM.standard_normal(shape), dtype)


def seen(model: Any, data: Any, **options: Any) -> tuple[Statistics, dict[str, LayerStatistics]]:
    """Return the statistics, and those of each observed layer by name."""
    opened = open_model(model)
    layers = find_layers(opened)
    options.setdefault("isolate", False)
    options.setdefault("holdout", 0)
    found = observe(opened, layers, data, **options)
    keys = layer_keys(opened, layers)
    found.check(opened.name, keys)
    return found, {name: found.layers[key] for name, key in keys.items() if key in found.layers}


def check(moments: Moments, *rows: Array, rtol: float = 1e-10) -> None:
    """Compare with the rows of each site, `(rows, inputs)`."""
    together = np.concatenate([r.astype(np.float64) for r in rows])
    np.testing.assert_array_equal(moments.counts, [len(r) for r in rows])
    for mean, low, high, part in zip(moments.means, moments.low, moments.high, rows, strict=True):
        np.testing.assert_allclose(mean[0], part.astype(np.float64).mean(axis=0), rtol, atol=1e-10)
        assert low == part.min()
        assert high == part.max()
    covariance = together.T @ together / len(together)
    np.testing.assert_allclose(moments.covariance[0], covariance, rtol, atol=1e-10)
    np.testing.assert_array_equal(moments.covariance, moments.covariance.swapaxes(1, 2))
    assert moments.covariance.dtype == moments.means.dtype == np.float64
    assert moments.counts.dtype == np.int64


# --- matrices ------------------------------------------------------------------------------------

W = normal(6, 4)
SITES: dict[str, tuple[list[onnx.NodeProto], Array, dict[str, Array], Callable[[Array], Array]]] = {
    "MatMul": (
        [helper.make_node("MatMul", ["x", "w"], ["y"], "l")],
        normal(9, 6),
        {"w": W},
        np.array,
    ),
    "rank 4": (
        [helper.make_node("MatMul", ["x", "w"], ["y"], "l")],
        normal(2, 3, 5, 6),
        {"w": W},
        lambda x: x.reshape(-1, 6),
    ),
    "a vector": (
        [helper.make_node("MatMul", ["x", "w"], ["y"], "l")],
        normal(6),
        {"w": W},
        lambda x: x[None],
    ),
    "W @ x": (
        [helper.make_node("MatMul", ["w", "x"], ["y"], "l")],
        normal(2, 6, 5),
        {"w": W.T.copy()},
        lambda x: np.concatenate(list(x.swapaxes(1, 2))),
    ),
    "W @ vector": (
        [helper.make_node("MatMul", ["w", "x"], ["y"], "l")],
        normal(6),
        {"w": W.T.copy()},
        lambda x: x[None],
    ),
    "a stack": (
        [helper.make_node("MatMul", ["x", "w"], ["y"], "l")],
        normal(3, 5, 6),
        {"w": normal(3, 6, 4)},
        lambda x: x.reshape(-1, 6),
    ),
    "W @ x, a stack": (
        [helper.make_node("MatMul", ["w", "x"], ["y"], "l")],
        normal(3, 6, 5),
        {"w": normal(3, 4, 6)},
        lambda x: x.swapaxes(1, 2).reshape(-1, 6),
    ),
    "Gemm": ([helper.make_node("Gemm", ["x", "w"], ["y"], "l")], normal(9, 6), {"w": W}, np.array),
    "Gemm, transB": (
        [helper.make_node("Gemm", ["x", "w"], ["y"], "l", transB=1)],
        normal(9, 6),
        {"w": W.T.copy()},
        np.array,
    ),
    "Gemm, transA": (
        [helper.make_node("Gemm", ["x", "w"], ["y"], "l", transA=1)],
        normal(6, 9),
        {"w": W},
        np.transpose,
    ),
    "Gemm on the left": (
        [helper.make_node("Gemm", ["w", "x"], ["y"], "l")],
        normal(6, 9),
        {"w": W.T.copy()},
        np.transpose,
    ),
    "Gemm on the left, both transposed": (
        [helper.make_node("Gemm", ["w", "x"], ["y"], "l", transA=1, transB=1)],
        normal(9, 6),
        {"w": W},
        np.array,
    ),
}


@pytest.mark.parametrize("kind", SITES)
def test_matrices(kind: str) -> None:
    nodes, x, constants, rows = SITES[kind]
    model = model_of(nodes, {"x": x}, ["y"], constants)
    found, layers = seen(model, {"x": x})
    check(layers["l"].fit, rows(x))
    (y,) = run(model, {"x": x})
    np.testing.assert_allclose(layers["l"].fit.output_low, [y.min()], rtol=1e-6)
    np.testing.assert_allclose(layers["l"].fit.output_high, [y.max()], rtol=1e-6)
    assert found.unobserved == {}
    assert layers["l"].holdout is None


def test_inner_layers_see_what_the_layers_before_give() -> None:
    x = samples(100)
    found, layers = seen(classifier(), {"x": x}, batch=7)
    hidden = np.maximum(x.astype(np.float64) @ weights("float64")["w1"], 0)
    check(layers["first"].fit, x)
    moments = layers["second"].fit
    np.testing.assert_allclose(moments.covariance[0], hidden.T @ hidden / 100, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moments.mean[0], hidden.mean(axis=0), rtol=1e-4, atol=1e-6)
    assert found.data == "the given data: 15 runs, 100 samples; nothing held out"


def test_sites_of_one_weight_are_added_and_their_means_kept_apart() -> None:
    x, z, w = normal(9, 6), normal(4, 6) + 2, normal(6, 6)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], "l"),
        helper.make_node("MatMul", ["z", "w"], ["v"], "other"),
        helper.make_node("Gemm", ["z", "w"], ["t"], "turned", transB=1),
    ]
    model = model_of(nodes, {"x": x, "z": z}, ["y", "v", "t"], {"w": w})
    _, layers = seen(model, {"x": x, "z": z})
    moments = layers["l"].fit
    both = np.concatenate([x, z]).astype(np.float64)
    np.testing.assert_allclose(moments.covariance[0], both.T @ both / 13)
    np.testing.assert_array_equal(moments.counts, [9, 4, 0])  # the last has outputs for inputs
    np.testing.assert_allclose(moments.means[1, 0], z.mean(axis=0), rtol=1e-5)
    assert np.isnan(moments.low).tolist() == [False, False, True]
    assert moments.output_high[1] == pytest.approx((z @ w).max(), rel=1e-5)


def test_layers_of_equal_weights_are_told_apart() -> None:
    x, z, w = normal(9, 6), normal(4, 6), normal(6, 6)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], "one"),
        helper.make_node("MatMul", ["z", "v"], ["u"], "two"),
    ]
    model = model_of(nodes, {"x": x, "z": z}, ["y", "u"], {"w": w, "v": w})
    _, layers = seen(model, {"x": x, "z": z})
    check(layers["one"].fit, x)
    check(layers["two"].fit, z)


def test_layers_of_the_same_data_share_one_accumulator() -> None:
    x = normal(9, 6)
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"], f"l{i}") for i in range(3)]
    model = model_of(
        nodes, {"x": x}, ["y0", "y1", "y2"], {f"w{i}": normal(6, 4 + i) for i in range(3)}
    )
    _, layers = seen(model, {"x": x})
    assert layers["l0"].fit.covariance is layers["l2"].fit.covariance
    check(layers["l2"].fit, x)
    assert layers["l0"].fit.output_high != layers["l1"].fit.output_high


def test_a_large_mean_costs_no_precision() -> None:
    x = (1000 + RANDOM.standard_normal((5000, 3))).astype(np.float32)
    _, layers = seen(classifier(w1=normal(24, 32)), {"x": np.tile(x, 8)}, batch=1000)
    moments = layers["first"].fit
    expected = np.cov(np.tile(x, 8).astype(np.float64).T, bias=True)
    np.testing.assert_allclose(moments.centred[0], expected, atol=1e-7)


# --- convolutions --------------------------------------------------------------------------------


def test_a_convolution_sees_patches() -> None:
    x, w = normal(2, 4, 7, 6), normal(6, 2, 3, 2)
    node = helper.make_node("Conv", ["x", "w"], ["y"], "l", group=2, pads=[1, 0, 1, 1])
    model = model_of([node], {"x": x}, ["y"], {"w": w})
    _, layers = seen(model, {"x": x})
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), (1, 1), (0, 1)])
    patches = np.stack(
        [padded[:, :, i : i + 7, j : j + 6] for i in range(3) for j in range(2)], axis=2
    )
    patches = patches.reshape(2, 2, 2 * 6, -1).transpose(1, 0, 3, 2).reshape(2, -1, 12)
    moments = layers["l"].fit
    assert moments.count == 2 * 7 * 6
    np.testing.assert_allclose(
        moments.covariance, np.einsum("gri,grj->gij", patches, patches) / 84, rtol=1e-10
    )
    np.testing.assert_allclose(moments.mean, patches.mean(axis=1), rtol=1e-10)
    (y,) = run(model, {"x": x})
    assert (moments.low[0], moments.high[0]) == (x.min(), x.max())
    assert moments.output_high[0] == pytest.approx(y.max(), rel=1e-5)


def test_what_has_no_inputs_to_measure_says_so() -> None:
    x, i = normal(1, 4, 5), np.array([1, 2])
    nodes = [
        helper.make_node("ConvTranspose", ["x", "k"], ["y"], "up"),
        helper.make_node("Gather", ["t", "i"], ["g"], "table"),
    ]
    model = model_of(nodes, {"x": x, "i": i}, ["y", "g"], {"k": normal(4, 6, 3), "t": normal(9, 4)})
    found, layers = seen(model, {"x": x, "i": i})
    assert layers == {}
    assert found.unobserved["table"] == "a table of rows has no inputs to measure"
    assert "overlap" in found.unobserved["up"]


# --- types and runtimes --------------------------------------------------------------------------


def test_float16() -> None:
    x, w = normal(40, 6, dtype=np.float16), normal(6, 4, dtype=np.float16)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "l")
    _, layers = seen(model_of([node], {"x": x}, ["y"], {"w": w}), {"x": x * 100})
    check(layers["l"].fit, x * 100)  # its squares are beyond float16


def test_kernels_that_onnx_runtime_lacks() -> None:
    x, w = normal(1, 3, 4, dtype=np.float64), normal(5, 3, 1, dtype=np.float64)
    node = helper.make_node("Conv", ["x", "w"], ["y"], "l")
    _, layers = seen(model_of([node], {"x": x}, ["y"], {"w": w}), {"x": x})
    check(layers["l"].fit, x[0].T)


def test_bfloat16() -> None:
    x, w = (normal(*shape).astype(ml_dtypes.bfloat16) for shape in ((7, 6), (6, 4)))
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "l")
    _, layers = seen(model_of([node], {"x": x}, ["y"], {"w": w}), {"x": x})
    check(layers["l"].fit, x.astype(np.float32))


# --- where models lie, and processes -------------------------------------------------------------


@pytest.mark.parametrize("given", ["file", "external", "bytes", "proto"])
@pytest.mark.parametrize("isolate", [True, False])
def test_models_from_everywhere(given: str, isolate: bool, tmp_path: Path) -> None:
    file, model = tmp_path / "m.onnx", classifier()
    if given == "external":
        save_external(model, file)
    else:
        file.write_bytes(model.SerializeToString())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    source = {"bytes": file.read_bytes(), "proto": model}.get(given, file)
    found, layers = seen(source, {"x": samples(30)}, isolate=isolate, holdout=0.5)
    check(layers["first"].fit, np.concatenate([samples(30)[:8], samples(30)[16:24]]))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert found.model_sha256 == open_model(source).sha256


def test_a_child_process_gives_the_same_bits() -> None:
    one, other = (seen(classifier(), {"x": samples(50)}, isolate=i)[0] for i in (True, False))
    assert one.sha256 == other.sha256


def test_nothing_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen(classifier(), {"x": samples(20)}, isolate=True)
    with pytest.raises(DataError):
        seen(classifier(), {"x": samples(20) * np.nan}, isolate=True)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_run_is_named() -> None:
    model = classifier()
    # before a layer: what lies behind the last of them is not run
    nodes = [
        helper.make_node("Reshape", ["logits", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w4"], ["more"], name="last"),
    ]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.array([7, 13]), "shape"))
    weight = np.ones((13, 2), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w4"))
    model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [7, 2]))
    model.graph.name = "mine"
    with pytest.raises(RuntimeFailureError, match=r"'mine': ONNX Runtime .* cannot run it"):
        seen(model, {"x": samples(4)}, isolate=True)


# --- memory --------------------------------------------------------------------------------------


def counted_runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    answers = []
    original = observation.run_task

    def run_task(*arguments: Any) -> dict[str, Any]:
        answers.append(original(*arguments))
        return answers[-1]

    monkeypatch.setattr(observation, "run_task", run_task)
    return answers


def test_accumulators_beyond_memory_take_more_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"x": samples(64)}
    whole, _ = seen(classifier(), data, holdout=0.25)
    answers = counted_runs(monkeypatch)
    bytes_ = 8 * 2 * (24 * (24 + 512) + 32 * (32 + 512))  # 512 rows wait to be added
    steps: list[tuple[int, int]] = []
    two, _ = seen(
        classifier(),
        data,
        holdout=0.25,
        memory=bytes_,
        progress=lambda _, done, total: steps.append((done, total)),
    )
    assert len(answers) == 2
    assert steps == [(0, 2), (1, 2), (2, 2)]
    three, _ = seen(classifier(), data, holdout=0.25, memory=1)
    assert len(answers) == 5
    assert whole.sha256 == two.sha256 == three.sha256


def test_activations_beyond_memory_divide_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"x": samples(6400)}
    whole, _ = seen(classifier(), data, batch=6400)
    answers = counted_runs(monkeypatch)
    # all six tensors take 6400·4·(24+32+32+32+32+10), accumulators much less
    cut, _ = seen(classifier(), data, batch=6400, memory=6400 * 4 * 120)
    assert [answer["activations"] > 6400 * 4 * 120 for answer in answers] == [True, False, False]
    assert cut.sha256 == whole.sha256


# --- holdout -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "fraction", "held"),
    [
        (10, 0.2, 2),
        (10, 0.5, 5),
        (2, 0.01, 1),
        (2, 0.99, 1),
        (3, 0.99, 2),
        (9, 0.0, 0),
        (20, 0.1, 2),
    ],
)
def test_a_fraction_of_the_runs_is_held_out(count: int, fraction: float, held: int) -> None:
    runs = [{"x": np.full((1, 24), 2.0**i, np.float32)} for i in range(count)]
    _, layers = seen(classifier(), runs, holdout=fraction)
    statistics = layers["first"]
    assert statistics.fit.count == count - held
    if statistics.holdout is None:
        assert held == 0
        return
    assert statistics.holdout.count == held
    sums = statistics.holdout.mean[0, 0] * held  # a sum of powers of 2 says which runs it is of
    chosen = [i for i in range(count) if int(sums) >> i & 1]
    gaps = np.diff([-1, *chosen])
    assert gaps.max() - gaps.min() <= 1 or held == count - 1
    fit = statistics.fit.mean[0, 0] * statistics.fit.count
    assert fit + sums == 2.0**count - 1


def test_one_run_is_cut_by_sample() -> None:
    x = samples(8)
    found, layers = seen(classifier(), {"x": x}, holdout=0.25)
    assert layers["first"].holdout is not None
    check(layers["first"].fit, x[[0, 1, 2, 4, 5, 6]])
    check(layers["first"].holdout, x[[3, 7]])
    assert found.data == "the given data: 8 runs, 8 samples; 2 runs, 2 samples held out"


def test_one_run_that_cannot_be_cut_has_no_holdout() -> None:
    x, w = normal(9, 6), normal(6, 4)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "l")
    found, layers = seen(model_of([node], {"x": x}, ["y"], {"w": w}), {"x": x}, holdout=0.5)
    assert layers["l"].holdout is None
    assert layers["l"].fit.count == 9
    assert "one run that cannot be divided" in found.data


def test_a_holdout_of_its_own() -> None:
    x, z = samples(20), samples(12, seed=9)
    found, layers = seen(classifier(), {"x": x}, holdout={"x": z})
    assert layers["first"].holdout is not None
    check(layers["first"].fit, x)
    check(layers["first"].holdout, z)
    assert "2 runs, 12 samples held out, of the given data" in found.data


@pytest.mark.parametrize("holdout", [1, 1.5, -0.1, float("nan"), float("inf")])
def test_no_fraction(holdout: float) -> None:
    with pytest.raises(UsageError, match="from 0 to less than 1"):
        seen(classifier(), {"x": samples(9)}, holdout=holdout)


def test_data_that_does_not_fit() -> None:
    with pytest.raises(DataError, match=r"input 'x' .*missing"):
        seen(classifier(), {"z": samples(9)})
    with pytest.raises(UsageError, match="at least 1"):
        seen(classifier(), {"x": samples(9)}, batch=0)


# --- masks ---------------------------------------------------------------------------------------


def tokens(*nodes: onnx.NodeProto, mask_type: Any = np.int64) -> onnx.ModelProto:
    """Return a model of `x` (B, T, 6) and `mask` (B, T) with layer `l`, and what else is given."""
    return model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "l"), *nodes],
        {"x": np.zeros((5, 3, 6), np.float32), "mask": np.zeros((5, 3), mask_type)},
        ["y", "z"] if nodes else ["y"],
        {"w": W, "v": normal(6, 8), "flat": np.array([-1, 6]), "kernel": normal(4, 3, 3)},
    )


MASK = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize("kind", [np.int64, np.float32, np.bool_])
def test_masked_rows_do_not_count(kind: Any) -> None:
    x = normal(5, 3, 6)
    x[3] = np.nan  # masked: not even NaN matters
    data = {"x": x, "mask": MASK.astype(kind)}
    found, layers = seen(tokens(mask_type=kind), data, mask="mask")
    check(layers["l"].fit, x[MASK != 0])
    y = x[MASK != 0] @ W
    assert layers["l"].fit.output_low[0] == pytest.approx(y.min(), rel=1e-5)
    assert found.data.endswith("; mask 'mask'")


def test_a_mask_fits_rows_in_one_axis_and_computed_masks_are_masks() -> None:
    x = normal(5, 3, 6)
    model = tokens(
        helper.make_node("Reshape", ["x", "flat"], ["f"]),
        helper.make_node("Cast", ["mask"], ["computed"], to=int(TensorProto.BOOL)),
        helper.make_node("MatMul", ["f", "v"], ["z"], "flat"),
    )
    _, layers = seen(model, {"x": x, "mask": MASK}, mask="computed")
    check(layers["flat"].fit, x[MASK != 0])


def test_a_mask_of_other_dimensions_leaves_a_layer_whole() -> None:
    x = normal(5, 3, 6)
    model = tokens(
        helper.make_node("ReduceSum", ["mask"], ["unused"], keepdims=0),
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["t", "v"], ["z"], "turned"),
    )
    found, layers = seen(model, {"x": x, "mask": MASK}, mask="mask")
    check(layers["turned"].fit, np.concatenate(list(x.swapaxes(0, 1))))
    check(layers["l"].fit, x[MASK != 0])
    assert "mask 'mask' (does not fit 'turned': all their positions count)" in found.data


def test_convolutions_are_not_masked() -> None:
    x = normal(5, 3, 6)
    model = tokens(helper.make_node("Conv", ["x", "kernel"], ["z"], "conv"))
    found, layers = seen(model, {"x": x, "mask": MASK}, mask="mask")
    assert layers["conv"].fit.count == 5 * 4
    assert "does not fit 'conv'" in found.data


def test_masks_that_cannot_be_used() -> None:
    with pytest.raises(DataError, match="has no tensor 'mask' to use as mask; its inputs are 'x'"):
        seen(classifier(), {"x": samples(9)}, mask="mask")
    x, short = normal(5, 3, 6), np.ones(4)
    model = tokens()
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 4
    with pytest.raises(DataError, match="the mask 'mask' fits the data of no layer"):
        seen(model, {"x": x, "mask": MASK[:4]}, mask="mask")
    assert short.size


def test_a_mask_of_zeros_leaves_nothing_to_observe() -> None:
    found, layers = seen(tokens(), {"x": normal(5, 3, 6), "mask": MASK * 0}, mask="mask")
    assert layers == {}
    assert "no rows of the calibration data reached it" in found.unobserved["l"]


# --- subgraphs -----------------------------------------------------------------------------------


def branch(name: str, *nodes: onnx.NodeProto, constants: dict[str, Array] | None = None) -> Any:
    value = helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT, ["N", 4])
    tensors = [numpy_helper.from_array(v, k) for k, v in (constants or {}).items()]
    return helper.make_graph(list(nodes), name, [], [value], tensors)


def conditional(inner: bool = False) -> onnx.ModelProto:
    """Return a model whose layers are in the branches of an If, or of an If in an If."""
    then = branch(
        "then",
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["then.out"], "yes"),
        constants={"w": W},
    )
    other = branch(
        "else",
        helper.make_node("MatMul", ["x", "w"], ["else.out"], "no"),  # captures the graph's input
        constants={"w": W + 1},
    )
    node = helper.make_node("If", ["c"], ["y"], "choice", then_branch=then, else_branch=other)
    if inner:
        wrapped = branch(
            "outer",
            helper.make_node("Neg", ["c_"], ["d_"]),
            helper.make_node("Cast", ["d_"], ["d"], to=int(TensorProto.BOOL)),
            helper.make_node(
                "If", ["d"], ["outer.out"], "inner", then_branch=then, else_branch=other
            ),
        )
        plain = branch("plain", helper.make_node("MatMul", ["x", "v"], ["plain.out"], "plain"))
        node = helper.make_node(
            "If", ["c"], ["y"], "choice", then_branch=wrapped, else_branch=plain
        )
    infos = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6]),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("c_", TensorProto.FLOAT, []),
    ]
    graph = helper.make_graph(
        [node],
        "g",
        infos,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(normal(6, 4), "v")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def feeds(*choices: tuple[bool, float], size: int = 3) -> tuple[list[dict[str, Array]], Array]:
    x = normal(len(choices), size, 6)
    found = [
        {"x": x[i], "c": np.array(c), "c_": np.array(d, np.float32)}
        for i, (c, d) in enumerate(choices)
    ]
    return found, x


@pytest.mark.parametrize("isolate", [True, False])
def test_branches_are_observed_when_they_are_taken(isolate: bool) -> None:
    data, x = feeds((True, 0), (False, 0), (True, 0), (True, 0))
    found, layers = seen(conditional(), data, isolate=isolate)
    check(layers["yes"].fit, np.abs(x[[0, 2, 3]]).reshape(-1, 6))
    check(layers["no"].fit, x[1])
    assert layers["yes"].fit.output_high[0] == pytest.approx(
        (np.abs(x[[0, 2, 3]]) @ W).max(), rel=1e-5
    )
    assert found.unobserved == {}


def test_branches_in_branches() -> None:
    data, x = feeds((True, 1), (False, 1), (True, 0), (True, 2), (False, 0))
    _, layers = seen(conditional(inner=True), data)
    check(layers["yes"].fit, np.abs(x[[0, 3]]).reshape(-1, 6))
    check(layers["no"].fit, x[2])
    check(layers["plain"].fit, x[[1, 4]].reshape(-1, 6))


def test_a_branch_that_is_never_taken() -> None:
    data, _ = feeds((True, 0), (True, 0))
    found, layers = seen(conditional(), data)
    assert list(layers) == ["yes"]
    assert "no rows of the calibration data reached it" in found.unobserved["no"]
    data, _ = feeds((True, 0), (False, 0))  # the second run is held out
    found, layers = seen(conditional(), data, holdout=0.5)
    assert layers["yes"].holdout is None
    assert "only rows held out reached it" in found.unobserved["no"]


def looped(kind: str) -> onnx.ModelProto:
    """Return a model whose layer is in the body of a Loop, or in a function."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [9, 6])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [9, 6])
    if kind == "Loop":
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["c"], ["c.out"]),
                helper.make_node("MatMul", ["s", "w"], ["s.out"], "l"),
            ],
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("c", TensorProto.BOOL, []),
                helper.make_tensor_value_info("s", TensorProto.FLOAT, [9, 6]),
            ],
            [
                helper.make_tensor_value_info("c.out", TensorProto.BOOL, []),
                helper.make_tensor_value_info("s.out", TensorProto.FLOAT, [9, 6]),
            ],
        )
        node = helper.make_node("Loop", ["times", "", "x"], ["y"], "loop", body=body)
        constants = {"w": normal(6, 6), "times": np.array(3)}
        tensors = [numpy_helper.from_array(v, k) for k, v in constants.items()]
        graph = helper.make_graph([node], "g", [value], [result], tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    function = helper.make_function(
        "mine",
        "F",
        ["in"],
        ["out"],
        [
            helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(normal(6, 6))),
            helper.make_node("MatMul", ["in", "w"], ["out"], "l"),
        ],
        [helper.make_opsetid("", 17)],
    )
    graph = helper.make_graph(
        [helper.make_node("F", ["x"], ["y"], domain="mine")], "g", [value], [result]
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=8)


@pytest.mark.parametrize(
    ("kind", "reason"), [("Loop", "in the body of a Loop"), ("function", "in a function")]
)
def test_bodies_that_cannot_be_tapped(kind: str, reason: str) -> None:
    found, layers = seen(looped(kind), {"x": normal(9, 6)})
    assert layers == {}
    assert reason in found.unobserved["l"]


# --- refusals and notes --------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_activations_that_are_no_numbers(value: float) -> None:
    x = samples(20)
    x[9, 3] = value
    with pytest.raises(
        DataError, match=r"layer 'first': its data 'x' has 1 entries .* of 192 in run 2"
    ):
        seen(classifier(), {"x": x})


def test_outputs_that_are_no_numbers() -> None:
    x = np.full((9, 24), 3e38, np.float32)
    with pytest.raises(DataError, match="layer 'first': its output 'a' has"):
        seen(classifier(w1=np.ones((24, 32), np.float32)), {"x": x})


def test_dead_inputs_few_rows_and_equal_rows_are_noted() -> None:
    x = samples(20)
    x[:, :5] = 0
    found, _ = seen(classifier(), {"x": x})
    assert "layer 'first': 5 of 24 inputs are always 0" in found.notes
    assert "layer 'first' saw 20 rows for 24 inputs: its covariance is singular" in found.notes
    found, _ = seen(classifier(), {"x": np.tile(samples(1), (50, 1))})
    assert "layer 'first': all its 50 rows are the same" in found.notes
    found, _ = seen(classifier(), {"x": samples(500) + 5})
    assert not [note for note in found.notes if "'first'" in note]


def test_skipped_layers_are_left_out() -> None:
    x, z = normal(9, 6), normal(6, 4)
    node = helper.make_node("MatMul", ["x", "z"], ["y"], "two computed tensors")
    found, _ = seen(model_of([node], {"x": x, "z": z}, ["y"], {}), {"x": x, "z": z})
    assert (found.layers, found.unobserved) == ({}, {})


def test_data_is_read_once() -> None:
    taken = []

    def generator() -> Iterator[dict[str, Array]]:
        for i in range(3):
            taken.append(i)
            yield {"x": samples(4, seed=i)}

    _, layers = seen(classifier(), generator(), memory=1)
    assert taken == [0, 1, 2]
    check(layers["first"].fit, np.concatenate([samples(4, seed=i) for i in range(3)]))
