"""Rewrite a model above 2 GB, and say what memory and time that takes, beside scipy alone.

    python tools/bench_large_model.py --folder /var/tmp
    python tools/bench_large_model.py --layers 6 --size 2500 --rank 128 --markdown large.md

The model is made for it: a chain of MatMul, Add and Tanh whose weights are of low rank and a little
noise, as external data. Each phase runs in a fresh process; its memory is what the process and all
that it starts have resident at the same time, looked at every few milliseconds, mapped files among
it. What is compared:

rewrite
    open, factorize every layer, write the model and the reference model of the proof
verify
    the proofs of the same run: child processes, one model at a time
baseline
    read each weight, `scipy.sparse.linalg.svds` at the same rank, write the factors; one thread, as
    each of ours
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

__all__ = ["Phase", "factorize_with_scipy", "main", "make_model", "watched"]

_PERIOD = 0.01
_SIGNAL_RANK = 64
_NOISE = 0.01
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Phase:
    """What a phase took.

    Attributes
    ----------
    name
        Of the phase.
    seconds, cpu
        Seconds on the clock, and of processors in all processes; on a busy machine the latter say
        more.
    together
        Most bytes that the process and its children had resident at a time.
    own
        Most bytes that the process itself had.
    """

    name: str
    seconds: float
    cpu: float
    together: int
    own: int


def make_model(folder: Path, layers: int, size: int, seed: int = 0) -> Path:
    """Write a chain of square matrices with external data, and return its file."""
    random = np.random.default_rng(seed)
    nodes, constants, data = [], [], "x"
    with (folder / "model.onnx.data").open("wb") as stream:
        for number in range(layers):
            weight, bias = f"w{number}", f"b{number}"
            values = _weight(random, size)
            tensor = TensorProto(name=weight, dims=values.shape, data_type=TensorProto.FLOAT)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": stream.name, "offset": stream.tell(), "length": values.nbytes}
            place["location"] = "model.onnx.data"
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            stream.write(values.data)
            zeros = np.zeros(size, np.float32)
            constants += [tensor, onnx.numpy_helper.from_array(zeros, bias)]
            made = [f"{kind}{number}" for kind in ("product", "sum", "tanh")]
            nodes += [
                helper.make_node("MatMul", [data, weight], made[:1], name=f"fc{number}"),
                helper.make_node("Add", [made[0], bias], made[1:2], name=f"add{number}"),
                helper.make_node("Tanh", made[1:2], made[2:], name=f"tanh{number}"),
            ]
            data = made[2]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])
        for name in ("x", data)
    ]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    file = folder / "model.onnx"
    file.write_bytes(model.SerializeToString())
    return file


def _weight(random: np.random.Generator, size: int) -> np.ndarray:
    rank = min(_SIGNAL_RANK, size)
    left = random.standard_normal((size, rank), dtype=np.float32)
    right = random.standard_normal((rank, size), dtype=np.float32)
    noise = random.standard_normal((size, size), dtype=np.float32)
    return left @ right / np.float32(np.sqrt(size * rank)) + noise * np.float32(_NOISE / size**0.5)


def factorize_with_scipy(model: Path, output: Path, rank: int) -> None:
    """Read each weight, decompose it with scipy's truncated solver, and write the factors."""
    from scipy.sparse.linalg import svds

    proto = onnx.load(model, load_external_data=False)
    with output.open("wb") as stream:
        for tensor in proto.graph.initializer:
            if tensor.data_location != TensorProto.EXTERNAL:
                continue
            place = {entry.key: entry.value for entry in tensor.external_data}
            weight = np.fromfile(
                model.with_name(place["location"]),
                np.float32,
                int(np.prod(tensor.dims)),
                offset=int(place["offset"]),
            ).reshape(tensor.dims)
            left, values, right = svds(weight, rank)
            stream.write(np.ascontiguousarray(left * values).data)
            stream.write(np.ascontiguousarray(right).data)


class _Memory:
    """Looks at the memory of a process and of all below it."""

    def __init__(self, process: int) -> None:
        self._process = process
        self.together = 0
        self.own = 0

    def look(self) -> None:
        own = _resident(self._process)
        self.own = max(self.own, own)
        self.together = max(self.together, own + sum(map(_resident, _below(self._process))))


def _resident(process: int) -> int:
    try:
        pages = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):  # it has ended
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _below(process: int) -> Iterator[int]:
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = task.read_text(encoding="ascii").split()
        except OSError:
            continue
        for child in map(int, children):
            yield child
            yield from _below(child)


@contextmanager
def watched(name: str, say: Callable[[Phase], None]) -> Iterator[Callable[[str], None]]:
    """Watch what this process takes; the function that is given begins the next phase."""
    memory = _Memory(os.getpid())
    ended = threading.Event()
    begun = [name, time.monotonic(), _cpu(), memory]

    def watch() -> None:
        while not ended.wait(_PERIOD):
            begun[3].look()

    def end() -> None:
        now = begun[3]
        now.look()
        say(Phase(begun[0], time.monotonic() - begun[1], _cpu() - begun[2], now.together, now.own))

    def begin(following: str) -> None:
        end()
        begun[:] = [following, time.monotonic(), _cpu(), _Memory(os.getpid())]

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield begin
    finally:
        ended.set()
        thread.join()
        end()


def _cpu() -> float:
    return sum(os.times()[:4])


def _rewrite(arguments: argparse.Namespace, say: Callable[[Phase], None]) -> None:
    """Rewrite and verify, which begins with the first word of it."""
    with watched("rewrite", say) as begin:
        import onnxlr

        phases = ["verify"]

        def heed(task: str, done: int, total: int) -> None:  # noqa: ARG001
            if task.startswith("verifying") and phases:
                begin(phases.pop())

        result = onnxlr.rewrite(
            arguments.model,
            arguments.model.with_name("rewritten.onnx"),
            method="svd",
            rank=arguments.rank,
            jobs=arguments.jobs,
            memory=arguments.memory,
            progress=heed,
        )
    worst = min(c.cosine for check in result.report.checks for c in check.comparisons)
    print(
        f"{sum(not layer.choice.keeps for layer in result.layers)} layers rewritten, "
        f"{result.bytes_before:,} to {result.bytes_after:,} bytes, lowest cosine {worst:.6f}"
    )


def _baseline(arguments: argparse.Namespace, say: Callable[[Phase], None]) -> None:
    with watched("baseline", say):
        factors = arguments.model.with_name("factors.bin")
        factorize_with_scipy(arguments.model, factors, arguments.rank)


_PHASES = {"rewrite": _rewrite, "baseline": _baseline}


def _in_fresh_process(phase: str, arguments: argparse.Namespace, model: Path) -> list[Phase]:
    """Run a phase in a process of its own and return what it took."""
    said = model.with_name(f"{phase}.json")
    given = ["--phase", phase, "--model", str(model), "--said", str(said)]
    for name in ("rank", "jobs", "memory"):
        given += [f"--{name}", str(getattr(arguments, name))]
    environment = {**os.environ, **dict.fromkeys(_THREADS, "1")}
    command = [sys.executable, str(Path(__file__).resolve()), *given]
    subprocess.run(command, check=True, env=environment)
    return [Phase(**each) for each in json.loads(said.read_text(encoding="utf-8"))]


def table(phases: list[Phase]) -> str:
    """Return phases as a table in Markdown."""
    lines = [
        "| phase | seconds | CPU seconds | peak memory, all processes | of its own process |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {p.name} | {p.seconds:.0f} | {p.cpu:.0f} | {p.together / 1e6:,.0f} MB "
        f"| {p.own / 1e6:,.0f} MB |"
        for p in phases
    ]
    by_name = {phase.name: phase for phase in phases}
    if {"rewrite", "baseline"} <= by_name.keys():
        ours, theirs = by_name["rewrite"], by_name["baseline"]
        seconds, cpu = ours.seconds / theirs.seconds, ours.cpu / theirs.cpu
        lines += ["", f"Rewriting took {seconds:.2f} of the baseline's time, {cpu:.2f} of its CPU."]
    return "\n".join(lines)


def main(tokens: list[str] | None = None) -> None:
    """Make the model, run the phases and print what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--size", type=int, default=5600)
    parser.add_argument("--rank", type=int, default=350)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--memory", default="1G")
    parser.add_argument("--folder", type=Path, help="where there is room for three such models")
    parser.add_argument("--markdown", type=Path, help="file to write the table to")
    parser.add_argument("--phase", choices=_PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--said", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(tokens)
    if arguments.phase:
        found: list[Phase] = []
        _PHASES[arguments.phase](arguments, found.append)
        text = json.dumps([asdict(phase) for phase in found])
        arguments.said.write_text(text, encoding="utf-8")
        return
    with tempfile.TemporaryDirectory(prefix="onnxlr-large-", dir=arguments.folder) as name:
        model = make_model(Path(name), arguments.layers, arguments.size)
        phases = [p for phase in _PHASES for p in _in_fresh_process(phase, arguments, model)]
    print(table(phases))
    if arguments.markdown:
        arguments.markdown.write_text(table(phases) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
