"""What docs/deployment.md says to do is done, as it stands there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.classifier import FEATURES, classifier, samples
from tools.fetch_models import default_cache

PAGE = Path(__file__).parents[1] / "docs" / "deployment.md"
ORIGIN = {
    "producer_name": "a trainer",
    "producer_version": "3.1",
    "domain": "org.example",
    "model_version": 7,
    "doc_string": "What it is for.",
}
PROPERTIES = {"license": "CC-BY-4.0", "license_url": "https://example.org/l", "classes": "a, b"}
WEB = "onnxruntime-web@1.30.0"


def blocks(heading: str, language: str) -> list[str]:
    """Return the code of a language in a section of the page."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    section = next(text for text in sections if text.startswith(f"{heading}\n"))
    found = re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert found, f"no {language} under {heading}"
    return found


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed here: {', '.join(missing)}")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with a model and data, and `onnxlr` and `python` on the path."""
    folder, programs = tmp_path / "project", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    for name, call in (("onnxlr", "-m onnxlr"), ("python", "")):
        script = programs / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {call} "$@"\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(PAGE.parents[1]))
    monkeypatch.chdir(folder)
    model = classifier()
    for name, value in ORIGIN.items():
        setattr(model, name, value)
    onnx.helper.set_model_props(model, PROPERTIES)
    onnx.save(model, "model.onnx")
    rows = samples(320)
    np.savez("train.npz", x=rows[:256])
    np.savez("test.npz", x=rows[256:])
    return folder


def shell(*command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, input=text)


def done(*command: str, text: str | None = None) -> str:
    ended = shell(*command, text=text)
    assert ended.returncode == 0, (ended.stdout, ended.stderr)
    return ended.stdout


def distance(model: str) -> float:
    """Return how far a model's outputs are from those of model.onnx, relative L2."""
    x = {"x": samples(320)[256:]}
    ours, theirs = (ort.InferenceSession(m).run(None, x)[0] for m in (model, "model.onnx"))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def is_smaller(model: str) -> bool:
    sizes = [
        sum(t.ByteSize() for t in onnx.load(m).graph.initializer) for m in (model, "model.onnx")
    ]
    return sizes[0] < 0.8 * sizes[1]


@needs("make")
def test_the_make_rule_builds_once_and_fails_on_a_missed_tolerance(place: Path) -> None:
    (rule,) = blocks("Make", "make")
    Path("Makefile").write_text(rule)
    done("make", "model.onnxlr.onnx")
    assert is_smaller("model.onnxlr.onnx")
    assert distance("model.onnxlr.onnx") < 0.1
    assert "up to date" in done("make", "model.onnxlr.onnx")
    Path("model.onnxlr.onnx").unlink()
    Path("Makefile").write_text(rule.replace("--ratio 0.5", "--rank 1"))
    ended = shell("make", "model.onnxlr.onnx")
    assert ended.returncode != 0
    assert "Error 1" in ended.stderr
    assert not Path("model.onnxlr.onnx").exists()


@needs("cmake", "make")
def test_the_cmake_command_builds(place: Path) -> None:
    Path("CMakeLists.txt").write_text(blocks("CMake", "cmake")[0])
    done("cmake", "-S", ".", "-B", "build", "-G", "Unix Makefiles")
    done("cmake", "--build", "build")
    assert is_smaller("build/small.onnx")
    assert json.loads(Path("build/small.json").read_text())["schema"] == "onnxlr.rewrite/1"
    first = Path("build/small.onnx").stat().st_mtime_ns
    done("cmake", "--build", "build")
    assert Path("build/small.onnx").stat().st_mtime_ns == first


def job_lines() -> str:
    """Return what the step `Rewrite` of the job runs."""
    (job,) = blocks("Continuous integration", "yaml")
    match = re.search(r"- name: Rewrite\n +run: \|\n((?: {10}.*\n)+)", job)
    assert match
    return "\n".join(line[10:] for line in match[1].splitlines())


@needs("bash")
def test_the_job_passes_and_fails_with_the_tolerance(place: Path) -> None:
    assert done("bash", "-e", text=job_lines()).endswith("bytes\n")
    assert is_smaller("small.onnx")
    Path("small.onnx").unlink()
    ended = shell("bash", "-e", text=job_lines().replace("--ratio 0.5", "--rank 1"))
    assert ended.returncode == 1
    assert "expected >=0.99" in ended.stderr
    assert not Path("small.onnx").exists()
    assert json.loads(Path("report.json").read_text())["report"]["passed"] is False


@needs("bash", "sha256sum")
def test_a_plan_rebuilds_the_same_bytes(place: Path) -> None:
    rebuild, proof = blocks("The same bytes again", "sh")
    assert "small.onnx: OK" in done("bash", "-e", text=rebuild)
    told = Path("small.onnx.sha256").read_text().split()[0]
    assert hashlib.sha256(Path("small.onnx").read_bytes()).hexdigest() == told
    printed = done("bash", "-e", text=proof)
    assert "emission" in printed
    assert "Verified" in printed


def test_licence_and_origin_are_carried_over(place: Path) -> None:
    done("onnxlr", "rewrite", "model.onnx", "-o", "small.onnx", "--ratio", "0.5", "--keep")
    model = onnx.load("small.onnx")
    assert {name: getattr(model, name) for name in ORIGIN} == ORIGIN
    found = {entry.key: entry.value for entry in model.metadata_props}
    plan = json.loads(found.pop("onnxlr.plan"))
    assert found == PROPERTIES
    source = hashlib.sha256(Path("model.onnx").read_bytes()).hexdigest()
    printed = done(sys.executable, "-c", blocks("Licence and origin", "python")[0])
    assert printed.split() == ["CC-BY-4.0", plan["onnxlr"], source]


def test_before_quantize_static(place: Path) -> None:
    if not hasattr(onnx, "mapping") and tuple(map(int, ort.__version__.split(".")[:2])) < (1, 20):
        pytest.skip(f"quantize_static of ONNX Runtime {ort.__version__} fails on this onnx itself")
    assert done(sys.executable, "-c", blocks("Before quantize_static", "python")[0]) == "True\n"
    kinds = [node.op_type for node in onnx.load("factored.int8.onnx").graph.node]
    assert "QuantizeLinear" in kinds
    assert distance("factored.int8.onnx") < 0.3


def test_after_torch_export(place: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    code = blocks("After torch.onnx.export", "python")[0]
    before, after = map(int, done(sys.executable, "-c", code).split())
    assert after < before
    onnx.checker.check_model("exported.small.onnx")


@needs("bash")
@pytest.mark.parametrize("more", ["", " --method ternary --terms 2 --target onnxlr"])
def test_ort_format(place: Path, more: str) -> None:
    (lines,) = blocks("ORT format", "sh")
    if more:
        lines = lines.replace(" --ratio 0.5", f"{more} --tolerance 'cosine>=0.8'")
    done("bash", "-e", text=lines)
    x = {"x": samples(32)}
    converted = ort.InferenceSession("ort/small.ort").run(None, x)[0]
    assert np.allclose(converted, ort.InferenceSession("small.onnx").run(None, x)[0], atol=1e-4)


def web_modules() -> Path:
    """Return a folder `node_modules` with onnxruntime-web, installed once beside fetched models."""
    folder = default_cache() / WEB.replace("@", "-")
    if not (folder / "node_modules" / "onnxruntime-web").is_dir():
        if os.environ.get("ONNXLR_OFFLINE"):
            pytest.skip(f"{WEB} is not installed, and ONNXLR_OFFLINE forbids it")
        folder.mkdir(parents=True, exist_ok=True)
        ended = shell("npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", WEB)
        if ended.returncode:
            pytest.skip(f"{WEB} cannot be installed: {ended.stderr.strip().splitlines()[-1:]}")
    return folder / "node_modules"


@needs("node", "npm")
@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        "--method keep",
        "--ratio 0.5",
        "--method quantize --format int4",
        "--method ternary --terms 2 --target onnxlr",
    ],
)
def test_onnxruntime_web(place: Path, more: str) -> None:
    Path("node_modules").symlink_to(web_modules())
    Path("run.mjs").write_text(blocks("onnxruntime-web", "js")[0])
    asked = [*more.split(), "--calibration", "train.npz", "--tolerance", "cosine>=0.8"]
    done("onnxlr", "rewrite", "model.onnx", "-o", "small.onnx", *asked)
    x = samples(8)
    feeds = {"x": {"dims": [8, FEATURES], "data": x.ravel().tolist()}}
    Path("in.json").write_text(json.dumps(feeds))
    done("node", "run.mjs", "small.onnx", "in.json", "out.json")
    (found,) = json.loads(Path("out.json").read_text()).values()
    expected = ort.InferenceSession("small.onnx").run(None, {"x": x})[0]
    distance = np.abs(np.reshape(found["data"], found["dims"]) - expected).max()
    assert distance <= 2e-6 * np.abs(expected).max(), distance / np.abs(expected).max()
