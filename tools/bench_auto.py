"""Plan for real models, and compare with what ONNX Runtime's own tools make, in the same run.

    python tools/bench_auto.py
    python tools/bench_auto.py minilm ocr --goal size --target onnxlr
    python tools/bench_auto.py --show --json auto.json --write

For each model `onnxlr rewrite --method auto` is run with its own data, a score that is measured on
held-out inputs, and a drop that is allowed. Prints every contender's size, time on one thread and
loss, what was predicted and found in each round, and whether the plan is better than every stock
option that keeps the limit: in size or time, and not worse in the other. `pip install
'onnxlr[measure]'` brings what the tool needs; the op library has to be there for target onnxlr.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import onnxlr  # noqa: E402  # the folder above must be known first
from onnxlr.console import at_work  # noqa: E402
from onnxlr.errors import OnnxlrError  # noqa: E402
from tools.auto_tasks import AUTO_TASKS, AutoTask  # noqa: E402
from tools.fetch_models import Unavailable  # noqa: E402
from tools.grids import Grid  # noqa: E402
from tools.pages import write_section  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

MARK = "<!-- tables by tools/bench_auto.py -->"
PAGE = ROOT / "docs" / "results" / "auto.md"
TIE = 0.02
"""Part by which times may differ and count as equal: two sessions of one file do."""


@dataclass
class Planned:
    """What became of a model.

    Attributes
    ----------
    task, words, target, goal
        What was asked.
    score, drop
        What was measured, and how much worse than the original it may be.
    seconds
        That planning, building and proving took, and planning again with everything in the cache.
    contenders, rounds
        As `onnxlr.planning.Findings` has them.
    versions
        Of what was used.
    problem
        Why there is nothing.
    """

    task: str
    words: str
    target: str
    goal: str
    score: str
    drop: float
    seconds: float = 0.0
    again: float | None = None
    contenders: list[dict[str, Any]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    problem: str | None = None

    @property
    def asked(self) -> tuple[str, str, str, float]:
        """What tells results apart."""
        return self.task, self.target, self.goal, self.drop

    @property
    def planned(self) -> dict[str, Any] | None:
        """The plan's model; None if there is none."""
        return next((each for each in self.contenders if each["name"] == "onnxlr"), None)

    @property
    def verdict(self) -> str:
        """Whether the plan is better than every stock option that keeps the limit."""
        ours = self.planned
        if ours is None or not ours["meets"]:
            return "no plan"
        rivals = [e for e in self.contenders if e["is_stock"] and e["meets"] and e["latency"]]
        beaten = [_is_better(ours, each) for each in rivals]
        return f"better than {sum(beaten)} of {len(beaten)} stock options that keep the limit"


def _is_better(ours: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether a model is smaller or faster than another, and not worse in the other."""
    smaller = ours["size"] < other["size"]
    faster = ours["latency"] < other["latency"] * (1 - TIE)
    no_slower = ours["latency"] <= other["latency"] * (1 + TIE)
    return (smaller and no_slower) or (faster and ours["size"] <= other["size"])


def plan(task: AutoTask, asked: argparse.Namespace) -> Planned:
    """Rewrite a model with what the cache has; plan once more, from the cache, if asked to."""
    drop = task.drop if asked.drop is None else asked.drop
    found = Planned(task.name, task.words, asked.target, asked.goal, task.score, drop)
    found.versions = {
        "onnxlr": onnxlr.__version__,
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    with tempfile.TemporaryDirectory(prefix="onnxlr-bench-") as name:
        wanted = {
            "method": "auto",
            "goal": asked.goal,
            "max_drop": [f"{task.score}={found.drop}"],
            "max_latency": asked.max_latency,
            "target": asked.target,
            "mask": task.mask,
            "cache": asked.cache or Path(name) / "cache.sqlite",
        }
        try:
            model, calibration = task.model(), list(task.calibration())
            with at_work() as progress:
                start = time.perf_counter()
                result = onnxlr.rewrite(
                    model,
                    Path(name) / "planned.onnx",
                    calibration=calibration,
                    progress=progress,
                    **wanted,
                )
                found.seconds = time.perf_counter() - start
                if asked.again:
                    start = time.perf_counter()
                    onnxlr.plan(model, calibration=calibration, progress=progress, **wanted)
                    found.again = time.perf_counter() - start
        except (OnnxlrError, Unavailable) as error:
            found.problem = str(error)
            return found
    findings = result.findings
    if findings is not None:
        found.contenders = [asdict(each) for each in findings.contenders]
        found.rounds = [asdict(each) for each in findings.rounds]
    return found


def tables(results: Sequence[Planned]) -> list[Grid]:
    """Return a table for each model, and one of all."""
    grids = [
        Grid(
            "All models",
            ["model", "goal", "of the size", "of the time", "lost", "allowed", "verdict", "s"],
            [_summary(result) for result in results],
        )
    ]
    for result in results:
        title = f"{result.task}, target {result.target}, goal {result.goal}"
        header = ["", "MB", "of it", "ms", "of it", "quartiles", "lost"]
        rows = [_row(result, each) for each in result.contenders if each["problem"] is None]
        grids.append(Grid(f"{title}: {result.words} may drop by {result.drop:g}", header, rows))
    return grids


def _summary(result: Planned) -> list[str]:
    ours, allowed = result.planned, f"{result.drop:g}"
    first = [result.task, result.goal]
    if result.problem is not None or ours is None or ours["size"] is None:
        problem = result.problem or "no plan"
        return [*first, *["–"] * 3, allowed, problem, f"{result.seconds:.0f}"]
    again = "" if result.again is None else f" ({result.again:.0f})"
    return [
        *first,
        f"{ours['size']:.3f}",
        f"{ours['latency']:.3f}",
        _lost(result, ours),
        allowed,
        result.verdict,
        f"{result.seconds:.0f}{again}",
    ]


def _row(result: Planned, each: dict[str, Any]) -> list[str]:
    name = f"**{each['name']}**" if each["chosen"] else each["name"]
    timed = each["latency"] is not None and each["milliseconds"] is not None
    return [
        name,
        f"{each['bytes'] / 1e6:.2f}",
        f"{each['size']:.3f}",
        f"{each['milliseconds']:.3g}" if timed else "–",
        f"{each['latency']:.3f}" if timed else "–",
        f"{each['latency_low']:.3f}–{each['latency_high']:.3f}" if timed else "–",
        _lost(result, each),
    ]


def _lost(result: Planned, each: dict[str, Any]) -> str:
    drop = each["drops"].get(result.score)
    missed = "" if each["meets"] else " (too much)"
    return "–" if drop is None else f"{drop:.4f}{missed}"


def read(file: Path) -> list[Planned]:
    """Return the results that a file keeps."""
    return [Planned(**entry) for entry in json.loads(file.read_text(encoding="utf-8"))]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench_auto.py",
        description="Plan for real models, and compare with ONNX Runtime's own tools.",
        epilog="Exit status: 0 all models were planned for, 1 one or more were not, 2 wrong usage.",
    )
    add = parser.add_argument
    add("models", nargs="*", choices=[[], *(task.name for task in AUTO_TASKS)], default=[])
    add("--goal", default="size", help="size, latency or balanced")
    add("--target", default="onnxlr", help="onnx, ort or onnxlr")
    add("--drop", type=float, help="what may be lost, if not what the model's figures allow")
    add("--max-latency", type=float, metavar="FRACTION", help="of the original's time")
    add("--cache", type=Path, metavar="FILE", help="keep measurements there")
    add("--again", action="store_true", help="plan a second time, from the cache")
    add("--json", type=Path, metavar="FILE", help="keep the figures there; other models' stay")
    add("--show", action="store_true", help="plan nothing, show what --json holds")
    page = "put the tables into a page (docs/results/auto.md, if none is named)"
    add("--write", type=Path, nargs="?", const=PAGE, metavar="FILE", help=page)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.show and not asked.json:
        parser.error("--show needs --json")
    results = read(asked.json) if asked.json and asked.json.exists() else []
    if not asked.show:
        for task in AUTO_TASKS:
            if asked.models and task.name not in asked.models:
                continue
            done = plan(task, asked)
            print(f"{task.name}: {done.problem or done.verdict}", file=sys.stderr, flush=True)
            results = [*(each for each in results if each.asked != done.asked), done]
            if asked.json:
                text = json.dumps([asdict(result) for result in results], indent=1)
                asked.json.write_text(text + "\n", encoding="utf-8")
    grids = tables(results)
    console = Console(width=None if sys.stdout.isatty() else 110)
    for grid in grids:
        console.print(grid.table())
    if asked.write:
        write_section(asked.write, MARK, grids)
    return 1 if any(result.problem for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
