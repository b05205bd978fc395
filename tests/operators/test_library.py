"""The op library from Python: where it is, registering it, and sessions with and without it."""

from __future__ import annotations

import gc
import logging
import os
import weakref
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxlr
from onnxlr.runtime import Job, library, read_arrays, run_job, store_arrays
from tests.operators.oplibrary import (
    INPUTS,
    OUTPUTS,
    Array,
    bias,
    telling_model,
    ternary,
)

CPU = ["CPUExecutionProvider"]


@pytest.fixture
def rows() -> Array:
    return np.random.default_rng(5).standard_normal((3, INPUTS)).astype(np.float32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file of the model that tells what ran it."""
    onnx.save(telling_model(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def computed(session: ort.InferenceSession, rows: Array) -> Array:
    return np.asarray(session.run(None, {"x": rows})[0])


def by_kernel(rows: Array) -> Array:
    return rows.astype(np.float64) @ ternary() + bias()


def by_function(rows: Array) -> Array:
    return np.broadcast_to(bias(), (len(rows), OUTPUTS))


# --- where it is ---------------------------------------------------------------------------------


def test_the_path_is_what_onnxruntime_takes(available: str, file: Path, rows: Array) -> None:
    options = ort.SessionOptions()
    options.register_custom_ops_library(onnxlr.get_library_path())
    session = ort.InferenceSession(str(file), options, providers=CPU)
    np.testing.assert_allclose(computed(session, rows), by_kernel(rows), rtol=1e-5, atol=1e-5)


def test_a_variable_names_another_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    other.touch()
    monkeypatch.setenv("ONNXLR_OPS_LIBRARY", str(other))
    assert onnxlr.get_library_path() == str(other)


@pytest.mark.parametrize("name", ["nothing.so", "."])
def test_a_variable_that_names_no_file(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("ONNXLR_OPS_LIBRARY", name)
    with pytest.raises(onnxlr.LibraryError, match=rf"ONNXLR_OPS_LIBRARY names '{name}'") as raised:
        onnxlr.get_library_path()
    assert not isinstance(raised.value, onnxlr.LibraryMissingError)


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libonnxlr_ops.so").touch()
    monkeypatch.setattr(library, "_folders", lambda: [tmp_path])
    monkeypatch.setenv("ONNXLR_OPS_LIBRARY", "")
    assert onnxlr.get_library_path() == str(tmp_path / "libonnxlr_ops.so")


def test_turned_off(off: None) -> None:
    with pytest.raises(onnxlr.LibraryMissingError, match="turned off by ONNXLR_OPS_LIBRARY=off"):
        onnxlr.get_library_path()


def test_never_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ONNXLR_OPS_LIBRARY", raising=False)
    monkeypatch.setattr(library, "_folders", lambda: [tmp_path])
    with pytest.raises(onnxlr.LibraryMissingError, match=r"no C\+\+ compiler; install one"):
        onnxlr.get_library_path()


def test_of_an_editable_install_it_lies_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "onnxlr-9.dist-info").mkdir()
    (tmp_path / "onnxlr-9.dist-info" / "METADATA").write_text("Name: onnxlr\nVersion: 9\n")
    (tmp_path / "onnxlr").mkdir()
    (tmp_path / "onnxlr" / "libonnxlr_ops.so").touch()
    monkeypatch.delenv("ONNXLR_OPS_LIBRARY", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert onnxlr.get_library_path() == str(tmp_path / "onnxlr" / "libonnxlr_ops.so")


# --- registering ---------------------------------------------------------------------------------


def test_registering_twice(available: str, file: Path, rows: Array) -> None:
    options = ort.SessionOptions()
    for _ in range(2):
        onnxlr.register_ops(options)
        for _ in range(2):
            session = ort.InferenceSession(str(file), options, providers=CPU)
            np.testing.assert_allclose(computed(session, rows), by_kernel(rows), atol=1e-5)


def test_onnxruntime_itself_refuses_two_registrations(available: str, file: Path) -> None:
    options = ort.SessionOptions()
    options.register_custom_ops_library(available)
    options.register_custom_ops_library(available)
    with pytest.raises(Exception, match="already set"):
        ort.InferenceSession(str(file), options, providers=CPU)


def test_options_are_not_kept_alive(available: str, file: Path, rows: Array) -> None:
    for _ in range(5):  # a freed object's address is soon another's
        options = ort.SessionOptions()
        onnxlr.register_ops(options)
        session = ort.InferenceSession(str(file), options, providers=CPU)
        np.testing.assert_allclose(computed(session, rows), by_kernel(rows), atol=1e-5)
        reference = weakref.ref(options)
        del options, session
        gc.collect()
        assert reference() is None


def test_registering_what_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    other.write_text("no library")
    monkeypatch.setenv("ONNXLR_OPS_LIBRARY", str(other))
    with pytest.raises(onnxlr.LibraryError, match=f"cannot load the op library {other}"):
        onnxlr.register_ops(ort.SessionOptions())


# --- sessions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "string", "bytes", "bytearray", "proto"])
def test_a_session_uses_the_kernels(
    available: str, file: Path, rows: Array, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    content = file.read_bytes()
    model = {
        "path": file,
        "string": str(file),
        "bytes": content,
        "bytearray": bytearray(content),
        "proto": onnx.load(file),
    }[kind]
    with caplog.at_level(logging.INFO, "onnxlr"):
        session = onnxlr.session(model, providers=CPU)
    np.testing.assert_allclose(computed(session, rows), by_kernel(rows), rtol=1e-5, atol=1e-5)
    assert [r.levelno for r in caplog.records] == [logging.INFO]
    assert available in caplog.text


def test_without_the_library_a_session_uses_the_functions(
    off: None, file: Path, rows: Array, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "onnxlr"):
        session = onnxlr.session(file)
    np.testing.assert_array_equal(computed(session, rows), by_function(rows))
    assert [r.levelno for r in caplog.records] == [logging.INFO]
    assert "functions of the model" in caplog.text


@pytest.mark.parametrize("exists", [True, False])
def test_a_library_that_was_named_and_cannot_be_used_is_a_warning(
    monkeypatch: pytest.MonkeyPatch,
    file: Path,
    rows: Array,
    exists: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    named = file.with_name("named.so")
    if exists:
        named.write_text("no library")
    monkeypatch.setenv("ONNXLR_OPS_LIBRARY", str(named))
    session = onnxlr.session(file)
    np.testing.assert_array_equal(computed(session, rows), by_function(rows))
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert str(named) in caplog.text


def test_options_and_other_arguments_reach_onnxruntime(
    available: str, file: Path, rows: Array
) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(file.with_name("optimised.onnx"))
    options.log_severity_level = 4
    for _ in range(2):
        session = onnxlr.session(
            file, options=options, providers=CPU, provider_options=[{}], disabled_optimizers=[]
        )
        np.testing.assert_allclose(computed(session, rows), by_kernel(rows), atol=1e-5)
    assert session.get_session_options().optimized_model_filepath
    assert file.with_name("optimised.onnx").exists()


def test_neither_functions_nor_a_library(off: None) -> None:
    model = telling_model(with_function=False).SerializeToString()
    with pytest.raises(onnxlr.LibraryError, match=r"'onnxlr' without functions.*turned off"):
        onnxlr.session(model)


def test_no_functions_but_a_library(available: str, rows: Array) -> None:
    session = onnxlr.session(telling_model(with_function=False).SerializeToString())
    np.testing.assert_allclose(computed(session, rows), by_kernel(rows), rtol=1e-5, atol=1e-5)


def test_other_failures_are_onnxruntimes_own(off: None, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="nowhere") as raised:
        onnxlr.session(tmp_path / "nowhere.onnx")
    assert not isinstance(raised.value, onnxlr.OnnxlrError)


# --- models that onnxlr runs itself --------------------------------------------------------------


@pytest.mark.parametrize("isolate", [True, False])
def test_jobs_use_the_kernels(
    available: str, file: Path, rows: Array, isolate: bool, tmp_path: Path
) -> None:
    store_arrays(tmp_path / "feed.npz", {"x": rows})
    run_job(Job(str(file), [str(tmp_path / "feed.npz")], str(tmp_path / "out")), "m", isolate)
    for level in ("all", "none"):
        found = read_arrays(tmp_path / "out" / level / "000000.npz")["0"]
        np.testing.assert_allclose(found, by_kernel(rows), rtol=1e-5, atol=1e-5)


def test_a_relative_file_is_found_from_where_the_user_is(
    available: str, file: Path, rows: Array, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("ONNXLR_OPS_LIBRARY", os.path.relpath(available))
    store_arrays(tmp_path / "feed.npz", {"x": rows})
    feeds, out = [str(tmp_path / "feed.npz")], str(tmp_path / "out")
    run_job(Job(str(file), feeds, out, levels=["all"], taps=["x"]), "m")
    found = read_arrays(tmp_path / "out" / "all" / "000000.npz")["0"]
    np.testing.assert_allclose(found, by_kernel(rows), rtol=1e-5, atol=1e-5)


def test_jobs_without_the_library_use_the_functions(
    off: None, file: Path, rows: Array, tmp_path: Path
) -> None:
    store_arrays(tmp_path / "feed.npz", {"x": rows})
    run_job(Job(str(file), [str(tmp_path / "feed.npz")], str(tmp_path / "out")), "m")
    found = read_arrays(tmp_path / "out" / "all" / "000000.npz")["0"]
    np.testing.assert_array_equal(found, by_function(rows))


def test_jobs_say_what_is_missing(off: None, tmp_path: Path) -> None:
    onnx.save(telling_model(with_function=False), tmp_path / "m.onnx")
    with pytest.raises(onnxlr.RuntimeFailureError, match="need the op library"):
        run_job(Job(str(tmp_path / "m.onnx"), [], str(tmp_path / "out")), "m")


# --- what it says of itself ----------------------------------------------------------------------


def test_it_describes_itself(available: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONNXLR_ISA", raising=False)
    found = onnxlr.describe_ops()
    assert found.library == available
    assert found.version == onnxlr.__version__
    assert found.layout == 1
    assert found.available[-1] == "scalar"
    assert found.isa == found.available[0]
    assert found.onnxruntime == ort.__version__
    assert found.problem is None


def test_it_uses_the_instruction_set_that_is_asked_for(
    available: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for isa in onnxlr.describe_ops().available:
        monkeypatch.setenv("ONNXLR_ISA", isa)
        assert onnxlr.describe_ops().isa == isa


def test_an_instruction_set_that_is_not_there(
    available: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNXLR_ISA", "mmx")
    found = onnxlr.describe_ops()
    assert found.isa is None
    assert found.problem is not None
    assert "'mmx'" in found.problem
    assert ", ".join(found.available) in found.problem


def test_another_library_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    other = next(Path(ort.__file__).with_name("capi").glob("*pybind11_state*"))
    monkeypatch.setenv("ONNXLR_OPS_LIBRARY", str(other))
    found = onnxlr.describe_ops()
    assert found.version is None
    assert found.problem is not None
    assert str(other) in found.problem


def test_the_description_of_no_library(off: None) -> None:
    found = onnxlr.describe_ops()
    assert (found.library, found.version, found.layout, found.isa) == (None,) * 4
    assert found.available == ()
    assert found.problem is not None
