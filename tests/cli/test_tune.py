"""`onnxlr tune`: what it prints and writes, what it refuses, and how it goes on."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxlr.runtime import Job, Outcome, run_job
from tests.classifier import classifier, samples
from tests.cli.conftest import Run

Refused = Callable[[Sequence[object], int, Sequence[str]], str]

ANY = ("--tolerance", "cosine>=-1")


@pytest.fixture
def _torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Need torch, and run models in this process."""
    pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")
    from onnxlr.training.tuning import file_runs

    def run_here(job: Job, name: str, isolate: bool = True) -> Outcome:
        return run_job(job, name, isolate=False)

    monkeypatch.setattr(file_runs, "run_job", run_here)


@pytest.fixture
def rewritten(run: Run, model: Path) -> Path:
    """Return `r.onnx`, the classifier at rank 3, beside it and data `d.npz` with labels."""
    ended = run("rewrite", model, "-o", "r.onnx", "--rank", 3, *ANY)
    assert ended.code == 0
    # Not alike in all directions, for which the rewrite was best already.
    x = np.asarray(samples(160) * np.geomspace(3, 0.1, 24), np.float32)
    np.savez("d.npz", x=x, label=x[:, :10].argmax(-1))
    Path("own_loss.py").write_text(
        "from torch.nn.functional import cross_entropy\n"
        "def loss(outputs, batch):\n"
        "    return cross_entropy(outputs['logits'], batch['label'])\n"
    )
    return Path("r.onnx")


def tune(*more: object, steps: int = 40) -> tuple[object, ...]:
    return ("tune", "m.onnx", "r.onnx", "--data", "d.npz", "--steps", steps, *more)


@pytest.mark.usefixtures("_torch", "rewritten")
def test_it_prints_and_writes(run: Run) -> None:
    ended = run(*tune(*ANY))
    assert (ended.code, ended.err) == (0, "")
    words = (
        "held out",
        "144 samples, 16 held out",
        "approx.",
        "torch",
        "before",
        "after",
        "factors",
    )
    for word in (*words, "all steps were made", "Wrote r.tuned.onnx"):
        assert word in " ".join(ended.out.split()), word
    onnx.checker.check_model("r.tuned.onnx", full_check=True)
    assert not Path("r.tuned.onnx.checkpoint").exists()
    checked = run("verify", "m.onnx", "r.tuned.onnx", *ANY)
    assert checked.code == 0
    assert "trained by onnxlr tune" in " ".join(checked.out.split())


@pytest.mark.usefixtures("_torch", "rewritten")
def test_its_document(run: Run) -> None:
    ended = run(*tune(*ANY, "-o", "t.onnx", "--json", "--report", "t.json", "--train", "all"))
    assert (ended.code, ended.err) == (0, "")
    values = json.loads(ended.out)
    assert values == json.loads(Path("t.json").read_text())
    assert values["schema"] == "onnxlr.tuning/1"
    assert values["output"] == "t.onnx"
    assert values["train"] == "all"
    assert values["after"] < values["before"]
    assert values["course"][0]["loss"] is None
    assert values["course"][0]["judged"] == pytest.approx(values["before"], rel=1e-4)
    assert values["report"]["passed"]
    assert values["resumed"] is None
    assert sum(values["trained"].values()) > 0


@pytest.mark.usefixtures("_torch", "rewritten")
def test_a_loss_on_labels(run: Run) -> None:
    ended = run(*tune(*ANY, "--loss", "own_loss:loss", "--rate", 0.01))
    assert (ended.code, ended.err) == (0, "")
    assert "loss own_loss:loss" in ended.out


@pytest.mark.usefixtures("_torch", "rewritten")
def test_nothing_gained_is_said_and_nothing_written(run: Run) -> None:
    ended = run(*tune(*ANY, "--rate", 50, "--json"))
    assert ended.code == 1
    assert "nothing was gained on held-out data" in ended.err
    assert json.loads(ended.out)["output"] is None
    assert not Path("r.tuned.onnx").exists()
    shown = run(*tune(*ANY, "--rate", 50))
    assert shown.code == 1
    assert "Nothing was written" in shown.out


@pytest.mark.usefixtures("_torch", "rewritten")
def test_what_does_not_hold_is_kept_on_demand(run: Run) -> None:
    strict = ("--tolerance", "cosine>=0.99999")
    ended = run(*tune(*strict))
    assert ended.code == 1
    assert "expected >=0.99999" in ended.err
    assert Path("r.tuned.onnx.checkpoint").exists()
    assert not Path("r.tuned.onnx").exists()
    kept = run(*tune(*strict, "--keep"))
    assert kept.code == 1
    assert Path("r.tuned.onnx").exists()
    assert "Went on from the checkpoint of step 40" in kept.out


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("--train", "nothing"), 2, ["expected one of scales, factors, all"]),
        (("--loss", "own_loss:none"), 2, ["own_loss", "none"]),
        (("--loss", "own_loss"), 2, ["expected module:function"]),
        (("--holdout", "1"), 2, ["expected a fraction above 0 and below 1"]),
        (("--holdout", "nowhere.npz"), 2, ["nowhere.npz", "no such file"]),
        (("--mask", "attention_mask"), 2, ["no input 'attention_mask'", "'x'"]),
        (("--rate", "0"), 2, ["rate"]),
        (("--steps", "1.5"), 2, ["--steps"]),
        (("--checkpoint", "m.onnx"), 2, ["is the input"]),
        (("-o", "r.onnx"), 2, ["is the input"]),
        (("-o", "t.onnx", "--report", "t.onnx"), 2, ["both the report and the model"]),
        (("--report", "t.html"), 2, ["t.html: cannot be a report", "ends in .json"]),
        (("--device", "abacus"), 2, ["device 'abacus'"]),
    ],
)
def test_what_is_refused(
    rewritten: Path, refused: Refused, more: Sequence[str], code: int, words: Sequence[str]
) -> None:
    refused(tune(*ANY, *more), code, words)


@pytest.mark.usefixtures("_torch")
def test_data_and_models_that_do_not_fit(run: Run, rewritten: Path, refused: Refused) -> None:
    np.savez("labels.npz", x=samples(40), label=np.zeros(39, np.int64))
    loss = ("--loss", "own_loss:loss")
    said = ["labels.npz: 'label' has shape [39], expected a first dimension of 40"]
    refused(("tune", "m.onnx", "r.onnx", "--data", "labels.npz", *loss), 2, said)
    np.savez("one.npz", x=samples(1))
    refused(("tune", "m.onnx", "r.onnx", "--data", "one.npz"), 2, ["number of samples is 1"])
    other = classifier()
    other.graph.node[-1].output[0] = other.graph.output[0].name = "other"
    onnx.save(other, "o.onnx")
    refused(("tune", "o.onnx", "r.onnx", "--data", "d.npz"), 3, ["['logits']", "['other']"])
    odd = onnx.load("r.onnx")
    odd.graph.node.insert(0, onnx.helper.make_node("Bernoulli", ["x"], ["odd"], "odd one"))
    onnx.save(odd, "odd.onnx")
    said = ["cannot be run in torch", "Bernoulli", "'odd one'"]
    refused(("tune", "m.onnx", "odd.onnx", "--data", "d.npz"), 3, said)


@pytest.mark.usefixtures("_torch", "rewritten")
def test_interrupted_it_goes_on_when_the_same_command_is_given(run: Run) -> None:
    asked = tune(*ANY, "--patience", 0, "-o", "t.onnx", steps=2000)
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxlr", *map(str, asked)],
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=heed_interrupts,  # noqa: PLW1509  (it starts no thread and takes no lock)
    )
    os.close(terminal)
    checkpoint, shown = Path("t.onnx.checkpoint"), b""
    with suppress(OSError):  # the terminal is gone when the process is
        while more := os.read(screen, 4096):
            shown += more
            if checkpoint.exists() and b"interrupted" not in shown:
                process.send_signal(signal.SIGINT)
    os.close(screen)
    assert process.wait(60) == 130, shown
    assert b"held out" in shown
    assert b"interrupted" in shown
    assert b"the same command goes on from it" in b" ".join(shown.split())
    assert b"Traceback" not in shown
    left = {path.name for path in Path().iterdir()} - {"__pycache__"}
    assert left == {"m.onnx", "r.onnx", "d.npz", "own_loss.py", checkpoint.name}
    ended = run(*asked)
    assert ended.code == 0, ended
    assert "Went on from the checkpoint of step" in ended.out
    assert not checkpoint.exists()
    run(*tune(*ANY, "--patience", 0, "-o", "u.onnx", steps=2000))
    assert Path("u.onnx").read_bytes() == Path("t.onnx").read_bytes()


def heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is blocked")

sys.meta_path.insert(0, Blocked())
from onnxlr.cli import main
main(sys.argv[1:])
"""


def without_torch(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_torch_all_else_works_and_tune_says_what_to_install(rewritten: Path) -> None:
    asked = (
        ("inspect", "m.onnx"),
        ("observe", "m.onnx", "--calibration", "d.npz", "-o", "s.npz"),
        ("plan", "m.onnx", "--rank", 3, "-o", "p.json"),
        ("rewrite", "m.onnx", "-o", "again.onnx", "--plan", "p.json", *ANY),
        ("verify", "m.onnx", "again.onnx", *ANY),
        ("ops",),
        ("--help",),
        ("tune", "--help"),
    )
    for arguments in asked:
        done = without_torch(*arguments)
        assert done.returncode == 0, (arguments, done.stderr)
    done = without_torch(*tune(*ANY))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "torch" in done.stderr
    assert "pip install 'onnxlr[train]'" in done.stderr
    assert "Traceback" not in done.stderr
