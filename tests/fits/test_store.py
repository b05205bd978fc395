"""Fits in a folder: what comes back is what was put, whatever is found there."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxlr.errors import OnnxlrWarning
from onnxlr.evidence import Evidence
from onnxlr.fits import FitStore, Wish
from onnxlr.fits.flat import flatten
from onnxlr.fits.keys import fit_key
from onnxlr.fits.orders import fit_or_reason
from onnxlr.methods import METHODS, Fit, Recipe, Setting, SvdOptions, option_names
from onnxlr.metrics import Activation
from onnxlr.statistics import Moments

KEY = "ab" * 32
BUDGETS: dict[str, dict[str, Any]] = {"svd": {"rank": 3}, "ternary": {"terms": 2}}
"""Other methods that have a ratio get one of a half."""


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def wish(method: str = "svd", format: str | None = None, **given: Any) -> Wish:
    kind = METHODS[method].options
    usual = {"ratio": 0.5} if "ratio" in option_names(kind) else {}
    options = kind(**(given or BUDGETS.get(method, usual)))
    setting = Setting.for_array(weight(2, 2), format)
    return Wish(method, options, setting, Recipe())


def made(matrix: np.ndarray, asked: Wish, groups: int | None = None) -> Fit:
    asked = replace(asked, setting=replace(asked.setting, groups=groups))
    fit = fit_or_reason(matrix, asked, Evidence())
    assert isinstance(fit, Fit), fit
    return fit


def parts(value: Any) -> tuple[str, list[tuple[Any, ...]]]:
    """Return all that a fit is, down to the last bit."""
    text, arrays = flatten(value)
    return text, [(n, a.dtype.str, a.shape, a.tobytes()) for n, a in arrays.items()]


def weigh_each(name: str) -> list[tuple[np.ndarray, int | None]]:
    return [(weight(24, 36), None), (weight(16, 12, 3, 3), 1), (weight(2, 24, 36), None)]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "keep"])
def test_every_method_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    """Not every method takes every weight; what it makes of those that it takes is kept."""
    store, kept = FitStore(tmp_path), 0
    for number, (matrix, groups) in enumerate(weigh_each(name)):
        asked = wish(name, "int8" if name == "quantize" else None)
        setting = replace(asked.setting, groups=groups)
        fit = fit_or_reason(matrix, replace(asked, setting=setting), Evidence())
        if isinstance(fit, str):
            continue
        store.put(f"{number:02}", fit)
        found = store.get(f"{number:02}", matrix.shape)
        assert found is not None
        assert parts(found) == parts(fit)
        assert type(found.options) is METHODS[name].options
        # Arrays of another order in memory are added up in another order.
        again, before = found.chain.reconstruct(), fit.chain.reconstruct()
        np.testing.assert_allclose(again, before, rtol=1e-12, atol=1e-12)
        kept += 1
    assert kept


@pytest.mark.parametrize("format", ["float16", "bfloat16", "int8", "int4", "int2"])
def test_every_format_comes_back_as_it_was(format: str, tmp_path: Path) -> None:
    fit = made(weight(64, 48), wish(format=format))
    fit = replace(fit, corrections=weight(1, 48).astype(np.float64), error=0.25)
    FitStore(tmp_path).put(KEY, fit)
    found = FitStore(tmp_path).get(KEY, (64, 48))
    assert found is not None
    assert parts(found) == parts(fit)
    assert found.chain.stages[0].weight.codes.dtype == fit.chain.stages[0].weight.codes.dtype


def test_nothing_is_known_at_first(tmp_path: Path) -> None:
    assert FitStore(tmp_path / "none").get(KEY, (24, 36)) is None
    assert not (tmp_path / "none").exists()


def entry(folder: Path) -> Path:
    """Put an entry and return its file."""
    FitStore(folder).put(KEY, made(weight(24, 36), wish()))
    (file,) = folder.rglob("*.npz")
    return file


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def pickled(file: Path) -> None:
    arrays = dict(np.load(file))
    arrays["0"] = np.array([Evil()], dtype=object)
    np.savez(file, **arrays)


def bare_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps(Evil()))


def of_another_class(file: Path) -> None:
    arrays = dict(np.load(file))
    text = arrays["structure"].tobytes().replace(b'"Fit"', b'"Evidence"')
    arrays["structure"] = np.frombuffer(text, np.uint8)
    np.savez(file, **arrays)


def no_fit(file: Path) -> None:
    np.savez(file, structure=np.frombuffer(b"17", np.uint8))


def stages_that_do_not_fit(file: Path) -> None:
    arrays = dict(np.load(file))
    name = next(name for name in arrays if arrays[name].ndim == 2)
    arrays[name] = arrays[name][:, :-1].copy()
    np.savez(file, **arrays)


def deep(file: Path) -> None:
    text = b'{"list":[' * 100_000 + b"1" + b"]}" * 100_000
    np.savez(file, structure=np.frombuffer(text, np.uint8))


def compressed_strangely(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("structure.npy", b"\x93NUMPY nonsense")


def of_another_weight(file: Path) -> None:
    """As if somebody had given one entry the name of another."""
    fit = made(weight(24, 35), wish())
    FitStore(file.parents[1]).put(KEY, fit)


def not_finite(file: Path) -> None:
    fit = made(weight(24, 36), wish())
    for stage in fit.chain.stages:
        stage.weight.codes[0] = np.inf
    FitStore(file.parents[1]).put(KEY, fit)


class Evil:
    """Writes a file when it is unpickled."""

    place = ""

    def __reduce__(self) -> Any:
        return Path.touch, (Path(Evil.place),)


@pytest.mark.parametrize(
    "damage",
    [
        *(truncated, flipped, emptied, pickled, bare_pickle, of_another_class, no_fit),
        *(stages_that_do_not_fit, deep, compressed_strangely, of_another_weight, not_finite),
    ],
)
def test_a_damaged_entry_is_none_and_runs_nothing(damage: Any, tmp_path: Path) -> None:
    Evil.place = str(tmp_path / "run")
    file = entry(tmp_path / "cache")
    damage(file)
    with pytest.warns(OnnxlrWarning, match="is damaged and not used"):
        assert FitStore(tmp_path / "cache").get(KEY, (24, 36)) is None
    assert not (tmp_path / "run").exists()
    fit = made(weight(24, 36), wish())
    FitStore(tmp_path / "cache").put(KEY, fit)
    found = FitStore(tmp_path / "cache").get(KEY, (24, 36))
    assert found is not None
    assert parts(found) == parts(fit)


def test_entries_appear_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        FitStore(tmp_path).put(KEY, made(weight(4, 4), wish(rank=1)))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = FitStore(tmp_path / "file")
    with pytest.warns(OnnxlrWarning, match="fits cannot be kept there"):
        store.prepare()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.put(KEY, made(weight(4, 4), wish(rank=1)))
    assert store.get(KEY, (24, 36)) is None


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    killed = (
        "import os, sys, numpy; from pathlib import Path; from onnxlr.fits import FitStore\n"
        "from tests.fits.test_store import KEY, made, weight, wish\n"
        "numpy.savez = lambda stream, **_: (stream.write(b'half'), stream.flush(), os._exit(9))\n"
        "FitStore(Path(sys.argv[1])).put(KEY, made(weight(4, 4), wish(rank=1)))"
    )
    done = subprocess.run([sys.executable, "-c", killed, str(tmp_path)], check=False)
    assert done.returncode == 9
    (left,) = tmp_path.rglob("entry")
    assert left.read_bytes() == b"half"
    store = FitStore(tmp_path)
    store.prepare()
    assert not left.exists()
    assert not list(tmp_path.rglob("*.npz"))
    store.put(KEY, made(weight(4, 4), wish(rank=1)))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_a_folder_that_cannot_be_looked_into_has_nothing(tmp_path: Path) -> None:
    store = FitStore(tmp_path / ("x" * 300))  # longer than names can be
    with pytest.warns(OnnxlrWarning, match="fits cannot be kept there"):
        store.prepare()
    assert store.get(KEY, (24, 36)) is None


# --- keys ----------------------------------------------------------------------------------------


def moments(inputs: int, seed: int = 0) -> Moments:
    rows = np.random.default_rng(seed).standard_normal((50, inputs))
    one = np.ones(1)
    covariance = (rows.T @ rows / 50)[None]
    return Moments(np.array([50]), rows.mean(axis=0)[None, None], covariance, -one, one, -one, one)


def test_a_key_depends_on_all_that_a_fit_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, asked, known = weight(24, 36), wish(), Evidence(moments(24))
    other = matrix.copy()
    other[3, 5] = np.nextafter(other[3, 5], np.float32(9))
    keys = {
        "as it is": fit_key(matrix, known, asked),
        "weight": fit_key(other, known, asked),
        "type": fit_key(matrix.astype(np.float64), known, asked),
        "shape": fit_key(matrix.reshape(36, 24), known, asked),
        "method": fit_key(matrix, known, wish("quantize", "int8")),
        "options": fit_key(matrix, known, replace(asked, options=SvdOptions(rank=4))),
        "told": fit_key(matrix, known, replace(asked, is_told=True)),
        "unknown": fit_key(matrix, Evidence(), asked),
        "statistics": fit_key(matrix, Evidence(moments(24, 1)), asked),
        "holdout": fit_key(matrix, replace(known, holdout=moments(24)), asked),
        "importance": fit_key(matrix, replace(known, importance=np.ones((24, 36))), asked),
        "outputs": fit_key(matrix, replace(known, output_covariance=np.eye(36)), asked),
        "inputs": fit_key(matrix, replace(known, input_covariance=np.eye(24)[None]), asked),
    }
    recipe = {"metric": "activation", "rounding": "gptq", "bias_correction": True}
    recipe |= {"solver": "em", "shrinkage": 0.5}
    for name, value in recipe.items():
        changed = replace(asked, recipe=replace(asked.recipe, **{name: value}))
        keys[name] = fit_key(matrix, known, changed)
    assert set(recipe) == {field.name for field in fields(Recipe)}
    setting: dict[str, Any] = {"compute": np.dtype("float16"), "seed": 1, "groups": 1}
    setting |= {"is_table": True, "stored": "float16", "whole_window": True}
    setting["format"] = wish(format="float16").setting.format
    for name, value in setting.items():
        changed = replace(asked, setting=replace(asked.setting, **{name: value}))
        keys[name] = fit_key(matrix, known, changed)
    assert {*setting, "metric", "progress"} == {field.name for field in fields(Setting)}
    for name in ("VERSION", "np.__version__", "scipy.__version__", "tensorly.__version__"):
        with monkeypatch.context() as patch:
            patch.setattr(f"onnxlr.fits.keys.{name}", "another")
            keys[name] = fit_key(matrix, known, asked)
    assert len(set(keys.values())) == len(keys)


def test_a_key_is_the_same_for_the_same() -> None:
    one = fit_key(weight(24, 36), Evidence(moments(24)), wish())
    assert one == fit_key(np.asfortranarray(weight(24, 36)), Evidence(moments(24)), wish())
    said: list[Any] = []
    heard = replace(wish().setting, progress=lambda *given: said.append(given))
    assert one == fit_key(weight(24, 36), Evidence(moments(24)), replace(wish(), setting=heard))


def test_a_metric_that_the_recipe_does_not_name_has_no_key() -> None:
    odd = replace(wish().setting, metric=Activation(np.eye(24)))
    with pytest.raises(ValueError, match="the recipe"):
        fit_key(weight(24, 36), Evidence(), replace(wish(), setting=odd))
