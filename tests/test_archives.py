"""Files of arrays that lie: refused by what they are, before anything is allocated or unpacked."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxlr
from onnxlr import archives
from onnxlr.archives import arrays_of
from onnxlr.statistics import Statistics
from tests.classifier import classifier, samples

Files = dict[str, bytes]


def header(shape: str, descr: str = "'<f4'", version: bytes = b"\x01\x00") -> bytes:
    """Return a header of the format with any shape and type."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text) + 1)
    return b"\x93NUMPY" + version + size + text + b"\n"


def npz(path: Path, files: Files, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def stored(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_what_numpy_writes_is_read(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "text": np.array(["one", "zwölf"]),
        "bytes": np.array([b"one"]),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(3),
        "a/b": np.ones(2, np.float16),
        "big endian": np.arange(3, dtype=">i4"),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        found = arrays_of(tmp_path / "a.npz")
        assert isinstance(found, dict)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
    np.save(tmp_path / "a.npy", arrays["fortran"])
    np.testing.assert_array_equal(arrays_of(tmp_path / "a.npy"), arrays["fortran"])


LIES: dict[str, tuple[bytes, str]] = {
    "terabytes": (header("(1000000, 1000000)") + bytes(64), "takes 4,000,000,000,000"),
    "more than 64 bits": (header("(18446744073709551616, 4)") + bytes(64), "takes"),
    "0 in 64 bits": (header("(4294967296, 4294967296)") + bytes(64), "takes"),
    "too few numbers": (header("(4, 4)") + bytes(60), "has 60 bytes of numbers"),
    "too many numbers": (header("(4, 4)") + bytes(68), "has 68 bytes of numbers"),
    "a negative shape": (header("(-4, -4)") + bytes(60), ""),
    "a shape of floats": (header("(4.0, 4)") + bytes(64), ""),
    "a type of nothing": (header("(99999999999,)", "'|S0'"), "takes 0"),
    "a type that is none": (header("(4,)", "'nonsense'") + bytes(16), ""),
    "objects": (stored(np.array([{}, []], object)), "Python objects (pickles), which are never"),
    "objects within": (
        stored(np.zeros(2, [("a", "f4"), ("b", object)])),
        "Python objects (pickles), which are never",
    ),
    "another version": (header("(4,)", version=b"\x03\x00") + bytes(16), "version 3 of the format"),
    "no version": (b"\x93NUMPY\x09\x09" + bytes(100), ""),
    "no header": (b"\x93NUMPY\x01\x00", ""),
    "an endless header": (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b"(" * 20_000, ""),
    "a header of code": (header("__import__('os').system('touch owned')") + bytes(16), ""),
    "parentheses": (header("(" * 5000) + bytes(16), ""),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_a_header_that_lies(
    lie: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content, reason = LIES[lie]
    path = tmp_path / f"a.{kind}"
    if kind == "npy":
        path.write_bytes(content)
    else:
        npz(path, {"x.npy": content})
    with pytest.raises(onnxlr.DataError) as raised:
        arrays_of(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: cannot be read: ")
    assert "\n" not in message
    assert reason in message
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_bomb(compression: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three megabytes that are honest zeros; the limit that is always fine is lowered for them."""
    content = header("(786432,)") + bytes(4 * 786432)
    path = npz(tmp_path / "a.npz", {"x.npy": content}, compression)
    assert arrays_of(path)
    monkeypatch.setattr(archives, "_ALWAYS_FINE", 1 << 20)
    unpacked: list[str] = []
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: unpacked.append("opened"))
    with pytest.raises(onnxlr.DataError, match="unpacks to 3,145,8"):
        arrays_of(path)
    assert not unpacked


def test_a_bomb_that_hides_its_size(tmp_path: Path) -> None:
    """What the index says of an entry's size is all that is unpacked."""
    content = header("(250000,)") + bytes(1_000_000)
    path = npz(tmp_path / "a.npz", {"x.npy": content})
    damaged = path.read_bytes().replace(struct.pack("<I", len(content)), struct.pack("<I", 128))
    path.write_bytes(damaged)
    with pytest.raises(onnxlr.DataError, match=r"has \d+ bytes of numbers|cannot be read"):
        arrays_of(path)


def test_many_entries_that_share_their_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quoted bomb: each entry of the index is the same few bytes of the file."""
    content = header("(262144,)") + bytes(1 << 20)
    path = npz(tmp_path / "a.npz", {"x.npy": content})
    whole = path.read_bytes()
    start = whole.index(b"PK\x01\x02")
    end = whole.index(b"PK\x05\x06")
    entries, tail = whole[start:end] * 1000, bytearray(whole[end:])
    tail[8:12] = struct.pack("<HH", 1000, 1000)
    tail[12:16] = struct.pack("<I", len(entries))
    path.write_bytes(whole[:start] + entries + bytes(tail))
    monkeypatch.setattr(archives, "_ALWAYS_FINE", 1 << 20)
    with pytest.raises(onnxlr.DataError, match="unpacks to 1,048,6"):
        arrays_of(path)


def test_what_is_no_array_is_not_taken_for_one(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", {"README": b"words", "x.npy": stored(np.ones(3))})
    assert arrays_of(path).keys() == {"x"}


def uses(folder: Path, path: Path) -> list[Callable[[], object]]:
    model = folder / "m.onnx"
    onnx.save(classifier(), model)
    plan = {"method": "svd", "rank": 2, "isolate": False}
    return [
        lambda: onnxlr.verify(model, model, data=path, isolate=False),
        lambda: onnxlr.plan(model, calibration=path, **plan),
        lambda: onnxlr.plan(model, statistics=path, **plan),
        lambda: onnxlr.plan(model, importance=path, **plan),
        lambda: onnxlr.observe(model, path, isolate=False),
    ]


@pytest.mark.parametrize("use", range(5))
@pytest.mark.parametrize(
    "lie", ["terabytes", "objects", "too few numbers", "a type of nothing", "no header"]
)
def test_wherever_arrays_are_given(use: int, lie: str, tmp_path: Path) -> None:
    path = npz(tmp_path / "x.npz", {"x.npy": LIES[lie][0], "w1.npy": LIES[lie][0]})
    act = uses(tmp_path, path)[use]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(onnxlr.DataError, match=r"x\.npz: "):
        act()
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("lie", LIES)
def test_statistics_whose_arrays_lie(lie: str, tmp_path: Path) -> None:
    onnx.save(classifier(), tmp_path / "m.onnx")
    path = tmp_path / "statistics.npz"
    onnxlr.observe(tmp_path / "m.onnx", {"x": samples(64)}, path, isolate=False)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert sum(name.endswith(".npy") for name in files) >= 2
    npz(path, {n: LIES[lie][0] if n.endswith(".npy") else c for n, c in files.items()})
    with pytest.raises(onnxlr.DataError, match="damaged statistics file"):
        Statistics.load(path)
    npz(path, files | {"statistics.json": b"[" * 200_000})
    with pytest.raises(onnxlr.DataError, match="statistics file"):
        Statistics.load(path)
