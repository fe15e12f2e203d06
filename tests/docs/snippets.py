"""The snippets of the documentation: where they stand, what they run, and whether the output shown is still true."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w*)\s*$")
# Above a block: `<!-- not run: why -->`.
_NOT_RUN = re.compile(r"<!--\s*not run:\s*(.+?)\s*-->")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Snippet:
    """A fenced block: `line` is that of its fence, `why_not` the reason why it is not run."""

    path: Path
    line: int
    language: str
    text: str
    why_not: str | None = None

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A line after `$ `, with its continuations, and the output shown below it."""

    text: str
    output: str


def snippets(path: Path) -> list[Snippet]:
    """Every fenced block of a Markdown file, in order."""
    found: list[Snippet] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        fence = _FENCE.match(lines[at].strip())
        if fence is None:
            at += 1
            continue
        start = at
        at += 1
        body: list[str] = []
        while lines[at].strip() != "```":
            body.append(lines[at])
            at += 1
        at += 1
        before = next((line for line in reversed(lines[:start]) if line.strip()), "")
        reason = _NOT_RUN.search(before)
        found.append(
            Snippet(path, start + 1, fence[1], "\n".join(body) + "\n", reason[1] if reason else None)
        )
    return found


def commands(text: str) -> list[Command]:
    """The commands of a `console` block. A command goes on while its line ends with a backslash or a quote is open.

    In a block without any `$ ` every line is a command.
    """
    found: list[Command] = []
    lines = text.splitlines()
    if not any(line.startswith("$ ") for line in lines):
        lines = [f"$ {line}" for line in lines if line.strip()]
    at = 0
    while at < len(lines):
        assert lines[at].startswith("$ "), f"a console block starts with `$ `, not with {lines[at]!r}"
        command = [lines[at][2:]]
        at += 1
        while at < len(lines) and (command[-1].endswith("\\") or "\n".join(command).count("'") % 2):
            command.append(lines[at].removeprefix("> "))
            at += 1
        output: list[str] = []
        while at < len(lines) and not lines[at].startswith("$ "):
            output.append(lines[at])
            at += 1
        found.append(Command("\n".join(command), "\n".join(output)))
    return found


def differs(shown: str, actual: str) -> str | None:
    """What is wrong with the output shown, or None.

    JSON is compared by its shape (keys and kinds of values), text with every number taken as the same. `...` or `…`
    stands for any text in a line, a line of its own for any lines, a JSON string `"..."` for any value.
    """
    if not shown.strip():
        return None
    expected, found = _json(shown), _json(actual)
    if expected is not None and found is not None:
        return _shape_differs(expected, found, "$")
    return _lines_differ(shown.strip().splitlines(), actual.strip().splitlines())


def _json(text: str) -> object | None:
    try:
        value: object = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict | list) else None


def _shape_differs(shown: object, actual: object, where: str) -> str | None:
    if shown == "..." or shown == "…":
        return None
    if isinstance(shown, dict) and isinstance(actual, dict):
        if "..." not in shown and shown.keys() != actual.keys():
            return f"{where} has the keys {sorted(actual)}, not {sorted(shown)}"
        for key in shown:
            if key == "...":
                continue
            if key not in actual:
                return f"{where} has no key {key}"
            problem = _shape_differs(shown[key], actual[key], f"{where}.{key}")
            if problem:
                return problem
        return None
    if isinstance(shown, list) and isinstance(actual, list):
        if bool(shown) != bool(actual):
            return f"{where} has {len(actual)} items, not {len(shown)}"
        if "..." not in shown and "…" not in shown and len(shown) != len(actual):
            return f"{where} has {len(actual)} items, not {len(shown)}"
        pairs = zip(shown, actual, strict=False)
        return next(
            (problem for one, two in pairs if (problem := _shape_differs(one, two, f"{where}[]"))), None
        )
    if _kind(shown) != _kind(actual):
        return f"{where} is {actual!r}, not {shown!r}"
    return None


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else type(value).__name__


def _lines_differ(shown: Sequence[str], actual: Sequence[str]) -> str | None:
    # reachable[j]: the lines of `shown` so far can stand for the first j lines of `actual`
    reachable = {0}
    for line in shown:
        if line.strip() in ("...", "…"):
            reachable = set(range(min(reachable), len(actual) + 1))
        else:
            reachable = {at + 1 for at in reachable if at < len(actual) and _line_matches(line, actual[at])}
        if not reachable:
            return f"{line!r} is not in the output:\n" + "\n".join(actual)
    if len(actual) not in reachable:
        return "the output goes on after what is shown:\n" + "\n".join(actual)
    return None


def _line_matches(shown: str, actual: str) -> bool:
    prefix = "data: "
    expected, found = _json(shown.removeprefix(prefix)), _json(actual.removeprefix(prefix))
    if expected is not None and found is not None:
        return shown.startswith(prefix) == actual.startswith(prefix) and not _shape_differs(
            expected, found, "$"
        )
    parts = re.split(r"\.\.\.|…", _plain(shown))
    return re.fullmatch(".*".join(re.escape(part) for part in parts), _plain(actual)) is not None


def _plain(line: str) -> str:
    return " ".join(_NUMBER.sub("0", line).split())
