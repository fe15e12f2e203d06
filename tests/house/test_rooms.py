"""The rules of the house that a program can check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "inferloom"
SOURCES = sorted(
    [*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
)
ROOMS = sorted(path.parent for path in PACKAGE.rglob("__init__.py"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("room", ROOMS, ids=relative)
def test_every_room_says_what_it_is_about(room: Path) -> None:
    assert ast.get_docstring(ast.parse((room / "__init__.py").read_text())), (
        f"{relative(room)} has no docstring"
    )


def test_every_file_fits_in_a_head() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 450} == {}


def test_no_file_is_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert [relative(path) for path in SOURCES if path.stem in drawers] == []


def test_nothing_is_left_for_later() -> None:
    # Put together here so that this file does not find itself.
    marks = re.compile(
        "|".join([r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b", r"\bXX" + r"X\b", "raise NotImplemented" + "Error"])
    )
    assert [relative(path) for path in SOURCES if marks.search(path.read_text())] == []


def test_no_error_is_swallowed_whole() -> None:
    def swallows(handler: ast.ExceptHandler) -> bool:
        broad = handler.type is None or (
            isinstance(handler.type, ast.Name) and handler.type.id in ("Exception", "BaseException")
        )
        return broad and all(isinstance(line, (ast.Pass, ast.Continue)) for line in handler.body)

    found = [
        f"{relative(path)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and swallows(node)
    ]
    assert found == []


def test_no_test_is_passed_over() -> None:
    # A test that needs what a machine may lack belongs behind a marker that the suite documents, not a silent skip.
    mark = re.compile(r"mark\.(skip|xfail)\b|pytest\.(skip|xfail)\(")
    here = Path(__file__)
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path != here]
    assert [relative(path) for path in tests if mark.search(path.read_text())] == []


def test_every_room_of_the_tests_is_a_room_of_the_package() -> None:
    own = {"factories", "house", "docs", "system"}
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir()} | own
    found = {
        path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.rglob("test_*.py"))
    }
    assert found - rooms == set()


def test_imports_go_downwards_only() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_licence_is_here_and_named() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()
