"""custom_ops/ort_api.h against ONNX Runtime's own header, where there is one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
OWN = HERE.parents[1] / "custom_ops"
HEADER = "onnxruntime_c_api.h"
STRUCTS = {"Api": "API", "ApiBase": "BASE", "CustomOp": "OP"}


def _folder_of_header() -> Path:
    wanted = os.environ.get("ONNXRUNTIME_INCLUDE")
    if wanted:
        found = list(Path(wanted).rglob(HEADER))
        assert found, f"ONNXRUNTIME_INCLUDE is {wanted}, where no {HEADER} is"
        return found[0].parent
    places = [Path("/usr/include"), Path("/usr/local/include")]
    for place in places:
        for folder in (place, *place.glob("onnxruntime*")):
            found = list(folder.rglob(HEADER) if folder != place else folder.glob(HEADER))
            if found:
                return found[0].parent
    pytest.skip(f"no {HEADER} in /usr/include, and ONNXRUNTIME_INCLUDE does not name its folder")


def _members() -> list[str]:
    """Return a check of each member that ort_api.h declares, so that none can be forgotten."""
    text = (OWN / "ort_api.h").read_text()
    checks = []
    for struct, macro in STRUCTS.items():
        found = re.search(rf"struct {struct} \{{\n(.*?)\n\}};", text, re.DOTALL)
        assert found is not None
        names = re.findall(r"\(\*(\w+)\)\(", found[1])
        # The parameter of ParallelFor is a function of its own.
        checks += [f"{macro}({name});" for name in names if name != "task"]
    return checks


def _compile(text: str, folder: Path, include: Path) -> subprocess.CompletedProcess[str]:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    source = folder / "abi_check.cc"
    source.write_text(text)
    command = [compiler, "-std=c++17", "-fsyntax-only", f"-I{include}", f"-I{OWN}", str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_declarations_are_those_of_onnx_runtime(tmp_path: Path) -> None:
    include = _folder_of_header()
    checks = _members()
    assert len(checks) > 50
    text = (HERE / "abi_check.cc").read_text().replace("@MEMBERS@", "\n".join(checks))
    found = _compile(text, tmp_path, include)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ("MEMBER(ours::Api, OrtApi, GetDimensions); OTHER(GetDimensions, SetDimensions);", "other"),
        ("VALUE(kFail, ORT_INVALID_ARGUMENT);", "static"),
    ],
)
def test_a_difference_is_noticed(tmp_path: Path, wrong: str, complaint: str) -> None:
    include = _folder_of_header()
    other = (
        "#define OTHER(a, b) "
        'static_assert(Same<decltype(ours::Api::a), decltype(OrtApi::b)>::value, "other")\n'
    )
    text = (HERE / "abi_check.cc").read_text().replace("@MEMBERS@", other + wrong)
    found = _compile(text, tmp_path, include)
    assert found.returncode != 0
    assert complaint in found.stderr
