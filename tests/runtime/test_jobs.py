"""Jobs: what runs, what comes back, and what becomes of a model or process that fails."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxlr.errors import ExitCode, ModelError, OnnxlrWarning, RuntimeFailureError, ScratchError
from onnxlr.runtime import (
    LEVELS,
    Job,
    Outcome,
    child,
    jobs,
    run_job,
    run_task,
    run_tasks,
    store_arrays,
)
from tests.classifier import FLOAT, INT64, STRING, classifier, one_node, reference, samples
from tests.operators.oplibrary import bias, installed_library, telling_model, ternary

Arrays = dict[str, np.ndarray]


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """Return a maker of jobs out of a model and feeds."""

    def make(model: onnx.ModelProto | bytes, feeds: list[Arrays], **options: Any) -> Job:
        file = tmp_path / "m.onnx"
        file.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        files = []
        for position, feed in enumerate(feeds):
            files.append(str(tmp_path / f"feed-{position}.npz"))
            store_arrays(Path(files[-1]), feed)
        return Job(str(file), files, str(tmp_path / "results"), **options)

    return make


def results(job: Job, level: str = "all") -> list[Arrays]:
    """Return what a job stored, in the order of its feeds."""
    found = []
    for file in sorted(Path(job.results, level).glob("*.npz")):
        with np.load(file) as arrays:
            found.append(dict(arrays))
    return found


# --- what comes back -----------------------------------------------------------------------------


@pytest.mark.parametrize("isolate", [True, False])
def test_outputs_are_what_numpy_computes(job: Callable[..., Job], isolate: bool) -> None:
    feeds = [{"x": samples(n, seed=n)} for n in (1, 5, 3)]
    task = job(classifier(), feeds)
    outcome = run_job(task, "m", isolate)
    assert outcome.outputs == ("logits",)
    assert outcome.runtime.startswith("ONNX Runtime ")
    for level in LEVELS:
        found = results(task, level)
        assert [list(arrays) for arrays in found] == [["0"]] * 3
        for arrays, feed in zip(found, feeds, strict=True):
            assert arrays["0"].dtype == np.float32
            np.testing.assert_allclose(arrays["0"], reference(feed["x"]), rtol=1e-4, atol=1e-5)


def test_a_child_process_gives_the_same_bits(job: Callable[..., Job]) -> None:
    task = job(classifier(), [{"x": samples(4)}])
    outcomes, found = [], []
    for isolate in (True, False):
        outcomes.append(run_job(task, "m", isolate))
        found.append([results(task, level)[0]["0"].tobytes() for level in LEVELS])
    assert outcomes[0] == outcomes[1]
    assert found[0] == found[1]


def test_many_feeds_keep_their_order(job: Callable[..., Job]) -> None:
    model = one_node("Neg", [("x", FLOAT, [1])], [("y", FLOAT, [1])])
    count = 1234
    task = job(model, [{"x": np.array([i], np.float32)} for i in range(count)], levels=("none",))
    run_job(task, "m")
    values = [arrays["0"][0] for arrays in results(task, "none")]
    assert values == [-i for i in range(count)]
    assert not Path(task.results, "all").exists()


def test_taps_come_behind_the_outputs(job: Callable[..., Job]) -> None:
    x = samples(3)
    task = job(classifier(), [{"x": x}], levels=("all",), taps=("c", "logits", "a", "c"))
    before = Path(task.model).read_bytes()
    outcome = run_job(task, "m", isolate=False)
    assert outcome.outputs == ("logits", "c", "a")
    (arrays,) = results(task)
    from_numpy = x @ np.asarray(onnx.numpy_helper.to_array(classifier().graph.initializer[0]))
    np.testing.assert_allclose(arrays["2"], from_numpy, rtol=1e-4, atol=1e-6)
    assert Path(task.model).read_bytes() == before


def test_taps_of_a_model_with_external_data(job: Callable[..., Job], tmp_path: Path) -> None:
    task = job(classifier(), [{"x": samples(2)}], levels=("all",), taps=("b",))
    onnx.save(
        classifier(), task.model, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    assert (tmp_path / "w.bin").exists()
    assert run_job(task, "m", isolate=False).outputs == ("logits", "b")
    np.testing.assert_allclose(results(task)[0]["0"], reference(samples(2)), rtol=1e-4, atol=1e-5)


def test_strings_and_names_of_any_kind(job: Callable[..., Job]) -> None:
    model = one_node("Identity", [("file", STRING, ["N"])], [("allow_pickle", STRING, ["N"])])
    task = job(model, [{"file": np.array(["a", "größe", ""])}])
    assert run_job(task, "m", isolate=False).outputs == ("allow_pickle",)
    assert results(task)[0]["0"].tolist() == ["a", "größe", ""]


def test_a_sequence_is_stored_part_by_part(job: Callable[..., Job]) -> None:
    model = one_node("SplitToSequence", [("x", FLOAT, [3, 2])], [("y", FLOAT, [1])], axis=0)
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y", FLOAT, None))
    x = samples(1)[0, :6].reshape(3, 2)
    task = job(model, [{"x": x}], levels=("all",))
    run_job(task, "m", isolate=False)
    (arrays,) = results(task)
    assert list(arrays) == ["0.0", "0.1", "0.2"]
    np.testing.assert_array_equal(np.concatenate(list(arrays.values())), x)


def test_storing_never_pickles(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        store_arrays(tmp_path / "a.npz", {"x": np.array([{}], object)})


@pytest.mark.parametrize("isolate", [True, False])
def test_what_onnx_runtime_has_no_kernel_for_runs_in_the_reference(
    job: Callable[..., Job], isolate: bool
) -> None:
    kernel = np.random.default_rng(0).standard_normal((2, 3, 1, 1))
    kind = int(onnx.TensorProto.DOUBLE)
    model = one_node(
        "Conv", [("x", kind, [1, 3, 4, 4])], [("y", kind, [1, 2, 4, 4])], {"w": kernel}
    )
    x = np.random.default_rng(1).standard_normal((1, 3, 4, 4))
    task = job(model, [{"x": x}])
    assert run_job(task, "m", isolate).runtime == f"ONNX's reference evaluator {onnx.__version__}"
    expected = np.einsum("oi,nihw->nohw", kernel[:, :, 0, 0], x)
    for level in LEVELS:
        np.testing.assert_allclose(results(task, level)[0]["0"], expected, rtol=1e-12)
    tapped = Job(task.model, task.feeds, task.results, ("all",), ("x",))
    assert run_job(tapped, "m", isolate=False).outputs == ("y", "x")


# --- what fails ----------------------------------------------------------------------------------


def unknown_operator() -> onnx.ModelProto:
    model = classifier()
    model.graph.node[0].op_type = "Bogus"
    return model


def gather() -> onnx.ModelProto:
    table = np.zeros((3, 2), np.float32)
    model = one_node("Gather", [("i", INT64, [1])], [("y", FLOAT, [1, 2])], {"t": table})
    model.graph.node[0].input[:] = ["t", "i"]
    return model


FAILURES: list[tuple[Callable[[], Any], list[Arrays], str]] = [
    (unknown_operator, [], r"cannot load it: .*Bogus"),
    (lambda: b"no model", [], r"cannot load it: "),
    (classifier, [{"x": samples(2)[:, :3]}], r"cannot run it on these inputs: .*24"),
    (classifier, [{"x": samples(2, dtype="float64")}], r"cannot run it on these inputs: "),
    (classifier, [{"z": samples(2)}], r"cannot run it on these inputs: "),
    (gather, [{"i": np.array([1])}, {"i": np.array([5])}], r"cannot run it .*out of.*bounds"),
]


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize(("model", "feeds", "message"), FAILURES)
def test_failures_are_one_sentence_that_names_the_model(
    job: Callable[..., Job],
    model: Callable[[], Any],
    feeds: list[Arrays],
    message: str,
    isolate: bool,
) -> None:
    with pytest.raises(RuntimeFailureError, match=f"^my model: ONNX Runtime .*{message}") as error:
        run_job(job(model(), feeds), "my model", isolate)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, ModelError)
    assert error.value.exit_code == ExitCode.MODEL


def test_a_model_that_is_not_there(job: Callable[..., Job]) -> None:
    task = job(classifier(), [])
    Path(task.model).unlink()
    with pytest.raises(RuntimeFailureError, match=r"^gone: .*cannot load it"):
        run_job(task, "gone")


def test_no_level_is_refused(job: Callable[..., Job]) -> None:
    with pytest.raises(RuntimeFailureError, match="no level"):
        run_job(job(classifier(), [], levels=()), "m", isolate=False)


DEATHS = [
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"ended by SIGKILL \(out of mem"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGABRT)", r"ended by SIGABRT: "),
    (
        "import os; os.write(2, b'first\\nlast\\n'); os._exit(7)",
        "ended with code 7: last",
    ),
    ("import os; os._exit(0)", "ended with code 0: no message"),
    ("import os; os.write(2, b'\\xff'); os._exit(3)", "ended with code 3: \ufffd"),
    ("raise MemoryError", "ended with code 1: MemoryError"),
]


@pytest.mark.parametrize(("program", "message"), DEATHS)
def test_a_process_that_dies_is_an_error_of_the_model(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, program: str, message: str
) -> None:
    monkeypatch.setattr(jobs, "_PROGRAM", program)
    with pytest.raises(
        RuntimeFailureError, match=f"^my model: the process that runs it.*{message}"
    ):
        run_job(job(classifier(), []), "my model")


PARENT = """
import sys
from onnxlr.runtime import jobs
before = jobs._PROGRAM.partition("from onnxlr")[0]
jobs._PROGRAM = before + "import os, time; print(os.getpid(), file=open(sys.argv[1], 'w')); "
jobs._PROGRAM += "time.sleep(600)"
jobs._run_in_child(jobs.Job("m", (), "r"), "m")
"""


def written_pid(folder: Path) -> str:
    """Return what the child wrote over its task, once it is a number."""
    texts = [file.read_text().strip() for file in folder.glob("*/task.json")]
    return next((text for text in texts if text.isdigit()), "")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_a_child_ends_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=environment)
    deadline = time.monotonic() + 60
    while not (pid := written_pid(tmp_path)):
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.01)
    assert Path(f"/proc/{pid}").exists()
    parent.kill()
    parent.wait()
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the child runs on without its parent"
        time.sleep(0.01)


def test_nothing_of_a_job_stays_behind(
    job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    run_job(job(classifier(), [{"x": samples(1)}]), "m")
    with pytest.raises(RuntimeFailureError):
        run_job(job(b"no model", []), "m")
    assert list(place.iterdir()) == []


def test_the_current_folder_is_not_searched_for_libraries(
    job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("json", "threading", "onnx", "numpy", "onnxruntime"):
        Path(f"{name}.py").write_text("raise RuntimeError('the wrong module')\n")
    assert isinstance(run_job(job(classifier(), [{"x": samples(1)}]), "m"), Outcome)


def test_the_child_finds_what_this_process_finds(
    job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "with spaces"
    folder.mkdir()
    (folder / "only_here.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(folder)
    program = (
        "import json, sys, only_here; "
        "answer = {'runtime': str(only_here.answer), 'outputs': []}; "
        "json.dump({'answer': answer, 'warnings': []}, open(sys.argv[2], 'w'))"
    )
    monkeypatch.setattr(jobs, "_PROGRAM", program)
    assert run_job(job(classifier(), []), "m") == Outcome("42", ())


# --- tasks of any kind ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Sum:
    """A task whose function is in a module of the test's own."""

    numbers: list[int]
    function: ClassVar[str] = "adding_numbers:add"


@pytest.mark.parametrize("isolate", [True, False])
def test_a_task_calls_its_function(
    isolate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adding_numbers.py").write_text(
        "import os\n"
        "from onnxlr.runtime import ExecutionError\n"
        "def add(numbers):\n"
        "    if not numbers:\n"
        "        raise ExecutionError('there is nothing to add')\n"
        "    return {'sum': sum(numbers), 'process': os.getpid()}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    answer = run_task(Sum([1, 2, 3]), "m", isolate)
    assert answer["sum"] == 6
    assert (answer["process"] != os.getpid()) == isolate
    with pytest.raises(RuntimeFailureError, match=r"^m: there is nothing to add$"):
        run_task(Sum([]), "m", isolate)


TELLING = """
import errno, os, warnings
from onnxlr.errors import OnnxlrWarning

def add(numbers):
    warnings.warn("a number is missing", OnnxlrWarning)
    warnings.warn("of no interest", DeprecationWarning)
    if not numbers:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return {"sum": sum(numbers)}
"""


@pytest.fixture
def telling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adding_numbers.py").write_text(TELLING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "adding_numbers", raising=False)


@pytest.mark.usefixtures("telling")
def test_a_child_has_its_warnings_said() -> None:
    with pytest.warns() as heard:
        assert run_task(Sum([1, 2]), "m") == {"sum": 3}
    assert [(w.category, str(w.message)) for w in heard] == [(OnnxlrWarning, "a number is missing")]


@pytest.mark.usefixtures("telling")
@pytest.mark.parametrize("isolate", [True, False])
def test_a_full_disk_is_no_fault_of_the_model(isolate: bool) -> None:
    with (
        pytest.warns(OnnxlrWarning, match="a number is missing"),
        pytest.raises(ScratchError) as error,
    ):
        run_task(Sum([]), "m", isolate)
    folder = tempfile.gettempdir()
    said = "temporary files cannot be written there (No space left on device)"
    assert str(error.value).startswith(f"{folder}: {said}")
    assert error.value.exit_code == ExitCode.USAGE


@pytest.mark.usefixtures("telling")
def test_a_disk_too_full_for_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tmp_path / "task.json"
    task.write_text('{"function": "adding_numbers:add", "arguments": {"numbers": []}}')
    with pytest.raises(SystemExit) as ended:  # the answer's folder is not there
        child.main(str(task), str(tmp_path / "nowhere" / "answer.json"))
    monkeypatch.setattr(jobs, "_PROGRAM", f"raise SystemExit({ended.value.code})")
    with pytest.raises(ScratchError, match="not even a few bytes"):
        run_task(Sum([1]), "m")


# --- tasks side by side --------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A task that waits for files and leaves one."""

    name: str
    after: list[str]
    folder: str
    fails: bool = False
    function: ClassVar[str] = "stepping:step"


STEPPING = """
import os, time
from pathlib import Path
from onnxlr.runtime import ExecutionError

def step(name, after, folder, fails):
    Path(folder, f"{name}.begun").write_text(str(os.getpid()))
    deadline = time.monotonic() + 60
    while not all(Path(folder, other).exists() for other in after):
        if time.monotonic() > deadline:
            raise ExecutionError(f"{name} waited in vain")
        time.sleep(0.01)
    if fails:
        raise ExecutionError(f"{name} fails")
    Path(folder, f"{name}.done").touch()
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {"name": name, "process": os.getpid(), "threads": [os.environ.get(n) for n in names]}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a folder for steps, whose module can be imported and whose files are seen."""
    (tmp_path / "stepping.py").write_text(STEPPING)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "steps").mkdir()
    return str(tmp_path / "steps")


def test_tasks_run_side_by_side_and_are_told_as_they_end(place: str) -> None:
    """The first ends after the second, which it could not if they ran one after the other."""
    tasks = [Step("a", ["b.done"], place), Step("b", ["a.begun"], place)]
    answers = dict(run_tasks(tasks, "m", 2))  # in whatever order: they may end between two looks
    assert {number: answer["name"] for number, answer in answers.items()} == {0: "a", 1: "b"}
    assert len({answer["process"] for answer in answers.values()} | {os.getpid()}) == 3


def test_as_many_tasks_as_jobs_run_at_a_time(place: str) -> None:
    """Each waits for what the one before it left: with one job in order, none waits for ever."""
    tasks = [Step(str(i), [f"{i - 1}.done"] if i else [], place) for i in range(3)]
    assert [number for number, _ in run_tasks(tasks, "m", 1)] == [0, 1, 2]
    begun = [Path(place, f"{i}.begun").stat().st_mtime_ns for i in range(3)]
    done = [Path(place, f"{i}.done").stat().st_mtime_ns for i in range(3)]
    assert begun[1] >= done[0]
    assert begun[2] >= done[1]


def test_threads_may_be_said(place: str) -> None:
    ((_, answer),) = run_tasks([Step("a", [], place)], "m", 2, threads=3)
    assert answer["threads"] == ["3"] * 3


def test_tasks_wait_for_memory(place: str) -> None:
    """Each waits for the one before it: side by side, the second would wait in vain."""
    tasks = [Step("0", [], place), Step("1", ["0.done"], place), Step("2", ["1.done"], place)]
    needs = {"0": 5, "1": 6, "2": 100}
    done = run_tasks(tasks, "m", 3, memory=10, needs=lambda task: needs[task.name])
    assert [number for number, _ in done] == [0, 1, 2]
    begun = [Path(place, f"{i}.begun").stat().st_mtime_ns for i in range(3)]
    ended = [Path(place, f"{i}.done").stat().st_mtime_ns for i in range(3)]
    assert begun[1] >= ended[0]
    assert begun[2] >= ended[1]


def test_tasks_that_fit_into_memory_run_side_by_side(place: str) -> None:
    """The first ends after the second has begun."""
    tasks = [Step("a", ["b.begun"], place), Step("b", [], place)]
    done = run_tasks(tasks, "m", 2, memory=10, needs=lambda _: 5)
    assert sorted(number for number, _ in done) == [0, 1]


def test_tasks_are_asked_for_when_there_is_room(place: str) -> None:
    asked = []

    def tasks() -> Iterator[Step]:
        for name in "abc":
            asked.append(name)
            yield Step(name, [], place)

    done = run_tasks(tasks(), "m", 1)
    assert next(done)[0] == 0
    assert asked == ["a"]
    assert [number for number, _ in done] == [1, 2]


@pytest.mark.parametrize(("jobs_at_a_time", "threads"), [(1, "8"), (3, "2"), (8, "1"), (20, "1")])
def test_processors_are_divided_among_tasks(
    place: str, monkeypatch: pytest.MonkeyPatch, jobs_at_a_time: int, threads: str
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    ((_, answer),) = run_tasks([Step("a", [], place)], "m", jobs_at_a_time)
    assert answer["threads"] == [threads] * 3


def test_a_task_alone_has_all_threads(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert run_task(Step("a", [], place), "m")["threads"] == [None] * 3


def test_tasks_without_processes_are_performed_in_order(place: str) -> None:
    tasks = [Step(str(i), [f"{i - 1}.done"] if i else [], place) for i in range(3)]
    answers = list(run_tasks(tasks, "m", 2, isolate=False))
    assert [number for number, _ in answers] == [0, 1, 2]
    assert {answer["process"] for _, answer in answers} == {os.getpid()}
    failing = [Step("bad", [], place, fails=True), Step("never", [], place)]
    with pytest.raises(RuntimeFailureError, match=r"^m: bad fails$"):
        list(run_tasks(failing, "m", 2, isolate=False))
    assert not Path(place, "never.begun").exists()


def is_running(pid: int) -> bool:
    """Return whether a process runs: one that ended and nobody asked about has no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for_file(file: Path) -> str:
    deadline = time.monotonic() + 60
    while not (file.exists() and (text := file.read_text())):
        assert time.monotonic() < deadline, f"{file.name} never came"
        time.sleep(0.01)
    return text


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_a_task_that_fails_ends_the_others(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    tasks = [
        Step("waiting", ["never.done"], place),
        Step("bad", ["waiting.begun"], place, fails=True),
        Step("later", [], place),
    ]
    with pytest.raises(RuntimeFailureError, match=r"^m: bad fails$"):
        list(run_tasks(tasks, "m", 2))
    assert not is_running(int(Path(place, "waiting.begun").read_text()))
    assert not Path(place, "later.begun").exists()
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("stop", [KeyboardInterrupt, GeneratorExit])
def test_an_interruption_ends_all_tasks(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    tasks = [Step("first", [], place)]
    tasks += [Step(f"waiting {i}", ["never.done"], place) for i in range(2)]
    running = run_tasks(tasks, "m", 3)
    assert next(running)[0] == 0
    pids = [int(wait_for_file(Path(place, f"waiting {i}.begun"))) for i in range(2)]
    assert all(map(is_running, pids))
    if stop is GeneratorExit:
        running.close()
    else:
        with pytest.raises(stop):
            running.throw(stop())
    assert not any(map(is_running, pids))
    assert list(temporary.iterdir()) == []


def test_an_interruption_while_files_are_removed_leaves_none(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    remove, calls = tempfile.TemporaryDirectory.cleanup, []

    def interrupted(self: tempfile.TemporaryDirectory[str]) -> None:
        if temporary in Path(self.name).parents:  # and none that other tests have left
            calls.append(self.name)
            if len(calls) == 1:
                raise KeyboardInterrupt
        remove(self)

    monkeypatch.setattr(tempfile.TemporaryDirectory, "cleanup", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(run_tasks([Step("a", [], place)], "m", 1))
    assert list(temporary.iterdir()) == []


# --- onnxlr's operators --------------------------------------------------------------------------


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("kernels", [True, False])
def test_a_job_says_whether_kernels_ran(
    job: Callable[..., Job], isolate: bool, kernels: bool
) -> None:
    """The kernel multiplies by the matrix and adds a bias, the function only adds."""
    installed_library()
    x = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    task = job(telling_model(), [{"x": x}], kernels=kernels)
    outcome = run_job(task, "m", isolate)
    assert (outcome.no_kernels is None) == kernels
    expected = x.astype(np.float64) @ ternary() * kernels + bias()
    for level in LEVELS:
        found = results(task, level)[0]["0"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_a_job_says_why_kernels_did_not_run(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNXLR_OPS_LIBRARY", "off")
    outcome = run_job(job(telling_model(), [{"x": np.ones((1, 32), np.float32)}]), "m", False)
    assert outcome.no_kernels == "the op library is turned off by ONNXLR_OPS_LIBRARY=off"
