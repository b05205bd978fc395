"""What the planner found, in 80 columns and in JSON."""

from __future__ import annotations

import io
import json

from rich.console import Console

from onnxlr.planning import Contender, Findings, RoundRecord
from onnxlr.reporting import print_findings, to_document

DROPS = {"cosine": 0.0123, "relout": 0.15, "my_scores:accuracy": -0.002}
ORIGINAL = Contender(
    "original", 10_000_000, 1.0, 12.0, 1.0, 0.99, 1.01, dict.fromkeys(DROPS, 0.0), meets=True
)
STOCK = [
    Contender("MatMulNBits 4 bits, blocks of 128, tables too", problem="it has no [bold] table"),
    Contender(
        "static int8 (QDQ), uint8 data", 2_500_000, 0.25, drops={"cosine": 0.5}, is_stock=True
    ),
]
PLANNED = Contender("onnxlr", 2_000_000, 0.2, 6.0, 0.5, 0.48, 0.52, DROPS, meets=True, chosen=True)
ROUNDS = (
    RoundRecord(90, 0.2, 0.5, 0.02, 0.21, 0.55, DROPS, meets=False),
    RoundRecord(91, 0.22, 0.52, 0.0201, None, None, {}, False, "it [red] cannot be loaded"),
    RoundRecord(92, 0.23, 0.53, 0.01, 0.24, 0.56, DROPS, meets=True),
)
FOUND = Findings(
    "the smallest file; cosine may drop by 0.02", (ORIGINAL, *STOCK, PLANNED), ROUNDS, 700, 20
)


def printed(findings: Findings) -> str:
    stream = io.StringIO()
    print_findings(Console(file=stream, width=80), findings)
    return stream.getvalue()


def test_tables_fit_and_say_what_was_found() -> None:
    text = printed(FOUND)
    assert max(map(len, text.splitlines())) <= 80
    lines = text.splitlines()
    # Three measures leave no room for names, which stand above their numbers.
    best = lines[lines.index("onnxlr") + 1]
    assert best.endswith("best")
    for number in ("2.00 MB", "0.200", "6 ms", "0.500"):
        assert number in best
    assert "misses" in lines[lines.index("static int8 (QDQ), uint8 data") + 1]
    assert sum("misses" in line for line in lines) == 2  # and the first that was built
    assert sum("meets" in line for line in lines) == 1
    whole = " ".join(text.split())
    assert "700 candidates of layers were measured, 20 of them from the cache" in whole
    # What others said is no markup.
    assert "tables too: it has no [bold] table" in whole
    assert "[red]" in whole
    assert FOUND.goal in whole


def test_tools_that_fail_alike_share_a_line() -> None:
    names = ("4 bits", "8 bits", "2 bits")
    problems = ("it needs a package", "it needs a package", "it has no table")
    failed = tuple(Contender(n, problem=p) for n, p in zip(names, problems, strict=True))
    lines = printed(Findings("the least loss", (ORIGINAL, *failed), (), 3)).splitlines()
    assert "4 bits; 8 bits: it needs a package" in lines
    assert "2 bits: it has no table" in lines


def test_nothing_that_was_compared_is_no_table() -> None:
    text = printed(Findings("the least loss", (), (), 3))
    assert text.splitlines() == ["goal  the least loss", "3 candidates of layers were measured"]


def test_the_same_as_json() -> None:
    found = json.loads(json.dumps(to_document("findings", FOUND)))
    assert found["schema"] == "onnxlr.findings/1"
    assert [each["name"] for each in found["contenders"]][0::3] == ["original", "onnxlr"]
    assert found["contenders"][3]["drops"] == DROPS
    assert found["rounds"][1]["problem"] == "it [red] cannot be loaded"
    assert found["rounds"][1]["size"] is None
    assert (found["candidates"], found["from_cache"]) == (700, 20)
