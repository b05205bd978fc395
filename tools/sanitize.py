"""Build the op library with sanitizers and run its tests on it.

    python tools/sanitize.py [--folder build/sanitize] [address] [thread]

`address` (with undefined behaviour) runs tests/operators in Python. `thread` runs a program of its
own, tests/operators/race_check.cc: ThreadSanitizer sees only code that it has compiled, so ONNX
Runtime's thread pool would look like races. Needs Linux, CMake and gcc.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ["hostile", "fuzz", "models", "concurrent", "conv", "matmul", "registration"]
SANITIZERS = {"address": "address,undefined", "thread": "thread"}


def build(kind: str, folder: Path) -> Path:
    """Build the library with a kind of sanitizer and return its file."""
    flags = [f"-DONNXLR_SANITIZE={SANITIZERS[kind]}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"]
    run(["cmake", "-S", str(ROOT / "custom_ops"), "-B", str(folder), *flags])
    run(["cmake", "--build", str(folder), "--target", "onnxlr_ops", "--parallel", "2"])
    return folder / "libonnxlr_ops.so"


def run(command: list[str], **environment: str) -> None:
    """Run a command; end with its exit code if it fails."""
    found = subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=False)
    if found.returncode:
        sys.exit(found.returncode)


def runtime_of(name: str) -> str:
    """Return the file of a library of the compiler."""
    command = [os.environ.get("CXX", "g++"), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def check_addresses(library: Path) -> None:
    """Run the tests in a Python that has the sanitizer's runtime loaded first."""
    # libstdc++ as well: the sanitizer must find its functions to throw exceptions when it starts.
    preloaded = " ".join(map(runtime_of, ["libasan.so", "libubsan.so", "libstdc++.so.6"]))
    tests = [f"tests/operators/test_{name}.py" for name in TESTS]
    run(
        # Without capturing: what the sanitizer writes as it ends the process must be seen.
        [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", *tests],
        LD_PRELOAD=preloaded,
        ONNXLR_OPS_LIBRARY=str(library),
        ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1",
        UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1",
    )


def check_threads(library: Path) -> None:
    """Compile race_check.cc against the library and run it on each instruction set."""
    program = library.with_name("race_check")
    source = ROOT / "tests" / "operators" / "race_check.cc"
    compiler = os.environ.get("CXX", "g++")
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", f"-I{ROOT / 'custom_ops'}"]
    linked = [str(library), f"-Wl,-rpath,{library.parent}", "-pthread"]
    run([compiler, *flags, str(source), *linked, "-o", str(program)])
    for isa in ("", "scalar"):
        run([str(program)], ONNXLR_ISA=isa, TSAN_OPTIONS="halt_on_error=1")


def main() -> None:
    """Build and check what is asked for; everything by default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=list(SANITIZERS))
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "sanitize")
    arguments = parser.parse_args()
    unknown = set(arguments.kinds) - set(SANITIZERS)
    if unknown:
        parser.error(f"{', '.join(unknown)}: expected {' or '.join(SANITIZERS)}")
    checks = {"address": check_addresses, "thread": check_threads}
    for kind in arguments.kinds:
        checks[kind](build(kind, arguments.folder.resolve() / kind))


if __name__ == "__main__":
    main()
