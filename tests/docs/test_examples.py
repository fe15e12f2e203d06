"""Every example runs against a server with the starter models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAYS = {
    "stream.py": "The capital of France is Paris.\n(33 tokens in, 7 out)\n",
    "structured.py": "weather {'city': ",
    "search.py": "  The train to Rome leaves at noon.\n",
}


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_does_what_it_says(example: Path, reader: tuple[Path, dict[str, str]]) -> None:
    folder, environment = reader
    done = subprocess.run(
        [sys.executable, str(example)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[example.name] in done.stdout
