"""External data is a part of a regular file within the model's folder, or it is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import TensorProto

import onnxlr
from onnxlr.model.claims import check_claims, claimed_bytes
from onnxlr.model.external import Extent, extent_of

BYTES = 4096


def external(
    dims: tuple[int, ...] = (32, 24), kind: int = TensorProto.FLOAT, **entries: str
) -> TensorProto:
    tensor = TensorProto(name="W", dims=dims, data_type=kind)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": "data"} | entries).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a data file, beside one outside of it."""
    (tmp_path / "in" / "below").mkdir(parents=True)
    (tmp_path / "in" / "data").write_bytes(bytes(BYTES))
    (tmp_path / "in" / "below" / "data").write_bytes(bytes(BYTES))
    (tmp_path / "outside").write_bytes(bytes(BYTES))
    return tmp_path / "in"


def refused(tensor: TensorProto, folder: Path) -> str:
    with pytest.raises(onnxlr.ModelError) as raised:
        extent_of(tensor, folder)
    message = str(raised.value)
    assert message.startswith("tensor 'W' (")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("entries", "offset", "length"),
    [
        ({}, 0, 3072),
        ({"offset": "1024"}, 1024, 3072),
        ({"offset": "0", "length": "3072"}, 0, 3072),
        ({"length": "0"}, 0, 3072),  # which readers take for not stated
        ({"location": "below/data", "offset": "512", "checksum": "of something"}, 512, 3072),
        ({"location": "below/../data"}, 0, 3072),
    ],
)
def test_where_data_lies(entries: dict[str, str], offset: int, length: int, folder: Path) -> None:
    found = extent_of(external(**entries), folder)
    assert (found.offset, found.length) == (offset, length)
    assert found.path.samefile(folder / entries.get("location", "data"))


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"offset": "1025"}, "bytes 1,025 to 4,097 of 'data', which has 4,096"),
        ({"offset": "9223372036854775807"}, "which has 4,096"),
        ({"offset": "4096", "length": "3072"}, "which has 4,096"),
        ({"length": "3071"}, "states 3,071 bytes of external data, its shape takes 3,072"),
        ({"length": "99999999999"}, "states 99,999,999,999 bytes"),
        *(
            ({key: text}, f"the {key} of its external data is '{text[:40]}', expected a number")
            for key in ("offset", "length")
            for text in ("-1", "", "abc", "0x10", "1e3", "1_0", " 1", "+1", "٣", "9" * 50)
        ),
        ({"location": ""}, "names no file"),
        ({"location": "a\0b"}, "names no file"),
        ({"location": "/etc/passwd"}, "absolute path"),
        ({"location": "C:\\data"}, "absolute path"),
        ({"location": "\\\\server\\data"}, "absolute path"),
        ({"location": "../outside"}, "leads out of the model's folder"),
        ({"location": "below/../../outside"}, "leads out of the model's folder"),
        ({"location": "../in/data"}, "leads out of the model's folder"),
        ({"location": "below/../../in/data"}, "leads out of the model's folder"),
        ({"location": ".."}, "leads out of the model's folder"),
        ({"location": "none"}, "No such file"),
        ({"location": "data/none"}, "Not a directory"),
        ({"location": "../none"}, "leads out of the model's folder"),
        ({"location": "x" * 5000}, "name too long"),
        ({"location": "below"}, "no regular file"),
        ({"location": "."}, "no regular file"),
    ],
)
def test_what_is_refused(entries: dict[str, str], reason: str, folder: Path) -> None:
    assert reason in refused(external(**entries), folder)


@pytest.mark.parametrize("key", ["location", "offset", "length"])
def test_an_entry_stated_twice(key: str, folder: Path) -> None:
    tensor = external(offset="0", length="3072")
    tensor.external_data.add(key=key, value="data" if key == "location" else "0")
    assert f"states '{key}' twice" in refused(tensor, folder)


def test_no_location(folder: Path) -> None:
    tensor = external()
    del tensor.external_data[:]
    assert "names no file" in refused(tensor, folder)


@pytest.mark.parametrize(
    ("link", "target", "reason"),
    [
        ("link", "../outside", "leads out"),
        ("link", "below/other", "leads out"),  # a link to a link
        ("link", "link", "cannot be followed|symbolic links"),
        ("gone", "none", "No such file"),
    ],
)
def test_symbolic_links(link: str, target: str, reason: str, folder: Path) -> None:
    (folder / "below" / "other").symlink_to(folder.parent / "outside")
    (folder / link).symlink_to(target)
    message = refused(external(location=link), folder)
    assert any(part in message for part in reason.split("|"))


def test_a_folder_that_is_a_link(folder: Path) -> None:
    (folder / "away").symlink_to(folder.parent)
    assert "leads out" in refused(external(location="away/outside"), folder)


def test_links_within_the_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "link").symlink_to("below/data")
    assert extent_of(external(location="link"), folder).path.samefile(folder / "below" / "data")
    (tmp_path / "door").symlink_to(folder)
    assert extent_of(external(location="link"), tmp_path / "door").length == 3072


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_no_pipe_and_no_device(make: Callable[[Path], None], folder: Path) -> None:
    make(folder / "endless")
    assert "regular file" in (message := refused(external(location="endless"), folder)) or (
        "leads out" in message
    )


@pytest.mark.parametrize(
    "dims",
    [
        (2**32, 2**32),  # 0 in 64 bits
        (2**62, 4),
        (2**63 - 1,),
        (2**31, 2**31, 2**31),
        (0, 2**62, 2**62),
    ],
)
def test_dimensions_no_memory_could_hold(dims: tuple[int, ...], folder: Path) -> None:
    assert "more entries than any memory" in refused(external(dims), folder)


@pytest.mark.parametrize("dims", [(10**6, 10**6), (2**20, 2**20, 2**20), (1, 1025)])
def test_dimensions_beyond_the_file(dims: tuple[int, ...], folder: Path) -> None:
    assert "which has 4,096" in refused(external(dims), folder)


@pytest.mark.parametrize("dims", [(-1,), (-32, -24), (0, -1)])
def test_negative_dimensions(dims: tuple[int, ...], folder: Path) -> None:
    assert "negative dimension" in refused(external(dims), folder)


def test_an_empty_tensor_takes_nothing(folder: Path) -> None:
    assert extent_of(external((0, 5)), folder) == Extent(folder / "data", 0, 0)


@pytest.mark.parametrize(
    ("kind", "dims", "length"),
    [
        ("FLOAT", (3, 5), 60),
        ("FLOAT16", (3, 5), 30),
        ("BFLOAT16", (3, 5), 30),
        ("DOUBLE", (3, 5), 120),
        ("INT8", (3, 5), 15),
        ("BOOL", (3, 5), 15),
        ("COMPLEX64", (3, 5), 120),
        ("COMPLEX128", (3, 5), 240),
        ("INT4", (3, 5), 8),
        ("UINT4", (3, 4), 6),
        ("FLOAT8E4M3FN", (3, 5), 15),
        ("FLOAT", (), 4),
    ],
)
def test_bytes_of_types(kind: str, dims: tuple[int, ...], length: int, folder: Path) -> None:
    tensor = external(dims, TensorProto.DataType.Value(kind))
    assert claimed_bytes(tensor) == length == extent_of(tensor, folder).length


def test_types_whose_size_is_not_known(folder: Path) -> None:
    assert claimed_bytes(external((3, 5), TensorProto.STRING)) is None
    assert extent_of(external((3, 5), 4711, length="33", offset="7"), folder).length == 33
    assert extent_of(external((3, 5), 4711, offset="7"), folder).length == BYTES - 7
    assert "which has 4,096" in refused(external((3,), 4711, offset="4097"), folder)
    assert "which has 4,096" in refused(external((3,), 4711, length="4097"), folder)


@pytest.mark.parametrize(
    "tensor",
    [
        TensorProto(data_type=TensorProto.FLOAT, dims=[2, 2], raw_data=bytes(16)),
        TensorProto(data_type=TensorProto.FLOAT, dims=[2], float_data=[1, 2]),
        TensorProto(data_type=TensorProto.FLOAT16, dims=[2], int32_data=[1, 2]),
        TensorProto(data_type=TensorProto.COMPLEX64, dims=[2], float_data=[1, 2, 3, 4]),
        TensorProto(data_type=TensorProto.COMPLEX128, dims=[1], double_data=[1, 2]),
        TensorProto(data_type=TensorProto.UINT4, dims=[3], int32_data=[1, 2]),
        TensorProto(data_type=TensorProto.UINT32, dims=[1], uint64_data=[1]),
        TensorProto(data_type=TensorProto.STRING, dims=[2], string_data=[b"", b"\xff"]),
        TensorProto(data_type=TensorProto.FLOAT, dims=[0, 7]),
        TensorProto(data_type=4711, dims=[3], raw_data=b"anything"),
    ],
    ids=str,
)
def test_claims_that_hold(tensor: TensorProto) -> None:
    check_claims(tensor)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (TensorProto(data_type=1, dims=[2], raw_data=bytes(16)), "holds 16 bytes, expected 8"),
        (TensorProto(data_type=1, dims=[2**32, 2**32]), "more entries than any memory"),
        (TensorProto(data_type=1, dims=[2**20, 2**20]), "holds 0 numbers, expected 1,099,511,6"),
        (TensorProto(data_type=1, dims=[2], int32_data=[1, 2]), "holds 0 numbers, expected 2"),
        (TensorProto(data_type=1, dims=[-2], float_data=[1, 2]), "negative dimension"),
        (TensorProto(data_type=8, dims=[2**50], string_data=[b""]), "holds 1 numbers, expected"),
        (TensorProto(data_type=4711, dims=[2**60, 2**60]), "more entries than any memory"),
    ],
)
def test_claims_that_do_not_hold(tensor: TensorProto, reason: str) -> None:
    with pytest.raises(onnxlr.ModelError) as raised:
        check_claims(tensor)
    assert reason in str(raised.value)
