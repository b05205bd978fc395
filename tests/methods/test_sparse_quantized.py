"""Sparse, quantised factors of arrays: budgets, special cases, edges, and whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import onnxlr
from onnxlr.errors import UsageError
from onnxlr.methods import Setting, find_method
from onnxlr.methods.atoms import Weight
from onnxlr.methods.sparse_quantized import SparseQuantized, SparseQuantizedOptions
from onnxlr.metrics import Activation, Kfac
from onnxlr.stages.recombined import RecombinedConvolution, RecombinedLinear
from tests.onelayer import model_of, run

Array = np.ndarray[Any, Any]


def _weight(seed, *shape, dtype="float32"):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def _covariance(seed, size, groups=None):
    rng = np.random.default_rng([seed, size])
    x = rng.standard_normal((groups or 1, 8 * size, size)) @ (
        np.eye(size) + rng.standard_normal((size, size)) / np.sqrt(size)
    )
    found = x.swapaxes(1, 2) @ x / (8 * size)
    return found[0] if groups is None else found


def _decompose(weight, **arguments):
    return onnxlr.decompose(weight, "sparse_quantized", **arguments)


def _distance(found, wanted):
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def _by_hand(stage):
    """Return the weight that a stage's stored numbers stand for, output by output."""
    atoms = stage.atoms
    kept = atoms.dictionary
    dictionary = kept.codes.astype(np.float64)
    if kept.zero_points is not None:
        dictionary = dictionary - kept.zero_points
    if kept.scales is not None:
        dictionary = dictionary * kept.scales.astype(np.float64)
    taken = atoms.coefficients
    tiles, outputs, entries = taken.shape
    width = dictionary.shape[1]
    columns = np.zeros((outputs, tiles * width))
    for output in range(outputs):
        for tile in range(tiles):
            for entry in range(entries):
                atom = entry if taken.indices is None else taken.indices[tile, output, entry]
                value = 1 if taken.values is None else float(taken.values[tile, output, entry])
                columns[output, tile * width : tile * width + width] += value * dictionary[atom]
    columns *= atoms.scales.astype(np.float64)[:, None]
    columns = columns[:, : atoms.inputs]
    return columns.reshape(atoms.dims) if atoms.kernel else columns.T


@settings(deadline=None, max_examples=40)
@given(
    shape=st.sampled_from([(1, 1), (1, 9), (9, 1), (5, 3), (17, 23), (40, 12)]),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    form=st.sampled_from(
        [
            {"atoms": 4},
            {"atoms": 7, "tile": 2, "nonzeros": 2},
            {"atoms": 3, "tile": 1, "dictionary_bits": 32},
            {"atoms": 6, "tile": 4, "nonzeros": 2, "value_bits": 3},
            {"atoms": 1, "tile": 100, "nonzeros": 1, "value_bits": 8, "dictionary_bits": 16},
            {"atoms": 6, "tile": 4, "nonzeros": 2, "value_bits": 16, "dictionary_bits": 16},
            {"atoms": 2, "tile": 100, "nonzeros": 2, "value_bits": 32, "dictionary_bits": 32},
        ]
    ),
    known=st.booleans(),
)
def test_a_chain_is_the_sum_of_its_atoms(shape, dtype, form, known):
    weight = _weight(0, *shape, dtype=dtype)
    covariance = _covariance(1, shape[0]) if known else None
    chain = _decompose(weight, covariance=covariance, **form)
    (stage,) = chain.stages
    assert isinstance(stage, RecombinedLinear)
    assert stage.shape == shape
    assert stage.atoms.scales.dtype == dtype
    assert np.isfinite(stage.atoms.scales.astype(np.float64)).all()
    assert np.allclose(chain.reconstruct(), _by_hand(stage), rtol=1e-9, atol=1e-12)
    width = min(form.get("tile", 3), shape[0])
    assert stage.atoms.dictionary.shape == (form["atoms"], width)


@pytest.mark.parametrize("bits", [2, 3, 3.3, 4])
@pytest.mark.parametrize("known", [False, True])
def test_bytes_are_within_the_bits_and_more_bits_lose_less(bits, known):
    weight = _weight(2, 96, 160)
    covariance = _covariance(3, 96) if known else None
    chain = _decompose(weight, bits=bits, covariance=covariance)
    assert chain.cost.bytes * 8 <= bits * weight.size
    more = _decompose(weight, bits=bits + 1.5, covariance=covariance)
    metric = np.eye(96) if covariance is None else covariance
    lost = [c.reconstruct() - weight for c in (chain, more)]
    errors = [np.sqrt(np.vdot(metric @ wrong, wrong)) for wrong in lost]
    assert errors[1] < 0.6 * errors[0]


def test_three_bits_if_nothing_is_asked():
    weight = _weight(4, 64, 96)
    chain, asked = _decompose(weight), _decompose(weight, bits=3)
    assert np.array_equal(chain.reconstruct(), asked.reconstruct())
    assert str(SparseQuantizedOptions()) == "bits 3"


def test_knowing_the_inputs_keeps_their_outputs():
    weight = _weight(5, 96, 160)
    covariance = _covariance(6, 96)
    others = np.random.default_rng(0).multivariate_normal(np.zeros(96), covariance, 3000)
    known = _decompose(weight, bits=3.3, covariance=covariance).reconstruct()
    plain = _decompose(weight, bits=3.3).reconstruct()
    found = [_distance(others @ weight_, others @ weight) for weight_ in (known, plain)]
    assert found[0] < 0.85 * found[1]


@pytest.mark.parametrize("known", [False, True])
def test_three_bits_lose_less_than_nearest_numbers_in_groups_with_more(known):
    weight = _weight(7, 128, 192)
    covariance = _covariance(8, 128) if known else np.eye(128)
    chain = _decompose(weight, bits=3.3, covariance=covariance if known else None)
    groups = weight.reshape(4, 32, 192).astype(float)
    step = np.abs(groups).max(axis=1, keepdims=True) / 3.5
    rounded = (np.clip(np.floor(groups / step), -4, 3) + 0.5) * step
    wrong = [chain.reconstruct() - weight, rounded.reshape(128, 192) - weight]
    errors = [np.vdot(covariance @ one, one) for one in wrong]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_no_zeros_and_hardly_a_grid_are_the_truncated_svd(rank):
    low = _weight(9, 30, 12) @ _weight(10, 12, 40)
    form = {"nonzeros": rank, "value_bits": 8, "dictionary_bits": 32, "tile": 30}
    chain = _decompose(low, atoms=rank, **form)
    left, values, right = np.linalg.svd(low.astype(np.float64), full_matrices=False)
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    assert _distance(chain.reconstruct(), best) < 0.02
    assert np.linalg.matrix_rank(chain.reconstruct(), tol=1e-4) <= rank


def test_that_is_the_weighed_svd_where_inputs_are_known():
    weight, covariance = _weight(11, 20, 30), _covariance(12, 20)
    chain = _decompose(
        weight,
        atoms=8,
        nonzeros=8,
        value_bits=8,
        dictionary_bits=32,
        tile=20,
        covariance=covariance,
    )
    shrunk = np.asarray(Activation(covariance).covariance)[0]
    root = np.linalg.cholesky(shrunk).T
    values = np.linalg.svd(root @ weight, compute_uv=False)
    least = np.sqrt(np.sum(values[8:] ** 2))
    found = np.linalg.norm(root @ (chain.reconstruct() - weight))
    assert least * 0.999 < found < least * 1.03


def test_one_entry_of_one_is_vector_quantisation():
    weight = _weight(13, 36, 20)
    (stage,) = _decompose(weight, atoms=16, tile=4, dictionary_bits=32).stages
    dictionary = stage.atoms.dictionary.decode()
    scaled = stage.atoms.scales.astype(np.float64)[:, None] * dictionary[:, None]
    tiles = weight.T.reshape(20, 9, 4)
    for output in range(20):
        distances = np.square(tiles[output][None] - scaled[:, output][:, None]).sum(axis=2)
        taken = stage.atoms.coefficients.indices[:, output, 0]
        own = distances[taken, np.arange(9)]
        # the scale is solved for behind the choice, so that the nearest may be another by a little
        assert own.sum() <= distances.min(axis=0).sum() * 1.02
    whole = np.linalg.norm(weight - weight.mean())
    assert np.linalg.norm(stage.dense() - weight) < 0.75 * whole


def test_the_inputs_themselves_as_atoms_are_sparse_whole_numbers():
    weight = _weight(14, 32, 24)
    form = {"atoms": 16, "tile": 16, "nonzeros": 8, "value_bits": 4, "dictionary_bits": 0}
    (stage,) = _decompose(weight, **form).stages
    found = stage.dense()
    tiles = found.T.reshape(24, 2, 16)
    assert (np.count_nonzero(tiles, axis=2) <= 8).all()
    codes = found / stage.atoms.scales.astype(np.float64)
    assert np.allclose(codes, np.rint(codes))
    assert np.abs(codes).max() <= 7
    kept = np.sort(np.abs(weight.T.reshape(24, 2, 16)), axis=2)
    dropped = np.sum(kept[..., :8] ** 2) / np.sum(kept**2)
    assert np.sqrt(dropped) < _distance(found, weight) < np.sqrt(dropped) + 0.15


@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((8, 3, 3, 3), 1),
        ((12, 2, 3, 3), 3),
        ((6, 1, 3, 3), 6),
        ((10, 4, 5), 2),
        ((4, 2, 2, 1, 3), 1),
        ((16, 8, 1, 1), 1),
    ],
)
@pytest.mark.parametrize("known", [False, True])
def test_kernels_have_patches_for_inputs(shape, groups, known):
    kernel = _weight(15, *shape)
    patch = int(np.prod(shape[1:]))
    covariance = _covariance(16, patch, groups) if known else None
    chain = _decompose(kernel, atoms=8, tile=3, groups=groups, covariance=covariance)
    (stage,) = chain.stages
    assert isinstance(stage, RecombinedConvolution)
    assert (stage.groups, stage.window) == (groups, tuple(range(len(shape) - 2)))
    assert chain.reconstruct().shape == shape
    assert np.allclose(chain.reconstruct(), _by_hand(stage), rtol=1e-9, atol=1e-12)
    assert _distance(chain.reconstruct(), kernel) < 0.9


def test_a_kernel_is_the_matrix_of_its_patches():
    kernel, covariance = _weight(17, 20, 4, 3, 3), _covariance(18, 36)
    form = {"atoms": 32, "tile": 3}
    own = _decompose(kernel, groups=1, covariance=covariance[None], **form).reconstruct()
    matrix = _decompose(kernel.reshape(20, 36).T, covariance=covariance, **form).reconstruct()
    assert np.allclose(own.reshape(20, 36).T, matrix)


@settings(deadline=None, max_examples=12)
@given(
    options=st.sampled_from(
        [{"bits": 3.0}, {"bits": 2.5, "tile": 4}, {"bits": 4, "dictionary_bits": 0}, {"atoms": 20}]
    ),
    seed=st.integers(0, 3),
    known=st.booleans(),
)
def test_what_is_settled_makes_the_same_chain_again(options, seed, known):
    method = find_method("sparse_quantized")
    weight = _weight(seed, 48, 64)
    metric = Activation(_covariance(seed, 48)) if known else None
    setting = Setting.for_array(weight, metric=metric, seed=seed)
    asked = SparseQuantizedOptions(**options, recombine="run")
    chain = method.factorize(weight, asked, setting)
    settled = method.settle(asked, chain)
    assert settled.bits is None
    again = method.factorize(weight, settled, setting)
    assert np.array_equal(chain.reconstruct(), again.reconstruct())
    assert method.settle(settled, again) == settled
    assert again.stages[0].each_run
    assert again.cost == chain.cost


def test_an_error_is_kept_with_few_bits():
    weight, covariance = _weight(19, 64, 96), _covariance(20, 64)
    shrunk = np.asarray(Activation(covariance).covariance)[0]
    sizes = []
    for limit in (0.3, 0.1):
        chain = _decompose(weight, max_error=limit, covariance=covariance)
        wrong = chain.reconstruct() - weight
        error = np.vdot(shrunk @ wrong, wrong) / np.vdot(shrunk @ weight, weight)
        assert np.sqrt(error) <= limit
        sizes.append(chain.cost.bytes * 8 / weight.size)
    assert sizes[0] < sizes[1] - 1
    with pytest.raises(UsageError, match="max_error 1e-06 is not reached with 8 bits"):
        _decompose(_weight(19, 24, 24), max_error=1e-6)
    with pytest.raises(UsageError, match="max_error 0 is not reached"):
        _decompose(_weight(19, 24, 24), max_error=0)
    wide = _decompose(weight, max_error=0.5, tile=100).stages[0]
    assert wide.atoms.dictionary.shape[1] == 64


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("known", [False, True])
def test_outputs_of_zeros_and_of_any_size(dtype, known):
    sizes = np.array([1e-3, 0, 1, 100, 1e-3, 0, 3, 7])
    weight = (_weight(21, 24, 8).astype(np.float64) * sizes).astype(dtype)
    covariance = _covariance(22, 24) if known else None
    found = _decompose(weight, atoms=32, tile=2, covariance=covariance).reconstruct()
    assert np.isfinite(found).all()
    for output in np.flatnonzero(sizes):
        assert _distance(found[:, output], weight[:, output].astype(np.float64)) < 0.6
    assert np.abs(found[:, sizes == 0]).max() < 1e-3
    nothing = _decompose(np.zeros((6, 5), dtype), atoms=4).reconstruct()
    assert np.abs(nothing).max() < 1e-3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 3, "atoms": 8}, "bits and atoms are both given, expected one budget"),
        ({"bits": 0}, "bits 0 is not a finite number above 0"),
        ({"max_error": 1}, "max_error 1 is not at least 0 and below 1"),
        ({"atoms": 0}, "atoms 0 is not a whole number of at least 1"),
        ({"tile": 2.5}, "tile 2.5 is not a whole number of at least 1"),
        ({"value_bits": 1}, "value_bits 1 is unknown, expected one of 0, 2, 3"),
        ({"dictionary_bits": 5}, "dictionary_bits 5 is unknown, expected one of 0, 4, 8, 16, 32"),
        ({"recombine": "never"}, "recombine 'never' is unknown; expected one of load, run"),
    ],
)
def test_options_that_cannot_be_followed(options, words):
    with pytest.raises(UsageError, match=words):
        SparseQuantizedOptions(**options)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bits": 0.1}, "0.1 bits are less than any such form of a 12×10 weight takes"),
        ({"format": "int8"}, "has grids of its own, not int8: leave the format out"),
        ({"atoms": 4, "nonzeros": 5, "value_bits": 3}, "nonzeros 5 is more than the 4 atoms"),
        ({"atoms": 4, "nonzeros": 5}, "nonzeros 5 is more than the 4 atoms"),
        ({"atoms": 10**12}, "is more than the 40 tiles of 3 inputs"),
        ({"value_bits": 0, "dictionary_bits": 0}, "no form of a 12×10 weight has value_bits 0"),
        ({"atoms": 4, "tile": 3, "dictionary_bits": 0}, "found 4 atoms for tiles of 3"),
        ({"atoms": 3, "tile": 3, "dictionary_bits": 0}, "value_bits 0: expected as many atoms"),
        ({"ratio": 0.5}, "method 'sparse_quantized' has no option 'ratio'"),
    ],
)
def test_what_no_weight_can_have_is_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        _decompose(_weight(23, 12, 10), **arguments)


def test_outputs_of_next_to_nothing_have_no_subnormal_weights():
    weight = _weight(17, 48, 40)
    weight[:, 3] = 0
    weight[:, 7] *= np.float32(1e-37)
    made = _decompose(weight, atoms=16, tile=3).reconstruct().astype(np.float32)
    small = np.abs(made) < np.finfo(np.float32).tiny
    assert not made[small].any()
    assert not made[:, 3].any()
    assert _distance(made[:, 8:], weight[:, 8:]) < 0.7


def test_more_bits_than_are_of_use_change_nothing():
    weight = _weight(18, 24, 20)
    one, other = (_decompose(weight, bits=bits).stages[0].nbytes for bits in (8, 64))
    assert one == other


def test_stacks_tables_and_other_metrics_are_refused():
    with pytest.raises(UsageError, match=r"found a stack \(2, 5, 4\)"):
        _decompose(_weight(24, 2, 5, 4))
    weight = _weight(25, 5, 4)
    plain = Setting.for_array(weight)
    table = Setting(plain.format, plain.compute, is_table=True, stored=plain.stored)
    with pytest.raises(UsageError, match="table of rows has no product"):
        SparseQuantized().factorize(weight, SparseQuantizedOptions(), table)
    both = Setting.for_array(weight, metric=Kfac(np.eye(5), np.eye(4)))
    with pytest.raises(UsageError, match="fits in metric frobenius, activation, fisher-rows"):
        SparseQuantized().factorize(weight, SparseQuantizedOptions(), both)


def test_rows_that_matter_keep_their_numbers():
    weight = _weight(26, 30, 40)
    importance = np.ones((30, 40))
    importance[:5] = 400
    found = _decompose(weight, atoms=32, tile=5, importance=importance).reconstruct()
    wrong = np.linalg.norm(found - weight, axis=1)
    assert wrong[:5].mean() < 0.7 * wrong[5:].mean()


def test_progress_of_a_fit_is_told():
    seen = []
    weight = _weight(27, 12, 10)
    setting = Setting.for_array(weight)
    told = Setting(
        setting.format,
        setting.compute,
        stored=setting.stored,
        progress=lambda *step: seen.append(step),
    )
    SparseQuantized().factorize(weight, SparseQuantizedOptions(atoms=4), told)
    assert seen[0][1] == 0
    assert seen[-1][1] == seen[-1][2]


def _model():
    """Return `x (N, 96) → MatMul → Relu → Gemm → y (N, 64)`."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "v", "c"], ["y"], name="second", transB=1),
    ]
    constants = {
        "w": _weight(30, 96, 160) / 10,
        "v": _weight(31, 64, 160) / 12,
        "c": _weight(32, 64),
    }
    model = model_of(nodes, {"x": _samples(1)}, ["y"], constants)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    return model


def _samples(count, seed=0):
    rng = np.random.default_rng(33)
    mixed = np.eye(96) + rng.standard_normal((96, 96)) / 10
    rows = np.random.default_rng(seed).standard_normal((count, 96))
    return (rows @ mixed + 0.3).astype(np.float32)


@pytest.mark.parametrize("recombine", [None, "run"])
@pytest.mark.parametrize(
    "budget",
    [
        {"bits": 4},
        {"bits": 14, "value_bits": 16},
        {"atoms": 48, "tile": 160, "nonzeros": 30, "value_bits": 32, "dictionary_bits": 16},
    ],
)
def test_a_plan_says_it_all_and_gives_the_same_bytes(
    recombine: str | None, budget: dict[str, Any], tmp_path: Path
) -> None:
    model = _model()
    onnx.save(model, tmp_path / "m.onnx")
    common: dict[str, Any] = {
        "calibration": {"x": _samples(600, 1)},
        "tolerance": "cosine>=-1",
        "isolate": False,
    }
    files = [tmp_path / f"{i}.onnx" for i in range(2)]
    result = onnxlr.rewrite(
        tmp_path / "m.onnx",
        files[0],
        method="sparse_quantized",
        recombine=recombine,
        **budget,
        **common,
    )
    choices = result.plan.layers
    assert set(choices) == {"first", "second"}
    for choice in choices.values():
        assert choice.method == "sparse_quantized"
        options = choice.to_json()["options"]
        assert {"atoms", "tile", "nonzeros", "value_bits", "dictionary_bits"} <= set(options)
        assert "bits" not in options
        assert options.get("recombine") == recombine
        assert "value_bits" not in budget or options["value_bits"] == budget["value_bits"]
    (tmp_path / "p.json").write_text(result.plan.dumps())
    onnxlr.rewrite(tmp_path / "m.onnx", files[1], plan=tmp_path / "p.json", **common)
    assert files[0].read_bytes() == files[1].read_bytes()
    x = _samples(300, seed=5)
    wanted, found = (run(onnx.load(file), {"x": x})[0] for file in (tmp_path / "m.onnx", files[0]))
    assert _distance(found, wanted) < (0.6 if "value_bits" in budget else 0.15)
    planned = [choice.to_json()["options"] for choice in choices.values()]
    for layer, options in zip(("w", "v"), planned, strict=True):
        assert options["tile"] > 0, layer


@pytest.mark.parametrize("limit", [0.4, 0.2, 0.08, 0.03])
def test_an_error_takes_few_fits(limit, monkeypatch):
    fits = []
    fitted = Weight.fitted
    monkeypatch.setattr(Weight, "fitted", lambda *own: fits.append(own[1]) or fitted(*own))
    weight = _weight(34, 64, 96)
    covariance = _covariance(35, 64)
    for known in (None, covariance):
        fits.clear()
        chain = _decompose(weight, max_error=limit, covariance=known)
        assert len(fits) <= 3
        sizes = [form.bytes(64, 96, 4) for form in fits]
        assert sizes == sorted(sizes)
        assert chain.cost.bytes <= sizes[-1]
