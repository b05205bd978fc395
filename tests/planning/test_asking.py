"""From arguments to what is asked: one method, or the planner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onnxlr.errors import UsageError
from onnxlr.fits import FitStore
from onnxlr.methods import SvdOptions
from onnxlr.methods.offering import Offer
from onnxlr.planning.asking import Aims, bytes_of, method_of, request_of
from onnxlr.planning.auto.goal import Goal, Limit
from onnxlr.planning.auto.request import AutoRequest
from onnxlr.planning.request import Request
from onnxlr.planning.selection import Selection

USUAL = {
    name: value for name, value in vars(Request()).items() if name not in ("method", "options")
}


def asked(
    method: str | None = None,
    options: dict[str, Any] | None = None,
    fitting: dict[str, Any] | None = None,
    **aims: Any,
) -> Request | AutoRequest:
    return request_of(method, options or {}, USUAL | (fitting or {}), Aims(**aims))


@pytest.mark.parametrize("method", [None, "auto"])
def test_nothing_asked_is_the_planner_with_its_usual_goal(method: str | None) -> None:
    found = asked(method)
    assert isinstance(found, AutoRequest)
    assert found == AutoRequest(Goal("balanced", (Limit("cosine", 0.01),)))


def test_what_the_planner_is_told() -> None:
    chosen = Selection(["a*"], ["b"])
    found = asked(
        "auto",
        fitting={"target": "ort", "seed": 7, "selection": chosen, "bias_correction": False},
        goal="size",
        max_drop=["relout=0.1", "top1=0"],
        max_size=0.5,
        max_latency=0.75,
        cache="c.sqlite",
        stock=False,
        jobs=3,
    )
    goal = Goal("size", (Limit("relout", 0.1), Limit("top1", 0.0)), 0.5, 0.75)
    assert found == AutoRequest(goal, "ort", 7, chosen, False, Path("c.sqlite"), False, 3)
    assert isinstance(found, AutoRequest)
    request = found.of("svd", offer := Offer(SvdOptions(rank=3), "int8"))
    assert (request.method, request.options, request.format) == ("svd", offer.options, "int8")
    assert (request.target, request.seed, request.selection) == ("ort", 7, chosen)
    assert not request.bias_correction


def test_one_limit_may_be_a_text() -> None:
    found = asked(max_drop="cosine=0.2")
    assert isinstance(found, AutoRequest)
    assert found.goal.limits == (Limit("cosine", 0.2),)


@pytest.mark.parametrize("bound", ["max_size", "max_latency"])
def test_a_bound_alone_is_about_accuracy(bound: str) -> None:
    found = asked(**{bound: 0.5})
    assert isinstance(found, AutoRequest)
    assert found.goal.limits == ()
    assert found.goal.limits == ()


@pytest.mark.parametrize(
    ("options", "fitting", "method"),
    [
        ({"rank": 3}, {}, "svd"),
        ({}, {"format": "int8"}, "svd"),
        ({}, {"sequential": True}, "svd"),
        ({}, {"target": "ort"}, "auto"),
        ({}, {"seed": 3}, "auto"),
        ({}, {"selection": Selection(["a"])}, "auto"),
        ({}, {"bias_correction": False}, "auto"),
        ({}, {}, "auto"),
    ],
)
def test_the_method_that_is_meant(
    options: dict[str, Any], fitting: dict[str, Any], method: str
) -> None:
    assert method_of(None, options, USUAL | fitting) == method
    assert method_of("ternary", options, USUAL | fitting) == "ternary"
    found = asked(None, options, fitting)
    assert isinstance(found, AutoRequest) == (method == "auto")
    if isinstance(found, Request):
        assert found.method == "svd"


@pytest.mark.parametrize(
    ("options", "fitting", "name"),
    [
        ({"rank": 3}, {}, "rank"),
        ({}, {"format": "int8"}, "format"),
        ({}, {"metric": "frobenius"}, "metric"),
        ({}, {"allocate": "global"}, "allocate"),
        ({}, {"rounding": "gptq"}, "rounding"),
    ],
)
def test_what_is_for_one_method_is_refused_beside_auto(
    options: dict[str, Any], fitting: dict[str, Any], name: str
) -> None:
    with pytest.raises(UsageError, match=f"^'{name}' is for one method, and method auto"):
        asked("auto", options, fitting)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("goal", "size"),
        ("max_drop", ["cosine=0.1"]),
        ("max_drop", "cosine=0.1"),
        ("max_size", 0.5),
        ("max_latency", 0.5),
        ("stock", False),
    ],
)
def test_what_is_for_auto_is_refused_beside_a_method(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^'{name}' is for method auto$"):
        asked("svd", **{name: value})
    with pytest.raises(UsageError, match=rf"^'{name}' is for method auto \(as 'rank' is given"):
        asked(None, {"rank": 3}, **{name: value})


def test_who_fits_is_asked_of_any_method(tmp_path: Path) -> None:
    aims = {"cache": tmp_path / "c", "jobs": 2, "memory": "1.5G"}
    assert asked("svd", **aims) == asked("svd")
    workers = Aims(**aims).workers(isolate=True)
    assert (workers.jobs, workers.memory) == (2, 3 << 29)
    assert workers.store is not None
    assert workers.store.folder == tmp_path / "c" / "fits"
    found = asked("auto", **aims)
    assert isinstance(found, AutoRequest)
    assert (found.cache, found.memory) == (tmp_path / "c" / "measurements.sqlite", 3 << 29)


def test_a_cache_may_be_a_file_of_measurements(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    for name in ("there", "new.sqlite", "new.db"):
        found = asked("auto", cache=tmp_path / name)
        assert isinstance(found, AutoRequest)
        assert found.cache == tmp_path / name
        with pytest.raises(UsageError, match=r"is a file of measurements.*give a folder"):
            Aims(cache=tmp_path / name).workers(isolate=True)
    (tmp_path / "folder.db").mkdir()
    assert Aims(cache=tmp_path / "folder.db").workers(isolate=True).store is not None


def test_a_cache_that_cannot_be_looked_at_is_a_folder(tmp_path: Path) -> None:
    """Whoever writes there first says what is wrong."""
    aims = Aims(cache=tmp_path / ("x" * 300))  # longer than names can be
    assert aims.measurements() == tmp_path / ("x" * 300) / "measurements.sqlite"
    assert aims.store() == FitStore(tmp_path / ("x" * 300) / "fits")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        (7, 7),
        ("2k", 2048),
        ("1.5M", 3 << 19),
        ("4G", 1 << 32),
        ("4GB", 1 << 32),
        ("4GiB", 1 << 32),
        (" 1 T ", 1 << 40),
    ],
)
def test_sizes_are_numbers_of_bytes(text: str | int, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "0", "0G", "-1", -1, "G", "4X", "1e9", "4 G G", "٤G"])
def test_what_is_no_size_is_refused(text: str | int) -> None:
    with pytest.raises(UsageError, match="is no size, expected one such as 4G"):
        bytes_of(text)
    with pytest.raises(UsageError, match="is no size"):
        asked("auto", memory=text)


def test_fewer_jobs_than_one_are_refused() -> None:
    with pytest.raises(UsageError, match="0 jobs were asked for"):
        Aims(jobs=0).workers(isolate=True)


@pytest.mark.parametrize("nothing", [(), []])
def test_no_drops_are_none_given(nothing: Any) -> None:
    assert isinstance(asked("svd", max_drop=nothing), Request)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"jobs": 0}, "0 jobs were asked for"),
        ({"max_size": 2.0}, "the largest size is 2"),
        ({"max_latency": -1.0}, "the largest latency is -1"),
        ({"goal": "sizes"}, "did you mean 'size'"),
        ({"max_drop": ["cosine=1", "cosine=0.5"]}, "more than one drop for 'cosine'"),
    ],
)
def test_requests_that_mean_nothing_are_refused(wanted: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        asked(**wanted).check()


def test_a_goal_that_means_nothing_has_no_words() -> None:
    with pytest.raises(UsageError, match="'sizes' is unknown"):
        Aims(goal="sizes").parse()


def test_a_negative_seed_and_an_unknown_target_are_refused() -> None:
    for fitting, words in (({"seed": -1}, "seed -1"), ({"target": "gpu"}, "gpu")):
        with pytest.raises(UsageError, match=words):
            asked(None, {}, fitting).check()
