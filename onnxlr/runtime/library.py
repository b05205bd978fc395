"""The op library: where it is, what it says of itself, and how ONNX Runtime is told of it."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from weakref import WeakSet

import onnxruntime as ort

from onnxlr.errors import LibraryError, LibraryMissingError

__all__ = [
    "LIBRARY_VARIABLE",
    "OpsDescription",
    "describe_ops",
    "get_library_path",
    "register_ops",
]

LIBRARY_VARIABLE = "ONNXLR_OPS_LIBRARY"
"""Environment variable: the library's file, or `off` to run without one."""

ISA_VARIABLE = "ONNXLR_ISA"
"""Environment variable: the instruction set to use, instead of the best."""

_FILES = ("libonnxlr_ops.so", "libonnxlr_ops.dylib", "onnxlr_ops.dll")
_NOT_BUILT = (
    "this installation of onnxlr has no op library, as where pip finds no C++ compiler; install "
    "one (on Debian and Ubuntu: apt install g++) and repeat pip install with ONNXLR_OPS=required "
    "in the environment and --force-reinstall --no-cache-dir --no-deps, so that it builds or says "
    "why not"
)

_registered: WeakSet[ort.SessionOptions] = WeakSet()


@dataclass(frozen=True)
class OpsDescription:
    """What is known of the op library.

    Attributes
    ----------
    library
        Its file; None where there is none.
    version, layout
        The library's version, and the version of the packed format it reads; None where it cannot
        be loaded.
    isa
        Instruction set whose kernels it runs.
    available
        Instruction sets that it could run on this machine, the best first.
    onnxruntime
        Version of ONNX Runtime.
    problem
        Why there is no library, or why it cannot be used, and what to do; None where it can.
    """

    library: str | None
    version: str | None
    layout: int | None
    isa: str | None
    available: tuple[str, ...]
    onnxruntime: str
    problem: str | None


def get_library_path() -> str:
    """Return the op library's file, for `onnxruntime.SessionOptions.register_custom_ops_library`.

    It is the one that the environment variable ONNXLR_OPS_LIBRARY names, or the one that was
    installed with this package.

    Raises
    ------
    LibraryMissingError
        If there is none.
    LibraryError
        If the variable names no file.
    """
    named = os.environ.get(LIBRARY_VARIABLE)
    if named == "off":
        raise LibraryMissingError(f"the op library is turned off by {LIBRARY_VARIABLE}=off")
    if named:
        if not Path(named).is_file():
            raise LibraryError(
                f"{LIBRARY_VARIABLE} names '{named}', which is no file; let it name the op "
                "library, or unset it to use the installed one"
            )
        return named
    for folder in _folders():
        for name in _FILES:
            if (file := folder / name).is_file():
                return str(file)
    raise LibraryMissingError(_NOT_BUILT)


def register_ops(options: ort.SessionOptions) -> None:
    """Let sessions made with these options use the op library's kernels.

    A second call for the same options does nothing: ONNX Runtime refuses to make a session when a
    library is registered twice, so do not register it in another way beside this.

    Raises
    ------
    LibraryError
        If there is no library, or ONNX Runtime cannot load it.
    """
    if options in _registered:
        return
    file = get_library_path()
    try:
        options.register_custom_ops_library(file)
    except Exception as error:  # noqa: BLE001  (its exceptions share no base class)
        raise LibraryError(
            f"ONNX Runtime {ort.__version__} cannot load the op library {file}: "
            f"{' '.join(str(error).split())}"
        ) from None
    _registered.add(options)


def describe_ops() -> OpsDescription:
    """Return what is known of the op library; where there is none, why."""
    file: str | None = None
    said: dict[str, str] = {}
    problem = None
    try:
        file = get_library_path()
        said = _ask(file)
    except LibraryError as error:
        problem = str(error)
    available = said.get("available", "").split(",")
    if said and not said["isa"]:
        problem = (
            f"{ISA_VARIABLE} names '{os.environ.get(ISA_VARIABLE)}', which the op library does not "
            f"have on this machine: it has {', '.join(available)}"
        )
    return OpsDescription(
        library=file,
        version=said.get("version"),
        layout=int(said["layout"]) if said else None,
        isa=said.get("isa") or None,
        available=tuple(filter(None, available)),
        onnxruntime=ort.__version__,
        problem=problem,
    )


def _folders() -> list[Path]:
    """Return where a library may have been installed.

    Beside the package, where a wheel puts both; of an editable install, only the library lies in
    the environment. A wheel's package does not look at what else the environment has.
    """
    package = Path(__file__).parents[1]
    found = {Path(str(d.locate_file(package.name))): d for d in distributions(name=package.name)}
    if package in found and found[package].read_text("RECORD") is not None:
        return [package]
    return [package, *found]


def _ask(file: str) -> dict[str, str]:
    """Return what the library says of itself, `key=value;…`, by key.

    Raises
    ------
    LibraryError
        If it cannot be loaded, or is another library.
    """
    try:
        describe = ctypes.CDLL(file).OnnxlrOpsDescription
    except (OSError, AttributeError) as error:
        raise LibraryError(f"{file} cannot be used as the op library: {error}") from None
    describe.restype = ctypes.c_char_p
    text: str = describe().decode()
    said = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    if not {"version", "layout", "isa", "available"} <= said.keys():
        raise LibraryError(f"{file} is no op library of onnxlr: it says '{text}' of itself")
    return said
