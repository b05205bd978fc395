"""Where a layer is kept because nothing is won."""

from __future__ import annotations

import pytest

from onnxlr.evidence import UNKNOWN
from onnxlr.layers import find_layers
from onnxlr.methods import SvdOptions
from onnxlr.model import open_model
from onnxlr.planning import Request, uniform
from onnxlr.planning.uniform import propose_one
from onnxlr.rewriting import released_bytes
from tests.classifier import classifier


@pytest.mark.parametrize(("more", "pays"), [(-1, True), (0, False), (1, False)])
def test_a_layer_is_only_written_if_it_takes_fewer_bytes(
    more: int, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(classifier())
    layer = find_layers(model)[1]
    before = released_bytes(layer)
    monkeypatch.setattr(uniform, "emitted_bytes", lambda *_: before + more)
    proposal = propose_one(model, layer, Request(options=SvdOptions(rank=3)), UNKNOWN)
    assert proposal.choice.keeps is not pays
    if not pays:
        assert f"takes {before + more:,} bytes, the layer as it is {before:,}" in str(
            proposal.choice.reason
        )
