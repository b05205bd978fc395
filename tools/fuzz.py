"""The fuzz target: damaged models and data, and that nothing but a sentence comes of them.

    python tools/fuzz.py [--cases 100000] [--seed N] [--jobs N] [--failures DIR]
    python tools/fuzz.py --replay SEED:NUMBER [--stage STAGE]

A case changes a small real model (messages, or bytes) or a file of arrays, and inspects, plans,
rewrites and writes it in this process, with no runtime; a share is run in ONNX Runtime, and a
smaller one goes through the command line, child processes and all. Only errors that onnxlr
documents may come of it, in limited time and memory, and no file but the output. Workers are
forked, so that what crashes or hangs is one case; the same seed makes the same cases.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tools.fuzz_cases import Case, Failure, run_case  # noqa: E402

STAGES = {"command": 500, "run": 40}
"""One case in so many; all others are `lower`."""

LIMIT = 60.0
"""Seconds for one case; those of `command` start processes."""

MEMORY = 8 << 30
"""Bytes of address space for one worker: libraries and threads take most of one gigabyte."""


def stage_of(number: int) -> str:
    """Return what a case is for, by its number."""
    return next((stage for stage, share in STAGES.items() if number % share == share - 1), "lower")


@dataclass
class _Worker:
    """A forked process that runs every `step`-th case."""

    pid: int
    stream: int
    number: int
    began: float
    step: int
    end: int
    folder: Path
    text: bytes = b""


class Run:
    """Cases of one seed, run by several workers."""

    def __init__(self, seed: int, cases: int, jobs: int, failures: Path | None) -> None:
        self.seed, self.cases, self.jobs, self.place = seed, cases, jobs, failures
        self.failures: list[Failure] = []
        self.done: Counter[str] = Counter()

    def carry_out(self) -> None:
        """Run all cases; failures are collected and saved."""
        with tempfile.TemporaryDirectory(prefix="onnxlr-fuzz-") as place:
            workers = [
                self._start(first, self.jobs, Path(place) / str(first))
                for first in range(min(self.jobs, self.cases))
            ]
            try:
                while workers:
                    streams = [worker.stream for worker in workers]
                    ready, _, _ = select.select(streams, [], [], 0.5)
                    workers = [w for w in map(self._look, workers, [ready] * len(workers)) if w]
            finally:
                for worker in workers:
                    os.kill(worker.pid, signal.SIGKILL)
                    os.waitpid(worker.pid, 0)

    def _start(self, number: int, step: int, folder: Path) -> _Worker:
        reading, writing = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            os.close(reading)
            _work(self.seed, range(number, self.cases, step), folder, writing)
        os.close(writing)
        return _Worker(pid, reading, number, time.monotonic(), step, self.cases, folder)

    def _look(self, worker: _Worker, ready: list[int]) -> _Worker | None:
        """Take in what a worker says; return it, or the one in its place, None at the end."""
        ended = False
        if worker.stream in ready:
            block = os.read(worker.stream, 1 << 16)
            ended = not block
            *lines, worker.text = (worker.text + block).split(b"\n")
            for line in lines:
                self._take(json.loads(line), worker)
        late = time.monotonic() - worker.began > LIMIT
        if not ended and not late:
            return worker
        if late:
            os.kill(worker.pid, signal.SIGKILL)
        _, status = os.waitpid(worker.pid, 0)
        os.close(worker.stream)
        shutil.rmtree(worker.folder, ignore_errors=True)
        following = worker.number
        if following < worker.end and (late or os.WIFSIGNALED(status)):
            self._fell(worker, late, status)
            following += worker.step
        if following >= worker.end:
            return None
        return self._start(following, worker.step, worker.folder)

    def _take(self, said: dict[str, object], worker: _Worker) -> None:
        worker.number, worker.began = worker.number + worker.step, time.monotonic()
        self.done[str(said["stage"])] += 1
        self.done["refused"] += bool(said["refused"])
        if (done := sum(self.done[stage] for stage in ("lower", *STAGES))) % 5000 == 0:
            print(f"{done:,} cases, {len(self.failures)} failed", flush=True)
        if said["failure"]:
            self._fail(Failure(**said["failure"]))  # type: ignore[arg-type]

    def _fell(self, worker: _Worker, late: bool, status: int) -> None:
        """Judge a case that its worker did not survive.

        ONNX Runtime may crash where it runs in this process: users have it in one of its own.
        """
        stage = stage_of(worker.number)
        self.done[stage] += 1
        if stage == "run" and not late:
            self.done["died in the runtime"] += 1
            return
        what = f"no answer in {LIMIT:g} s" if late else f"the process ended with {status}"
        self._fail(Failure(f"{self.seed}:{worker.number} {stage}", what, ""))

    def _fail(self, failure: Failure) -> None:
        self.failures.append(failure)
        print(f"FAILED {failure.case}: {failure.what}\n{failure.details}", flush=True)
        if self.place is None:
            return
        number, stage = failure.case.split()[0].partition(":")[2], failure.case.split()[1]
        folder = self.place / f"{self.seed}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "failure.txt").write_text(
            f"{failure.case}\n{failure.what}\n{failure.details}\n"
            f"python tools/fuzz.py --replay {self.seed}:{number} --stage {stage}\n",
            encoding="utf-8",
        )


def _work(seed: int, numbers: range, folder: Path, stream: int) -> None:
    """Run cases one after the other and say of each how it went; never returns."""
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        # Libraries in C++ talk on the process's own streams.
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        for number in numbers:
            case = Case(seed, number, stage_of(number))
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            failure = run_case(case, folder)
            said = {
                "stage": case.stage,
                "refused": case.refused,
                "failure": asdict(failure) if failure else None,
            }
            os.write(stream, json.dumps(said).encode() + b"\n")
    except BaseException:  # noqa: BLE001  (of the target itself; nothing may run the parent's code)
        case = f"{seed}:{number} {stage_of(number)}"
        broken = Failure(case, "the fuzz target itself failed", traceback.format_exc())
        said = {"stage": case.split()[1], "refused": False, "failure": asdict(broken)}
        os.write(stream, json.dumps(said).encode() + b"\n")
        os._exit(2)
    os._exit(0)


def replay(text: str, stage: str | None) -> Failure | None:
    """Run one case again, in this process, and leave its files."""
    seed, _, number = text.partition(":")
    case = Case(int(seed), int(number), stage or stage_of(int(number)))
    folder = Path(tempfile.mkdtemp(prefix="onnxlr-fuzz-"))
    failure = run_case(case, folder)
    print(f"{case.done}: files in {folder}\n{failure or 'nothing wrong'}")
    if failure:
        print(failure.details)
    return failure


def main(arguments: list[str] | None = None) -> int:
    """Run the fuzz target; return 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=None, help="drawn if not given, and printed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--failures", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument("--replay", help="SEED:NUMBER of one case")
    parser.add_argument("--stage", choices=("lower", "run", "command"))
    given = parser.parse_args(arguments)
    if given.replay:
        return int(replay(given.replay, given.stage) is not None)
    seed = given.seed if given.seed is not None else int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}, {given.cases:,} cases, {given.jobs} workers", flush=True)
    began = time.monotonic()
    run = Run(seed, given.cases, given.jobs, given.failures)
    run.carry_out()
    print(f"{dict(run.done)} in {time.monotonic() - began:.0f} s, {len(run.failures)} failed")
    return int(bool(run.failures))


if __name__ == "__main__":
    sys.exit(main())
