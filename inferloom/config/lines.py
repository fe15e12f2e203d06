"""On which line of a TOML document a key stands.

`tomllib` gives values without positions and tomlkit keeps them to itself, so this walks the text once more. It
relies on the text being valid TOML, which `tomllib` has established before.
"""

from __future__ import annotations

import json
import re

Path = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)+")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}\r\n#]+")
_STRINGS = (
    ('"""', re.compile(r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}', re.DOTALL)),
    ("'''", re.compile(r"'''.*?'{3,5}", re.DOTALL)),
    ('"', re.compile(r'"(?:[^"\\\n]|\\.)*"')),
    ("'", re.compile(r"'[^'\n]*'")),
)


def key_lines(text: str) -> dict[Path, int]:
    """The line, counted from 1, of every table, key and array element; array elements have integer segments."""
    return _Scanner(text).document()


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """The line of `path`, or of the closest thing around it that is written down."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line = 1
        self.counted = 0  # position up to which newlines are in `line`
        self.lines: dict[Path, int] = {}
        self.tables: dict[Path, int] = {}  # array of tables -> index of the one being filled

    def document(self) -> dict[Path, int]:
        here: Path = ()
        while True:
            self._skip(_BLANK)
            if self.at >= len(self.text):
                return self.lines
            if self.text.startswith("[[", self.at):
                here = self._array_header()
            elif self.text[self.at] == "[":
                self.at += 1
                here = self._place(self._key())
                self._note(here)
                self.at += 1
            else:
                self._pair(here)

    def _array_header(self) -> Path:
        self.at += 2
        array = self._place(self._key(), last=False)
        index = self.tables.get(array, -1) + 1
        self.tables[array] = index
        self._note((*array, index))
        self.at += 2
        return (*array, index)

    def _place(self, key: Path, *, last: bool = True) -> Path:
        """`key` with the index of every array of tables on the way; of the last segment only if `last`."""
        place: Path = ()
        for number, segment in enumerate(key):
            place = (*place, segment)
            if place in self.tables and (last or number < len(key) - 1):
                place = (*place, self.tables[place])
        return place

    def _pair(self, here: Path) -> None:
        line = self._line()
        path = here
        for segment in self._key():
            path = (*path, segment)
            self.lines.setdefault(path, line)
        self._skip(_SPACE)
        self.at += 1  # =
        self._skip(_SPACE)
        self._value(path)

    def _key(self) -> Path:
        parts: list[str] = []
        while True:
            self._skip(_SPACE)
            quote = self.text[self.at]
            if quote in "\"'":
                token = self._take(_STRINGS[2][1] if quote == '"' else _STRINGS[3][1])
                parts.append(_unquoted(token))
            else:
                parts.append(self._take(_BARE_KEY))
            self._skip(_SPACE)
            if self.at >= len(self.text) or self.text[self.at] != ".":
                return tuple(parts)
            self.at += 1

    def _value(self, path: Path) -> None:
        char = self.text[self.at]
        if char == "[":
            self._sequence(path, "]")
        elif char == "{":
            self._sequence(path, "}")
        else:
            for opening, pattern in _STRINGS:
                if self.text.startswith(opening, self.at):
                    self._take(pattern)
                    return
            self._take(_SCALAR)

    def _sequence(self, path: Path, closing: str) -> None:
        self.at += 1
        index = 0
        while True:
            self._skip(_BLANK)
            char = self.text[self.at]
            if char == closing:
                self.at += 1
                return
            if char == ",":
                self.at += 1
            elif closing == "}":
                self._pair(path)
            else:
                self._note((*path, index))
                self._value((*path, index))
                index += 1

    def _note(self, path: Path) -> None:
        line = self._line()
        for length in range(1, len(path) + 1):  # a header may open the tables around it as well
            self.lines.setdefault(path[:length], line)

    def _line(self) -> int:
        self.line += self.text.count("\n", self.counted, self.at)
        self.counted = self.at
        return self.line

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        assert match, f"not valid TOML at character {self.at}"
        self.at = match.end()
        return match.group()


def _unquoted(token: str) -> str:
    if token[0] == "'":
        return token[1:-1]
    try:
        return str(json.loads(token))
    except ValueError:  # an escape of TOML that JSON lacks, such as \\U: the line matters, not the spelling
        return token[1:-1]
