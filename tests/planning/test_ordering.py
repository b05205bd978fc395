"""Orders of contraction: the fastest is taken, said, and made again from the plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxlr
from onnxlr.lowering import LoweringRefusedError
from onnxlr.planning import ordering
from onnxlr.reporting import to_document
from onnxlr.runtime import Latency, Race, read_arrays
from tests.planning.two_orders import WIDE, TwoOrders, network, registered

ANY = {"tolerance": "cosine>=-1", "isolate": False}


class Timer:
    """Stands for the runtime: says that orders take these parts of the first one's time."""

    def __init__(self, answer: Sequence[float] | str) -> None:
        self.answer = answer
        self.races: list[Race] = []
        self.shapes: list[tuple[int, ...]] = []
        self.ranks: list[list[int]] = []

    def __call__(
        self,
        races: Sequence[Race],
        name: str,  # noqa: ARG002
        isolate: bool,  # noqa: ARG002
    ) -> list[list[Latency] | str]:
        self.races += races
        for race in races:
            (feed,) = (read_arrays(Path(file)) for file in race.feeds)
            self.shapes += [array.shape for array in feed.values()]
            models = [onnx.load(file) for file in race.models]
            self.ranks.append([model.graph.initializer[0].dims[-1] for model in models])
        if isinstance(self.answer, str):
            return [self.answer for _ in races]
        return [[Latency(part, part, part, part) for part in self.answer] for _ in races]


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> TwoOrders:
    return registered(monkeypatch)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a maker of timers that take the place of the runtime."""

    def make(*answer: Any) -> Timer:
        timer = Timer(answer[0] if isinstance(answer[0], str) else answer)
        monkeypatch.setattr(ordering, "measure_latency", timer)
        return timer

    return make


def choices(model: onnx.ModelProto, **options: Any) -> dict[str, Any]:
    asked = {"method": "two_orders", "rank": 4, "isolate": False} | options
    return dict(onnxlr.plan(model, **asked).layers)


@pytest.mark.parametrize("isolate", [True, False])
def test_an_order_of_many_times_the_work_is_not_taken(method: TwoOrders, isolate: bool) -> None:
    for choice in choices(network(), isolate=isolate).values():
        assert choice.options.order == "narrow"
        assert choice.reason == "the fastest of 2 orders on data of 128×512, one thread"


def test_a_plan_says_the_order_and_gives_the_same_bytes(method: TwoOrders, tmp_path: Path) -> None:
    asked = {"method": "two_orders", "rank": 4} | ANY
    result = onnxlr.rewrite(network(), tmp_path / "a.onnx", **asked)
    file = tmp_path / "p.json"
    file.write_text(result.plan.dumps(), encoding="utf-8")
    assert '"order": "narrow"' in file.read_text(encoding="utf-8")
    onnxlr.rewrite(network(), tmp_path / "b.onnx", plan=file, **ANY)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    shapes = {tuple(t.dims) for t in onnx.load(tmp_path / "a.onnx").graph.initializer}
    assert shapes == {(512, 4), (4, 512)}


@pytest.mark.parametrize(
    ("part", "order"),
    [(0.5, "narrow"), (0.94, "narrow"), (0.96, "wide"), (1.0, "wide"), (3, "wide")],
)
def test_what_noise_explains_keeps_the_usual_order(
    method: TwoOrders, timed: Any, part: float, order: str
) -> None:
    timer = timed(1.0, part)
    (choice,) = choices(network(1)).values()
    assert choice.options.order == order
    words = "the fastest of" if order == "narrow" else "none is faster than the usual one by 5%"
    assert words in choice.reason
    assert timer.ranks == [[WIDE, 4]]


def test_an_order_that_is_asked_for_is_not_measured(method: TwoOrders, timed: Any) -> None:
    timer = timed("not to be called")
    for order in ("wide", "narrow"):
        (choice,) = choices(network(1), order=order).values()
        assert (choice.options.order, choice.reason) == (order, None)
    assert timer.races == []


def test_other_methods_are_not_measured(timed: Any) -> None:
    timer = timed("not to be called")
    assert {choice.reason for choice in choices(network(), method="svd").values()} == {None}
    assert timer.races == []


def test_layers_of_one_structure_share_a_race(method: TwoOrders, timed: Any) -> None:
    timer = timed(1.0, 0.1)
    assert {c.options.order for c in choices(network(4)).values()} == {"narrow"}
    assert len(timer.races) == 1
    model = network(2)
    model.graph.node[2].op_type = "Gemm"
    choices(model)
    assert len(timer.races) == 3


def test_orders_that_are_one_model_are_not_measured(
    method: TwoOrders, timed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = timed("not to be called")
    monkeypatch.setattr(method, "width", 4)
    (choice,) = choices(network(1)).values()
    assert (choice.options.order, choice.reason) == ("wide", None)
    assert timer.races == []


def test_what_cannot_be_timed_keeps_the_usual_order_and_says_so(
    method: TwoOrders, timed: Any
) -> None:
    timed("cannot be loaded: no kernel")
    (choice,) = choices(network(1)).values()
    assert choice.options.order == "wide"
    assert "cannot be told" in choice.reason
    assert "no kernel" in choice.reason


def test_an_order_that_cannot_be_written_is_no_choice(
    method: TwoOrders, timed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = ordering.write_alone

    def refusing(proposal: Any, *rest: Any) -> Any:
        if proposal.choice.options.order == "narrow":
            raise LoweringRefusedError("no lowering can write it")
        return written(proposal, *rest)

    timer = timed("not to be called")
    monkeypatch.setattr(ordering, "write_alone", refusing)
    (choice,) = choices(network(1)).values()
    assert (choice.options.order, timer.races) == ("wide", [])


def test_an_order_larger_than_the_layer_is_not_taken(
    method: TwoOrders, timed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(1.0, 0.1)
    monkeypatch.setattr(ordering, "emitted_bytes", lambda *_: 2**40)
    (choice,) = choices(network(1)).values()
    assert choice.options.order == "wide"
    assert "larger than the layer" in choice.reason


def test_a_layer_is_fitted_again_once_and_only_for_another_order(
    method: TwoOrders, timed: Any
) -> None:
    timed(1.0, 0.1)
    choices(network(1))
    assert method.calls.count("narrow") == 2
    method.calls.clear()
    timed(1.0, 1.0)
    choices(network(1))
    assert method.calls.count("narrow") == 1


@pytest.mark.parametrize("sequential", [False, True])
def test_with_calibration_the_plan_gives_the_same_bytes(
    method: TwoOrders, timed: Any, tmp_path: Path, sequential: bool
) -> None:
    timed(1.0, 0.1)
    rows = np.random.default_rng(1).standard_normal((400, 96)).astype(np.float32)
    rows *= np.exp(-np.arange(96) / 20.0).astype(np.float32)
    monkey = {"calibration": {"x": rows}, **ANY}
    model = network(2, 96, "n")
    method.width = 16
    asked = {"method": "two_orders", "rank": 8, "sequential": sequential} | monkey
    result = onnxlr.rewrite(model, tmp_path / "a.onnx", **asked)
    found = result.plan.layers.values()
    assert {choice.options.order for choice in found} == {"narrow"}
    assert "activation" in {choice.metric for choice in found}
    onnxlr.rewrite(model, tmp_path / "b.onnx", plan=result.plan, **monkey)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_measured_order_shows_in_the_report_and_in_json(
    method: TwoOrders, timed: Any, tmp_path: Path
) -> None:
    timed(1.0, 0.1)
    asked = {"method": "two_orders", "rank": 4} | ANY
    result = onnxlr.rewrite(network(1), tmp_path / "a.onnx", **asked)
    (record,) = result.layers
    assert record.choice.summary == "two_orders rank 4, narrow"
    entry = to_document("rewrite", result)["layers"][0]["choice"]
    assert entry["options"] == {"rank": 4, "order": "narrow"}
    assert "the fastest of 2 orders" in entry["reason"]
