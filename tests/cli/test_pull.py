"""`inferloom pull` as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from factories import gguf

from inferloom.sources.table import SHORT_NAMES


def run(*arguments: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "inferloom.cli.app", "pull", *arguments],
        env={**os.environ, "INFERLOOM_CACHE": str(cache), **environment},
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_a_file_is_made_ready_and_its_place_is_said(tmp_path: Path) -> None:
    path = gguf.write(tmp_path / "small.gguf")
    for _ in range(2):
        done = run(str(path), cache=tmp_path / "cache")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("small is ready: ")
        assert str(tmp_path / "cache") in done.stdout


def test_the_list_has_every_short_name_with_its_source(tmp_path: Path) -> None:
    done = run("--list", cache=tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == len(SHORT_NAMES) + 1
    for line, row in zip(lines[1:], SHORT_NAMES.values(), strict=True):
        assert line.split()[0] == row.name
        assert row.source in line
        assert row.licence in line


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        ("nosuchname", 2, "error: 'nosuchname' is neither an existing path, nor a short name"),
        ("./nothing", 2, "error: there is no file or folder './nothing'"),
        ("pypi:name", 2, "with an exact version"),
        (".", 1, "error: invalid format: "),
        ("owner/name", 1, "error: HF_HUB_OFFLINE is set, and owner/name is not complete in the hub's cache"),
    ],
)
def test_what_cannot_be_pulled_is_one_sentence(source: str, code: int, says: str, tmp_path: Path) -> None:
    done = run(source, cache=tmp_path, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_name_it_says_what_to_write(tmp_path: Path) -> None:
    done = run(cache=tmp_path)
    assert done.returncode == 2
    assert "inferloom pull smollm2" in done.stderr
