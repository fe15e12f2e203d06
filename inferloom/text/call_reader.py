"""One JSON object that is a tool call, read while it arrives: first the name, then its arguments piece by piece."""

from __future__ import annotations

import re
from collections.abc import Container

import msgspec

_NAME_KEYS = frozenset({"name"})
_ARGUMENT_KEYS = frozenset({"arguments", "parameters"})
_STRUCTURAL = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'["\\]')
_SCALAR_END = re.compile(r"[\s,}\]]")
_SPACE = " \t\r\n"


class JsonScanner:
    """Finds the end of one JSON value that arrives in pieces. It follows strings and brackets, nothing more."""

    __slots__ = ("_depth", "_escaped", "_in_string", "first")

    def __init__(self) -> None:
        self.first = ""  # the value's first character
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def scan(self, text: str, start: int) -> int:
        """The index after the value's last character, or -1 while it goes on. `start` is at its first character
        (no white space) or where the piece before it ended."""
        position = start
        if not self.first:
            self.first = text[start]
        if self.first not in '"{[':
            end = _SCALAR_END.search(text, position)
            return end.start() if end else -1
        while position < len(text):
            if self._escaped:
                self._escaped = False
                position += 1
                continue
            found = (_IN_STRING if self._in_string else _STRUCTURAL).search(text, position)
            if found is None:
                return -1
            character = found.group()
            position = found.end()
            if character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = not self._in_string
            elif character in "{[":
                self._depth += 1
            else:
                self._depth -= 1
            if self._depth <= 0 and not self._in_string:
                return position
        return -1


class CallReader:
    """Reads `{"name": …, "arguments": {…}}`, in either order, other keys passed over.

    `feed` gives how far it came; what became known lies in `name` (once) and `take()`. Nothing is told before both
    the name and the beginning of the arguments are there, so a call that is told of is a call. Once `bad`, what was
    read is no call, or goes on as none; nothing more is used.
    """

    def __init__(self, names: Container[str]) -> None:
        self._names = names
        self._state = "open"
        self._scanner = JsonScanner()
        self._value = ""  # the key's or value's text so far
        self._key = ""
        self._pending = ""  # arguments not yet taken
        self._has_arguments = False
        self.name: str | None = None
        self.done = False
        self.bad = False

    @property
    def announced(self) -> bool:
        """Whether name and arguments are certain enough to be told."""
        return self.name in self._names and self._has_arguments

    def take(self) -> str:
        """The arguments' text that came since the last call; only once `announced`."""
        taken, self._pending = self._pending, ""
        return taken

    def feed(self, text: str, position: int) -> int:
        """Read on at `position`; the index after what was used."""
        while position < len(text) and not self.done and not self.bad:
            if self._state in ("key", "value"):
                position = self._read_value(text, position)
            elif text[position] in _SPACE:
                position += 1
            else:
                position += self._step(text[position])
        return position

    def _step(self, character: str) -> int:
        """One structural character; 0 where it begins a key or value and is still to be read as such."""
        state = self._state
        if state == "open" and character == "{":
            self._state = "first"
        elif state == "first" and character == "}":
            self._finish()
        elif state in ("first", "next") and character == '"':
            return self._begin("key")
        elif state == "colon" and character == ":":
            self._state = "before value"
        elif state == "before value":
            return self._begin("value")
        elif state == "after value" and character == ",":
            self._state = "next"
        elif state == "after value" and character == "}":
            self._finish()
        else:
            self.bad = True
            return 0
        return 1

    def _begin(self, state: str) -> int:
        self._state = state
        self._scanner = JsonScanner()
        self._value = ""
        return 0

    def _read_value(self, text: str, position: int) -> int:
        end = self._scanner.scan(text, position)
        piece = text[position:] if end < 0 else text[position:end]
        if self._state == "value" and self._key in _ARGUMENT_KEYS and self._scanner.first == "{":
            self._pending += piece
            self._has_arguments = True
        else:
            self._value += piece
        if end < 0:
            return len(text)
        if self._state == "key":
            self._key = self._decode(self._value)
            self._state = "colon"
        else:
            self._take_value()
            self._state = "after value"
        return end

    def _take_value(self) -> None:
        if self._key in _NAME_KEYS:
            self.name = self._decode(self._value)
            self.bad = self.bad or self.name not in self._names
        elif self._key in _ARGUMENT_KEYS and self._scanner.first != "{":
            # some models write the object as a string, or nothing at all
            arguments = "{}" if self._value == "null" else self._decode(self._value)
            if arguments.lstrip().startswith("{"):
                self._pending += arguments
                self._has_arguments = True
            else:
                self.bad = True

    def _finish(self) -> None:
        if self.name is None:
            self.bad = True
            return
        if not self._has_arguments:
            self._pending, self._has_arguments = "{}", True
        self.done = True

    def _decode(self, value: str) -> str:
        """The text that a JSON string stands for."""
        try:
            return msgspec.json.decode(value, type=str)
        except msgspec.DecodeError:
            self.bad = True
            return ""
