"""Goals: what is read, refused, and said to hold."""

from __future__ import annotations

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxlr.errors import UsageError
from onnxlr.planning.auto.goal import Goal, Limit


@pytest.mark.parametrize(
    ("text", "measure", "drop"),
    [
        ("cosine=0.01", "cosine", 0.01),
        (" top1 = 1e-3 ", "top1", 0.001),
        ("relout=2", "relout", 2.0),
        ("cosine=0", "cosine", 0.0),
        ("top1=1", "top1", 1.0),
        ("my.scores:accuracy=0.5", "my.scores:accuracy", 0.5),
        ("scores:Accuracy=70", "scores:Accuracy", 70.0),
    ],
)
def test_limits_are_read(text, measure, drop):
    assert Limit.parse(text) == Limit(measure, drop)


@given(st.sampled_from(["cosine", "top1", "a.b:c"]), st.floats(0, 1))
def test_limits_are_read_as_they_are_written(measure, drop):
    assert Limit.parse(Limit(measure, drop).text) == Limit(measure, drop)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "METRIC=VALUE"),
        ("cosine", "METRIC=VALUE"),
        ("cosine=", "METRIC=VALUE"),
        ("=0.1", "METRIC=VALUE"),
        ("cosine=a little", "'a little' is not a number"),
        ("cosine=0.1=0.2", "'0.1=0.2' is not a number"),
        ("cosin=0.1", "did you mean 'cosine'"),
        ("relOut=0.1", "did you mean 'relout'"),
        ("top-1=0.1", "did you mean 'top1'"),
        ("blue=0.1", "expected cosine, relout, top1 or module:function"),
        ("scores:=0.1", "unknown measure 'scores:'"),
        (":score=0.1", "unknown measure ':score'"),
        ("my scores:f=0.1", "unknown measure 'my scores:f'"),
        ("cosine=nan", "expected a finite number"),
        ("relout=inf", "expected a finite number"),
        ("top1=-0.1", "not negative"),
        ("a:b=-1", "not negative"),
        ("cosine=1.5", "at most 1 for cosine"),
        ("top1=5", "at most 1 for top1"),
    ],
)
def test_limits_that_mean_nothing_are_refused(text, said):
    with pytest.raises(UsageError, match=said) as caught:
        Limit.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "goal",
    [
        Goal("size", (Limit("cosine", 0.01),)),
        Goal("latency", (Limit("cosine", 0.01), Limit("a:b", 3)), max_size=1),
        Goal("balanced", (), max_latency=0.5),
        Goal(max_size=1e-3, max_latency=1.0),
    ],
)
def test_goals_that_mean_something(goal):
    goal.check()


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        (Goal("Latncy", (Limit("cosine", 0.01),)), "did you mean 'latency'"),
        (Goal("beauty", (Limit("cosine", 0.01),)), "one of size, latency, balanced"),
        (Goal("size"), "bounds nothing"),
        (Goal(max_size=0.0), "largest size is 0,"),
        (Goal(max_size=1.01), "largest size is 1.01"),
        (Goal(max_latency=-1), "largest latency is -1"),
        (Goal(max_latency=nan), "largest latency is nan"),
        (Goal("size", (Limit("cosine", 0.1), Limit("cosine", 0.2))), "more than one drop"),
        (Goal("size", (Limit("cosine", 2),)), "at most 1"),
    ],
)
def test_goals_that_mean_nothing_are_refused(goal, said):
    with pytest.raises(UsageError, match=said):
        goal.check()


def test_all_limits_must_hold():
    goal = Goal("size", (Limit("cosine", 0.01), Limit("a:b", 2)))
    assert goal.holds({"cosine": 0.01, "a:b": -5})
    assert not goal.holds({"cosine": 0.0100001, "a:b": -5})
    assert not goal.holds({"cosine": 0.001, "a:b": 2.1})
    assert not goal.holds({"cosine": nan, "a:b": 0})
    assert not goal.holds({"cosine": 0})
    assert Goal(max_size=0.5).holds({})


def test_bounds_of_size_and_time():
    assert Goal(max_size=0.5).fits(0.5, 9)
    assert not Goal(max_size=0.5).fits(0.51, 0.1)
    assert Goal(max_latency=0.5).fits(9, 0.5)
    assert not Goal(max_size=0.5, max_latency=0.5).fits(0.4, 0.6)
    assert Goal().fits(inf, inf)


def test_without_limits_the_loss_is_what_is_measured():
    assert [limit.measure for limit in Goal(max_size=0.5).measured] == ["relout"]
    goal = Goal("size", (Limit("top1", 0.1),))
    assert goal.measured == (Limit("top1", 0.1),)


def test_goals_say_what_they_are():
    goal = Goal("latency", (Limit("cosine", 0.01),), max_size=0.5)
    assert goal.words == (
        "the shortest time; cosine may drop by 0.01; size at most 0.5 of the original's"
    )
    assert Goal(max_latency=0.25).words == "the least loss; time at most 0.25 of the original's"
