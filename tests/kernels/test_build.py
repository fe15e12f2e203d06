"""Installing where there is no compiler."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build(hook: str, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What pip does, without its virtual environment."""
    code = f"from scikit_build_core.build import {hook}; {hook}({str(out)!r}, {{'build-dir': {str(out / 'build')!r}}})"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "CXX": "/nonexistent/g++", **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize("hook", ["build_wheel", "build_editable"])
def test_without_a_compiler_the_package_is_built_without_the_extension(hook: str, tmp_path: Path) -> None:
    done = build(hook, tmp_path)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith(".so")]
    assert any(name.endswith(".dist-info/METADATA") for name in names)
    assert ("inferloom/kernels/native/library.py" in names) == (hook == "build_wheel")


def test_where_the_extension_is_required_a_failed_build_is_an_error(tmp_path: Path) -> None:
    done = build("build_wheel", tmp_path, INFERLOOM_REQUIRE_NATIVE="1")
    assert done.returncode != 0
    assert "/nonexistent/g++" in done.stdout + done.stderr
