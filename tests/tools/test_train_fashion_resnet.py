"""Tests of `tools/train_fashion_resnet.py`: what is exported is what was trained."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch", reason="the tool needs the extra onnxlr[train]")

from tools.fashion_resnet import BATCH, Schedule, build_resnet20, train  # noqa: E402
from tools.train_demo_model import Split  # noqa: E402
from tools.train_fashion_resnet import export  # noqa: E402


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_trained_network_is_exported_as_it_is(bfloat16):
    torch.manual_seed(3)
    network = build_resnet20(widths=(4, 6, 8), blocks=2)
    rng = np.random.default_rng(0)
    images = rng.random((BATCH, 1, 28, 28), np.float32)
    train(network, Split(images, rng.integers(0, 10, BATCH)), Schedule(2, 0.1, 5, bfloat16))
    model = export(network)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = network(torch.from_numpy(images[:9])).numpy()
    np.testing.assert_allclose(
        session.run(["logits"], {"image": images[:9]})[0], expected, atol=1e-4
    )
    names = {tensor.name for tensor in model.graph.initializer}
    assert names == {name for name in network.state_dict() if "batches_tracked" not in name}


def test_the_usual_network_has_the_parameters_of_resnet_20():
    """He et al.: 0.27 million, with shortcuts that have none."""
    network = build_resnet20()
    shortcuts = sum(p.numel() for n, p in network.named_parameters() if "shortcut" in n)
    total = sum(p.numel() for p in network.parameters())
    assert total - shortcuts == pytest.approx(0.27e6, rel=0.01)
