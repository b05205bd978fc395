"""The statistics: what moments mean, and files that hold them whole, equal and safely."""

from __future__ import annotations

import io
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlr.errors import DataError, ExitCode, OutputError
from onnxlr.layers import find_layers, layer_keys, read_weight, weight_key
from onnxlr.model import open_model
from onnxlr.statistics import LayerStatistics, Moments, Statistics
from tests.classifier import classifier, weights

Array = np.ndarray[Any, Any]


def moments_of(rows: list[Array]) -> Moments:
    """Return the moments of each site's rows `(groups, rows, inputs)` by their definition."""
    together = np.concatenate(rows, axis=1)
    return Moments(
        np.array([r.shape[1] for r in rows], np.int64),
        np.stack([r.mean(axis=1) if r.size else np.zeros(r[:, :0].sum(1).shape) for r in rows]),
        np.einsum("gri,grj->gij", together, together) / together.shape[1],
        *(np.array([getattr(r, end)() if r.size else np.nan for r in rows]) for end in _ENDS),
        *(np.array([getattr(r, end)() + 1 if r.size else np.nan for r in rows]) for end in _ENDS),
    )


_ENDS = ("min", "max")


def sites(seed: int, counts: tuple[int, ...] = (7, 1, 5), groups: int = 2) -> list[Array]:
    random = np.random.default_rng(seed)
    return [random.standard_normal((groups, n, 3)) + position for position, n in enumerate(counts)]


def some(seed: int = 0) -> Statistics:
    shared = moments_of(sites(seed + 1, (9,), 1))
    full = LayerStatistics(moments_of(sites(seed, (4, 0, 2))), moments_of(sites(seed + 2)))
    layers = {"ab": full, "cd": LayerStatistics(shared), "ef": LayerStatistics(shared, shared)}
    return Statistics("0" * 64, "d.npz: 3 runs", layers, {"größe": "it is in a Loop"}, ("a note",))


def same(one: Statistics, other: Statistics) -> None:
    for field in fields(Statistics):
        if field.name != "layers":
            assert getattr(one, field.name) == getattr(other, field.name)
    assert set(one.layers) == set(other.layers)
    for key, layer in one.layers.items():
        for part in fields(LayerStatistics):
            _same_part(getattr(layer, part.name), getattr(other.layers[key], part.name))


def _same_part(one: Any, other: Any) -> None:
    if isinstance(one, Moments):
        for field in fields(Moments):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
            assert getattr(one, field.name).dtype == getattr(other, field.name).dtype
    else:
        assert one is other is None


# --- moments -------------------------------------------------------------------------------------


def test_moments_of_all_sites_together() -> None:
    rows = sites(0)
    moments = moments_of(rows)
    together = np.concatenate(rows, axis=1)
    assert moments.count == 13
    np.testing.assert_allclose(moments.mean, together.mean(axis=1))


def test_centred_is_the_covariance_around_each_sites_own_mean() -> None:
    rows = sites(1)
    apart = np.concatenate([r - r.mean(axis=1, keepdims=True) for r in rows], axis=1)
    expected = np.einsum("gri,grj->gij", apart, apart) / apart.shape[1]
    np.testing.assert_allclose(moments_of(rows).centred, expected, atol=1e-12)


def test_a_site_without_rows_has_no_weight() -> None:
    rows = sites(2, (5, 0, 3))
    moments = moments_of(rows)
    np.testing.assert_allclose(moments.mean, np.concatenate(rows, axis=1).mean(axis=1))
    assert moments.count == 8


@pytest.mark.parametrize("name", ["counts", "means", "covariance", "low", "output_high"])
def test_parts_that_do_not_fit_are_refused(name: str) -> None:
    moments = moments_of(sites(0))
    with pytest.raises(ValueError, match=r"sites?|shape"):
        replace(moments, **{name: getattr(moments, name)[:-1]})


# --- files ---------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "s.npz"
    some().save(file)
    same(some(), Statistics.load(file))
    assert Statistics.load(str(file)).sha256 == some().sha256
    assert Statistics.load(file).of("ab") is not None
    assert Statistics.load(file).of("xy") is None


def test_the_same_statistics_are_the_same_bytes(tmp_path: Path) -> None:
    some().save(tmp_path / "1.npz")
    turned = replace(some(), layers=dict(reversed(some().layers.items())))
    turned.save(tmp_path / "2.npz")
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
    assert turned.sha256 == some().sha256
    Statistics.load(tmp_path / "1.npz").save(tmp_path / "3.npz")
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "3.npz").read_bytes()


CHANGES = [
    {"model_sha256": "1" * 64},
    {"unobserved": {}},
    {"notes": ()},
    {"layers": dict(list(some().layers.items())[:2])},
    {"layers": {"ab": some().layers["cd"], "cd": some().layers["ab"], "ef": some().layers["ef"]}},
    {"layers": some().layers | {"ab": replace(some().layers["ab"], holdout=None)}},
    {"layers": some().layers | {"cd": LayerStatistics(moments_of(sites(77, (9,), 1)))}},
]


@pytest.mark.parametrize("change", CHANGES)
def test_everything_found_is_in_the_hash(change: dict[str, Any]) -> None:
    assert replace(some(), **change).sha256 != some().sha256


def test_where_the_data_lay_is_not_in_the_hash() -> None:
    assert replace(some(), data="moved/d.npz: 3 runs").sha256 == some().sha256


def test_layers_that_share_their_data_share_the_array(tmp_path: Path) -> None:
    file = tmp_path / "s.npz"
    moments = moments_of([np.random.default_rng(0).standard_normal((1, 300, 200))])
    copy = replace(moments, covariance=moments.covariance.copy())
    layers = {"a": LayerStatistics(moments), "b": LayerStatistics(moments, copy)}
    Statistics("", "", layers, {}).save(file)
    size = moments.covariance.nbytes
    assert size / 2 < file.stat().st_size < 1.2 * size
    loaded = Statistics.load(file)
    assert loaded.layers["a"].fit.covariance is loaded.layers["b"].fit.covariance


def test_numpy_reads_the_arrays(tmp_path: Path) -> None:
    some().save(tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz", allow_pickle=False) as arrays:
        shapes = {arrays[name].shape for name in arrays.files if not name.endswith(".json")}
    assert some().layers["ab"].fit.means.shape in shapes


def _without_contents(file: Path) -> None:
    np.savez(file, x=np.zeros(3))


def _with_objects(file: Path) -> None:
    some().save(file)
    stream = io.BytesIO()
    np.save(stream, np.array([{}], object), allow_pickle=True)
    _replace_arrays(file, stream.getvalue())


def _with_other_numbers(file: Path) -> None:
    some().save(file)
    stream = io.BytesIO()
    np.save(stream, np.zeros((2, 3, 3)))
    _replace_arrays(file, stream.getvalue())


def _replace_arrays(file: Path, content: bytes) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, bytes_ in entries.items():
            archive.writestr(name, content if name.endswith(".npy") else bytes_)


def _of_the_future(file: Path) -> None:
    some().save(file)
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content.replace(b'"schema": 1', b'"schema": 99'))


def _json(text: str) -> Any:
    def write(file: Path) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("statistics.json", text)

    return write


FOREIGN = [
    (_without_contents, "is not a statistics file"),
    (lambda file: file.write_text("no zip"), "is not a statistics file"),
    (lambda file: file.write_bytes(b""), "is not a statistics file"),
    (lambda file: file.mkdir(), "cannot be read: Is a directory"),
    (lambda _: None, "no such statistics file"),
    (_with_objects, "damaged"),
    (_with_other_numbers, "other numbers"),
    (_of_the_future, "schema 99, expected 1"),
    (_json("{"), "damaged"),
    (_json("[]"), "damaged"),
    (_json('{"schema": 1}'), "damaged"),
]


@pytest.mark.parametrize(("make", "message"), FOREIGN)
def test_other_files_are_refused(make: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "s.npz"
    make(file)
    with pytest.raises(DataError, match=message) as error:
        Statistics.load(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == ExitCode.USAGE


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("damage") / "s.npz"
    some().save(file)
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    try:
        loaded = Statistics.load(file)
    except DataError:
        return  # every other exception fails
    # a byte of the archive that says nothing, such as a date
    assert loaded.sha256 == some().sha256
    assert loaded.data == some().data


def test_a_failure_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "s.npz"
    some().save(file)
    before = file.read_bytes()

    def fail(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", fail)
    with pytest.raises(OutputError, match="No space left"):
        some(5).save(file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        some().save(tmp_path / "no" / "s.npz")


# --- keys ----------------------------------------------------------------------------------------


def test_the_key_is_the_content_of_the_weight() -> None:
    model = open_model(classifier())
    layers = {layer.name: layer for layer in find_layers(model)}
    before = {name: weight_key(layer, model) for name, layer in layers.items()}
    assert len(set(before.values())) == len(before) == 3
    assert all(len(key) == 64 and int(key, 16) for key in before.values())
    changed = weights()["w2"].copy()
    changed[3, 4] += 1e-3
    other = open_model(classifier(w2=changed))
    after = {layer.name: weight_key(layer, other) for layer in find_layers(other)}
    assert {name for name in before if before[name] != after[name]} == {"second"}


def test_layers_of_equal_weight_have_keys_of_their_own() -> None:
    w = np.ones((32, 32), np.float32)
    model = open_model(classifier(w1=w[:24], w2=w))
    layers = find_layers(model)
    twice = [*layers, *layers]
    assert np.array_equal(read_weight(model, layers[1]), w)
    renamed = [replace(layer, name=f"{i}") for i, layer in enumerate(twice)]
    keys = layer_keys(model, renamed)
    assert len(set(keys.values())) == 6
    assert keys["4"] == f"{keys['1']}-2"


def statistics_for(model: Any, *names: str, unobserved: tuple[str, ...] = ()) -> Statistics:
    keys = layer_keys(model, find_layers(model))
    layers = {keys[name]: LayerStatistics(moments_of(sites(0))) for name in names}
    return Statistics(model.sha256, "", layers, dict.fromkeys(unobserved, "a reason"))


def test_statistics_of_the_same_weights_fit() -> None:
    model = open_model(classifier())
    keys = layer_keys(model, find_layers(model))
    statistics_for(model, "first", "second", "head").check("m.onnx", keys)
    part = statistics_for(model, "first", "head", unobserved=("second",))
    part.check("m.onnx", keys)


def test_another_weight_is_named() -> None:
    model = open_model(classifier())
    made = statistics_for(model, "first", "second", "head")
    other = open_model(classifier(w2=weights()["w2"] + 1))
    layers = find_layers(other)
    with pytest.raises(DataError, match=r"made for another model: layer 'second' of m.*calibrate"):
        made.check("m.onnx", layer_keys(other, layers))
    skipped = [replace(la, skip="why") if la.name == "second" else la for la in layers]
    made.check("m.onnx", layer_keys(other, skipped))
