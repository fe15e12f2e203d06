"""What a process that is not a worker may have in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROBE = """
import json, sys
try:
    {code}
finally:
    sys.stdout.flush()
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(code=code)], capture_output=True, text=True, check=False
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_help_imports_nothing_heavy() -> None:
    modules = modules_after("from inferloom.cli.app import main; main(['--help'])")
    heavy = {
        "torch",
        "transformers",
        "numpy",
        "starlette",
        "uvicorn",
        "tokenizers",
        "jinja2",
        "huggingface_hub",
    }
    assert modules & heavy == set()
    assert {name for name in modules if name.startswith("inferloom.")} == {
        "inferloom.cli",
        "inferloom.cli.app",
        "inferloom.errors",
    }


@pytest.mark.parametrize(
    "module",
    [
        "inferloom.gateway.server",
        "inferloom.gateway.app",
        "inferloom.catalog.catalog",
        "inferloom.runners.local",
        "inferloom.worker.pool",
        "inferloom.text.codec",
        "inferloom.formats.prepare",
        "inferloom.cli.serve",
        "inferloom.cli.chat",
    ],
)
def test_the_gateways_modules_import_no_torch(module: str) -> None:
    modules = modules_after(f"import {module}")
    assert module in modules
    assert modules & {"torch", "transformers", "numpy"} == set()


def test_a_module_is_run_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "inferloom", "--version"],
        capture_output=True,
        text=True,
        env=os.environ | {"LC_ALL": "C"},
    )
    assert (done.returncode, done.stdout) == (0, "inferloom 0.1.0\n")
