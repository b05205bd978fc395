"""Runs the op library's kernels on emulated processors: Arm ones, and older x86-64 ones.

It needs cmake, the cross compiler (g++-aarch64-linux-gnu) and user mode emulation
(qemu-user-static), and says what it leaves out because one of them is missing. With `--runtime`
models run too, in ONNX Runtime for aarch64.

The exit status is 0 if all that ran held, 1 if something did not, 77 if nothing could run.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "custom_ops"
DOWNLOADED = "1.23.2"
PLATFORMS = ("manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
NOTHING_RAN = 77


class FailedError(Exception):
    """A build, or what was built, failed."""


class MissingError(Exception):
    """Something that this machine would need is not there."""


@dataclass(frozen=True)
class Machine:
    """A build of the op library, and the processors that it is tried on.

    Attributes
    ----------
    name
        As CMake and Linux call the architecture.
    needs
        Programs, and the Debian packages that bring them.
    prefix
        What to run a program with, before `-cpu`.
    options
        For CMake.
    best
        The instruction set that is expected to be the best one, for each processor.
    """

    name: str
    needs: dict[str, str]
    prefix: tuple[str, ...]
    options: tuple[str, ...]
    best: dict[str, str]

    def command(self, processor: str) -> list[str]:
        """Return the beginning of a command that runs a program on a processor."""
        return [*self.prefix, "-cpu", processor]

    def missing(self) -> str:
        """Say which programs are not installed; empty if all are."""
        absent = [f"{tool} ({origin})" for tool, origin in self.needs.items() if not _has(tool)]
        return f"not installed: {', '.join(absent)}" if absent else ""


def _has(tool: str) -> bool:
    return shutil.which(tool) is not None


AARCH64 = Machine(
    name="aarch64",
    needs={
        "cmake": "cmake",
        "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
        "qemu-aarch64-static": "qemu-user-static",
    },
    prefix=("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"),
    options=(f"-DCMAKE_TOOLCHAIN_FILE={SOURCES / 'cmake' / 'aarch64-linux-gnu.cmake'}",),
    best={"cortex-a53": "neon", "cortex-a76": "dotprod", "max": "i8mm"},
)
X86_64 = Machine(
    name="x86_64",
    needs={"cmake": "cmake", "c++": "g++", "qemu-x86_64-static": "qemu-user-static"},
    prefix=("qemu-x86_64-static",),
    options=(),
    best={"Nehalem": "scalar", "Haswell": "avx2"},
)


def run(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """Return what a command printed.

    Raises
    ------
    FailedError
        If its status is not 0, with the end of what it printed.
    """
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode != 0:
        end = "\n".join(done.stdout.splitlines()[-20:])
        raise FailedError(f"{' '.join(command)} ended with status {done.returncode}:\n{end}")
    return done.stdout


def build(machine: Machine, folder: Path) -> Path:
    """Build the op library and its tests; return the folder of the build."""
    target = folder / machine.name
    configure = ["cmake", "-S", str(SOURCES), "-B", str(target), "-DONNXLR_BUILD_TESTS=ON"]
    # The toolchain file is for the first time only: CMake warns of it later.
    fresh = not (target / "CMakeCache.txt").exists()
    run([*configure, *(machine.options if fresh else ())])
    run(["cmake", "--build", str(target), "--parallel", str(os.cpu_count() or 1)])
    return target


def check_kernels(machine: Machine, folder: Path) -> Iterator[str]:
    """Run the tests of the kernels on each processor; yield a line for each.

    Raises
    ------
    FailedError
        If a case fails, or the best instruction set is not the expected one.
    """
    for processor, expected in machine.best.items():
        printed = run([*machine.command(processor), str(folder / "tests" / "kernels_test")])
        best = re.search(r"^best: (\w+)$", printed, re.MULTILINE)
        if best is None or best[1] != expected:
            raise FailedError(
                f"{processor}: the best instruction set is {best and best[1]}, expected {expected}."
            )
        yield f"{machine.name} {processor}: best {expected}, {printed.splitlines()[-1]}"


def unpack_runtime(wanted: str, folder: Path) -> Path:
    """Return ONNX Runtime's library from a wheel, which is downloaded where a version is given."""
    wheel = Path(wanted)
    if wheel.suffix != ".whl":
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version", "3.11", "--dest", str(folder)]
        command += [f"--platform={name}" for name in PLATFORMS]
        try:
            run([*command, f"onnxruntime=={wanted}"])
        except FailedError as error:
            raise MissingError(f"onnxruntime {wanted} cannot be downloaded: {error}") from None
        (wheel,) = folder.glob("onnxruntime-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if "/libonnxruntime.so" in name]
        if not names:
            raise MissingError(f"{wheel} holds no libonnxruntime.so; expected a wheel for Linux")
        return Path(archive.extract(names[0], folder))


def check_models(folder: Path, runtime: str) -> Iterator[str]:
    """Run models of each operator, level and instruction set; yield a line for each processor."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    # Not at the top: the kernels alone need neither onnxlr nor numpy.
    from tests.operators.emulated_models import compare, write_models

    with tempfile.TemporaryDirectory() as work:
        library = unpack_runtime(runtime, Path(work))
        cases = write_models(Path(work))
        for processor, isa in AARCH64.best.items():
            for case in cases:
                output = Path(work) / "output.bin"
                command = [*AARCH64.command(processor), str(folder / "tests" / "harness")]
                command += [str(library), str(folder / "libonnxlr_ops.so")]
                command += [str(case.model), str(case.input), str(output)]
                run([*command, *map(str, case.shape)])
                problem = compare(case, output)
                if problem:
                    raise FailedError(f"{processor}, {case.model.stem}: {problem}")
            yield f"aarch64 {processor}: {len(cases)} models agree with numpy, with {isa}"


def check(machine: Machine, folder: Path, runtime: str | None) -> None:
    """Build for one machine, and print what holds and what is left out.

    Raises
    ------
    FailedError
        If something does not hold.
    """
    target = build(machine, folder)
    for line in check_kernels(machine, target):
        print(line, flush=True)
    if machine is not AARCH64 or runtime is None:
        return
    try:
        for line in check_models(target, runtime):
            print(line, flush=True)
    except MissingError as error:
        print(f"{machine.name}: models left out: {error}")


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--runtime",
        nargs="?",
        const=DOWNLOADED,
        metavar="VERSION",
        help="also run models, in this version of onnxruntime, which is downloaded"
        f" (default {DOWNLOADED}), or in a wheel that is there",
    )
    parser.add_argument(
        "--build", type=Path, default=ROOT / "build" / "emulated", help="where to build"
    )
    parser.add_argument("--machine", choices=("aarch64", "x86_64"), help="only this one of the two")
    return parser.parse_args()


def main() -> int:
    """Check each machine; return the exit status."""
    wanted = arguments()
    machines = [AARCH64]
    if platform.machine() in ("x86_64", "AMD64"):
        machines.append(X86_64)
    results = []
    for machine in machines:
        if wanted.machine not in (None, machine.name):
            continue
        missing = machine.missing()
        if missing:
            print(f"{machine.name} left out: {missing}")
            continue
        try:
            check(machine, wanted.build, wanted.runtime)
            results.append(True)
        except FailedError as error:
            print(f"{machine.name}: {error}", file=sys.stderr)
            results.append(False)
    return NOTHING_RAN if not results else 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
