"""Every snippet of the documentation does what the page says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from docs.snippets import Snippet, commands, differs, snippets
from factories.server import Served

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL = [snippet for page in PAGES for snippet in snippets(page)]
RUN = [snippet for snippet in ALL if snippet.why_not is None]

SERVES = ("make serve", "inferloom serve -m smollm2 -m minilm")
MODEL = (
    '\n[[model]]\nname = "smollm2"\nsource = "smollm2"\n[model.driver]\ntype = "native"\ndevice = ["cpu"]\n'
)

Reader = tuple[Path, dict[str, str]]


RUNNABLE = ("console", "python", "toml")


@pytest.mark.parametrize("snippet", [one for one in RUN if one.language in RUNNABLE], ids=str)
def test_snippet(snippet: Snippet, starters: Served, reader: Reader, tmp_path: Path) -> None:
    if snippet.language == "console":
        run_commands(snippet, starters, reader)
    elif snippet.language == "python":
        run_program(snippet, starters, reader)
    else:
        check_configuration(snippet, tmp_path)


def run_commands(snippet: Snippet, starters: Served, reader: Reader) -> None:
    folder, environment = reader
    for command in commands(snippet.text):
        if command.text in SERVES:
            # It is running already: the server of this run printed the same.
            actual = models_in_order(starters.printed.replace(str(starters.port), "8080"))
            problem = differs(command.output, actual)
            assert problem is None, f"{command.text}: {problem}"
            continue
        if command.text.startswith("make "):
            # Its recipes set up environments and run this suite: here, that the target is one is what can be said.
            listed = subprocess.run(
                ["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True
            ).stdout
            assert f"make {command.text.split()[1]} " in listed
            continue
        done = subprocess.run(
            ["bash", "-c", command.text.replace("127.0.0.1:8080", f"127.0.0.1:{starters.port}")],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, f"{command.text}\n{done.stdout}{done.stderr}"
        actual = done.stdout.replace(f":{starters.port}", ":8080").replace(
            environment["INFERLOOM_HOME"], "~/.inferloom"
        )
        problem = differs(command.output, actual)
        assert problem is None, f"{command.text}: {problem}"


def models_in_order(printed: str) -> str:
    """What `serve` printed, with its "ready" lines by name: which model is ready first is chance."""
    lines = printed.splitlines()
    ready = sorted(line for line in lines if " ready in " in line)
    return "\n".join([line for line in lines if " ready in " not in line] + ready)


def run_program(snippet: Snippet, starters: Served, reader: Reader) -> None:
    folder, environment = reader
    program = snippet.text.replace("127.0.0.1:8080", f"127.0.0.1:{starters.port}")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def check_configuration(snippet: Snippet, tmp_path: Path) -> None:
    # A page that is about one section shows that section alone: a file needs a model as well.
    text = snippet.text if "[[model]]" in snippet.text else snippet.text + MODEL
    file = tmp_path / "config.toml"
    file.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "inferloom", "config", "check", "--config", str(file)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_pages_are_here_and_show_something() -> None:
    assert {snippet.language for snippet in RUN} >= {"console"}
    unknown = {str(snippet): snippet.language for snippet in ALL if snippet.language not in LANGUAGES}
    assert unknown == {}, "a block's language is one of these, so that it is known whether it runs"


LANGUAGES = {*RUNNABLE, "json", "text", "ini", "jinja", "yaml", ""}
