"""`inferloom cache` as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from factories import gguf

from inferloom.formats.prepare import locate, prepare
from inferloom.formats.weights import open_weights


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFERLOOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "inferloom.cli.app", "cache", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_an_empty_cache_is_listed(cache: Path) -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"0.0 MB in {cache}; 0.0 MB of 53.7 GB")
    assert run("path").stdout.strip() == str(cache)
    assert run("clear").stdout == "removed 0 of 0, 0.0 MB\n"


def test_entries_are_listed_with_size_use_and_key(tmp_path: Path, cache: Path) -> None:
    path = gguf.write(tmp_path / "m.gguf")
    folder = Path(prepare(str(path)).folder)
    prepare(str(path), quantization="int8")
    download = cache / "models" / "carried-1.0-abc"
    download.mkdir(parents=True)
    (download / "model.gguf").write_bytes(b"x" * 3_000_000)
    then = time.time() - 7300
    os.utime(folder / "inferloom.json", (then, then))
    lines = run(INFERLOOM_CACHE_LIMIT="2GB").stdout.splitlines()
    assert lines[0].split() == ["NAME", "WHAT", "SIZE", "LAST", "USED", "KEY"]
    rows = {line.split()[0]: line for line in lines[1:-1]}
    assert (
        "converted" in rows["m.gguf"]
        and "2 hours ago" in rows["m.gguf"]
        and folder.name[:12] in rows["m.gguf"]
    )
    assert "packed int8" in rows["m"] and "just now" in rows["m"]
    assert "downloaded" in rows["carried-1.0-abc"] and "3.0 MB" in rows["carried-1.0-abc"]
    assert "of 2.0 GB for converted and packed weights" in lines[-1]


def test_clearing_leaves_downloads_alone_unless_they_are_named(tmp_path: Path, cache: Path) -> None:
    path = gguf.write(tmp_path / "m.gguf")
    prepare(str(path))
    download = cache / "models" / "carried-1.0-abc"
    download.mkdir(parents=True)
    (download / "model.gguf").write_bytes(b"x")
    assert run("clear").stdout.startswith("removed 1 of 1")
    assert locate(str(path)) is None
    assert download.exists()
    assert run("clear", "carried-1.0-abc").returncode == 0
    assert not download.exists()


def test_an_entry_is_cleared_by_name_or_key(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        gguf.write(tmp_path / f"{name}.gguf", keys={"general.name": name})
    folders = {name: Path(prepare(str(tmp_path / f"{name}.gguf")).folder) for name in ("a", "b", "c")}
    assert run("clear", "a.gguf").returncode == 0
    assert run("clear", folders["b"].name[:12]).returncode == 0
    assert [folder.exists() for folder in folders.values()] == [False, False, True]
    done = run("clear", "nothing")
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: the cache holds nothing called 'nothing'; `inferloom cache` says what it holds.\n"
    )


def test_what_is_mapped_is_not_cleared(tmp_path: Path) -> None:
    path = gguf.write(tmp_path / "m.gguf")
    weights = open_weights(prepare(str(path)))
    assert "in use" in run().stdout
    assert run("clear").stdout == "removed 0 of 1, 0.0 MB; in use: m.gguf\n"
    done = run("clear", "m.gguf")
    assert done.returncode == 1
    assert "m.gguf is in use by a model that is loaded; unload it first" in done.stderr
    weights.close()
    assert run("clear", "m.gguf").stdout.startswith("removed 1 of 1")


def test_a_limit_that_is_no_size_is_a_usage_error() -> None:
    done = run(INFERLOOM_CACHE_LIMIT="lots")
    assert done.returncode == 2
    assert "INFERLOOM_CACHE_LIMIT is 'lots': write \"20GB\"" in done.stderr
