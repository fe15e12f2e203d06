"""What is wrong with a configuration: gathered while it is checked, told all at once, each with its place."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from inferloom.config.lines import Path, line_of
from inferloom.errors import ConfigError


def dotted(path: Path) -> str:
    """A path as `config set` takes it: `model.0.driver.device`."""
    return ".".join(str(segment) for segment in path)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?`, or nothing if no known word is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""


class Problems:
    """Sentences about places in one configuration. `origin` is a path, or what else the values came from."""

    def __init__(self, origin: str, lines: dict[Path, int] | None = None) -> None:
        self.origin = origin
        self.lines = lines or {}
        self.found: list[tuple[int, str]] = []

    def add(self, path: Path, sentence: str) -> None:
        line = line_of(self.lines, path)
        place = f"{self.origin}:{line}" if line is not None else self.origin
        entry = (line or 0, f"{place}: {sentence}")
        if entry not in self.found:
            self.found.append(entry)

    def raise_if_any(self) -> None:
        """Raise one ConfigError with every problem, a line each, in the order of the file."""
        if self.found:
            raise ConfigError(
                "\n".join(sentence for _, sentence in sorted(self.found, key=lambda item: item[0]))
            )
