"""Tests of `tools/reproduce_semi_tensor.py`: chains in torch, and runs on a few images."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

import onnxlr
from onnxlr.stages import Chain, Convolution, Fold, ModeProduct
from tools.reproduce_semi_tensor import main
from tools.semi_tensor_rows import FORMS, FULL, MARK, ORIGINAL, QUICK, USUAL, Document, Outcome
from tools.tensor_figures import choose

has_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch, of extra train, is not installed"
)

FOUND = Document(
    {"epochs": 2, "steps": 5, "seed": 3},
    [
        Outcome("a [x]", 9, 9.25, 6.5, "4x4", 0.5, 0.25, 0.75, 3.0),
        Outcome(ORIGINAL, 1, 1.0, 1.0, None, 0.0, 0.5, 0.625, 0.0),
        Outcome("b", 3, problem="rank [1] is too large"),
    ],
)


def test_figures_are_written_and_read_as_they_are(tmp_path):
    file = tmp_path / "figures.json"
    FOUND.write(file)
    assert Document.read(file) == FOUND
    file.write_text('{"rows": [{}]}')
    with pytest.raises(ValueError, match="holds no figures of this tool"):
        Document.read(file)


def test_the_table_has_compression_beside_accuracy():
    grid = FOUND.grid()
    assert grid.title.startswith("ResNet on Fashion-MNIST: 2 epochs, then 5 steps")
    assert grid.rows == [
        [ORIGINAL, "1.0×", "1.0×", "", "0.000", "0.5000", "0.6250", "0"],
        ["b, 3×", *["–"] * 6, r"rank \[1] is too large"],
        ["a [x], 9×", "9.2×", "6.5×", "4x4", "0.500", "0.2500", "0.7500", "3"],
    ]


def test_every_semi_tensor_form_has_its_plain_form_beside_it():
    plain = {form.method for form in FORMS if not form.options}
    semi = [form for form in FORMS if "t" in form.options]
    assert semi
    assert all(form.method.removeprefix("semi_") in plain for form in semi)
    usual = {form.method for form in choose(FORMS, USUAL)}
    assert usual == {form.method for form in FORMS}
    assert set(QUICK.times) <= set(FULL.times)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--forms", "cp"], "no form matches cp; there are svd spatial"),
        (["--show"], "--show needs --json"),
        (["--times", "0"], "invalid number above 0"),
    ],
)
def test_arguments_that_cannot_be_followed(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_without_torch_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert main([]) == 3
    assert "pip install 'onnxlr[train]'" in capsys.readouterr().err


def test_what_was_found_is_shown_and_put_into_a_page(tmp_path, capsys):
    file, page = tmp_path / "figures.json", tmp_path / "page.md"
    FOUND.write(file)
    assert main(["--show", "--json", str(file), "--write", str(page)]) == 1
    assert "rank [1] is too large" in capsys.readouterr().out
    assert page.read_text().startswith(MARK)


def test_figures_that_are_not_there_cannot_be_shown(tmp_path, capsys):
    assert main(["--show", "--json", str(tmp_path / "none.json")]) == 3
    assert "none.json" in capsys.readouterr().err


def _kernel(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


# Stages as they come in trains and rings: modes before and behind, windows split, groups, folds.
CHAINS = {
    "one": Chain((Convolution.of(_kernel(6, 8, 3, 3), 1, (0, 1)),)),
    "split": Chain(
        (
            Convolution.of(_kernel(4, 8, 1, 1), 1, ()),
            Convolution.of(_kernel(5, 4, 3, 1), 1, (0,)),
            Convolution.of(_kernel(6, 5, 1, 3), 1, (1,)),
        )
    ),
    "behind": Chain(
        (
            ModeProduct(Convolution.of(_kernel(3, 4, 1, 1), 1, ()), 1, 2),
            Convolution.of(_kernel(6, 6, 3, 3), 1, (0, 1)),
        )
    ),
    "before": Chain(
        (
            ModeProduct(Convolution.of(_kernel(5, 2, 3, 1), 1, (0,)), 4, 1),
            Convolution.of(_kernel(6, 20, 1, 3), 1, (1,)),
        )
    ),
    "between": Chain(
        (
            ModeProduct(Convolution.of(_kernel(3, 2, 1, 1), 1, ()), 2, 2),
            Fold((2, 3, 2), (2, 0, 1), axes=2),
            ModeProduct(Convolution.of(_kernel(2, 3, 3, 3), 1, (0, 1)), 4, 1),
            Fold((4, 2), (1, 0), axes=2),
        )
    ),
    "depthwise": Chain(
        (
            Convolution.of(_kernel(6, 8, 1, 1), 1, ()),
            Convolution.of(_kernel(6, 1, 3, 1), 6, (0,)),
            Convolution.of(_kernel(6, 1, 1, 3), 6, (1,)),
            Convolution.of(_kernel(5, 6, 1, 1), 1, ()),
        )
    ),
}


@has_torch
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_in_torch_is_the_convolution_by_its_dense_kernel(name, stride):
    import torch

    from tools.fashion_resnet import FactorizedConv

    dense = np.eye(8).reshape(8, 8, 1, 1)
    # Depthwise stages have groups of their own: their kernels are spread over all channels.
    for stage in CHAINS[name].stages:
        dense = _after(stage, dense)
    conv = torch.nn.Conv2d(8, len(dense), 3, stride, padding=1, bias=False)
    x = np.random.default_rng(0).standard_normal((2, 8, 7, 10)).astype(np.float32)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(x).double(), torch.from_numpy(dense), None, stride, 1
    )
    found = FactorizedConv(CHAINS[name], conv)(torch.from_numpy(x))
    np.testing.assert_allclose(
        found.detach().numpy(), expected.numpy(), rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )


def _after(stage, dense):
    """Return the kernel of a kernel and then a stage, by convolving its inputs' responses."""
    import torch

    outputs = dense.shape[0]
    if isinstance(stage, Fold):
        rest = dense.shape[1:]
        turned = dense.reshape(*stage.dims, *rest)
        axes = [*stage.order, *range(len(stage.dims), turned.ndim)]
        return turned.transpose(axes).reshape(outputs, *rest)
    inner = stage.stage if isinstance(stage, ModeProduct) else stage
    before = stage.before if isinstance(stage, ModeProduct) else 1
    behind = stage.behind if isinstance(stage, ModeProduct) else 1
    kernel = inner.weight.decode()
    made, inputs, *extent = kernel.shape
    full = np.zeros((made, inputs * inner.groups, *extent))
    for out in range(made):
        group = out // (made // inner.groups)
        full[out, group * inputs : (group + 1) * inputs] = kernel[out]
    wide = np.einsum("ab,oiyx,cd->aocbidyx", np.eye(before), full, np.eye(behind))
    wide = wide.reshape(before * made * behind, -1, *extent)
    # Kernels of a chain: a full convolution of one with the other.
    flipped = torch.from_numpy(wide[:, :, ::-1, ::-1].copy())
    responses = torch.from_numpy(dense.swapaxes(0, 1).copy())
    pads = [size - 1 for size in extent]
    found = torch.nn.functional.conv2d(responses, flipped, None, 1, pads)
    return found.numpy().swapaxes(0, 1)


@has_torch
def test_a_stage_without_a_module_is_named():
    import torch

    from tools.fashion_resnet import FactorizedConv

    chain = onnxlr.decompose(np.eye(8) + 0.1, "svd", rank=4)
    with pytest.raises(TypeError, match="a stage Linear has no module"):
        FactorizedConv(chain, torch.nn.Conv2d(8, 8, 3, padding=1))


@has_torch
def test_factors_take_the_place_of_all_layers_but_the_first():
    import torch

    from tools.fashion_resnet import build_resnet, factorizable, parameters, replaced

    torch.manual_seed(0)
    network = build_resnet((8, 12, 16)).eval()
    layers = factorizable(network)
    assert [tuple(conv.weight.shape[:2]) for conv in layers.values()] == [
        *((8, 8), (8, 8), (12, 8), (12, 12), (16, 12), (16, 16)),
    ]
    chains = {
        name: onnxlr.decompose(
            conv.weight.detach().numpy(), "svd", groups=1, rank=3 * min(conv.weight.shape[:2])
        )
        for name, conv in layers.items()
    }
    made = replaced(network, chains).eval()
    gone = sum(conv.weight.numel() for conv in layers.values())
    come = sum(chain.cost.parameters for chain in chains.values())
    assert parameters(made) == parameters(network) - gone + come
    image = torch.rand(3, 1, 28, 28)
    # Of full rank the factors are the layers.
    np.testing.assert_allclose(
        made(image).detach().numpy(), network(image).detach().numpy(), rtol=1e-3, atol=1e-4
    )
    assert all(value.requires_grad for value in made.parameters())


@has_torch
def test_a_run_on_a_few_images(tmp_path, monkeypatch, capsys):
    from tools import train_demo_model
    from tools.train_demo_model import Split

    random = np.random.default_rng(5)
    label = np.arange(200) % 2
    # Two classes that are bright at the top or below: learnt within a few steps.
    image = random.uniform(0, 0.3, (200, 1, 28, 28)).astype(np.float32)
    image[label == 0, :, :14] += 0.7
    image[label == 1, :, 14:] += 0.7
    split = Split(image, label.astype(np.int64))
    monkeypatch.setattr(train_demo_model, "fetch_idx", lambda cache: cache)
    monkeypatch.setattr(train_demo_model, "load_split", lambda *_: split)
    file = tmp_path / "figures.json"
    arguments = ["--epochs", "8", "--steps", "4", "--times", "2", "--forms", "svd*"]
    assert main([*arguments, "--json", str(file)]) == 0
    rows = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
    assert list(rows) == [ORIGINAL, "svd spatial", "svd channel"]
    assert rows[ORIGINAL]["fitted"] > 0.9
    for name in ("svd spatial", "svd channel"):
        assert 2 <= rows[name]["layers"] < 2.5
        assert 1 < rows[name]["network"] < rows[name]["layers"]
        assert 0 < rows[name]["error"] < 1
    assert "svd channel, 2×" in capsys.readouterr().out
    again = tmp_path / "again.json"
    main([*arguments, "--json", str(again)])
    kept = ("fitted", "tuned", "layers", "error")
    for one, other in zip(
        json.loads(file.read_text())["rows"], json.loads(again.read_text())["rows"], strict=True
    ):
        assert [one[key] for key in kept] == [other[key] for key in kept]
