"""One case of the fuzz target: a damaged file, what is done with it, and what must hold.

Whatever a file is, an answer or an OnnxlrError must come of it, and nothing may be written outside
the case's folder.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cache
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

import onnx

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import onnxlr  # noqa: E402
from onnxlr import cli  # noqa: E402
from onnxlr.layers import find_layers  # noqa: E402
from onnxlr.model import open_model  # noqa: E402
from onnxlr.model.saving import staging, write_model  # noqa: E402
from onnxlr.plan import Plan  # noqa: E402
from onnxlr.rewriting import Rewriting, follow_plan  # noqa: E402
from tests.classifier import classifier  # noqa: E402
from tests.fixtures import runnable_model  # noqa: E402
from tests.model.everything import everything_model  # noqa: E402
from tests.model.test_new_tensors import CASES  # noqa: E402
from tools.fuzz_fields import change_bytes, change_values  # noqa: E402
from tools.fuzz_files import damage_arrays, damage_statistics  # noqa: E402
from tools.fuzz_models import fuzz_models  # noqa: E402
from tools.fuzz_mutations import change_model  # noqa: E402
from tools.fuzz_watch import Watch  # noqa: E402

__all__ = ["Case", "Failure", "run_case"]

METHODS: tuple[Mapping[str, Any], ...] = (
    {"method": "svd", "ratio": 0.5},
    {"method": "svd", "rank": 2, "format": "int8"},
    {"method": "svd", "energy": 0.9, "format": "float16", "target": "ort"},
    {"method": "quantize", "format": "int8"},
    {"method": "quantize", "format": "int4", "target": "ort"},
)

LARGE = ("demo.onnx", "fashion_resnet20.onnx")
"""Models of a megabyte or more: real, but slow."""

_LARGE_SHARE = 0.02
_ARRAYS_SHARE = 0.1
_LONGEST_MESSAGE = 20_000


@dataclass
class Case:
    """A damaged file, by its number.

    Attributes
    ----------
    seed, number
        What it is made from.
    stage
        `lower`: no runtime; `run`: ONNX Runtime in this process; `command`: the command line.
    done
        What was changed.
    refused
        Whether an error came of it.
    """

    seed: int
    number: int
    stage: str
    done: list[str] = field(default_factory=list)
    refused: bool = False

    @property
    def random(self) -> Random:
        """Numbers that are the same whenever the case is made."""
        return Random(f"{self.seed}:{self.number}")  # noqa: S311


@dataclass(frozen=True)
class Failure:
    """What did not hold."""

    case: str
    what: str
    details: str


@cache
def _bases() -> dict[str, bytes]:
    models = {"runnable": runnable_model(), "everything": everything_model()}
    models |= {"classifier": classifier()} | CASES | fuzz_models()
    found = {name: model.SerializeToString() for name, model in models.items()}
    for name in LARGE:
        if (ROOT / "models" / name).exists():
            found[name] = (ROOT / "models" / name).read_bytes()
    return found


@cache
def _rewritten(name: str) -> bytes:
    """Return a base as onnxlr rewrites it, with the plan in it; itself if it cannot be."""
    with tempfile.TemporaryDirectory(prefix="onnxlr-fuzz-") as place:
        path = Path(place) / "m.onnx"
        path.write_bytes(_bases()[name])
        with suppress(onnxlr.OnnxlrError):
            _lower(path, METHODS[0])
            return (Path(place) / "out.onnx").read_bytes()
    return _bases()[name]


def run_case(case: Case, folder: Path) -> Failure | None:
    """Make a case's files in an empty folder, do what is to be done, and judge it."""
    random = case.random
    large = [name for name in LARGE if name in _bases()]
    name = random.choice(sorted(_bases().keys() - set(large)))
    if large and random.random() < _LARGE_SHARE and case.stage == "lower":
        name = random.choice(large)
    case.done.append(name)
    place = folder / "in"
    place.mkdir()
    _put_traps(place)
    act = _damage(case, name, place, random)
    before = _contents(folder, place)
    written: list[str] = []
    with Watch(folder, written):
        said = _outcome(act, case)
    if said is None and written:
        said = ("a write outside the case's folder", ", ".join(written))
    if said is None and _contents(folder, place) != before:
        said = ("files beside the output", "\n".join(sorted(_contents(folder, place) ^ before)))
    if said is None:
        return None
    return Failure(f"{case.seed}:{case.number} {case.stage} {' '.join(case.done)}", *said)


def _put_traps(place: Path) -> None:
    (place / "data.bin").write_bytes(bytes(8192))
    (place.parent / "outside.bin").write_bytes(bytes(8192))
    (place / "a").mkdir()
    (place / "link.bin").symlink_to("../outside.bin")
    os.mkfifo(place / "pipe")


def _damage(case: Case, name: str, place: Path, random: Random) -> Callable[[], object]:
    """Write the damaged files; return what is to be done with them."""
    content, model = _bases()[name], place / "m.onnx"
    if case.stage == "lower" and random.random() < _ARRAYS_SHARE:
        model.write_bytes(content)
        made = random.choice((damage_arrays, damage_statistics, None))
        if made is None or (made is damage_statistics and name in LARGE):  # half a gigabyte of them
            return _damage_plan(case, model, random)
        kind, act = made(model, case.number, random)
        case.done.append(kind)
        return act
    method = random.choice(METHODS)
    if case.stage == "run" and random.random() < 0.3:  # the original is what it was
        model.write_bytes(content)
        other = place / "out.onnx"
        other.write_bytes(_damaged(case, _rewritten(name), random))
        return lambda: onnxlr.verify(model, other, isolate=False)
    model.write_bytes(_damaged(case, content, random))
    if case.stage == "command":
        return lambda: _command(model, random)
    return lambda: (_run if case.stage == "run" else _lower)(model, method)


def _damaged(case: Case, content: bytes, random: Random) -> bytes:
    if random.random() < 0.15:
        case.done.append("bytes")
        return change_bytes(content, random)
    proto = onnx.ModelProto.FromString(content)
    case.done += change_model(proto, random)
    return bytes(proto.SerializeToString())


def _damage_plan(case: Case, path: Path, random: Random) -> Callable[[], object]:
    """Change a plan's JSON: bytes of it, or values for others."""
    case.done.append("plan")
    try:
        text = onnxlr.plan(path, isolate=False, **random.choice(METHODS)).dumps()
    except onnxlr.OnnxlrError:  # the base is no model to plan for
        return lambda: None
    if random.random() < 0.5:
        text = change_bytes(text.encode(), random).decode("utf-8", "replace")
    else:
        text = json.dumps(change_values(json.loads(text), random))
    path.with_name("plan.json").write_text(text, encoding="utf-8")
    return lambda: _follow(path, Plan.read(path.with_name("plan.json")))


def _lower(path: Path, method: Mapping[str, Any]) -> None:
    """Inspect, plan, rewrite and write without any runtime."""
    onnxlr.inspect(path)
    plan = onnxlr.plan(path, isolate=False, **method)
    _follow(path, Plan.loads(plan.dumps()))


def _follow(path: Path, plan: Plan) -> None:
    model = open_model(path)
    work = Rewriting(model, open_model(path, check=False), plan.target)
    for proposal in follow_plan(model, find_layers(model), plan):
        work.add(proposal)
    work.finish(plan)
    output = path.with_name("out.onnx")
    with staging(output) as folder:
        write_model(model, folder, output.name)
    open_model(output)


def _run(path: Path, method: Mapping[str, Any]) -> None:
    output = path.with_name("out.onnx")
    onnxlr.rewrite(path, output, isolate=False, tolerance="cosine>=0.1", **method)
    onnxlr.verify(path, output, isolate=False, tolerance="cosine>=0.1")


def _command(path: Path, random: Random) -> None:
    output = str(path.with_name("out.onnx"))
    arguments = random.choice(
        (
            ["inspect", str(path), "--json"],
            ["plan", str(path), "--method", "svd", "--rank", "2"],
            ["rewrite", str(path), "-o", output, "--method", "svd", "--rank", "2"],
            ["rewrite", str(path), "-o", output, "--method", "quantize", "--format", "int8"],
        )
    )
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = cli.main(arguments)
        except SystemExit as end:
            code = end.code
    if code not in (0, 1, 2, 3, 4):
        raise AssertionError(f"{arguments[0]} ended with {code}: {err.getvalue()[-2000:]}")
    if "Traceback" in err.getvalue():
        raise AssertionError(err.getvalue()[-4000:])


def _outcome(act: Callable[[], object], case: Case) -> tuple[str, str] | None:
    """Return what is wrong with how a function ends, None if nothing is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            act()
    except onnxlr.OnnxlrError as error:
        case.refused, message = True, str(error)
        if not message.strip() or len(message) > _LONGEST_MESSAGE:
            return (f"a message of {len(message)} characters", message[:2000])
        if int(error.exit_code) not in (1, 2, 3, 4):
            return (f"exit code {int(error.exit_code)}", message)
    except Exception as error:  # noqa: BLE001  (any other is what is looked for)
        return (type(error).__name__, traceback.format_exc())
    return None


def _contents(folder: Path, place: Path) -> frozenset[str]:
    outputs = {place / "out.onnx", place / "out.onnx.data"}
    return frozenset(str(p.relative_to(folder)) for p in folder.rglob("*") if p not in outputs)
