"""Ternary layers: from a proposal to a module and back, for every way a weight is used."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr import open as open_model  # noqa: E402
from onnxlr.errors import UsageError  # noqa: E402
from onnxlr.evidence import UNKNOWN  # noqa: E402
from onnxlr.layers import find_layers  # noqa: E402
from onnxlr.methods import options_for  # noqa: E402
from onnxlr.methods.matricisation import FORMS, matricisations  # noqa: E402
from onnxlr.methods.semidiscrete import Terms  # noqa: E402
from onnxlr.planning import Request  # noqa: E402
from onnxlr.planning.uniform import propose  # noqa: E402
from onnxlr.training.ternary.factors import TernaryFactors  # noqa: E402
from onnxlr.training.ternary.layers import (  # noqa: E402
    Manner,
    TernaryLayer,
    chain_of_terms,
    fit_to_train,
    terms_of_chain,
)
from tests.onelayer import model_of  # noqa: E402

Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def one_layer(kind: str) -> onnx.ModelProto:
    """Return a model of one weight, used in one of several ways."""
    node = helper.make_node
    match kind:
        case "matmul":
            weight, data = normal(72, 60), normal(4, 72)
            nodes = [node("MatMul", ["x", "w"], ["y"], "layer")]
        case "gemm":
            weight, data = normal(60, 72), normal(4, 72)
            nodes = [node("Gemm", ["x", "w"], ["y"], "layer", transB=1)]
        case "left":
            weight, data = normal(60, 72), normal(72, 5)
            nodes = [node("MatMul", ["w", "x"], ["y"], "layer")]
        case "batch":
            weight, data = normal(2, 60, 72), normal(2, 4, 60)
            nodes = [node("MatMul", ["x", "w"], ["y"], "layer")]
        case "moved":
            weight, data = normal(5, 72, 12), normal(4, 72)
            nodes = [
                node("Transpose", ["w"], ["a"], perm=[1, 2, 0]),
                node("Reshape", ["a", "to"], ["b"]),
                node("MatMul", ["x", "b"], ["y"], "layer"),
            ]
        case "conv":
            weight, data = normal(40, 24, 3, 3), normal(1, 24, 5, 5)
            nodes = [node("Conv", ["x", "w"], ["y"], "layer")]
        case "grouped":
            weight, data = normal(48, 20, 3, 3), normal(1, 40, 5, 5)
            nodes = [node("Conv", ["x", "w"], ["y"], "layer", group=2)]
        case "pointwise":
            weight, data = normal(64, 60, 1, 1), normal(1, 60, 2, 2)
            nodes = [node("Conv", ["x", "w"], ["y"], "layer")]
        case _:
            weight, data = normal(24, 40, 3, 3), normal(1, 24, 5, 5)
            nodes = [node("ConvTranspose", ["x", "w"], ["y"], "layer")]
    constants = {"w": weight}
    if kind == "moved":
        constants["to"] = np.array([72, 60], np.int64)
    return model_of(nodes, {"x": data}, ["y"], constants)


KINDS = ("matmul", "gemm", "left", "batch", "moved", "conv", "grouped", "pointwise", "transposed")


def layer_of(kind: str, method: str, manner: Manner | None = None, **options: Any) -> Any:
    """Return the opened model and its layer, ready to be trained."""
    model = open_model(one_layer(kind))
    group = {"group_size": options.pop("group_size")} if "group_size" in options else {}
    request = Request(method, options_for(method, options), **group)
    (proposal,) = fit_to_train(propose(model, find_layers(model), request, UNKNOWN))
    assert proposal.chain is not None, proposal.choice.reason
    return model, TernaryLayer.of(model, proposal, manner or Manner())


def check_export(model: Any, trained: TernaryLayer) -> None:
    """Check that the chain is what the module gives, as the layer's nodes take it."""
    (layer,) = find_layers(model)
    found = trained.proposed(model, layer)
    stored = trained.module().detach().numpy()
    site = layer.sites[0]
    expected = site.canonical(site.operand.values(stored))
    assert found.chain is not None
    dense = found.chain.reconstruct()
    assert dense.shape == expected.shape
    np.testing.assert_allclose(dense, expected, atol=2e-6)
    assert np.linalg.norm(expected) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_factors_come_and_go(kind: str) -> None:
    model, trained = layer_of(kind, "ternary_svd", ratio=2.0, fit="published")
    (layer,) = find_layers(model)
    first = trained.proposal.chain.reconstruct()
    site = layer.sites[0]
    stored = trained.module().detach().numpy()
    np.testing.assert_allclose(site.canonical(site.operand.values(stored)), first, atol=2e-6)
    assert isinstance(trained.module, TernaryFactors)
    with torch.no_grad():
        step = 0.3 * normal(*trained.module.weight.shape, seed=1)
        trained.module.weight += torch.from_numpy(step)
    trained.module.renew()
    check_export(model, trained)
    assert not np.allclose(trained.module().detach().numpy(), stored, atol=1e-2)


@pytest.mark.parametrize("form", FORMS)
def test_factors_of_all_forms(form: str) -> None:
    kernel = normal(12, 5, 3, 2)
    (matrices,) = matricisations(kernel, 2, form)
    rng = np.random.default_rng(0)
    *_, rows, columns = matrices.matrices().shape
    parts = [
        Terms(
            rng.integers(-1, 2, (count, rows)).astype(np.float32),
            rng.integers(-1, 2, (count, columns)).astype(np.float32),
            rng.uniform(-1, 1, count),
        )
        for count in (7, 5)
    ]
    chain = chain_of_terms(matrices, parts)
    expected = np.stack([one.scaled_left().T @ one.right for one in parts])
    found = matrices.like(chain.reconstruct()).matrices()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for one, other in zip(terms_of_chain(matrices, chain), parts, strict=True):
        np.testing.assert_allclose(
            one.scaled_left().T @ one.right, other.scaled_left().T @ other.right, atol=1e-6
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("terms", [1, 3])
def test_codes_come_and_go(kind: str, terms: int) -> None:
    model, trained = layer_of(kind, "ternary", terms=terms, group_size=32)
    (layer,) = find_layers(model)
    first = trained.proposal.chain.reconstruct()
    site = layer.sites[0]
    stored = trained.module().detach().numpy()
    np.testing.assert_allclose(site.canonical(site.operand.values(stored)), first, atol=2e-6)
    with torch.no_grad():
        step = 0.3 * normal(*trained.module.weight.shape, seed=1)
        trained.module.weight += torch.from_numpy(step)
    trained.module.settle()
    check_export(model, trained)
    assert not np.allclose(trained.module().detach().numpy(), stored, atol=1e-2)


def test_a_weight_in_two_arrangements_is_left_alone() -> None:
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["a"], "one"),
        node("Reshape", ["w", "to"], ["b"]),
        node("MatMul", ["a", "b"], ["y"], "other"),
    ]
    constants = {"w": normal(60, 72), "to": np.array([72, 60], np.int64)}
    model = open_model(model_of(nodes, {"x": normal(4, 60)}, ["y"], constants))
    layers = find_layers(model)
    assert len(layers) == 2
    request = Request("ternary", options_for("ternary", {"terms": 1}))
    for proposal in fit_to_train(propose(model, layers, request, UNKNOWN)):
        assert proposal.chain is None
        assert proposal.choice.keeps


def test_the_tolerance_asked_is_held() -> None:
    model, trained = layer_of("matmul", "ternary_svd", tolerance_spectral=0.4, fit="alternating")
    layer = TernaryLayer.of(model, trained.proposal, Manner(), 0.4)
    assert layer.module.rule.tolerance == 0.4
    assert layer.module.rule.fit == "alternating"
    assert trained.module.rule.tolerance is None


@pytest.mark.parametrize(
    ("manner", "words"),
    [
        ({"eta": 0.0}, "eta 0 is not a number above 0"),
        ({"eta": float("nan")}, "eta nan is not a number above 0"),
        ({"scales": "learnt"}, "scales 'learnt' is unknown; expected one of solved, t"),
    ],
)
def test_unusable_manners(manner: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Manner(**manner)
